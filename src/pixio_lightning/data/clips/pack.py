"""Packing clips: a parquet row for each frame, a row group for each clip.

The shards are those of images with a few more columns, so that masked pretraining can train on the
frames; beside their index a table says what each group is.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
import torch.nn.functional as F

from pixio_lightning.data.batches import Bad
from pixio_lightning.data.clips.frame_folders import FrameFolders
from pixio_lightning.data.clips.source import ClipSource, Frame
from pixio_lightning.data.clips.table import TABLE, TABLE_SCHEMA, write_clips
from pixio_lightning.data.clips.video import VIDEO_SUFFIXES, evenly
from pixio_lightning.data.clips.videos import VideoSource
from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.shards.format import Encoded, ShardIndex
from pixio_lightning.data.shards.pack import (
    finished,
    packed,
    shard_schema,
    table_of,
    write_shard,
)
from pixio_lightning.data.sources import digest_of_files, existing_folder, files_below
from pixio_lightning.errors import UserError
from pixio_lightning.files import open_parquet
from pixio_lightning.keyed import permuted

_FRAME_FOLDER_FPS = 24.0  # by which numbers of frames in folders rise in a second, as in DAVIS
_QUALITY = 90
_LEAST = 2  # frames of a clip
_SCHEMA = shard_schema(
    {"clip": pa.string(), "file": pa.string(), "frame": pa.int32(), "time": pa.float64()}
)


class Form(NamedTuple):
    """How clips are packed.

    Attributes:
        fps: Frames a second that are kept, at most those there are.
        seconds: Length of a clip.
        side: Shorter side of a frame in pixels; smaller ones stay as they are.
    """

    fps: float
    seconds: float
    side: int


def pack_clips(
    source: str, out: Path, form: Form, *, rows: int, shuffled: bool, jobs: int
) -> tuple[ShardIndex, int]:
    """Pack the videos, or the folders of frames, below a folder into parquet shards of JPEG frames.

    Args:
        source: The folder.
        out: Folder to write to; what is there of the same packing stays.
        form: How many frames of which size.
        rows: Frames of a shard, about.
        shuffled: Whether to put the clips into a random order, always the same.
        jobs: Shards packed at a time.

    Returns:
        The index, which is written beside the shards, and how many clips there are.

    Raises:
        UserError: A number is too small, there is nothing to pack, or `out` cannot be written.
    """
    if min(form.fps, form.seconds) <= 0 or form.side < 16 or rows < 1 or jobs < 1:
        raise UserError(
            f"--fps {form.fps:g}, --seconds {form.seconds:g}, --side {form.side}, --rows {rows}, "
            f"--jobs {jobs}: expected more than 0, and a side of at least 16"
        )
    clips = _opened(source, form)
    n, each = len(clips), max(1, int(rows / (form.fps * form.seconds)))
    order = [permuted(i, n, seed=0, step=0) if shuffled else i for i in range(n)]
    parts = [order[start : start + each] for start in range(0, n, each)]

    def write(path: Path, part: list[int]) -> tuple[list[Bad], pa.Table]:
        left_out: list[Bad] = []
        groups = _groups(clips, part, form, left_out)
        left_out = write_shard(path, _content(clips, part, form), groups, _SCHEMA, left_out)
        return left_out, _about(path)

    label = "packing shards of clips"
    done = packed(out, parts, write, jobs=jobs, label=label, beside=(TABLE,))
    left_out = [*clips.bad, *(image for (bad, _), _ in done for image in bad)]
    table = pa.concat_tables(about for (_, about), _ in done)
    if not len(table):
        name, reason = left_out[0]
        raise UserError(f"no clip of '{source}' can be packed; the first, {name}: {reason}")
    write_clips(table, out)
    return finished(out, [shard for _, shard in done], dict(left_out).items()), len(table)


def _opened(source: str, form: Form) -> VideoSource | FrameFolders:
    about: dict[str, Any] = {"least": 0.0, "frames": _LEAST, "max_megapixels": 64.0}
    about |= {"key": "the source", "whole": form.seconds / 2}
    root = existing_folder(source, "the source")
    if any(name.lower().endswith(VIDEO_SUFFIXES) for name in files_below(root, key="the source")):
        return VideoSource(source, form.seconds, **about)
    return FrameFolders(source, _FRAME_FOLDER_FPS, form.seconds, **about)


def _content(clips: VideoSource | FrameFolders, part: Sequence[int], form: Form) -> str:
    """Return what changes with the files of some clips, and with how they are packed."""
    names = hashlib.blake2b(digest_size=8)
    for i in part:
        names.update(f"{clips.name(i)}\n".encode(errors="surrogateescape"))
        names.update(digest_of_files(clips.root, clips.paths(i)).encode())
    return f"{names.hexdigest()} {' '.join(map(str, form))}"


def _groups(
    clips: ClipSource, part: Sequence[int], form: Form, left_out: list[Bad]
) -> Iterator[pa.Table]:
    """Yield clips as row groups; of those that cannot be read, add the reason to `left_out`."""
    for i in part:
        times = clips.times(i)
        numbers = evenly(times, 1 / form.fps, None)
        try:
            frames = clips.read(i, numbers)
        except (BadImage, OSError) as error:
            left_out.append((getattr(error, "name", None) or clips.file(i), str(error)))
            continue
        name, file = (
            text.encode(errors="surrogateescape").decode(errors="backslashreplace")
            for text in (clips.name(i), clips.file(i))
        )
        images = [
            Encoded(f"{name}/{number:06d}", _jpeg(frame, form.side))
            for number, frame in zip(numbers, frames, strict=True)
        ]
        columns = {
            "clip": [name] * len(images),
            "file": [file] * len(images),
            "frame": numbers,
            "time": times[numbers],
        }
        yield table_of(images, columns, _SCHEMA)


def _jpeg(frame: Frame, side: int) -> bytes:
    """Encode a frame, scaled down to the shorter side, antialiased."""
    height, width, _ = frame.shape
    scale = side / min(height, width)
    if scale < 1:
        size = (round(height * scale), round(width * scale))
        # A copy where it is what a decoder owns and nobody may write to.
        own = np.require(frame, requirements="W")
        image = torch.from_numpy(own).permute(2, 0, 1)[None]
        scaled = F.interpolate(image, size, mode="bicubic", antialias=True)
        frame = np.ascontiguousarray(scaled[0].permute(1, 2, 0).numpy())
    return simplejpeg.encode_jpeg(frame, quality=_QUALITY)


def _about(path: Path) -> pa.Table:
    """Return what the groups of a shard are, as rows of the table beside the index."""
    found = []
    with (
        open_parquet(path) as file,
        path.open("rb") as raw,
        mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        end = 0
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group).to_pydict()
            about: dict[str, Any] = {"clip": rows["clip"][0], "file": rows["file"][0]}
            about |= {"times": rows["time"], "starts": [], "sizes": []}
            for image in rows["image"]:
                data = image["bytes"]
                start = content.find(data, end)  # plain and uncompressed, they stand as they are
                assert start >= 0, "a shard of clips is written without compression"
                about["starts"].append(start)
                about["sizes"].append(len(data))
                end = start + len(data)
            found.append(about)
    return pa.Table.from_pylist(found, schema=TABLE_SCHEMA)
