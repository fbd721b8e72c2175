"""Sets to test zero-shot depth on: DIODE, Sintel, and the zips of the MoGe evaluation."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_heads.depth.layouts import Layout, Pair, PairSamples, checked
from pixio_lightning.data import (
    Archive,
    BadImage,
    Orientation,
    Sample,
    decode_pixels,
    digest_of,
    open_picture,
    visible_files,
)
from pixio_lightning.errors import UserError
from pixio_lightning.files import parse_json

# What the folders of DIODE are called.
DOMAINS = {"indoor": "indoors", "outdoor": "outdoor"}


def refuse_training(source: str, split: str) -> None:
    """Raise UserError for a split that a benchmark does not have."""
    if split == "train":
        raise UserError(
            f"data.source {source} is there to be tested on, but training images are asked for: "
            "use `pixio test` with a head that needs none, such as RelativeDepth"
        )


def diode_pairs(root: Path, split: str, *, domain: str | None = None) -> list[Pair]:
    """List DIODE: `val/indoors/scene_*/scan_*/*.png` with `_depth.npy` and `_depth_mask.npy`.

    Args:
        root: The folder with `val/`, and `train/` to train on.
        split: The split.
        domain: `indoor` or `outdoor`; None for both.

    Raises:
        UserError: There is no such folder or no image.
    """
    part = "train" if split == "train" else "val"
    wanted = [DOMAINS[domain]] if domain else list(DOMAINS.values())
    images = [
        path
        for name in wanted
        for path in visible_files(root / part / name, "scene_*/scan_*/*.png")
    ]
    if not images:
        where = " or ".join(f"{part}/{name}" for name in wanted)
        raise UserError(
            f"data.path '{root}' holds no {where}/scene_*/scan_*/*.png, as DIODE is laid out"
        )
    return [
        Pair(
            image,
            image.with_name(f"{image.stem}_depth.npy"),
            image.with_name(f"{image.stem}_depth_mask.npy"),
        )
        for image in images
    ]


def sintel_pairs(root: Path, split: str) -> list[Pair]:
    """List the final pass of Sintel: `training/final` with `training/depth`, of other downloads.

    Raises:
        UserError: One of them is missing, or the images are to be trained on.
    """
    refuse_training("sintel", split)
    root = root / "training" if (root / "training").is_dir() else root
    images = visible_files(root / "final", "*/frame_*.png")
    if not images or not (root / "depth").is_dir():
        raise UserError(
            f"data.path '{root}' lacks final/SCENE/frame_0001.png or depth/SCENE/frame_0001.dpt; "
            "unpack MPI-Sintel-complete.zip and MPI-Sintel-depth-training into one folder"
        )
    depths = root / "depth"
    return [Pair(p, depths / p.parent.name / f"{p.stem}.dpt") for p in images]


LAYOUTS = {
    "diode": Layout(diode_pairs, PairSamples),
    "sintel": Layout(sintel_pairs, PairSamples),
}


class MogeSamples:
    """A zip of `Ruicheng/monocular-geometry-evaluation` as it is, or its unpacked folder.

    A folder for each sample holds `image.jpg`, `depth.png` and `meta.json`; `.index.txt` lists
    those that are evaluated.

    Args:
        path: The zip or folder.
        max_megapixels: Larger images are bad.
        orientation: How images are turned, see `decode_pixels`.
        domain: `indoor` or `outdoor`, of the zip of DIODE; None for all.

    Raises:
        UserError: There is no such sample.
    """

    def __init__(
        self,
        path: str,
        *,
        max_megapixels: float,
        orientation: Orientation | None = None,
        domain: str | None = None,
    ) -> None:
        self.archive, self.max_megapixels = Archive(path, "data.path"), max_megapixels
        self.orientation = orientation
        self.folders = self._indexed()
        if domain:
            named = DOMAINS[domain]
            self.folders = [f for f in self.folders if named in f.split("/")]
        if not self.folders:
            what = f"{domain} sample" if domain else "image.jpg with depth.png beside it"
            raise UserError(f"data.path '{path}' holds no {what}, as the MoGe evaluation's zips do")

    @property
    def metric(self) -> bool:
        """Whether the unit is known: it is left out of all files of a set or of none."""
        try:
            encoded = self.archive.read(f"{self.folders[0]}/depth.png")
            return "unit" in open_picture(encoded, max_megapixels=self.max_megapixels).info
        except (BadImage, OSError):  # counted when it is read
            return True

    def _indexed(self) -> list[str]:
        names = self.archive.names
        tables = [name for name in names if posixpath.basename(name) == ".index.txt"]
        if not tables:
            return [posixpath.dirname(n) for n in names if posixpath.basename(n) == "image.jpg"]
        lines = self.archive.read(tables[0]).decode(errors="replace").splitlines()
        base = posixpath.dirname(tables[0])
        return [posixpath.join(base, line.strip()) for line in lines if line.strip()]

    def __len__(self) -> int:
        return len(self.folders)

    def name(self, index: int) -> str:
        return f"{self.folders[index]}/image.jpg"

    def load(self, index: int) -> Sample:
        folder = self.folders[index]
        data = self.archive.read(f"{folder}/image.jpg")
        image = decode_pixels(
            data, max_megapixels=self.max_megapixels, orientation=self.orientation
        )
        encoded = self.archive.read(f"{folder}/depth.png")
        sample = checked(image, read_log_depth(encoded, max_megapixels=self.max_megapixels))
        meta = self.archive.read(f"{folder}/meta.json")
        return sample | {"intrinsics": _intrinsics(meta, *image.shape[:2])}

    def digest(self) -> str:
        return digest_of("moge", self.archive.digest(), self.folders)


def read_log_depth(data: bytes, *, max_megapixels: float) -> NDArray[np.float32]:
    """Decode a 16-bit PNG of logarithmic depth, the form of the MoGe evaluation.

    The values 1 to 65534 are even steps in ``log depth`` from `near` to `far`, text fields of the
    file; 0 is unknown and 65535 infinitely far. `unit` is the metres of one unit, and left out
    where the scale is not known.

    Raises:
        BadImage: The file is damaged, too large, or of another form.
    """
    try:
        image = open_picture(data, max_megapixels=max_megapixels, formats=("PNG",))
        steps = np.asarray(image).astype(np.float64)
        near, far = float(image.info["near"]), float(image.info["far"])
        unit = float(image.info.get("unit", 1.0))
    except BadImage as error:
        raise BadImage(f"depth.png: {error}") from None
    except KeyError:
        raise BadImage("depth.png without the fields near and far") from None
    except Exception:  # Pillow raises whatever the damaged bytes lead it to
        raise BadImage("depth cannot be read") from None
    if steps.ndim != 2 or not 0 < near <= far:
        raise BadImage("depth.png is not of logarithmic depth")
    share = (steps - 1) / 65533
    depth = near ** (1 - share) * far**share * unit
    known = (steps > 0) & (steps < 65535)
    return np.where(known, depth, np.inf).astype(np.float32)


def _intrinsics(meta: bytes, height: int, width: int) -> NDArray[np.float32]:
    """Return `(3, 3)` in pixels, whose centres are at integers, of a file's shares of the sides."""
    try:
        matrix: Any = np.reshape(parse_json(meta.decode())["intrinsics"], (3, 3)).astype(np.float64)
    except (ValueError, KeyError, TypeError):
        raise BadImage("meta.json without intrinsics") from None
    matrix = np.diag([width, height, 1.0]) @ matrix
    matrix[:2, 2] -= 0.5
    return matrix.astype(np.float32)
