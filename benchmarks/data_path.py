"""Images a second of the data path, beside the plain chain of torchvision.

Both decode the same photographs, crop by the same law and scale to 256 pixels:

  plain   Pillow decode, RandomResizedCrop (bicubic), ToTensor, Normalize: float32
  pixio   what `Pixels` does: uint8, normalised later on the device

Once from memory, one thread each, by CPU time; and once end to end, from a folder through the
DataLoader of each with two workers, by the clock. They take turns, so that a machine that slows
down slows both.

Run: python benchmarks/data_path.py [--rounds N] [--out FILE.json]   (with the extra `dev`)
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pixio_lightning.data import Pixels
from pixio_lightning.data.decode import decode_crop, random_crop
from pixio_lightning.data.shards.format import Encoded
from pixio_lightning.data.shards.pack import shard_schema, table_of, write_shard
from pixio_lightning.keyed import RandomKey

SIZES = ((640, 480), (1600, 1200))
SIZE, WORKERS, BATCH = 256, 2, 16
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def photographs(width: int = 640, height: int = 480) -> list[bytes]:
    """Return the photographs that scikit-image and scikit-learn bring as JPEGs of quality 90.

    Larger ones repeat theirs, mirrored, instead of blowing them up: a blurred file is decoded
    sooner than a photograph.
    """
    names = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")
    images = [*load_sample_images().images, *(getattr(data, name)() for name in names)]
    files = []
    for image in images:
        picture = np.asarray(Image.fromarray(image).resize((640, 480), Image.Resampling.BICUBIC))
        while picture.shape[0] < height or picture.shape[1] < width:
            picture = np.concatenate([picture, picture[::-1]])
            picture = np.concatenate([picture, picture[:, ::-1]], axis=1)
        buffer = io.BytesIO()
        Image.fromarray(picture[:height, :width]).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def write_images(
    path: Path, images: list[Encoded], columns: dict[str, np.ndarray] | None = None, *, group: int
) -> None:
    """Write a shard of images, with further columns of one value for each."""
    extra = {name: pa.array(values) for name, values in (columns or {}).items()}
    schema = shard_schema({name: values.type for name, values in extra.items()})
    groups = (
        table_of(images[i : i + group], {n: v[i : i + group] for n, v in extra.items()}, schema)
        for i in range(0, len(images), group)
    )
    path.unlink(missing_ok=True)  # one of this name would be taken for finished
    write_shard(path, "", groups, schema, [])


def plain_chain() -> Callable[[bytes], torch.Tensor]:
    """Return the chain most projects use."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIZE, SCALE, RATIO, interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return lambda encoded: transform(Image.open(io.BytesIO(encoded)).convert("RGB"))


def our_chain() -> Callable[[bytes], Any]:
    """Return what the training stream does with a file; each call draws another crop."""
    keys = iter(range(1 << 62))

    def chain(encoded: bytes) -> Any:
        draw = partial(
            random_crop, random_key=RandomKey(next(keys), 0, 0), scale=SCALE, ratio=RATIO
        )
        return decode_crop(encoded, draw, SIZE, max_megapixels=64)

    return chain


class PlainFolder(Dataset):
    """The files of a folder through the plain chain, again and again."""

    def __init__(self, folder: Path) -> None:
        self.files, self.chain = sorted(folder.glob("*.jpg")), plain_chain()

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, position: int) -> torch.Tensor:
        return self.chain(self.files[position % len(self.files)].read_bytes())


def our_loader(folder: Path) -> Iterator[Any]:
    """Return the batches of `Pixels` over a folder."""
    pixels = Pixels(
        "folder", str(folder), image_size=SIZE, batch_size=BATCH, num_workers=WORKERS, val_images=1
    )
    pixels.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    pixels.setup("fit")
    return iter(pixels.train_dataloader())


def plain_loader(folder: Path) -> Iterator[Any]:
    """Return the batches of a plain DataLoader."""
    return iter(DataLoader(PlainFolder(folder), batch_size=BATCH, num_workers=WORKERS))


def decoded(files: list[bytes], rounds: int) -> dict[str, list[float]]:
    """Return the images a second of CPU time of both chains, in every round."""
    rates: dict[str, list[float]] = {"plain": [], "pixio": []}
    chains = {"plain": plain_chain(), "pixio": our_chain()}
    for number in range(-1, rounds):  # the first one warms up
        for name, chain in chains.items():
            start = time.process_time()
            for encoded in files:
                chain(encoded)
            if number >= 0:
                rates[name].append(len(files) / (time.process_time() - start))
    return rates


def loaded(files: list[bytes], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return the images a second of both loaders, in every round; one runs at a time.

    Both stay open, and one waits with its queue full while the other is measured: a run of hours
    has workers that have long started, whose first second is slower. A round is as long for both:
    batches come in pairs, and one more or less at its end must not count.
    """
    rates: dict[str, list[float]] = {"plain": [], "pixio": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(20):
            for place, encoded in enumerate(files):
                (folder / f"{number:02d}_{place}.jpg").write_bytes(encoded)
        loaders = {"plain": plain_loader(folder), "pixio": our_loader(folder)}
        for number in range(-1, rounds):  # the first one warms up
            for form, loader in loaders.items():
                for _ in range(4 * WORKERS):  # what was prefetched while nobody waited
                    next(loader)
                start, batches, took = time.perf_counter(), 0, 0.0
                while took < seconds or batches % WORKERS:
                    next(loader)
                    batches += 1
                    took = time.perf_counter() - start
                if number >= 0:
                    rates[form].append(batches * BATCH / took)
                time.sleep(3 * WORKERS * took / batches)  # until its queue is full again
        loaders["pixio"].close()  # type: ignore[attr-defined]
    return rates


def main() -> None:
    """Measure at every size, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=6, help="of the photographs, a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.5, help="of a loader and round")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    print(f"{options.rounds} rounds in turns; {WORKERS} workers end to end")
    print("| photographs | | plain | pixio | of the plain chain |\n|---|---|---|---|---|")
    for width, height in SIZES:
        files = photographs(width, height)
        size = f"{width}x{height}"
        repeats = max(1, options.repeats * 640 * 480 // (width * height))
        for name, rates in {
            "one core": decoded(files * repeats, options.rounds),
            "end to end": loaded(files, options.rounds, options.seconds),
        }.items():
            ratios = [a / b for a, b in zip(rates["pixio"], rates["plain"], strict=True)]
            row = {form: statistics.median(values) for form, values in rates.items()}
            row |= {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            figures.setdefault(size, {"kB": sum(map(len, files)) / len(files) / 1000})[name] = row
            print(
                f"| {size}, {figures[size]['kB']:.0f} kB | {name} | {row['plain']:.0f} img/s | "
                f"{row['pixio']:.0f} img/s | {row['ratio']:.2f} "
                f"({row['least']:.2f} to {row['most']:.2f}) |"
            )
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
