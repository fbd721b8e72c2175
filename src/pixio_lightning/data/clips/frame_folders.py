"""Clips of folders of numbered pictures, one folder a video, as DAVIS keeps them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.batches import Bad
from pixio_lightning.data.clips.source import Frame
from pixio_lightning.data.clips.videos import windows
from pixio_lightning.data.decode import BadImage, decode_pixels, read_file
from pixio_lightning.data.sources import FolderSource
from pixio_lightning.errors import UserError


class FrameFolders:
    """Windows of all folders of pictures below a folder; numbers in names count as such.

    Args:
        path: The folder.
        fps: Pictures a second.
        seconds: Length of a clip.
        least: Seconds that a clip spans at least.
        frames: Pictures that it has at least.
        max_megapixels: Larger pictures are bad.
        key: What a mistake is blamed on.

    Attributes:
        bad: Folders that hold no clip, and why.

    Raises:
        UserError: The folder does not exist or holds no clip.
    """

    def __init__(
        self,
        path: str,
        fps: float,
        seconds: float,
        *,
        least: float,
        frames: int,
        max_megapixels: float,
        key: str = "data.path",
    ) -> None:
        source = FolderSource(path, key=key)
        self.root, self.fps, self.max_megapixels = source.root, fps, max_megapixels
        self.folders: list[tuple[str, list[str]]] = []
        self.bad: list[Bad] = []
        self._clips: list[tuple[int, int, int]] = []  # folder, first picture, one after the last
        for folder, names in groupby(sorted(source.names, key=_parent), key=_parent):
            pictures = sorted((PurePosixPath(name).name for name in names), key=_by_number)
            times = np.arange(len(pictures)) / fps
            cut = windows(times, seconds, least=least, frames=frames)
            if not cut:
                why = f"shorter than {least:g} s at {fps:g} a second, or of fewer than {frames}"
                self.bad.append((folder or ".", f"{why} pictures"))
                continue
            self._clips += [(len(self.folders), start, stop) for start, stop in cut]
            self.folders.append((folder, pictures))
        if not self._clips:
            name, reason = self.bad[0]
            raise UserError(
                f"{key} '{path}' holds no folder of frames; the first of {len(self.bad)}, {name}: "
                f"{reason}"
            )

    def __len__(self) -> int:
        return len(self._clips)

    def name(self, index: int) -> str:
        number, start, _ = self._clips[index]
        return f"{self.folders[number][0]}@{start / self.fps:.3f}"

    def file(self, index: int) -> str:
        return self.folders[self._clips[index][0]][0]

    def paths(self, index: int) -> list[str]:
        """Return the files below `root` that the clip is read from."""
        number, start, stop = self._clips[index]
        folder, pictures = self.folders[number]
        return [str(PurePosixPath(folder) / name) for name in pictures[start:stop]]

    def times(self, index: int) -> NDArray[np.float64]:
        _, start, stop = self._clips[index]
        return np.arange(start, stop) / self.fps

    def read(self, index: int, frames: Sequence[int]) -> list[Frame]:
        paths, found = self.paths(index), []
        for frame in frames:
            name = paths[frame]
            try:
                data = read_file(self.root / name)
                found.append(decode_pixels(data, max_megapixels=self.max_megapixels))
            except BadImage as error:
                raise BadImage(str(error), name=name) from None
        return found


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _by_number(name: str) -> tuple[list[int], str]:
    """Return what puts `2.jpg` before `10.jpg`."""
    return [int(digits) for digits in re.findall(r"\d+", PurePosixPath(name).stem)], name
