"""Unit costs of curation on one core: what the sums of docs/scale.md are made of.

Run: python benchmarks/curation_costs.py   (with the extra `dev`; a minute, needs 1 GB of disk)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from data_path import our_chain, photographs, write_images

from pixio_lightning.curation.materialize import materialize
from pixio_lightning.curation.scores import ScoredImages
from pixio_lightning.data.shards.format import (
    Encoded,
    Shard,
    ShardIndex,
    read_group,
)
from pixio_lightning.data.shards.index import open_index
from pixio_lightning.data.shards.keep_rule import Curation, Histogram, KeepRule, histogram_of
from pixio_lightning.data.shards.score_files import Scores, write_scores
from pixio_lightning.keyed import Purpose, key_of, keyed_numbers


def timed(work: Callable[[], object], n: int) -> float:
    """Return how many of `n` things a second of CPU time does."""
    start = time.process_time()
    work()
    return n / (time.process_time() - start)


def score_files(folder: Path, columns: dict[str, np.ndarray]) -> tuple[float, float]:
    """Write the scores of 20 shards; return bytes an image, and images counted a second."""
    shards = []
    for number in range(20):
        groups = np.full(100, 100, np.int32)
        shard = Shard(f"{number}.parquet", 1, "", groups)
        rows = slice(number * shard.rows, (number + 1) * shard.rows)
        write_scores(folder, shard, {k: v[rows] for k, v in columns.items()}, {})
        shards.append(shard)
    index, curation = ShardIndex("", shards), Curation(scores=str(folder))
    histogram_of(ShardIndex("", shards[:2]), curation)
    size = sum(file.stat().st_size for file in folder.iterdir()) / index.rows
    return size, timed(lambda: histogram_of(index, curation), index.rows)


def waste(index: ShardIndex, rule: KeepRule, *, epoch: int) -> tuple[int, int]:
    """Return the bytes of images that a pass reads, and those of them that it keeps."""
    read = kept = 0
    for group in range(index.n_groups):
        if not rule.takes_group(index, group, epoch=epoch):
            continue
        images = read_group(index, group)
        keep = rule.keep(index, group, images, epoch=epoch)
        sizes = np.array([len(image.data) for image in images])
        read += int(sizes.sum())
        kept += int(sizes[keep].sum())
    return read, kept


def main() -> None:
    """Measure and print one line for each cost."""
    torch.set_num_threads(1)
    files = photographs()
    mean = sum(map(len, files)) / len(files)
    print("| what | on one core |\n|---|---|")
    print(f"| a photograph, 640x480, quality 90 | {mean / 1000:.0f} kB |")
    chains: dict[str, Callable[[bytes], object]] = {
        "decode, crop, scale to 256 (training)": our_chain(),
        "decode, crop, entropy (scoring)": partial(
            ScoredImages.describe, size=256, max_megapixels=64
        ),
    }
    for what, chain in chains.items():
        speed = timed(partial(list, map(chain, files * 40)), 40 * len(files))
        print(f"| {what} | {speed:.0f} images/s |")
    random_key = np.random.default_rng(0)
    n = 4_000_000
    hashes = random_key.integers(-(2**63), 2**63 - 1, n, dtype=np.int64)
    speed = timed(lambda: keyed_numbers(hashes, seed=0, step=0, purpose=Purpose.KEEP), n)
    print(f"| keep or not | {speed / 1e6:.1f} M images/s |")
    scores = Scores(
        np.exp(random_key.normal(-1.05, 0.45, n)),
        random_key.normal(5.5, 0.8, n).clip(0, 9),
        random_key.integers(200, 2000, n).astype(np.int32),
        random_key.integers(200, 2000, n).astype(np.int32),
    )
    paper = Curation(scores="inside")
    speed = timed(lambda: Histogram.empty().plus(scores, paper), n)
    print(f"| calibrate: count a score | {speed / 1e6:.1f} M images/s |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size, speed = score_files(folder / "scores", {"hash": hashes} | scores._asdict())
        print(f"| a score on disk | {size:.0f} bytes |")
        print(f"| calibrate: read a score and count it | {speed / 1e6:.1f} M images/s |")
        shards, rows = folder / "shards", 12_000
        shards.mkdir()
        for number in range(4):
            own = range(number * rows // 4, (number + 1) * rows // 4)
            images = [Encoded(f"{row:08d}", files[row % len(files)]) for row in own]
            columns = {
                "loss": scores.loss[own.start : own.stop].astype(np.float32),
                "entropy": np.full(len(own), 6, np.float32),
                "width": np.full(len(own), 640, np.int32),
                "height": np.full(len(own), 480, np.int32),
            }
            write_images(shards / f"{number}.parquet", images, columns, group=100)
        index = open_index(str(shards))
        speed = timed(lambda: [read_group(index, g) for g in range(index.n_groups)], rows)
        print(f"| read a photograph from a shard, file cache warm | {speed:.0f} images/s |")
        speed = timed(lambda: [key_of(f"{row:08d}") for row in range(rows)], rows)
        print(f"| hash a key | {speed / 1e6:.1f} M/s |")
        rule = KeepRule(paper, 1.0, seed=0)
        read, kept = waste(index, rule, epoch=0)
        print(f"| keep rate of the example | {kept / read:.3f} |")
        print(f"| read for each kept byte, shards as packed | {read / kept:.2f} bytes |")
        binned = materialize(index, rule, folder / "binned")
        totals = np.array([waste(binned, rule, epoch=epoch) for epoch in range(10)]).sum(axis=0)
        print(f"| the same, 16 bins (`--materialize`) | {totals[0] / totals[1]:.3f} bytes |")


if __name__ == "__main__":
    main()
