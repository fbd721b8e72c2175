"""What is known of video files without decoding them: when their frames are shown.

Kept as one parquet file for each folder of videos, in the cache; files that have changed since, by
size or time, are looked at anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
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
from pixio_lightning.data.workers import available_cores
from pixio_lightning.errors import UserError
from pixio_lightning.files import default_cache, written_aside

_VERSION = 2  # raise it when what is said of a file changes
_ANY_SIZE = 1e6  # megapixels: whether a video is too large is asked of the index
_SCHEMA = pa.schema(
    [
        ("name", pa.binary()),  # of files, which may hold any bytes
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("pixels", pa.int64()),
        ("times", pa.list_(pa.float64())),
        ("keys", pa.list_(pa.int32())),
        ("reason", pa.string()),
    ]
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
        reason: Why it cannot be used; empty if it can.
    """

    name: str
    size: int
    mtime: int
    pixels: int
    times: NDArray[np.float64]
    keys: NDArray[np.int32]
    reason: str


def video_index(root: Path, names: Iterable[str]) -> list[Video]:
    """Return what is known of videos below a folder, in order; what is not known is looked up.

    Raises:
        UserError: PyAV is missing.
    """
    pyav(root)
    digest = hashlib.blake2b(str(root.resolve()).encode(errors="surrogateescape"), digest_size=8)
    path = default_cache() / f"videos-v{_VERSION}-{digest.hexdigest()}.parquet"
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

    names = list(names)
    with ThreadPoolExecutor(available_cores()) as pool:
        bar = tqdm(pool.map(look, names), "indexing videos", len(names), disable=None)
        videos = list(bar)
    if _files(videos) != _files(known.values()):
        _write(path, videos)
    return videos


def _files(videos: Iterable[Video]) -> set[tuple[str, int, int]]:
    """Return what an index is compared by; arrays of times cannot be."""
    return {(video.name, video.size, video.mtime) for video in videos}


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
    return Video(name, size, mtime, pixels, times, keys.astype(np.int32), "")


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


def _write(path: Path, videos: Sequence[Video]) -> None:
    rows = [video._asdict() | {"name": os.fsencode(video.name)} for video in videos]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd")
