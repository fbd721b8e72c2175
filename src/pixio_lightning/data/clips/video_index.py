"""What is known of video files without decoding them: when their frames are shown.

Kept as one parquet file for each folder of videos and version of PyAV, in the cache. Files that
have changed since, by size or time, are looked at anew, and so are those that could not be used: a
file system that failed once need not fail again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from pixio_lightning.data.clips.video import opened_video, packet_times, pyav
from pixio_lightning.data.listing.ragged import Ragged
from pixio_lightning.data.sources import digest_of
from pixio_lightning.data.workers import available_cores
from pixio_lightning.errors import UserError
from pixio_lightning.files import default_cache, written_aside

_VERSION = 3  # raise it when what is said of a file changes
_ANY_SIZE = 1e6  # megapixels: whether a video is too large is asked of the index
_SCHEMA = pa.schema(
    [
        ("name", pa.binary()),  # of files, which may hold any bytes
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("pixels", pa.int64()),
        ("times", pa.list_(pa.float64())),
        ("keys", pa.list_(pa.int32())),
    ]
)
_SAVED_EVERY = (
    60.0  # seconds, so that a kill loses little of a long look; more where saving is slow
)


class Video(NamedTuple):
    """What the index says of a file.

    Attributes:
        name: Path below the folder.
        size: Bytes.
        mtime: Nanoseconds.
        pixels: In a frame.
        times: When its frames are shown, seconds `(V,)` in rising order.
        keys: Numbers of its key frames.
        reason: Why it cannot be used; empty if it can, as of all that is kept.
    """

    name: str
    size: int
    mtime: int
    pixels: int
    times: NDArray[np.float64]
    keys: NDArray[np.int32]
    reason: str = ""


def video_index(root: Path, names: Iterable[str]) -> list[Video]:
    """Return what is known of videos below a folder, in order; what is not known is looked up.

    Raises:
        UserError: PyAV is missing.
    """
    digest = digest_of(pyav(root).__version__, root.resolve())
    path = default_cache() / f"videos-v{_VERSION}-{digest}.parquet"
    known = {video.name: video for video in _read(path)}

    def look(name: str) -> Video:
        try:
            about = (root / name).stat()
        except OSError as error:
            return _bad(name, 0, 0, f"cannot be read ({error.strerror})")
        found = known.get(name)
        if found is not None and (found.size, found.mtime) == (about.st_size, about.st_mtime_ns):
            return found
        return _look(root, name, about.st_size, about.st_mtime_ns)

    names, videos = list(names), []
    kept, unsaved = known.copy(), False
    saved, wait = time.monotonic(), _SAVED_EVERY
    with ThreadPoolExecutor(available_cores()) as pool:
        try:
            for video in tqdm(pool.map(look, names), "indexing videos", len(names), disable=None):
                videos.append(video)
                if not video.reason:
                    unsaved |= kept.get(video.name) is not video
                    kept[video.name] = video
                if unsaved and time.monotonic() - saved > wait:
                    start = time.monotonic()
                    _write(path, kept.values())
                    unsaved, saved = False, time.monotonic()
                    wait = max(_SAVED_EVERY, 10 * (saved - start))
        finally:  # of what is interrupted the rest is not waited for
            pool.shutdown(wait=False, cancel_futures=True)
    here = {video.name: video for video in videos if not video.reason}
    if unsaved or here.keys() != kept.keys():
        _write(path, here.values())
    return videos


def _look(root: Path, name: str, size: int, mtime: int) -> Video:
    file = root / name
    try:
        with opened_video(file, max_megapixels=_ANY_SIZE) as container:
            codec = container.streams.video[0].codec_context
            pixels = codec.width * codec.height
            times, keys = packet_times(container)
    except UserError as error:
        return _bad(name, size, mtime, str(error).replace(f"'{file}' ", "", 1))
    if not len(times):
        return _bad(name, size, mtime, "is a video without frames")
    return Video(name, size, mtime, pixels, times, keys.astype(np.int32))


def _bad(name: str, size: int, mtime: int, reason: str) -> Video:
    return Video(name, size, mtime, 0, np.zeros(0), np.zeros(0, np.int32), reason)


def _read(path: Path) -> list[Video]:
    if not path.exists():
        return []
    try:
        table = pq.read_table(path)
        times, keys = (Ragged.of_column(table[name]) for name in ("times", "keys"))
        rows = table.drop_columns(["times", "keys"]).to_pylist()
        return [
            Video(**row | {"name": os.fsdecode(row["name"]), "times": times[i], "keys": keys[i]})
            for i, row in enumerate(rows)
        ]
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError, AttributeError):
        return []  # damaged, and so made anew


def _write(path: Path, videos: Iterable[Video]) -> None:
    rows = [video._asdict() | {"name": os.fsencode(video.name)} for video in videos]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd")
