"""Images a second and core of the data path, beside the plain chain of torchvision.

Both decode the same photographs from memory, crop by the same law and scale to 256 pixels, in
turns, one thread each:

  plain   Pillow decode, RandomResizedCrop (bicubic), ToTensor, Normalize: float32
  pixio   what `Pixels` does: uint8, normalised later on the device

Run: python benchmarks/data_path.py [--repeats N] [--rounds N]   (with the extra `dev`)
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images
from torchvision import transforms

from pixio_lightning.data.decode import decode_pixels, random_crop, to_tensor
from pixio_lightning.keyed import RandomKey

WIDTH, HEIGHT, SIZE = 640, 480, 256
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def photographs() -> list[bytes]:
    """Return the photographs that scikit-image and scikit-learn bring, 640x480, quality 90."""
    names = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")
    images = [*load_sample_images().images, *(getattr(data, name)() for name in names)]
    files = []
    for image in images:
        buffer = io.BytesIO()
        scaled = Image.fromarray(image).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        scaled.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


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


def our_chain(encoded: bytes) -> torch.Tensor:
    """Decode, crop and scale as the training stream does."""
    pixels = decode_pixels(encoded, max_megapixels=64)
    height, width = pixels.shape[:2]
    key = len(encoded)  # any number: what is measured is the cost of drawing by it
    crop = random_crop(width, height, RandomKey(key, 0, 0), scale=SCALE, ratio=RATIO)
    return to_tensor(pixels, crop, SIZE)


def rate(chain: Callable[[bytes], torch.Tensor], files: list[bytes]) -> float:
    """Return the images per second of CPU time."""
    start = time.process_time()
    for encoded in files:
        chain(encoded)
    return len(files) / (time.process_time() - start)


def main() -> None:
    """Measure both in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = photographs() * options.repeats
    chains = {"plain": plain_chain(), "pixio": our_chain}
    for chain in chains.values():
        rate(chain, files[:10])
    rates: dict[str, list[float]] = {name: [] for name in chains}
    for _ in range(options.rounds):
        for name, chain in chains.items():
            rates[name].append(rate(chain, files))
    mean = sum(map(len, files)) / len(files) / 1000
    print(
        f"{len(files)} JPEGs of {WIDTH}x{HEIGHT}, {mean:.0f} kB, {options.rounds} rounds in turns"
    )
    print("| chain | images a second and core | of the plain chain |\n|---|---|---|")
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates["plain"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        middle = statistics.median(ratios)
        print(f"| {name} | {statistics.median(values):.0f} | {middle:.2f} ({spread}) |")


if __name__ == "__main__":
    main()
