"""Demonstrations out of a LeRobot folder.

The robot's state is `observation.state` (none where there is no such feature), the action is
`action`, the pictures are those of one camera.
"""

from __future__ import annotations

import hashlib
import math
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pixio_heads.policy.demonstrations import Demonstration
from pixio_heads.policy.lerobot.frames import (
    EpisodeFrames,
    Room,
    check_video,
    from_parquet,
    from_video,
    picture_files,
)
from pixio_heads.policy.lerobot.layout import (
    ACTION,
    STATE,
    Episode,
    Layout,
    read_layout,
    read_table,
)
from pixio_lightning.data import digest_of, digest_of_files
from pixio_lightning.errors import UserError, nearest

_STEP = "frame_index"  # number of a step in its episode
_FPS_OFF = 0.1  # share by which steps may be nearer or farther apart than fps says


def read(
    folder: Path,
    *,
    limit: int | None,
    camera: str | None = None,
    size: int | None = None,
    max_megapixels: float = 64.0,
) -> tuple[list[Demonstration], str]:
    """Read the first episodes of a data set of version 2.0, 2.1 or 3.0.

    Pictures are decoded when they are asked for.

    Args:
        folder: The data set: it holds `meta/info.json`.
        limit: Episodes, at most; None for all.
        camera: Feature of the pictures, or the last part of its name; None takes the only one.
        size: Side of the square that pictures are cut and scaled to; None leaves them.
        max_megapixels: Larger pictures are not decoded.

    Returns:
        The demonstrations in the order of their numbers, and a digest of them.

    Raises:
        UserError: The folder is no such data set, or it is damaged; the file is named.
    """
    layout = read_layout(folder)
    if ACTION not in layout.features:
        known = nearest(ACTION, layout.features)
        raise UserError(f"'{layout.file}' has no feature '{ACTION}'{known}")
    name = layout.camera(camera)
    episodes = layout.episodes(name, limit)
    if layout.is_video(name):
        _check_videos(layout, episodes, max_megapixels)
    pictures = Pictures(name, size, max_megapixels, Room())
    found: list[Demonstration] = []
    for file, group in groupby(episodes, lambda episode: episode.data):
        found += _of_file(layout, file, list(group), pictures)
    content = hashlib.sha256()
    for demo in found:
        content.update(demo.name.encode() + demo.actions.tobytes() + demo.proprio.tobytes())
    files = dict.fromkeys(file for e in episodes for file in (e.data, e.video) if file)
    names = [file.relative_to(folder).as_posix() for file in files]
    if not layout.is_video(name):
        names += [path for file in files for path in picture_files(file, name)]
    state = digest_of_files(folder, names)
    return found, digest_of("lerobot", layout.version, name, size, state, content.hexdigest())


class Pictures(NamedTuple):
    """How the pictures of a data set are read."""

    camera: str
    size: int | None
    max_megapixels: float
    room: Room


def _check_videos(layout: Layout, episodes: list[Episode], max_megapixels: float) -> None:
    needed: dict[Path, int] = {}
    for episode in episodes:
        assert episode.video
        last = round(episode.start * layout.fps) + episode.length
        needed[episode.video] = max(last, needed.get(episode.video, 0))
    for file, frames in needed.items():
        check_video(file, frames, max_megapixels=max_megapixels)


def _of_file(
    layout: Layout, file: Path, episodes: list[Episode], how: Pictures
) -> list[Demonstration]:
    names = [name for name in (ACTION, STATE) if name in layout.features]
    pictures = [] if layout.is_video(how.camera) else [how.camera]
    columns = [*names, "timestamp", "episode_index"]
    table = read_table(file, columns, unread=pictures, where_present=[_STEP])
    values = {
        name: _numbers(table[name], file, name, layout.features[name].get("shape"))
        for name in names
    }
    marks = {
        name: _numbers(table[name], file, name, [1])[:, 0]
        for name in ("timestamp", _STEP)
        if name in table.column_names
    }
    numbers = table["episode_index"].to_numpy()
    known = np.unique(numbers, return_index=True, return_counts=True)
    places = {number: (first, rows) for number, first, rows in zip(*known, strict=True)}
    found = []
    for episode in episodes:
        first, rows = map(int, places.get(episode.index, (0, 0)))
        if layout.version != "v3.0" and rows < len(table):
            other = next(number for number in numbers if number != episode.index)
            raise UserError(
                f"'{file}' has rows of episode {other}, but is the file of episode {episode.index}"
            )
        if rows != episode.length:
            raise UserError(
                f"'{file}' has {rows} rows of episode {episode.index}, but its length is "
                f"{episode.length} in the folder meta"
            )
        part = slice(first, first + rows)
        if (numbers[part] != episode.index).any():
            raise UserError(f"'{file}': the rows of episode {episode.index} lie scattered")
        times = _times({name: of[part] for name, of in marks.items()}, file, episode, layout)
        if episode.video:
            decode = from_video(episode.video, (episode.start + times).tolist(), layout.fps)
        else:
            decode = from_parquet(
                *(file, how.camera, first, layout.folder, how.room),
                max_megapixels=how.max_megapixels,
            )
        state = values.get(STATE, np.empty((len(table), 0), np.float32))
        frames = EpisodeFrames(episode.length, decode, size=how.size, room=how.room)
        name, actions = f"episode_{episode.index:06d}", values[ACTION][part]
        found.append(Demonstration(name, state[part], actions, frames, keeps=how.size is not None))
    return found


def _times(
    marks: dict[str, NDArray[np.float32]], file: Path, episode: Episode, layout: Layout
) -> NDArray[np.float64]:
    """Return when in its episode each step was, in seconds `(T,)`.

    Args:
        marks: The episode's `timestamp`, and its `frame_index` if the file has one, each `(T,)`.
        file: It.
        episode: Which.
        layout: Says how far apart steps are.

    Raises:
        UserError: The steps are not in order, or not as far apart as `fps` says: a history would
            hold what is yet to come, or a frame be looked for at the time of another step.
    """
    times = marks["timestamp"].astype(float)
    if not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
        raise UserError(f"'{file}': timestamps of episode {episode.index} do not rise")
    if (marks.get(_STEP, np.arange(len(times))) != np.arange(len(times))).any():
        raise UserError(
            f"'{file}': {_STEP} of episode {episode.index} does not rise by one from 0: rows are "
            "missing or out of order"
        )
    apart = float(np.median(np.diff(times))) if len(times) > 1 else 1 / layout.fps
    if abs(apart * layout.fps - 1) > _FPS_OFF:
        raise UserError(
            f"'{file}': steps of episode {episode.index} are {apart:g} s apart, but fps of "
            f"'{layout.file}' is {layout.fps:g}"
        )
    return times


def _numbers(column: pa.ChunkedArray, file: Path, name: str, shape: Any) -> NDArray[np.float32]:
    """Return a column of numbers, or of lists of numbers, as `(T, n)`."""
    try:
        flat = column.combine_chunks()
        while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
            if len(pc.unique(pc.list_value_length(flat))) > 1:
                raise ValueError
            flat = pc.list_flatten(flat)
        numbers = flat.cast(pa.float32()).to_numpy(zero_copy_only=False)
        # Arrow's own memory is not to be written to, which torch warns of.
        return numbers.reshape(len(column), math.prod(shape)).copy()
    except (pa.ArrowException, TypeError, ValueError):
        raise UserError(
            f"'{file}': {name} is {column.type}, but meta/info.json says numbers of shape {shape}"
        ) from None
