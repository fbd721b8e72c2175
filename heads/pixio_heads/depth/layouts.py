"""Where pairs of image and depth lie on disk: users' own folders and tables, NYUv2, KITTI.

Every class is a list of samples: `image` uint8 (H, W, 3), `depth` float32 (H, W) in metres with 0
where there is none, `valid` bool (H, W), and `intrinsics` (3, 3) where they are known.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_lightning.data.decode import BadImage, decode
from pixio_lightning.data.samples import Sample, digest_of
from pixio_lightning.data.sources import SUFFIXES, open_hub
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.keyed import key_of

NYU_SIZE = (480, 640)
NYU_CROP = (slice(45, 471), slice(41, 601))  # of Eigen et al., 2014: what the sensor covers


class Pair(NamedTuple):
    """An image with its depth file and, if there is one, the mask of what is valid."""

    image: Path
    depth: Path | None
    mask: Path | None = None


def read_depth(data: bytes, suffix: str, *, scale: float) -> NDArray[np.float32]:
    """Decode a depth file to metres.

    Args:
        data: Its content.
        suffix: `.png` for integers of `scale` metres, `.npy` for metres.
        scale: Metres per unit of an integer.

    Raises:
        BadImage: The file is damaged, has another form, or only 8 bits.
    """
    try:
        if suffix == ".npy":
            array = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            array = np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))
    except Exception:  # the libraries raise whatever the damaged bytes lead them to
        raise BadImage("depth cannot be read") from None
    return to_metres(array, scale=scale)


def to_metres(array: NDArray[Any], *, scale: float) -> NDArray[np.float32]:
    """Return a depth array `(H, W)` in metres; integers count in units of `scale`.

    Raises:
        BadImage: It has another shape, or only 8 bits.
    """
    array = np.squeeze(array)
    if array.ndim != 2:
        raise BadImage(f"depth of shape {array.shape}; expected one channel")
    if array.dtype in (np.uint8, np.int8, np.bool_):
        raise BadImage("8-bit depth; expected a 16-bit PNG, or npy in metres")
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(np.float32) * np.float32(scale)
    if not np.issubdtype(array.dtype, np.floating):
        raise BadImage(f"depth of type {array.dtype}; expected numbers")
    return array.astype(np.float32)


def checked(
    image: NDArray[np.uint8], depth: NDArray[np.float32], mask: NDArray[Any] | None = None
) -> Sample:
    """Return a sample of an image and its depth in metres.

    Raises:
        BadImage: Their sizes differ, or no pixel is valid.
    """
    for name, other in (("depth", depth), ("mask", mask)):
        if other is not None and other.shape[:2] != image.shape[:2]:
            sizes = (f"{a.shape[1]}x{a.shape[0]}" for a in (other, image))
            raise BadImage("{} of {} for an image of {}".format(name, *sizes))
    valid = np.isfinite(depth) & (depth > 0)
    if mask is not None:
        valid &= (mask if mask.ndim == 2 else mask[..., 0]) > 0
    if not valid.any():
        raise BadImage("no valid depth")
    return {"image": image, "depth": np.where(valid, depth, 0).astype(np.float32), "valid": valid}


class PairSamples:
    """Pairs of files.

    Args:
        root: What names are relative to.
        pairs: The files; without a depth file only the image is loaded, if `images_only`.
        scale: Metres per unit of an integer depth image.
        max_megapixels: Larger images are bad.
        intrinsics: `(3, 3)` by the image's name, or one under "default".
        images_only: Whether depth is not asked for.
    """

    def __init__(
        self,
        root: Path,
        pairs: Sequence[Pair],
        *,
        scale: float,
        max_megapixels: float,
        intrinsics: dict[str, Any] | None = None,
        images_only: bool = False,
    ) -> None:
        self.root, self.pairs, self.scale = root, list(pairs), scale
        self.max_megapixels, self.images_only = max_megapixels, images_only
        self.intrinsics = intrinsics or {}

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return self.pairs[index].image.relative_to(self.root).as_posix()

    def load(self, index: int) -> Sample:
        pair = self.pairs[index]
        image = np.asarray(decode(pair.image.read_bytes(), max_megapixels=self.max_megapixels))
        if self.images_only:
            return {"image": image}
        if pair.depth is None or not pair.depth.is_file():
            raise BadImage("no depth file")
        depth = read_depth(pair.depth.read_bytes(), pair.depth.suffix.lower(), scale=self.scale)
        mask = np.asarray(Image.open(pair.mask)) if pair.mask is not None else None
        sample = self.crop(checked(image, depth, mask))
        if self.intrinsics:
            matrix = self.intrinsics.get(self.name(index), self.intrinsics.get("default"))
            if matrix is None:
                raise BadImage("no intrinsics")
            sample["intrinsics"] = np.asarray(matrix, dtype=np.float32).reshape(3, 3)
        return sample

    def crop(self, sample: Sample) -> Sample:
        """Cut away what a data set never uses."""
        return sample

    def digest(self) -> str:
        files = [path for pair in self.pairs for path in pair if path is not None]
        stats = [(str(f), f.stat()) for f in files if f.exists()]
        return digest_of(
            type(self).__name__, self.scale, self.intrinsics,
            [(name, s.st_size, s.st_mtime_ns) for name, s in stats],
        )  # fmt: skip


class NyuSamples(PairSamples):
    """Pairs of NYUv2: 480x640, of which rows 45 to 471 and columns 41 to 601 are used."""

    def crop(self, sample: Sample) -> Sample:
        size = sample["image"].shape[:2]
        if size != NYU_SIZE:
            raise BadImage(f"{size[1]}x{size[0]} pixels; expected 640x480 of NYUv2")
        cut = {name: array[NYU_CROP] for name, array in sample.items()}
        if not cut["valid"].any():
            raise BadImage("no valid depth")
        return cut


def folder_pairs(root: Path) -> list[Pair]:
    """List `images/**` with `depth/**` of the same stem, and `mask/**` if there is such a folder.

    Raises:
        UserError: There are no such folders.
    """
    images, depths = root / "images", root / "depth"
    if not images.is_dir() or not depths.is_dir():
        found = sorted(p.name for p in root.iterdir() if p.is_dir())
        raise UserError(
            f"data.path '{root}' holds {', '.join(found) or 'no folder'}; expected images/ and "
            "depth/ (16-bit PNG or npy of the same names), in it or in train/ and val/"
        )
    pairs = []
    for path in image_files(images):
        stem = path.relative_to(images).with_suffix("")
        depth = [p for s in (".png", ".npy") if (p := depths / f"{stem}{s}").is_file()]
        mask = root / "mask" / f"{stem}.png"
        pairs.append(Pair(path, depth[0] if depth else None, mask if mask.is_file() else None))
    return pairs


def image_files(root: Path) -> list[Path]:
    """List the images below a folder.

    Raises:
        UserError: There is none.
    """
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise UserError(f"'{root}' holds no image; expected {', '.join(SUFFIXES)} at any depth")
    return found


def read_intrinsics(root: Path) -> dict[str, Any]:
    """Read `intrinsics.json`: matrices by image name, or "default"; empty if there is none.

    Raises:
        UserError: It holds something else.
    """
    path = root / "intrinsics.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        found = found if isinstance(found, dict) else {"default": found}
        return {name: np.reshape(matrix, (3, 3)).tolist() for name, matrix in found.items()}
    except ValueError:
        raise UserError(
            f"'{path}' is no table of 3x3 matrices by image name, or one under \"default\""
        ) from None


def held_out(
    root: Path, pairs: Sequence[Pair], *, share: float = 0.1
) -> tuple[list[Pair], list[Pair]]:
    """Split pairs by the hash of the image's name below `root`, the same ones every time.

    Raises:
        UserError: There are fewer than two.
    """
    if len(pairs) < 2:
        raise UserError(f"{len(pairs)} image is too few to train on one and hold one out")
    order = sorted(pairs, key=lambda p: key_of(f"hold out {p.image.relative_to(root).as_posix()}"))
    count = max(1, int(len(pairs) * share))
    return sorted(order[count:]), sorted(order[:count])


def nyu_pairs(root: Path, split: str) -> list[Pair]:
    """List NYUv2: `sync/` to train on, `official_splits/test/` to test on, or by split files.

    Raises:
        UserError: Neither is there.
    """
    training = split == "train"
    table = root / ("nyu_train.txt" if training else "nyu_test.txt")
    folder = root / ("sync" if training else "official_splits/test")
    if table.is_file():
        below = folder if folder.is_dir() else root
        return _listed(table, below)
    if not folder.is_dir():
        raise UserError(
            f"data.path '{root}' has no {folder.relative_to(root)}/ with rgb_00001.jpg and "
            "sync_depth_00001.png in a folder for each scene, as NYUv2 for depth comes"
        )
    return [
        Pair(path, path.with_name(path.name.replace("rgb_", "sync_depth_")).with_suffix(".png"))
        for path in image_files(folder)
        if path.name.startswith("rgb_")
    ]


def kitti_pairs(root: Path, split: str) -> list[Pair]:
    """List KITTI by `kitti_train.txt` and `kitti_test.txt`, lines of image and depth file.

    Raises:
        UserError: The split file, `images/` or `annotations/` is missing.
    """
    table = root / ("kitti_train.txt" if split == "train" else "kitti_test.txt")
    for path in (table, root / "images", root / "annotations"):
        if not path.exists():
            raise UserError(
                f"data.path '{root}' has no {path.name}; expected images/DATE/DRIVE_sync/image_02/"
                "data/*.png, annotations/DRIVE_sync/proj_depth/groundtruth/image_02/*.png, and "
                'kitti_train.txt and kitti_test.txt with lines "IMAGE DEPTH"'
            )
    return _listed(table, root / "images", root / "annotations")


def _listed(table: Path, images: Path, depths: Path | None = None) -> list[Pair]:
    """Read lines of image and depth file; a depth of None is kept, and counted when it is read."""
    pairs = []
    for number, line in enumerate(table.read_text().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2:
            raise UserError(f'{table}, line {number}: {line!r}; expected "IMAGE DEPTH"')
        image, depth = (word.lstrip("/") for word in words[:2])
        pairs.append(Pair(images / image, None if depth == "None" else (depths or images) / depth))
    if not pairs:
        raise UserError(f"{table} lists no pair")
    return pairs


class HubSamples:
    """Rows of a Hugging Face data set with an image and a depth column.

    Args:
        path: Hub id, or a local folder of parquet.
        split: Split to read.
        columns: Names of the image and the depth column.
        scale: Metres per unit of an integer depth image.
        max_megapixels: Larger images are bad.
        images_only: Whether depth is not asked for.

    Raises:
        UserError: The data set or a column does not exist.
    """

    def __init__(
        self,
        path: str,
        split: str,
        *,
        columns: tuple[str, str],
        scale: float,
        max_megapixels: float,
        images_only: bool = False,
    ) -> None:
        import datasets

        self.split, self.scale, self.max_megapixels = split, scale, max_megapixels
        self.columns, self.images_only = columns, images_only
        data = open_hub(path, split)
        for key, column in zip(("image_column", "depth_column"), columns, strict=True):
            if column not in data.column_names and not (images_only and key == "depth_column"):
                raise UserError(
                    f"data.{key} is '{column}', but '{path}' has the columns "
                    f"{', '.join(data.column_names)}{nearest(column, data.column_names)}"
                )
        for name, feature in data.features.items():
            if isinstance(feature, datasets.Image):
                # Undecoded: 16 bits stay 16 bits, and our own decoder counts what is bad.
                data = data.cast_column(name, datasets.Image(decode=False))
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        return f"{self.split}/{index:08d}"

    def load(self, index: int) -> Sample:
        row = self.data[index]
        data = _content(row[self.columns[0]])
        image = np.asarray(decode(data, max_megapixels=self.max_megapixels))
        if self.images_only:
            return {"image": image}
        depth = row[self.columns[1]]
        if depth is None:
            raise BadImage("no depth")
        if isinstance(depth, (dict, bytes)):
            content = _content(depth)
            suffix = ".npy" if content.startswith(b"\x93NUMPY") else ".png"
            metres = read_depth(content, suffix, scale=self.scale)
        else:
            metres = to_metres(np.asarray(depth), scale=self.scale)
        mask = row.get("mask")
        found = np.asarray(Image.open(io.BytesIO(_content(mask)))) if mask else None
        sample = checked(image, metres, found)
        if row.get("intrinsics") is not None:
            sample["intrinsics"] = np.asarray(row["intrinsics"], np.float32).reshape(3, 3)
        return sample

    def digest(self) -> str:
        files = [file["filename"] for file in self.data.cache_files]
        stats = [Path(file).stat() for file in files]
        facts = [(file, s.st_size, s.st_mtime_ns) for file, s in zip(files, stats, strict=True)]
        return digest_of("hub", facts, len(self.data), self.columns, self.scale)


def _content(value: Any) -> bytes:
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            return Path(value["path"]).read_bytes()
        value = value["bytes"]
    return value or b""
