"""Pictures of a LeRobot episode, out of a column of parquet or a video.

An episode is decoded in order when its first frame is asked for, and kept while there is room. Then
frames are decoded one by one, until many of an episode are asked for in a row: it takes the place
of those that were not asked for longest. Samples drawn at random ask for a few, for which it is not
decoded whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pixio_heads.policy.lerobot.layout import inside
from pixio_heads.policy.rollout.pictures import square
from pixio_lightning.data import (
    BadImage,
    decode_pixels,
    frames_at,
    opened_video,
    read_file,
    read_groups,
)
from pixio_lightning.errors import UserError
from pixio_lightning.files import column_chunks, open_parquet

_KEPT = 1 << 30  # bytes of frames that are kept of a data set, per process
_IN_A_ROW = 16  # frames of an episode; more than a sample's history has
_KEPT_GROUP = 1 << 28  # bytes of a row group that is kept
_MOST_PATHS = 1 << 28  # bytes of paths in a file

Frame = NDArray[np.uint8] | str  # or why there is none
Decode = Callable[[int, int], Iterator[Frame]]  # of the steps from one up to another


class Room:
    """What is kept of a data set: whole episodes, and the last row group.

    Without room for more frames, those of a row group, as they lie there, are read once and not for
    each of them.
    """

    def __init__(self) -> None:
        self.total = self.left = _KEPT
        self._episodes: dict[EpisodeFrames, int] = {}  # bytes of each, the last asked for last
        self._asked: EpisodeFrames | None = None
        self._in_a_row = 0
        self._last: tuple[tuple[Path, str, int] | None, pa.ChunkedArray | None] = (None, None)

    def has_room(self, episode: EpisodeFrames, size: int) -> bool:
        """Whether an episode of so many bytes may be kept, in place of others if it is worth it."""
        self._in_a_row = self._in_a_row + 1 if self._asked is episode else 1
        self._asked = episode
        if size > self.left and (size > self.total or self._in_a_row < _IN_A_ROW):
            return False
        while size > self.left:
            oldest = next(iter(self._episodes))
            self.left += self._episodes.pop(oldest)
            oldest.kept = None
        return True

    def keep(self, episode: EpisodeFrames, size: int) -> None:
        """Note that an episode is kept, for which there is room."""
        self._episodes[episode] = size
        self.left -= size

    def used(self, episode: EpisodeFrames) -> None:
        """Note that a kept episode was asked for."""
        self._asked = episode
        self._episodes[episode] = self._episodes.pop(episode)

    def column(
        self, parquet: pq.ParquetFile, file: Path, name: str, groups: Sequence[int]
    ) -> pa.ChunkedArray:
        """Return a column of row groups.

        Raises:
            TooLarge: They are larger than they may be.
            pa.ArrowException: The file is damaged.
        """
        asked = (file, name, groups[0])
        kept, values = self._last
        if kept == asked and values is not None and len(groups) == 1:
            return values
        values = read_groups(parquet, groups, [name])[name]
        if len(groups) == 1 and values.nbytes <= _KEPT_GROUP:
            self._last = (asked, values)
        return values


class EpisodeFrames:
    """Returns the frame of a step, uint8 `(H, W, 3)`; raises BadImage.

    Args:
        length: Steps of the episode.
        decode: Yields the frames of a range of steps.
        size: Side of the square that frames are cut and scaled to, as they are kept; None keeps
            them as they are.
        room: What the episodes of a data set share.
    """

    def __init__(self, length: int, decode: Decode, *, size: int | None, room: Room) -> None:
        self.length, self.decode, self.size, self.room = length, decode, size, room
        self.kept: list[Frame] | None = None

    def __call__(self, step: int) -> NDArray[np.uint8]:
        if self.kept is None:
            frame = next(self._scaled(step, step + 1))
            if isinstance(frame, str):
                raise BadImage(frame)
            if not self.room.has_room(self, self.length * frame.nbytes):
                return frame
            frames = list(self._scaled(0, self.length))  # may fail, or be stopped
            self.kept = frames
            self.room.keep(self, sum(f.nbytes for f in frames if not isinstance(f, str)))
        self.room.used(self)
        frame = self.kept[step]
        if isinstance(frame, str):
            raise BadImage(frame)
        return frame

    def _scaled(self, start: int, stop: int) -> Iterator[Frame]:
        for frame in self.decode(start, stop):
            plain = isinstance(frame, str) or self.size is None
            yield frame if plain else square(frame, self.size)  # type: ignore[arg-type]


def from_parquet(
    file: Path, column: str, first_row: int, folder: Path, room: Room, *, max_megapixels: float
) -> Decode:
    """Return what decodes the pictures of a column from a row on."""
    decode = partial(_image, folder=folder, max_megapixels=max_megapixels)
    return partial(_images, file, column, first_row, decode, room)


def picture_files(file: Path, column: str) -> list[str]:
    """Return the paths that a column's pictures have in the data set, embedded or not.

    There are none where they cannot be read: the pictures are bad, then.
    """
    try:
        parquet = open_parquet(file)
        parts = [part for i in range(parquet.num_row_groups) for part in column_chunks(parquet, i)]
        sizes = [part.unpacked for part in parts if part.path == f"{column}.path"]
        if not sizes or sum(sizes) > _MOST_PATHS:
            return []  # of bytes alone
        values = parquet.read([f"{column}.path"])[column].to_pylist()
    except (pa.ArrowException, OSError, ValueError):
        return []
    found = [value["path"] for value in values if value and value["path"]]
    return [path for path in found if "\0" not in path and ".." not in path and path[0] != "/"]


def from_video(file: Path, times: Sequence[float], fps: float) -> Decode:
    """Return what decodes the frames of a video shown at `times`, in seconds and in order."""
    return partial(_frames, file, times, 0.5 / fps)


def _images(
    file: Path,
    column: str,
    first_row: int,
    decode: Callable[[Any], NDArray[np.uint8]],
    room: Room,
    start: int,
    stop: int,
) -> Iterator[Frame]:
    try:
        parquet = open_parquet(file)
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        ends = np.cumsum(sizes)
        first, last = first_row + start, first_row + stop
        groups = [i for i, end in enumerate(ends) if end > first and end - sizes[i] < last]
        values = room.column(parquet, file, column, groups)
        values = values.slice(first - int(ends[groups[0]]) + sizes[groups[0]], stop - start)
    except (pa.ArrowException, OSError, ValueError):
        yield from [f"{file.name} is damaged"] * (stop - start)
        return
    for value in values:
        try:
            yield decode(value.as_py())
        except (BadImage, UserError) as error:
            yield str(error)
        except OSError as error:
            yield f"cannot be read ({error.strerror})"


def _image(value: Any, *, folder: Path, max_megapixels: float) -> NDArray[np.uint8]:
    """Decode a cell: the file's bytes, or its path where they are not embedded."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None and isinstance(value, dict) and isinstance(value.get("path"), str):
        data = read_file(inside(folder, value["path"], "picture"))
    if not isinstance(data, bytes):
        raise BadImage("no picture")
    return decode_pixels(data, max_megapixels=max_megapixels)


def check_video(file: Path, frames: int, *, max_megapixels: float = 64.0) -> None:
    """Refuse a video that cannot be read, or is shorter than its episodes; decodes nothing.

    Args:
        file: The video.
        frames: Frames that it must have.
        max_megapixels: Larger ones are not decoded.

    Raises:
        UserError: It is refused, or PyAV is missing.
    """
    with opened_video(file, max_megapixels=max_megapixels) as container:
        held = container.streams.video[0].frames  # 0 where the container does not say
    if held and held < frames:
        raise UserError(f"'{file}' has {held} frames, but its episodes have {frames} steps")


def _frames(
    file: Path, times: Sequence[float], half: float, start: int, stop: int
) -> Iterator[Frame]:
    """Yield the frames within half a step of `times[start:stop]`."""
    for frame in frames_at(file, times[start:stop], early=half, late=half):
        yield f"{file.name} has no frame at its time, or is damaged" if frame is None else frame
