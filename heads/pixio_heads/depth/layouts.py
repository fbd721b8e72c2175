"""Pairs of image and depth as files: users' own folders, NYUv2, KITTI.

Every class is a list of samples: `image` uint8 (H, W, 3), `depth` float32 (H, W) in metres with 0
where there is none, `valid` bool (H, W), and `intrinsics` (3, 3) where they are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data import DEPTH_SUFFIXES as SUFFIXES
from pixio_lightning.data import (
    IMAGE_SUFFIXES,
    BadImage,
    FolderSource,
    Orientation,
    PairedFiles,
    Partners,
    Sample,
    digest_of,
    folders_of_pairs,
    image_files,
    open_picture,
    read_depth,
    read_file,
    read_npy,
    require_reader,
)
from pixio_lightning.errors import UserError
from pixio_lightning.files import parse_json, read_text

Box = tuple[int, int, int, int]  # top, bottom, left, right
MASK_SUFFIXES = (".png", ".npy", *(suffix for suffix in IMAGE_SUFFIXES if suffix != ".png"))
NYU_SIZE = (480, 640)
NYU_BOX: Box = (45, 471, 41, 601)  # of Eigen et al., 2014: what the sensor covers
KB_SIZE = (352, 1216)


class Pair(NamedTuple):
    """An image with its depth file and, if there is one, the mask of what is valid."""

    image: Path
    depth: Path | None
    mask: Path | None = None


class Layout(NamedTuple):
    """How a data set lies on disk.

    Attributes:
        list_pairs: Lists the files of a split below a root.
        kind: Reads them.
        scale: Metres per unit of an integer depth image; None where depth is in metres.
    """

    list_pairs: Callable[[Path, str], list[Pair]]
    kind: type[PairSamples]
    scale: float | None = None


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


def read_mask(data: bytes, *, max_megapixels: float) -> NDArray[Any]:
    """Read what is valid, where it is above 0: npy, or a picture of any format that is read.

    Raises:
        BadImage: It is damaged, of another format or too large.
    """
    try:
        if data.startswith(b"\x93NUMPY"):
            return read_npy(data, max_megapixels)
        return np.asarray(open_picture(data, max_megapixels=max_megapixels))
    except BadImage as error:
        raise BadImage(f"mask: {error}") from None
    except Exception:  # the libraries raise whatever the damaged bytes lead them to
        raise BadImage("mask cannot be read") from None


def cut(sample: Sample, box: Box) -> Sample:
    """Return a part of a sample, and its intrinsics moved along.

    Raises:
        BadImage: No depth in it is valid.
    """
    top, bottom, left, right = box
    maps = {name: array for name, array in sample.items() if name != "intrinsics"}
    part = {name: array[top:bottom, left:right] for name, array in maps.items()}
    if not part["valid"].any():
        raise BadImage("no valid depth")
    if "intrinsics" in sample:
        shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]], np.float32)
        part["intrinsics"] = shift @ sample["intrinsics"]
    return part


class PairSamples(PairedFiles):
    """Pairs of files.

    Args:
        root: What names are relative to.
        pairs: The files; without a depth file only the image is loaded, if `images_only`.
        scale: Metres per unit of an integer depth image.
        insist: Whether a depth file that says another unit is refused, see `read_depth`.
        max_megapixels: Larger images, depth maps and masks are bad.
        orientation: How images are turned, see `decode_pixels`.
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
        orientation: Orientation | None = None,
        insist: bool = False,
        intrinsics: dict[str, Any] | None = None,
        images_only: bool = False,
    ) -> None:
        super().__init__(root, pairs, max_megapixels=max_megapixels, orientation=orientation)
        self.scale, self.insist, self.images_only = scale, insist, images_only
        self.intrinsics = intrinsics or {}
        for suffix in {pair.depth.suffix.lower() for pair in self.pairs if pair.depth}:
            require_reader(suffix)

    def load(self, index: int) -> Sample:
        pair = self.pairs[index]
        image = self.picture(index)
        if self.images_only:
            return {"image": image}
        depth = self.partner(index, "depth")
        mask = None
        if pair.mask is not None:
            data = read_file(self.partner(index, "mask"))
            mask = read_mask(data, max_megapixels=self.max_megapixels)
        sample = checked(image, self.metres(depth), mask)
        if self.intrinsics:
            matrix = self.intrinsics.get(self.name(index), self.intrinsics.get("default"))
            if matrix is None:
                raise BadImage("no intrinsics")
            sample["intrinsics"] = np.asarray(matrix, dtype=np.float32).reshape(3, 3)
        return cut(sample, self.box(*image.shape[:2]))

    @property
    def note(self) -> str:
        """What is said of them beside their number."""
        return "with masks" if any(pair.mask for pair in self.pairs) else ""

    def metres(self, path: Path) -> NDArray[np.float32]:
        """Return a depth map `(H, W)` in metres; 0, NaN and infinity are no depth."""
        return read_depth(
            read_file(path),
            path.suffix.lower(),
            scale=self.scale,
            insist=self.insist,
            max_megapixels=self.max_megapixels,
        )

    def box(self, height: int, width: int) -> Box:
        """Return the part of an image that the data set uses.

        Raises:
            BadImage: The image has another size than it should.
        """
        return 0, height, 0, width

    def digest(self) -> str:
        facts = self.file_facts()
        return digest_of(type(self).__name__, self.scale, self.insist, self.intrinsics, facts)


class NyuSamples(PairSamples):
    """Pairs of NYUv2: 480x640, of which rows 45 to 471 and columns 41 to 601 are used."""

    def box(self, height: int, width: int) -> Box:
        if (height, width) != NYU_SIZE:
            raise BadImage(f"{width}x{height} pixels; expected 640x480 of NYUv2")
        return NYU_BOX


class KittiBenchmarkSamples(PairSamples):
    """Pairs of KITTI, cut to what its depth benchmark looks at."""

    def box(self, height: int, width: int) -> Box:
        return kb_box(height, width)


def kb_box(height: int, width: int) -> Box:
    """Return the crop of KITTI's depth benchmark: 352x1216, at the bottom, in the middle.

    It is cut from image and depth before anything else, so that the evaluation crops
    `eigen_kitti` and `garg` are shares of what it leaves.

    Raises:
        BadImage: The image is smaller than the crop.
    """
    if height < KB_SIZE[0] or width < KB_SIZE[1]:
        raise BadImage(f"{width}x{height} pixels, smaller than KITTI's benchmark crop of 1216x352")
    left = (width - KB_SIZE[1]) // 2
    return height - KB_SIZE[0], height, left, left + KB_SIZE[1]


def folder_pairs(root: Path) -> list[Pair]:
    """List `images/**` with `depth/**` of the same name, and `mask/**` if there is such a folder.

    Raises:
        UserError: There are no such folders, or two depth files or masks for one image.
    """
    expected = "16-bit PNG, npy, exr, pfm of the same names"
    images, depths = folders_of_pairs(root, "depth", expected=expected)
    partners, names = Partners(depths, SUFFIXES), FolderSource(images).names
    if not has_masks(root):
        return [Pair(images / name, partners.of(name)) for name in names]
    # A mask that is looked for and not there makes its image bad: unmasked it would be trained on,
    # and scored, where nothing is known.
    masks = Partners(root / "mask", MASK_SUFFIXES)
    return [Pair(images / name, partners.of(name), masks.of(name)) for name in names]


def has_masks(root: Path) -> bool:
    """Whether a folder of pairs says by `mask/` which of its depth is valid."""
    return (root / "mask").is_dir()


def read_intrinsics(root: Path) -> dict[str, Any]:
    """Read `intrinsics.json`: matrices by image name, or "default"; empty if there is none.

    Raises:
        UserError: It holds something else.
    """
    path = root / "intrinsics.json"
    if not path.is_file():
        return {}
    try:
        found = parse_json(read_text(path))
        found = found if isinstance(found, dict) else {"default": found}
        return {name: np.reshape(matrix, (3, 3)).tolist() for name, matrix in found.items()}
    except (ValueError, TypeError):
        raise UserError(
            f"'{path}' is no table of 3x3 matrices by image name, or one under \"default\""
        ) from None


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
            "sync_depth_00001.png in a folder for each scene, as BTS extracts NYUv2 "
            "(docs/data_sets.md)"
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
                'kitti_train.txt and kitti_test.txt with lines "IMAGE DEPTH" (docs/data_sets.md)'
            )
    return _listed(table, root / "images", root / "annotations")


def _listed(table: Path, images: Path, depths: Path | None = None) -> list[Pair]:
    """Read lines of image and depth file; a depth of None is kept, and counted when it is read."""
    pairs = []
    for number, line in enumerate(read_text(table).splitlines(), 1):
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


LAYOUTS = {
    "nyuv2": Layout(nyu_pairs, NyuSamples, 1e-3),
    "kitti": Layout(kitti_pairs, PairSamples, 1 / 256),
}
