"""Shards: large files that hold many encoded images, and the index of what is in them.

A shard is a parquet file (image bytes, optionally a key and score columns) or a tar of images. It
is read in groups of about a hundred images: a row group, or a range of bytes of a tar. The index
lists shards and groups, so that a run neither lists a bucket nor opens a footer to start, can go
to any group at once, and knows by count when images are missing.

Nothing in a shard is ever run, unpacked or used as a path: only members named like images are
looked at, and only by the image decoders.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pixio_lightning.data.parquet import TooLarge, read_rows
from pixio_lightning.data.shards.remote import (
    is_damage,
    join,
    open_for_groups,
    parquet_file,
    retried,
)
from pixio_lightning.data.sources import is_picture
from pixio_lightning.errors import UserError, printable

GROUP_ROWS = 100  # images in a group of a tar; what `pixio shard` writes to a row group
MAX_MEMBER = 32 << 20  # bytes of one image
MAX_RANGE = 64 << 20  # bytes of one group of a tar

UNREAD = "cannot be read"  # in the reason where a network or a disk failed, and may not next time


class Encoded(NamedTuple):
    """One image of a shard, or the reason why it cannot be had."""

    key: str
    data: bytes
    reason: str = ""


class Shard(NamedTuple):
    """What the index knows of a file.

    Attributes:
        path: Relative to the index, with forward slashes.
        size: Bytes.
        sha256: Digest of the file, empty where nobody took it.
        group_rows: Images of each group, int32.
        group_start: First byte of each group of a tar; empty for parquet.
        group_end: The byte after it.
        group_max_loss: Largest loss in each group, where the shard was sorted by it; else empty.
    """

    path: str
    size: int
    sha256: str
    group_rows: NDArray[np.int32]
    group_start: NDArray[np.int64] = np.zeros(0, np.int64)
    group_end: NDArray[np.int64] = np.zeros(0, np.int64)
    group_max_loss: NDArray[np.float32] = np.zeros(0, np.float32)

    @property
    def rows(self) -> int:
        """Number of images."""
        return int(self.group_rows.sum())


class ShardIndex:
    """The shards of a data set, and their groups as one list.

    Args:
        root: Folder or address of the shards.
        shards: The files, in order; those without an image count for nothing.
        damaged: What could not be indexed, name and reason.
        skipped: What lies beside the shards and is none, name and reason.
        column: Column of the images in parquet files; None finds it.
    """

    def __init__(
        self,
        root: str,
        shards: list[Shard],
        damaged: list[tuple[str, str]] | None = None,
        *,
        skipped: list[tuple[str, str]] | None = None,
        column: str | None = None,
    ) -> None:
        self.root, self.shards, self.damaged = root, shards, damaged or []
        self.skipped, self.column = skipped or [], column
        shards = self.shards = [shard for shard in shards if shard.rows]
        counts = [len(shard.group_rows) for shard in shards]
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        # Once: with millions of groups, nothing may go through them for every batch.
        none = np.zeros(0, np.int32)
        self.group_rows = np.concatenate([none, *(shard.group_rows for shard in shards)])
        self.rows = int(self.group_rows.sum(dtype=np.int64))  # images in all shards

    @property
    def lost(self) -> float:
        """About which share of the images is lost: damaged shards had as many as others have."""
        rows = {shard.path: shard.rows for shard in self.shards}
        names = {name for name, _ in self.damaged}
        whole = [n for name, n in rows.items() if name not in names] or list(rows.values())
        had = sum(whole) / max(1, len(whole))
        lost = sum(max(0.0, had - rows.get(name, 0)) for name in names)
        return lost / (lost + self.rows) if lost else 0.0

    @property
    def n_groups(self) -> int:
        """Number of groups in all shards."""
        return int(self.first[-1])

    def locate(self, group: int) -> tuple[int, int]:
        """Return the number of a group's shard, and its number there."""
        shard = int(np.searchsorted(self.first, group, side="right")) - 1
        return shard, group - int(self.first[shard])

    def groups_of(self, shard: int) -> range:
        """Return the numbers of a shard's groups."""
        return range(int(self.first[shard]), int(self.first[shard + 1]))

    def rows_of(self, group: int) -> int:
        """Return the number of images in a group."""
        return int(self.group_rows[group])

    @cached_property
    def digest(self) -> str:
        """Hash of what the index lists."""
        total = hashlib.blake2b(digest_size=8)
        for shard in self.shards:
            total.update(f"{shard.path} {shard.size} {shard.sha256}".encode())
            total.update(shard.group_rows.tobytes())
        return total.hexdigest()


# --- reading a group ----------------------------------------------------------------------------


def read_group(index: ShardIndex, group: int) -> list[Encoded]:
    """Read one group: as many entries as the index counts, whatever the file holds.

    An image that is missing, too large or lost with its file has its reason for data. What the
    network or a disk fails at is read again, see `retried`.
    """
    number, local = index.locate(group)
    shard = index.shards[number]
    expected = int(shard.group_rows[local])
    read = _read_tar_group if is_tar(shard.path) else _read_parquet_group
    try:
        found = retried(lambda: read(index, shard, local), join(index.root, shard.path))
    except Exception as error:  # what readers raise of damaged bytes has no common class
        return _lost(shard, local, range(expected), short_reason(error))
    if len(found) < expected:
        rest = range(len(found), expected)
        found += _lost(shard, local, rest, "missing from its shard, which is damaged")
    return found[:expected]


class NoImages(UserError):
    """A parquet file without a column of images."""


def column_of_images(schema: pa.Schema, wanted: str | None) -> str:
    """Return the name of the column of encoded images: `image`, or the first that holds bytes.

    Args:
        schema: Of a parquet file.
        wanted: The only column that will do.

    Raises:
        NoImages: There is none.
    """

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind) and (at := kind.get_field_index("bytes")) >= 0:
            kind = kind.field(at).type
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if holds_bytes(field.type)]
    if wanted in found or (wanted is None and found):
        return wanted or ("image" if "image" in found else found[0])
    what = "images" if wanted is None else f"images '{wanted}'"
    raise NoImages(f"no column of {what}, but {printable(', '.join(schema.names))}")


def column_read(index: ShardIndex) -> str | None:
    """Return the column that images are read from: of the first parquet file, if none is given.

    None of tars alone, and where that file cannot be read.
    """
    files = (shard.path for shard in index.shards if not is_tar(shard.path))
    first = next(files, None)
    if index.column is not None or first is None:
        return index.column
    try:
        return column_of_images(parquet_file(index.root, first).schema_arrow, None)
    except Exception:  # what readers raise of damaged bytes has no common class
        return None


def _lost(shard: Shard, group: int, rows: range, reason: str) -> list[Encoded]:
    # Their keys are lost with them, so the place stands for the name.
    return [Encoded(f"{shard.path}#{group}:{row}", b"", reason) for row in rows]


def short_reason(error: Exception, *, of: str = "shard") -> str:
    """Say in a few words why a shard, or another file, cannot be read."""
    if isinstance(error, (UserError, TooLarge)):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"{of} is missing"
    if is_damage(error):
        return f"{of} is damaged"
    number = error.errno if isinstance(error, OSError) else None
    return f"{of} {UNREAD} ({os.strerror(number) if number else type(error).__name__})"


def _rows_of_table(table: pa.Table, column: str, place: str) -> list[Encoded]:
    image = table[column].combine_chunks()
    if pa.types.is_struct(image.type):
        image = image.field("bytes")
    keys = (
        table["key"].to_pylist()
        if "key" in table.column_names
        else [f"{place}:{row}" for row in range(len(table))]
    )
    found = []
    for key, value in zip(keys, image, strict=True):
        data = value.as_buffer().to_pybytes() if value.is_valid else b""
        reason = "" if len(data) <= MAX_MEMBER else f"over {MAX_MEMBER >> 20} MB"
        found.append(Encoded(str(key), b"" if reason else data, reason))
    return found


def _read_parquet_group(index: ShardIndex, shard: Shard, group: int) -> list[Encoded]:
    file = parquet_file(index.root, shard.path)
    schema = file.schema_arrow
    column = column_of_images(schema, index.column)
    keys = ["key"] if "key" in schema.names and column != "key" else []
    table = read_rows(file, group, [*keys, column])
    return _rows_of_table(table, column, f"{shard.path}#{group}")


def _read_tar_group(index: ShardIndex, shard: Shard, group: int) -> list[Encoded]:
    start, end = int(shard.group_start[group]), int(shard.group_end[group])
    with open_for_groups(index.root, shard.path) as file:
        file.seek(start)
        if end - start > MAX_RANGE + MAX_MEMBER:  # one member alone, see `_index_tar`
            return _lost(shard, group, range(1), f"over {MAX_MEMBER >> 20} MB")
        chunk = file.read(end - start)
    found = []
    with tarfile.open(fileobj=io.BytesIO(chunk), mode="r:") as archive:
        for member in images_of(archive):
            if member.size > MAX_MEMBER:
                found.append(Encoded(member.name, b"", f"over {MAX_MEMBER >> 20} MB"))
                continue
            data = chunk[member.offset_data : member.offset_data + member.size]
            cut = len(data) < member.size
            found.append(Encoded(member.name, b"" if cut else data, "truncated" if cut else ""))
    return found


def images_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the plain files of an archive that are named like images; links lead nowhere."""
    try:
        for member in archive:
            plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
            if plain and is_picture(member.name.removeprefix("./")):
                yield member
    except tarfile.ReadError:
        return  # what is missing is found by the count


def is_tar(path: str) -> bool:
    """Whether a shard is a tar; otherwise it is parquet."""
    return path.endswith(".tar")
