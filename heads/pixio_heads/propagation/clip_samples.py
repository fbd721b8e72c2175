"""Clips with labels as samples: from files, and rendered ones.

Every class is a list of samples, one for each clip of V frames: `image` uint8 (V, H, W, 3) at the
size that is seen; `target`, uint8 (V, Ho, Wo) for masks, float32 (V, J, 2) for joints, x and y in
pixels of the stored frame; `stored` int64 (2,), its height and width. Every file is read once; a
clip that lacks one is bad, and says which. To predict, the first frame's mask is enough: where
others lack, `target` is that one alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from os.path import isdir, isfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pixio_heads.propagation.joint_files import read_joints
from pixio_heads.propagation.layouts import ClipFiles
from pixio_heads.propagation.metrics import UNKNOWN
from pixio_lightning.data import (
    SCENE_CLASSES,
    BadImage,
    RenderedClips,
    Sample,
    Scenes,
    decode_numbers,
    decode_pixels,
    digest_of,
    digest_of_files,
    is_hidden,
    read_file,
)

_SUFFIXES = (".jpg", ".png")
_NO_OBJECT = [SCENE_CLASSES.index(n) for n in ("sky", "floor", "wall", "ceiling", "ground")]
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow has it


class Look(NamedTuple):
    """What is shown of a stored frame.

    Attributes:
        size: Height and width; None keeps those of the file.
        grey: Whether its colours are taken away.
        max_megapixels: Larger frames are bad.
    """

    size: tuple[int, int] | None
    grey: bool
    max_megapixels: float = 64.0

    def at(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what is shown of pixels `(H, W, 3)`: bicubic, antialiased, and grey or not."""
        if self.grey:
            pixels = np.rint(pixels @ _LUMA).astype(np.uint8)[..., None].repeat(3, axis=2)
        if self.size in (None, pixels.shape[:2]):
            return pixels
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        scaled = F.interpolate(image, self.size, mode="bicubic", antialias=True)
        return scaled[0].permute(1, 2, 0).numpy()


class FileClips:
    """Clips in files; a subclass reads their labels.

    Args:
        root: The folder of the data.
        clips: Those that are listed.
        look: What is shown of their frames.
        predicting: Whether the labels of the first frame are enough.
    """

    def __init__(
        self, root: Path, clips: Sequence[ClipFiles], look: Look, *, predicting: bool = False
    ) -> None:
        self.root, self.clips, self.look, self.predicting = root, list(clips), look, predicting

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        return self.clips[index].name

    def labels(self, clip: ClipFiles, frames: list[Path]) -> tuple[NDArray[Any], int]:
        """Return what is known of the frames, and how many of them that covers."""
        raise NotImplementedError

    def load(self, index: int) -> Sample:
        clip = self.clips[index]
        frames = pictures(clip.frames)
        if len(frames) < 2:
            where = clip.frames.relative_to(self.root).as_posix()
            raise BadImage(f"{len(frames)} frames in {where}; expected 2 at least")
        labels, covered = self.labels(clip, frames)
        shown, stored = [], None
        for path in frames[:covered]:
            pixels = self.picture(path)
            stored = stored or pixels.shape[:2]
            if pixels.shape[:2] != stored:
                raise BadImage(f"{path.name} is {wide(pixels.shape)}, others are {wide(stored)}")
            shown.append(self.look.at(pixels))
        assert stored is not None
        if labels.ndim == 3 and labels.dtype == np.uint8 and labels.shape[1:] != stored:
            raise BadImage(f"masks of {wide(labels.shape[1:])} for frames of {wide(stored)}")
        return {"image": np.stack(shown), "target": labels, "stored": np.array(stored)}

    def picture(self, path: Path) -> NDArray[np.uint8]:
        """Return a frame `(H, W, 3)` as it is stored."""
        try:
            data = read_file(path)
            # As it lies in the file: its mask was drawn on these pixels.
            return decode_pixels(
                data, max_megapixels=self.look.max_megapixels, orientation="stored"
            )
        except BadImage as error:
            raise BadImage(f"{path.name}: {error}") from None

    def digest(self) -> str:
        files = (
            path.relative_to(self.root).as_posix()
            for clip in self.clips
            for place in (clip.frames, clip.labels)
            for path in ([place] if isfile(place) else pictures(place))
        )
        facts = digest_of_files(self.root, files)
        return digest_of("clips", self.look, [c.name for c in self.clips], facts)


class MaskClips(FileClips):
    """Clips with a mask for each frame, of the same name: a PNG of numbers, grey or a palette.

    Args:
        greatest: The greatest number a mask may hold, beside 255 for unknown.
    """

    def __init__(self, *args: Any, greatest: int, **keys: Any) -> None:
        super().__init__(*args, **keys)
        self.greatest = greatest

    def labels(self, clip: ClipFiles, frames: list[Path]) -> tuple[NDArray[Any], int]:
        """Return masks `(V, Ho, Wo)`, or that of the first frame, and V."""
        known, there = {path.stem for path in frames}, {p.stem for p in pictures(clip.labels)}
        if others := sorted(there - known):
            raise BadImage(f"mask {others[0]}.png has no frame")
        alone = self.predicting and there < known
        masks = [self.mask(clip.labels / f"{path.stem}.png") for path in frames[: alone or None]]
        for path, mask in zip(frames, masks, strict=False):
            if mask.shape != masks[0].shape:
                sizes = f"{wide(mask.shape)}, others are {wide(masks[0].shape)}"
                raise BadImage(f"mask {path.stem}.png is {sizes}")
        if not np.isin(masks[0], (0, UNKNOWN), invert=True).any():
            raise BadImage(f"mask {frames[0].stem}.png, the first one, shows nothing to follow")
        return np.stack(masks), len(frames)

    def mask(self, path: Path) -> NDArray[np.uint8]:
        """Return a mask `(Ho, Wo)`.

        Raises:
            BadImage: It is not there, damaged, or holds other numbers.
        """
        try:
            data = read_file(path)
        except FileNotFoundError:
            raise BadImage(f"mask {path.name} is not there") from None
        bound, what = self.look.max_megapixels, f"mask {path.name}"
        mask = decode_numbers(data, max_megapixels=bound, what=what)
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise BadImage(f"mask {path.name} is no picture of numbers; expected one channel")
        beyond = mask[(mask > self.greatest) & (mask != UNKNOWN)]
        if beyond.size:
            raise BadImage(
                f"mask {path.name} stores {beyond.max()}; expected 0 to {self.greatest}, or 255"
            )
        return mask


class JointClips(FileClips):
    """Clips of JHMDB with the joints of one person in each frame."""

    def labels(self, clip: ClipFiles, frames: list[Path]) -> tuple[NDArray[Any], int]:
        """Return joints `(V, J, 2)`, and V.

        Frames behind the last one with joints are left out.
        """
        require_unbroken(frames)
        try:
            joints = read_joints(clip.labels)
        except FileNotFoundError:
            raise BadImage(f"{clip.labels.name} is not there") from None
        if len(joints) > len(frames):
            raise BadImage(f"{len(frames)} frames, but joints of {len(joints)}")
        return joints, len(joints)


class SceneObjects:
    """Rendered clips with the objects that fill a share of the first frame.

    Args:
        scenes: How many, and of what; its views are their frames.
        seconds: Duration of a clip.
        look: What is shown of their frames.
        smallest: Share of the first frame that an object fills at least.
    """

    def __init__(self, scenes: Scenes, seconds: float, look: Look, *, smallest: float) -> None:
        self.clips = RenderedClips("val", scenes, seconds)
        self.look, self.smallest = look, smallest

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        return self.clips.name(index)

    def load(self, index: int) -> Sample:
        clip = self.clips.load(index)
        shown = [self.look.at(image.transpose(1, 2, 0)) for image in clip.image]
        masks = object_masks(clip.object_id, clip.class_id, self.smallest)
        return {"image": np.stack(shown), "target": masks, "stored": np.array(masks.shape[1:])}

    def digest(self) -> str:
        return digest_of("objects", self.clips.digest(), self.look, self.smallest)


def object_masks(
    object_id: NDArray[np.integer], class_id: NDArray[np.uint8], smallest: float
) -> NDArray[np.uint8]:
    """Return masks of the objects of the first frame, numbered from 1; 0 is all else.

    Args:
        object_id: `(V, H, W)`.
        class_id: `(V, H, W)`; what the place itself is made of is no object.
        smallest: Share of the first frame that an object fills at least.
    """
    first = object_id[0][~np.isin(class_id[0], _NO_OBJECT)]
    numbers, counts = np.unique(first, return_counts=True)
    kept = numbers[counts >= smallest * object_id[0].size]
    masks = np.zeros(object_id.shape, np.uint8)
    for number, old in enumerate(kept[: UNKNOWN - 1], start=1):
        masks[object_id == old] = number
    return masks


# --- files ------------------------------------------------------------------------------------


def pictures(folder: Path) -> list[Path]:
    """Return the frames in a folder, by name; none where there is no folder."""
    if not isdir(folder):  # of `os.path`, to which a name that is too long is no folder
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    return sorted(path for path in found if not is_hidden(path.name))


def require_unbroken(frames: Sequence[Path]) -> None:
    """Refuse frames whose numbers do not follow each other.

    Raises:
        BadImage: One is missing.
    """
    for before, after in pairwise(frames):
        if not (before.stem.isdecimal() and after.stem.isdecimal()):
            raise BadImage(f"{after.name} has no number for its name")
        if int(after.stem) != int(before.stem) + 1:
            raise BadImage(f"no frame between {before.name} and {after.name}")


def wide(shape: Sequence[int]) -> str:
    """Return a height and a width as WxH."""
    return f"{shape[1]}x{shape[0]}"
