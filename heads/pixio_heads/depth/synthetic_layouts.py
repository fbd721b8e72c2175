"""The five synthetic sets that Depth Anything V2 trains on (arXiv 2406.09414), and their mixture.

Each is a folder of scenes. Where the authors give no split, one whole scene is held out.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixio_heads.depth.layouts import Layout, Pair, PairSamples
from pixio_lightning.data import Sample, Samples, digest_of, held_out, is_hidden, visible_files
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files import read_text

HYPERSIM_FOCAL = 886.81  # pixels, of images 1024 wide
HYPERSIM_SPLIT = "metadata_images_split_scene_v1.csv"
IRS_DISPARITY = 480.0 * 0.1  # pixels of focal length times metres of baseline
VKITTI2_FARTHEST = 80.0  # metres; the sky is stored as 655.35


class HypersimSamples(PairSamples):
    """Pairs of Hypersim, whose depth is the distance along the ray."""

    def metres(self, path: Path) -> NDArray[np.float32]:
        return planar(super().metres(path))


class VirtualKittiSamples(PairSamples):
    """Pairs of Virtual KITTI 2, without what is farther than a laser sees."""

    def metres(self, path: Path) -> NDArray[np.float32]:
        depth = super().metres(path)
        return np.where(depth > VKITTI2_FARTHEST, 0, depth)


class IrsSamples(PairSamples):
    """Pairs of IRS, which stores the disparity of its stereo camera in pixels."""

    def metres(self, path: Path) -> NDArray[np.float32]:
        disparity = super().metres(path)
        return np.divide(
            IRS_DISPARITY, disparity, out=np.zeros_like(disparity), where=disparity > 0
        )


def planar(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return depth along the optical axis of Hypersim's distance along the ray, `(H, W)` metres.

    ``z = distance * f / sqrt(x^2 + y^2 + f^2)`` with x and y in pixels from the image centre.
    """
    height, width = distance.shape
    focal = HYPERSIM_FOCAL * width / 1024
    x = np.arange(width) + 0.5 - width / 2
    y = np.arange(height)[:, None] + 0.5 - height / 2
    return (distance * focal / np.sqrt(x**2 + y**2 + focal**2)).astype(np.float32)


# --- listing ----------------------------------------------------------------------------------


def hypersim_pairs(root: Path, split: str) -> list[Pair]:
    """List Hypersim, by the authors' split if its csv is there.

    Raises:
        UserError: There is no image, or the csv lists none of them.
    """

    def depth(image: Path) -> Path:
        folder = image.parent.name.replace("_final_preview", "_geometry_hdf5")
        name = image.name.replace(".tonemap.jpg", ".depth_meters.hdf5")
        return image.parent.parent / folder / name

    pairs = _paired(root, "ai_*/images/scene_cam_*_final_preview/frame.*.tonemap.jpg", depth)
    table = root / HYPERSIM_SPLIT
    if not table.is_file():
        return _without_scene(root, pairs, 1, split)
    wanted = _hypersim_frames(table, "train" if split == "train" else "val")
    kept = [pair for pair in pairs if _hypersim_frame(pair.image) in wanted]
    if not kept:
        raise UserError(f"'{table}' lists none of the {len(pairs)} images as {split}")
    return kept


def _hypersim_frame(image: Path) -> tuple[str, str, int]:
    """Return scene, camera and number of an image's path."""
    camera = image.parent.name.removeprefix("scene_").removesuffix("_final_preview")
    return image.parts[-4], camera, int(image.name.split(".")[1])


def _hypersim_frames(table: Path, split: str) -> set[tuple[str, str, int]]:
    try:
        with table.open(newline="") as file:
            return {
                (row["scene_name"], row["camera_name"], int(row["frame_id"]))
                for row in csv.DictReader(file)
                if row["split_partition_name"] == split
            }
    except (KeyError, ValueError, TypeError):
        raise UserError(
            f"'{table}' is not Hypersim's split: expected the columns scene_name, camera_name, "
            "frame_id and split_partition_name"
        ) from None


def vkitti2_pairs(root: Path, split: str) -> list[Pair]:
    """List the left camera of Virtual KITTI 2."""

    def depth(image: Path) -> Path:
        folder = image.parents[2] / "depth" / image.parent.name
        return folder / image.name.replace("rgb_", "depth_").replace(".jpg", ".png")

    pairs = _paired(root, "Scene*/*/frames/rgb/Camera_0/rgb_*.jpg", depth)
    return _without_scene(root, pairs, 1, split)


def tartanair_pairs(root: Path, split: str) -> list[Pair]:
    """List the left camera of TartanAir."""

    def depth(image: Path) -> Path:
        return image.parent.parent / "depth_left" / f"{image.stem}_depth.npy"

    pairs = _paired(root, "*/**/image_left/*_left.png", depth)
    return _without_scene(root, pairs, 1, split)


def irs_pairs(root: Path, split: str) -> list[Pair]:
    """List the left camera of IRS."""

    def depth(image: Path) -> Path:
        return image.with_name(image.name.replace("l_", "d_", 1)).with_suffix(".exr")

    pairs = _paired(root, "*/**/l_*.png", depth)
    return _without_scene(root, pairs, 2, split)


def blendedmvs_pairs(root: Path, split: str) -> list[Pair]:
    """List BlendedMVS, by the authors' `validation_list.txt` if it is there.

    Its reconstructions have no common scale, so that its metres are none; losses and figures up to
    an affine map of the disparity do not mind.
    """

    def depth(image: Path) -> Path:
        return image.parent.parent / "rendered_depth_maps" / f"{image.stem}.pfm"

    pairs = _paired(root, "**/blended_images/*[0-9].jpg", depth)  # not *_masked.jpg
    table = root / "validation_list.txt"
    if not table.is_file():
        folders = len(pairs[0].image.relative_to(root).parts) - 2
        return _without_scene(root, pairs, folders, split)
    val = set(read_text(table).split())
    kept = [p for p in pairs if (p.image.parts[-3] in val) != (split == "train")]
    if not kept:
        raise UserError(f"'{table}' leaves no scene below '{root}' for {split}")
    return kept


def _paired(root: Path, pattern: str, depth: Callable[[Path], Path]) -> list[Pair]:
    images = visible_files(root, pattern)
    if not images:
        raise UserError(f"data.path '{root}' holds no {pattern}, as the set is laid out")
    return [Pair(image, depth(image)) for image in images]


def _without_scene(root: Path, pairs: list[Pair], folders: int, split: str) -> list[Pair]:
    """Hold the same one of the scenes out; `folders` names below the root make a scene."""

    def scene(pair: Pair) -> str:
        return "/".join(pair.image.parent.relative_to(root).parts[:folders])

    scenes = sorted({scene(pair) for pair in pairs})
    if len(scenes) < 2:
        raise UserError(
            f"data.path '{root}' holds one scene, {scenes[0]}; expected two or more, of which one "
            "is held out"
        )
    _, (left_out,) = held_out(scenes, str, share=1 / len(scenes))
    return [pair for pair in pairs if (scene(pair) == left_out) != (split == "train")]


LAYOUTS = {
    "hypersim": Layout(hypersim_pairs, HypersimSamples),
    "vkitti2": Layout(vkitti2_pairs, VirtualKittiSamples, 0.01),
    "tartanair": Layout(tartanair_pairs, PairSamples),
    "irs": Layout(irs_pairs, IrsSamples),
    "blendedmvs": Layout(blendedmvs_pairs, PairSamples),
}


# --- the mixture ------------------------------------------------------------------------------


class MixedSamples:
    """Several sets one after the other, each sample as often as any.

    Args:
        root: What names are relative to: the folder with a folder for each set.
        parts: The sets by name.
    """

    def __init__(self, root: Path, parts: Mapping[str, Samples]) -> None:
        self.root, self.parts = root, dict(parts)
        self._ends = np.cumsum([len(part) for part in self.parts.values()])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        name, part, inside = self._find(index)
        return f"{name}/{part.name(inside)}"

    def load(self, index: int) -> Sample:
        _, part, inside = self._find(index)
        return part.load(inside)

    def digest(self) -> str:
        return digest_of({name: part.digest() for name, part in self.parts.items()})

    def _find(self, index: int) -> tuple[str, Samples, int]:
        at = int(np.searchsorted(self._ends, index, side="right"))
        name = list(self.parts)[at]
        part = self.parts[name]
        return name, part, index - int(self._ends[at]) + len(part)


def mixed_sets(root: Path) -> list[str]:
    """Return the sets that a folder holds, in folders of their names.

    Raises:
        UserError: There is none, or a folder of another name.
    """
    found = sorted(p.name for p in root.iterdir() if p.is_dir() and not is_hidden(p.name))
    for name in found:
        if name not in LAYOUTS:
            raise UserError(
                f"data.path '{root}' holds the folder {name}, but a mix is made of "
                f"{', '.join(LAYOUTS)}{nearest(name, LAYOUTS)}"
            )
    if not found:
        raise UserError(f"data.path '{root}' holds no folder; expected any of {', '.join(LAYOUTS)}")
    return found
