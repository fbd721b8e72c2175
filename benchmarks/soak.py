"""Memory of the data workers over several passes: does it grow?

Packs photographs into shards, streams them with two workers as training does, and samples the
proportional set size (PSS) of every worker from /proc. Printed are the peak of each pass and the
slope of the peaks after the first pass.

Run: python benchmarks/soak.py [--images N] [--passes N] [--folder DIR]   (with the extra `dev`)
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from data_path import photographs, write_images

from pixio_lightning.data.shards.digests import Digests
from pixio_lightning.data.shards.format import Encoded, ShardIndex
from pixio_lightning.data.shards.index import INDEX, open_index, write_index
from pixio_lightning.data.shards.keep_rule import Curation
from pixio_lightning.data.shards.pack import entry_of
from pixio_lightning.data.shards.set import ShardSet
from pixio_lightning.data.workers import WorkerContext, start_worker


def pack(folder: Path, n: int) -> None:
    """Write `n` photographs, the same few again and again, into four shards."""
    files = photographs()
    entries, digests = [], Digests(folder)
    for number in range(4):
        path = folder / f"{number}.parquet"
        rows = range(number, n, 4)
        images = [Encoded(f"{row:08d}.jpg", files[row % len(files)]) for row in rows]
        write_images(path, images, group=100)
        entries.append(entry_of(path, digests))
    write_index(ShardIndex(str(folder), entries), folder / INDEX)


def pss(process: int) -> float:
    """Return the proportional set size of a process in MB."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("Pss:")]
    return int(line.split()[1]) / 1000


def soak(folder: Path, *, passes: int, workers: int = 2) -> dict[int, list[tuple[float, float]]]:
    """Stream some passes; return (seconds, MB) of the peak in each, by worker."""
    index = open_index(str(folder))
    shards = ShardSet(index, val_path=None, val_images=100, curation=Curation(), seed=0)
    images: dict[str, Any] = {"rank": 0, "world_size": 1, "batch_size": 64, "size": 256}
    images |= {"scale": (0.2, 1.0), "ratio": (0.75, 1.33), "max_megapixels": 64}
    arguments = {"num_workers": workers, "worker_init_fn": start_worker, "timeout": 600}
    arguments |= {"multiprocessing_context": WorkerContext()}
    loader = shards.open(
        images, lambda bad, seen: None, batches=1, arguments=arguments, restart_pass=False
    )
    iterator = iter(loader)
    next(iterator)
    children = [child.pid for child in multiprocessing.active_children() if child.pid]
    samples: dict[int, list[tuple[float, float]]] = {child: [] for child in children}
    start, running = time.monotonic(), True

    def watch() -> None:
        while running:
            for child in children:
                samples[child].append((time.monotonic() - start, pss(child)))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ends = []
    for epoch in range(1, passes + 1):
        while min(block for block, _ in loader.cursors) < epoch * shards.order.blocks_per_pass:
            next(iterator)
        ends.append(time.monotonic() - start)
    running = False
    watcher.join()
    loader.close()
    peaks = {}
    for child, values in samples.items():
        bounds = zip([0.0, *ends[:-1]], ends, strict=True)
        parts = [[v for v in values if low <= v[0] < high] for low, high in bounds]
        peaks[child] = [max(part, key=lambda v: v[1]) for part in parts if part]
    return peaks


def slope(peaks: list[tuple[float, float]]) -> float:
    """Return the growth of the peaks after the first pass, MB a minute."""
    seconds, megabytes = np.array(peaks[1:]).T
    return float(np.polyfit(seconds / 60, megabytes, 1)[0])


def main() -> None:
    """Pack, stream, and print a line for each worker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--folder", help="where to pack; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        pack(Path(folder), options.images)
        found = soak(Path(folder), passes=options.passes)
    print(f"{options.images} images, {options.passes} passes, 2 workers")
    print("| worker | peak of each pass, MB | slope after the first, MB a minute |\n|---|---|---|")
    for number, peaks in enumerate(found.values()):
        shown = " ".join(f"{megabytes:.0f}" for _, megabytes in peaks)
        print(f"| {number} | {shown} | {slope(peaks):+.2f} |")


if __name__ == "__main__":
    main()
