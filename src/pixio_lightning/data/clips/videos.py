"""Clips of video files: windows of one length that do not overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.batches import Bad
from pixio_lightning.data.clips.source import Frame
from pixio_lightning.data.clips.video import VIDEO_SUFFIXES, sought_frames
from pixio_lightning.data.clips.video_index import Video, video_index
from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.listing.names import Names
from pixio_lightning.data.listing.ragged import Ragged
from pixio_lightning.data.sources import existing_folder, files_below, listed
from pixio_lightning.errors import UserError


def windows(
    times: NDArray[np.float64], seconds: float, *, least: float, frames: int, whole: float
) -> list[tuple[int, int]]:
    """Cut a video into windows that do not overlap.

    Args:
        times: When its frames are shown, seconds `(V,)` in rising order.
        seconds: Length of a window.
        least: Seconds from the first frame of a window to its last, at least.
        frames: Frames of a window, at least.
        whole: Seconds that the rest at the end spans at least, to be a window of its own; a shorter
            one, of which samples would have smaller gaps, is a part of the window before it.

    Returns:
        The number of the first frame of each, and of the one after its last.
    """
    found: list[tuple[int, int]] = []
    start = 0
    while start < len(times):
        # A frame that is late by a rounding of its time is the first of the next window.
        stop = int(np.searchsorted(times, times[start] + seconds - 1e-6))
        span = times[stop - 1] - times[start]
        step = span / max(1, stop - start - 1)
        rest = stop == len(times) and span < whole and span + step < seconds - 1e-6
        if rest and found and found[-1][1] == start and times[-1] - times[start - 1] < whole:
            found[-1] = (found[-1][0], stop)
        elif stop - start >= frames and span >= least:
            found.append((start, stop))
        start = max(stop, start + 1)
    return found


def index_folder(path: str, *, key: str = "data.path") -> list[Video]:
    """Return what is known of the videos below a folder, sorted by name, looked up if need be.

    Raises:
        UserError: The folder does not exist or holds no video, or PyAV is missing.
    """
    root = existing_folder(path, key)
    every = sorted(files_below(root, key=key))
    names = [name for name in every if name.lower().endswith(VIDEO_SUFFIXES)]
    if not names:
        others = Counter(PurePosixPath(name).suffix.lower() or "others" for name in every)
        but = f", but {listed(others)}" if others else ""
        raise UserError(
            f"{key} '{path}' holds no video{but}; expected {', '.join(VIDEO_SUFFIXES)} at any depth"
        )
    return video_index(root, names)


class VideoSource:
    """Windows of all videos below a folder; their pixels are read by PyAV.

    Args:
        path: The folder.
        seconds: Length of a clip.
        least: Seconds that a clip spans at least.
        frames: Frames that it has at least.
        whole: Seconds that the rest of a video spans, to be a clip of its own; see `windows`.
        max_megapixels: Videos of larger frames are bad.
        key: What a mistake is blamed on.

    Attributes:
        bad: Files that hold no clip, and why.
        lost: Their names, and how many files there are.

    Raises:
        UserError: The folder does not exist or holds no video, or PyAV is missing.
    """

    def __init__(
        self,
        path: str,
        seconds: float,
        *,
        least: float,
        frames: int,
        whole: float,
        max_megapixels: float,
        key: str = "data.path",
    ) -> None:
        self.root = existing_folder(path, key)
        self.bad: list[Bad] = []
        videos: list[Video] = []
        clips: list[tuple[int, int, int]] = []
        room: dict[str, Any] = {"least": least, "frames": frames, "whole": whole}
        for video in index_folder(path, key=key):
            reason = video.reason
            cut = windows(video.times, seconds, **room) if not reason else []
            if not reason and video.pixels > max_megapixels * 1e6:
                reason = f"frames over {max_megapixels:g} megapixels"
            elif not reason and not cut:
                reason = f"shorter than {least:g} s, or of fewer than {frames} frames"
            if reason:
                self.bad.append((video.name, reason))
                continue
            clips += [(len(videos), start, stop) for start, stop in cut]
            videos.append(video)
        self.lost = [name for name, _ in self.bad], len(self.bad) + len(videos)
        if not clips:
            name, reason = self.bad[0]
            raise UserError(
                f"{key} '{path}' holds no video that can be used; the first of {len(self.bad)}, "
                f"{name}: {reason}"
            )
        # In arrays, which workers share: of lists each would copy what it reads.
        self._names = Names(video.name for video in videos)
        self._times = Ragged.of([video.times for video in videos], np.float64)
        self._keys = Ragged.of([video.keys for video in videos], np.int32)
        self._sizes = np.array([video.size for video in videos], np.int64)
        self._clips = np.array(clips, np.int64)  # video, first frame, the one after the last

    def __len__(self) -> int:
        return len(self._clips)

    def name(self, index: int) -> str:
        return f"{self.file(index)}@{self.times(index)[0]:.3f}"

    def file(self, index: int) -> str:
        return self._names[int(self._clips[index, 0])]

    def paths(self, index: int) -> list[str]:
        """Return the files below `root` that the clip is read from."""
        return [self.file(index)]

    def times(self, index: int) -> NDArray[np.float64]:
        video, start, stop = self._clips[index]
        return self._times[video][start:stop]

    def read(self, index: int, frames: Sequence[int]) -> list[Frame]:
        video, start, _ = self._clips[index]
        times, keys = self._times[video], self._keys[video]
        wanted = [int(start) + frame for frame in frames]
        try:
            return sought_frames(self.root / self.file(index), wanted, times, keys)
        except BadImage as error:
            raise BadImage(str(error), name=self.name(index)) from None

    def facts(self) -> Iterator[tuple[str, Any]]:
        """Yield the name of each video, and what it shares with its copies."""
        for name, size, frames in zip(self._names, self._sizes, self._times.lengths, strict=True):
            yield name, (int(size), int(frames))

    def files_of(self, video: int) -> list[Path]:
        """Return the file of a video."""
        return [self.root / self._names[video]]
