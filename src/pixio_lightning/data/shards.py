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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from pixio_lightning.data.sources import SUFFIXES
from pixio_lightning.errors import UserError, nearest

INDEX = "index.parquet"
GROUP_ROWS = 100  # images in a group of a tar; what `pixio shard` writes to a row group
MAX_MEMBER = 32 << 20  # bytes of one image
_MAX_RANGE = 64 << 20  # bytes of one group of a tar
# Those that only read bytes; others of fsspec start programs or unpack.
PROTOCOLS = ("file", "hf", "s3", "gs", "gcs", "az", "abfs", "http", "https")

UNSORTED = np.zeros(0, np.float32)
SCORE_COLUMNS = ("loss", "entropy", "width", "height")
_INDEX_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("rows", pa.int64()),
        ("sha256", pa.string()),
        ("group_rows", pa.list_(pa.int32())),
        ("group_start", pa.list_(pa.int64())),
        ("group_end", pa.list_(pa.int64())),
        ("group_max_loss", pa.list_(pa.float32())),
    ]
)


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
    group_start: NDArray[np.int64]
    group_end: NDArray[np.int64]
    group_max_loss: NDArray[np.float32]

    @property
    def rows(self) -> int:
        """Number of images."""
        return int(self.group_rows.sum())


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The shards of a data set, and their groups as one list.

    Attributes:
        root: Folder or address of the shards.
        shards: The files, in order.
        damaged: What could not be indexed, name and reason.
    """

    root: str
    shards: list[Shard]
    damaged: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        counts = [len(shard.group_rows) for shard in self.shards]
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        object.__setattr__(self, "_first", first)

    @property
    def n_groups(self) -> int:
        """Number of groups in all shards."""
        return int(self._first[-1])  # type: ignore[attr-defined]

    @property
    def rows(self) -> int:
        """Number of images in all shards."""
        return sum(shard.rows for shard in self.shards)

    def locate(self, group: int) -> tuple[int, int]:
        """Return the number of a group's shard, and its number there."""
        first = self._first  # type: ignore[attr-defined]
        shard = int(np.searchsorted(first, group, side="right")) - 1
        return shard, group - int(first[shard])

    def groups_of(self, shard: int) -> range:
        """Return the numbers of a shard's groups."""
        first = self._first  # type: ignore[attr-defined]
        return range(int(first[shard]), int(first[shard + 1]))

    def rows_of(self, group: int) -> int:
        """Return the number of images in a group."""
        shard, number = self.locate(group)
        return int(self.shards[shard].group_rows[number])

    @property
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

    An image that is missing, too large or lost with its file has its reason for data.
    """
    number, local = index.locate(group)
    shard = index.shards[number]
    expected = int(shard.group_rows[local])
    try:
        if is_tar(shard.path):
            found = _read_tar_group(index.root, shard, local)
        else:
            file = _parquet(index.root, shard.path)
            columns = [name for name in ("key", "image") if name in file.schema_arrow.names]
            table = file.read_row_group(local, columns=columns)
            found = _rows_of_table(table, f"{shard.path}#{local}")
    except Exception as error:  # what readers raise of damaged bytes has no common class
        return _lost(shard, local, range(expected), _short_reason(error))
    if len(found) < expected:
        rest = range(len(found), expected)
        found += _lost(shard, local, rest, "missing from its shard, which is damaged")
    return found[:expected]


def read_columns(root: str, path: str, group: int, columns: tuple[str, ...]) -> dict[str, Any]:
    """Return columns of one row group as numpy arrays, NaN for nulls.

    Raises:
        UserError: A column is missing.
    """
    file = _parquet(root, path)
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise UserError(
            f"'{_join(root, path)}' has no column '{missing[0]}': give a folder of scores, written "
            "by `pixio predict -c curation/score`"
        )
    table = file.read_row_group(group, columns=list(columns))
    return {name: table[name].to_numpy() for name in columns}


def _lost(shard: Shard, group: int, rows: range, reason: str) -> list[Encoded]:
    # Their keys are lost with them, so the place stands for the name.
    return [Encoded(f"{shard.path}#{group}:{row}", b"", reason) for row in rows]


def _short_reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "shard is missing"
    if isinstance(error, (pa.ArrowException, tarfile.TarError, OSError, EOFError, ValueError)):
        return "shard is damaged"
    return f"shard cannot be read ({type(error).__name__})"


def _rows_of_table(table: pa.Table, place: str) -> list[Encoded]:
    image = table["image"].combine_chunks()
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


def _read_tar_group(root: str, shard: Shard, group: int) -> list[Encoded]:
    start, end = int(shard.group_start[group]), int(shard.group_end[group])
    with _file_system(root).open(_join(root, shard.path), "rb") as file:
        file.seek(start)
        if end - start > _MAX_RANGE + MAX_MEMBER:  # one member alone, see `_index_tar`
            return _lost(shard, group, range(1), f"over {MAX_MEMBER >> 20} MB")
        chunk = file.read(end - start)
    found = []
    with tarfile.open(fileobj=io.BytesIO(chunk), mode="r:") as archive:
        for member in _images_of(archive):
            if member.size > MAX_MEMBER:
                found.append(Encoded(member.name, b"", f"over {MAX_MEMBER >> 20} MB"))
                continue
            data = chunk[member.offset_data : member.offset_data + member.size]
            cut = len(data) < member.size
            found.append(Encoded(member.name, b"" if cut else data, "truncated" if cut else ""))
    return found


def _images_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the plain files of an archive that are named like images; links lead nowhere."""
    try:
        for member in archive:
            plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
            if plain and member.name.lower().endswith(SUFFIXES):
                yield member
    except tarfile.ReadError:
        return  # what is missing is found by the count


# --- the index ----------------------------------------------------------------------------------


def open_index(path: str, *, cache: Path, key: str = "data.path", progress: bool = True) -> Any:
    """Return the index of a folder, an address or a single shard.

    A folder without an index file is indexed now, and the index is kept in the cache.

    Args:
        path: Folder of parquet and tar files at any depth, one such file, or an address such as
            `hf://datasets/ORG/NAME` or `s3://BUCKET/FOLDER`.
        cache: Folder for indices of data that bring none.
        key: What a mistake is blamed on.
        progress: Whether to show a bar.

    Raises:
        UserError: There is nothing there, or no shard in it.
    """
    files, protocol = _known_protocol(path, key)
    try:
        exists, single = files.exists(path), files.isfile(path)
    except Exception as error:  # of the network, or of who may read
        raise UserError(
            f"{key} '{path}' cannot be opened: {' '.join(str(error).split())}"
        ) from None
    if not exists:
        siblings = [p.name for p in Path(path).parent.glob("*")] if protocol == "file" else []
        raise UserError(f"{key} '{path}' does not exist{nearest(Path(path).name, siblings)}")
    root = str(PurePosixPath(path).parent) if single and protocol == "file" else path
    if not single and files.exists(_join(path, INDEX)):
        return read_index(path, key=key)
    names = [PurePosixPath(path).name] if single else sorted(_shard_names(files, path))
    if single and protocol != "file":
        root = path.rpartition("/")[0]
    if not names:
        raise UserError(f"{key} '{path}' holds no shard: expected .parquet or .tar files")
    sizes = [files.info(_join(root, name)) for name in names]
    facts = [
        f"{n} {i['size']} {i.get('mtime')} {i.get('etag')}"
        for n, i in zip(names, sizes, strict=True)
    ]
    digest = hashlib.blake2b("\n".join([root, *facts]).encode(), digest_size=8).hexdigest()
    kept = cache / f"index-{digest}"
    if (kept / INDEX).exists():
        return read_index(str(kept), root=root)
    index = build_index(root, names, progress=progress)
    write_index(index, kept / INDEX)
    return index


def build_index(root: str, names: list[str], *, progress: bool) -> ShardIndex:
    """Look into shards: the footers of parquet files, the headers of tars."""

    def look(name: str) -> tuple[Shard | None, str]:
        try:
            size = _file_system(root).size(_join(root, name))
            return (_index_tar if is_tar(name) else _index_parquet)(root, name, size)
        except Exception as error:
            return None, _short_reason(error)

    with ThreadPoolExecutor(8) as pool:
        hide = None if progress else True
        found = list(tqdm(pool.map(look, names), "indexing shards", len(names), disable=hide))
    damaged = [(name, reason) for name, (_, reason) in zip(names, found, strict=True) if reason]
    return ShardIndex(root, [shard for shard, _ in found if shard is not None], damaged)


def read_index(folder: str, *, root: str | None = None, key: str = "data.path") -> ShardIndex:
    """Read an index file; `root` is where its shards are, by default beside it.

    Raises:
        UserError: It is damaged, of another form, or names files outside of its folder.
    """
    try:
        with _file_system(folder).open(_join(folder, INDEX), "rb") as file:
            table = pq.read_table(file)
        rows = table.select(_INDEX_SCHEMA.names).to_pylist()
        notes = (table.schema.metadata or {}).get(b"damaged", b"").decode().splitlines()
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{key}: '{_join(folder, INDEX)}' is no index of shards: {reason}"
        ) from None
    shards = []
    for row in rows:
        parts = PurePosixPath(row["path"]).parts
        if ".." in parts or row["path"].startswith(("/", "~")) or ":" in row["path"]:
            raise UserError(
                f"{key}: the index names '{row['path']}', outside of its folder: refused"
            )
        shards.append(
            Shard(
                row["path"],
                row["size"],
                row["sha256"],
                np.array(row["group_rows"], np.int32),
                np.array(row["group_start"], np.int64),
                np.array(row["group_end"], np.int64),
                np.array(row["group_max_loss"], np.float32),
            )
        )
    damaged = [(name, reason) for name, _, reason in (note.partition("\t") for note in notes)]
    return ShardIndex(root or folder, shards, damaged)


def write_index(index: ShardIndex, path: Path) -> None:
    """Write the index file aside and put it in place."""
    rows = [{**shard._asdict(), "rows": shard.rows} for shard in index.shards]
    table = pa.Table.from_pylist(rows, schema=_INDEX_SCHEMA)
    notes = "\n".join(f"{name}\t{reason}" for name, reason in index.damaged)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table.replace_schema_metadata({"damaged": notes}), aside, compression="zstd")
    os.replace(aside, path)


def _index_parquet(root: str, name: str, size: int) -> tuple[Shard, str]:
    with _file_system(root).open(_join(root, name), "rb") as file:
        about = pq.read_metadata(file)
    if "image" not in {about.schema.column(i).path.split(".")[0] for i in range(about.num_columns)}:
        raise UserError(f"shard '{name}' has no column 'image'")
    counts = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
    nowhere = np.zeros(0, np.int64)
    shard = Shard(name, size, "", np.array(counts, np.int32), nowhere, nowhere, UNSORTED)
    return shard, "" if shard.rows else "empty shard"


def _index_tar(root: str, name: str, size: int) -> tuple[Shard, str]:
    """Cut a tar into groups by its headers, and look whether it ends as archives do."""
    starts: list[int] = []
    ends: list[int] = []
    counts: list[int] = []
    with (
        _file_system(root).open(_join(root, name), "rb") as file,
        tarfile.open(fileobj=file, mode="r:") as archive,
    ):
        for member in _images_of(archive):
            end = member.offset_data + member.size
            wide = starts and end - starts[-1] > _MAX_RANGE
            if not starts or counts[-1] >= GROUP_ROWS or member.size > MAX_MEMBER or wide:
                starts.append(member.offset)
                ends.append(0)
                counts.append(0)
            counts[-1] += 1
            ends[-1] = end
        last = archive.offset  # where the next header was expected
        file.seek(last)
        tail = file.read(2 * tarfile.BLOCKSIZE)
    reason = "" if counts else "empty shard"
    # An archive ends with a block of zeros; one that is cut between two members does not.
    if max(ends, default=0) > size or not tail:
        reason = f"truncated after {sum(counts)} images"
    elif tail.strip(b"\0"):
        reason = f"damaged after {sum(counts)} images"
    bounds = np.array(starts, np.int64), np.array(ends, np.int64)
    return Shard(name, size, "", np.array(counts, np.int32), *bounds, UNSORTED), reason


def is_tar(path: str) -> bool:
    """Whether a shard is a tar; otherwise it is parquet."""
    return path.endswith(".tar")


# --- files --------------------------------------------------------------------------------------


def _known_protocol(path: str, key: str) -> tuple[Any, str]:
    protocol = path.split("://")[0] if "://" in path else "file"
    if protocol not in PROTOCOLS or "::" in path or path.startswith("pipe:"):
        raise UserError(
            f"{key} '{path}' has no known protocol: expected a folder, or "
            f"{', '.join(f'{name}://' for name in PROTOCOLS[1:])}"
        )
    try:
        return _file_system(path), protocol
    except ImportError as error:
        raise UserError(f"{key} '{path}' needs a package: {error}") from None


def _file_system(root: str) -> Any:
    return _opened_file_system(root, os.getpid())


def _parquet(root: str, path: str) -> pq.ParquetFile:
    return _opened_parquet(root, path, os.getpid())


# By process: a worker is forked, and would share positions and connections with its parent.
@lru_cache(maxsize=64)
def _opened_file_system(root: str, process: int) -> Any:
    return fsspec.core.url_to_fs(root)[0]


# Opened files keep their footers, which a shuffled order of groups comes back to.
@lru_cache(maxsize=32)
def _opened_parquet(root: str, path: str, process: int) -> pq.ParquetFile:
    return pq.ParquetFile(_file_system(root).open(_join(root, path), "rb"))


def _join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}"


def _shard_names(files: Any, path: str) -> Iterator[str]:
    base = files._strip_protocol(path).rstrip("/")
    for found in files.find(path):
        name = found[len(base) + 1 :]
        hidden = any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)
        if name.endswith((".parquet", ".tar")) and not hidden and name != INDEX:
            yield name
