"""Crops of real photographs that any Debian machine can have: a folder for each photograph.

    python benchmarks/photographs.py DIR

fetches the wallpapers of a few Debian packages (95 MB; `apt-get download` and `dpkg -x`, no root)
and takes the pictures of scikit-image and scikit-learn besides. Of every distinct picture the left
part is cut into DIR/train/NAME and the right part into DIR/val/NAME, so that no pixel is in both:
which photograph a crop is of can be asked without any label.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage
import sklearn
from PIL import Image

PACKAGES = (
    *("mate-backgrounds", "ukui-wallpapers", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04"),
)
# Of them what is drawn or made by a program, and the second picture of one thing.
NO_PHOTOGRAPHS = {
    *("Arc-Colors-Transparent-Wallpaper", "Elephants_5640x3172", "Float-into-MATE"),
    *("Fossa_by_Jasper_Roks", "Painting-Colors_by__herobrine7gamer", "Ubuntu-Mate-Cold-no-logo"),
    *("Ubuntu-Mate-Warm-no-logo", "calla", "city", "desert", "firstgeneration", "fluent-color"),
    *("focal-ubuntukylin", "goldfish", "logo", "phantom", "rhythm", "rollpaper", "string"),
    *("the-mouse", "umang_by_Abhishek_Mudgal", "usr", "motorcycle_right"),
}
SIDE = 96  # of a crop, in pixels
SHARES = (0.2, 0.5)  # of the short side that a crop covers, from and to
LEFT = 0.6  # share of the width that is trained on
CROPS = {"train": 48, "val": 16}
_LEAST = 400  # pixels of the short side
_ALIKE = 6  # of 64 bits of a small picture's hash: the same picture in another size
_PLAIN = 8.0  # levels of deviation of a crop, below which nothing is to be seen


def fetched(folder: Path) -> Iterator[Path]:
    """Yield the pictures of the packages, unpacked below a folder, and of two Python packages."""
    subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=folder, check=True)
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(folder / package.stem)], check=True)
    roots = (folder, *(Path(str(m.__file__)).parent for m in (skimage, sklearn)))
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.is_file():
                yield path


def distinct(paths: Iterator[Path]) -> dict[str, Image.Image]:
    """Return large pictures in colour by name, the largest of those that look alike."""
    found: list[tuple[int, str, Image.Image, np.ndarray]] = []
    for path in paths:
        with Image.open(path) as image:
            if min(image.size) < _LEAST or image.mode not in ("RGB", "RGBA"):
                continue
            picture = image.convert("RGB")
        small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), float)
        bits = small[:, 1:] > small[:, :-1]
        name = path.stem if not path.stem[0].isdigit() else path.parents[2].name
        found.append((picture.width * picture.height, name, picture, bits))
    found.sort(key=lambda one: (-one[0], one[1]))
    kept: list[tuple[str, Image.Image, np.ndarray]] = []
    for _, name, picture, bits in found:
        if all((bits ^ other).sum() > _ALIKE for _, _, other in kept):
            kept.append((name, picture, bits))
    names = [name for name, *_ in kept]
    return {
        f"{name}-{i}" if names.count(name) > 1 else name: picture
        for i, (name, picture, _) in enumerate(kept)
    }


def crops(picture: Image.Image, split: str, rng: np.random.Generator) -> Iterator[Image.Image]:
    """Yield square crops of a part of a picture in which there is something to be seen."""
    width, height = picture.size
    cut = round(LEFT * width)
    low, high = (0, cut) if split == "train" else (cut, width)
    wanted, tried = CROPS[split], 0
    while wanted and tried < 20 * CROPS[split]:
        tried += 1
        side = int(rng.uniform(*SHARES) * min(high - low, height))
        left, top = int(rng.integers(low, high - side + 1)), int(rng.integers(0, height - side + 1))
        box = (left, top, left + side, top + side)
        crop = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
        if np.asarray(crop.convert("L"), float).std() >= _PLAIN:
            wanted -= 1
            yield crop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        pictures = distinct(fetched(Path(folder)))
    kept = 0
    for number, (name, picture) in enumerate(sorted(pictures.items())):
        if name in NO_PHOTOGRAPHS:
            continue
        made = {}
        for index, split in enumerate(CROPS):
            rng = np.random.default_rng([number, index])
            made[split] = list(crops(picture, split, rng))
        if any(len(made[split]) < CROPS[split] for split in CROPS):
            continue  # most of it is plain
        kept += 1
        for split, images in made.items():
            folder = out / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i, crop in enumerate(images):
                crop.save(folder / f"{i:02d}.png")
    print(f"{kept} photographs, {', '.join(f'{n * kept} crops in {s}/' for s, n in CROPS.items())}")


if __name__ == "__main__":
    main()
