"""Clips of numbered pictures in folders, as DAVIS, JHMDB and what FFmpeg writes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.batches import Bad
from pixio_lightning.data.clips.source import Frame
from pixio_lightning.data.clips.videos import windows
from pixio_lightning.data.decode import BadImage, decode_pixels, read_file
from pixio_lightning.data.listing.names import Names
from pixio_lightning.data.sources import FolderSource
from pixio_lightning.errors import UserError

# With a fraction where it is of seconds since 1970, as in TUM's RGB-D sequences.
_LAST_NUMBER = re.compile(r"(?:[0-9]{9,}\.)?[0-9]+(?=[^0-9]*\Z)")
_JUMP = 10  # times the usual step between two numbers: what follows is cut off
_ALONE = "in no numbered row: no other name differs in its last number alone"


class FrameFolders:
    """Windows of all videos of which the frames are pictures below a folder.

    Pictures of one folder whose names differ in their last number alone are a video, so that
    `left_000.jpg` and `right_000.jpg` are of two. The number is the frame's, and says when it is
    shown. No clip spans a jump in the numbers.

    Args:
        path: The folder.
        fps: By how much the numbers rise in a second.
        seconds: Length of a clip.
        least: Seconds that a clip spans at least.
        frames: Pictures that it has at least.
        whole: Seconds that the rest of a video spans, to be a clip of its own; see `windows`.
        max_megapixels: Larger pictures are bad.
        key: What a mistake is blamed on.

    Attributes:
        bad: Videos that hold no clip and pictures of no video, and why.
        lost: The names of these videos, and how many videos there are.

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
        whole: float,
        max_megapixels: float,
        key: str = "data.path",
    ) -> None:
        source = FolderSource(path, key=key)
        self.root, self.max_megapixels, self._pictures = source.root, max_megapixels, source.names
        videos, self.bad = _videos(source.names)
        stray = len(self.bad)
        room: dict[str, Any] = {"least": least, "frames": frames, "whole": whole}
        kept: list[_Video] = []
        ends: list[int] = [0]  # of the videos, in the order of their pictures
        clips: list[tuple[int, int, int]] = []
        for video in videos:
            times, steps = video.numbers / fps, np.diff(video.numbers)
            step = float(np.median(steps))
            edges = [0, *(np.flatnonzero(steps > _JUMP * step) + 1).tolist(), len(times)]
            cut = [
                (ends[-1] + edge + start, ends[-1] + edge + stop)
                for edge, end in zip(edges, edges[1:], strict=False)
                for start, stop in windows(times[edge:end], seconds, **room)
            ]
            reason = ""
            if not steps.all():
                reason = "two pictures of one number"
            elif not cut and step / fps > seconds:
                reason = f"numbers {step:g} apart, {step / fps:g} s at {fps:g} a second"
            elif not cut:
                reason = f"shorter than {least:g} s at {fps:g} a second, or of fewer than {frames}"
                reason += " pictures"
            if reason:
                self.bad.append((video.name or ".", reason))
                continue
            clips += [(len(kept), start, stop) for start, stop in cut]
            kept.append(video)
            ends.append(ends[-1] + len(times))
        self.lost = [name for name, _ in self.bad[stray:]], len(videos)
        if not clips:
            name, reason = self.bad[0]
            raise UserError(
                f"{key} '{path}' holds no folder of frames; the first of {len(self.bad)}, {name}: "
                f"{reason}"
            )
        # In arrays, which workers share: of lists each would copy what it reads.
        self._names, self._ends = Names(video.name for video in kept), np.array(ends)
        self._order = np.concatenate([video.indices for video in kept])
        self._times = np.concatenate([video.numbers for video in kept]) / fps
        self._clips = np.array(clips, np.int64)  # video, first picture, the one after the last

    def __len__(self) -> int:
        return len(self._clips)

    def name(self, index: int) -> str:
        return f"{self.file(index)}@{self.times(index)[0]:.3f}"

    def file(self, index: int) -> str:
        return self._names[int(self._clips[index, 0])]

    def paths(self, index: int) -> list[str]:
        """Return the files below `root` that the clip is read from."""
        _, start, stop = self._clips[index]
        return [self._pictures[int(i)] for i in self._order[start:stop]]

    def times(self, index: int) -> NDArray[np.float64]:
        _, start, stop = self._clips[index]
        return self._times[start:stop]

    def read(self, index: int, frames: Sequence[int]) -> list[Frame]:
        first, found = int(self._clips[index, 1]), []
        for frame in frames:
            name = self._pictures[int(self._order[first + frame])]
            try:
                data = read_file(self.root / name)
                found.append(decode_pixels(data, max_megapixels=self.max_megapixels))
            except BadImage as error:
                raise BadImage(str(error), name=name) from None
        return found

    def facts(self) -> Iterator[tuple[str, Any]]:
        """Yield the name of each video, and what it shares with its copies."""
        for video, name in enumerate(self._names):
            first = self.root / self._pictures[int(self._order[self._ends[video]])]
            size = first.stat().st_size if first.exists() else 0
            yield name, (int(self._ends[video + 1] - self._ends[video]), size)

    def files_of(self, video: int) -> list[Path]:
        """Return the pictures of a video."""
        order = self._order[self._ends[video] : self._ends[video + 1]]
        return [self.root / self._pictures[int(i)] for i in order]


class _Video(NamedTuple):
    name: str
    numbers: NDArray[np.float64]  # of its pictures, rising from 0
    indices: NDArray[np.int64]  # of their names


def _videos(pictures: Names) -> tuple[list[_Video], list[Bad]]:
    """Return the videos, and pictures that are of none.

    A video is named as its folder, if no other is there.
    """
    rows: defaultdict[tuple[str, str, str], list[tuple[Decimal, int]]] = defaultdict(list)
    alone: list[int] = []
    for i, picture in enumerate(pictures):
        folder, _, name = picture.rpartition("/")
        stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix.lower()
        if number := _LAST_NUMBER.search(stem):
            before, after = stem[: number.start()], stem[number.end() :]
            rows[folder, before, after + suffix].append((Decimal(number[0]), i))
        else:
            alone.append(i)
    alone += [row[0][1] for row in rows.values() if len(row) == 1]
    rows_of = Counter(key[0] for key, row in rows.items() if len(row) > 1)
    videos = []
    for (folder, before, after), row in sorted(rows.items()):
        if len(row) > 1:
            row.sort()
            name = folder if rows_of[folder] == 1 else f"{folder}/{before}*{after}".lstrip("/")
            # From the first: those of time stamps are larger than a float tells apart.
            numbers = np.array([number - row[0][0] for number, _ in row], np.float64)
            videos.append(_Video(name, numbers, np.array([i for _, i in row], np.int64)))
    # A folder without any video is one entry.
    folders = {i: pictures[i].rpartition("/")[0] for i in sorted(alone)}
    named = [pictures[i] if folder in rows_of else folder for i, folder in folders.items()]
    return videos, [(name or ".", _ALONE) for name in dict.fromkeys(named)]
