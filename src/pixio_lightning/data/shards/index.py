"""The index of shards: which there are, how many images each group holds, and where it lies."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from pixio_lightning.data.listing.ragged import Ragged
from pixio_lightning.data.listing.splits import of_split
from pixio_lightning.data.parquet import MAX_ROWS
from pixio_lightning.data.shards.format import (
    GROUP_ROWS,
    MAX_MEMBER,
    MAX_RANGE,
    UNREAD,
    NoImages,
    Shard,
    ShardIndex,
    column_of_images,
    images_of,
    is_tar,
    short_reason,
)
from pixio_lightning.data.shards.remote import (
    check_address,
    file_system,
    join,
    local_path,
    retried,
)
from pixio_lightning.data.sources import digest_of
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files import default_cache, written_aside

INDEX = "index.parquet"
_ENDINGS = (".parquet", ".tar")
_PACKED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$")
_NOTES = (b"damaged", b"skipped")
_LISTS = ("group_rows", "group_start", "group_end", "group_max_loss")
_MAX_INDEX = 4 << 30  # bytes, unpacked: ten times what two billion images need
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


def open_index(
    path: str,
    *,
    split: str | None = None,
    column: str | None = None,
    key: str = "data.path",
    split_key: str = "data.split",
    look: bool = True,
) -> ShardIndex:
    """Return the index of a folder, an address or a single shard.

    A folder without an index file is indexed now, and the index is kept in the cache, unless
    the network or a disk failed at a shard. Parquet files without images, such as img2dataset
    writes beside its tars, are skipped.

    Args:
        path: Folder of parquet and tar files at any depth, one such file, or an address such as
            `hf://datasets/ORG/NAME` or `s3://BUCKET/FOLDER`.
        split: Which of them are meant where names tell, see `of_split`.
        column: Column of the images in parquet files; None finds it.
        key: What a mistake is blamed on.
        split_key: What a mistake in the split is.
        look: Whether to look at the size of each shard that an index here lists. Once is enough
            for all processes of a machine: a file system that many share answers slowly.

    Raises:
        UserError: There is nothing there, or no shard in it, or none of the split; or one was
            rewritten.
    """
    files, protocol = check_address(path, key)
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
    if not single and files.exists(join(path, INDEX)):
        index = read_index(path, column=column, key=key)
        if look:
            _refuse_rewritten(index)
        names = [shard.path for shard in index.shards]
        chosen = set(of_split(names, split, split_key, path))
        if len(chosen) < len(names):
            shards = [shard for shard in index.shards if shard.path in chosen]
            index = ShardIndex(
                index.root, shards, index.damaged, skipped=index.skipped, column=column
            )
        return index
    found = [PurePosixPath(path).name] if single else sorted(_files_below(files, path))
    names = [name for name in found if is_shard(name)]
    packed = [name for name in found if _PACKED.search(name)]
    if single and protocol != "file":
        root = path.rpartition("/")[0]
    if not names:
        inside = f", but {len(packed)} compressed, such as {packed[0]}" if packed else ""
        what = "is no shard" if single else f"holds no shard{inside}"
        raise UserError(
            f"{key} '{path}' {what}: expected .parquet or .tar files"
            + ("; unpack what is compressed, in which no place can be gone to" if packed else "")
        )
    names = of_split(names, split, split_key, path)
    sizes = [files.info(join(root, name)) for name in names]
    facts = [(i["size"], i.get("mtime"), i.get("etag")) for i in sizes]
    kept = default_cache() / f"index-{digest_of('3', root, column, names, facts)}"
    if (kept / INDEX).exists():
        index = read_index(str(kept), root=root, column=column)
        if _was_read(index):
            return index
    index = build_index(root, names, column=column)
    index.skipped += [(name, "compressed") for name in packed]
    if not index.shards and index.skipped:
        raise UserError(f"{key} '{path}' holds no shard of images: {': '.join(index.skipped[0])}")
    if _was_read(index):
        write_index(index, kept / INDEX)
    return index


def _was_read(index: ShardIndex) -> bool:
    """Whether every shard could be read, damaged or not: what failed may be there next time."""
    return not any(UNREAD in reason for _, reason in index.damaged)


def _refuse_rewritten(index: ShardIndex) -> None:
    """Refuse shards of another size than the index beside them says, where they lie here.

    Raises:
        UserError: One of them is.
    """
    root = local_path(index.root)
    for shard in index.shards if root is not None else ():
        size = shard.size
        with suppress(OSError):  # one that is missing has its images counted
            size = os.stat(f"{root}/{shard.path}").st_size
        if size != shard.size:
            raise UserError(
                f"'{join(index.root, shard.path)}' has {size:,} bytes, but '{INDEX}' beside it was "
                f"made of one of {shard.size:,}: remove '{INDEX}', and the shards are indexed anew"
            )


def build_index(root: str, names: list[str], *, column: str | None = None) -> ShardIndex:
    """Look into shards: the footers of parquet files, the headers of tars."""
    skipped: list[tuple[str, str]] = []

    def entry(name: str) -> tuple[Shard, str]:
        size = file_system(root).size(join(root, name))
        if is_tar(name):
            return _index_tar(root, name, size)
        return _index_parquet(root, name, size, column)

    def look(name: str) -> tuple[Shard | None, str]:
        try:
            return retried(partial(entry, name), join(root, name))
        except NoImages as error:
            skipped.append((name, str(error)))
            return None, ""
        except Exception as error:
            return None, short_reason(error)

    with ThreadPoolExecutor(8) as pool:
        found = list(tqdm(pool.map(look, names), "indexing shards", len(names), disable=None))
    damaged = [(name, reason) for name, (_, reason) in zip(names, found, strict=True) if reason]
    shards = [shard for shard, _ in found if shard is not None]
    return ShardIndex(root, shards, damaged, skipped=sorted(skipped), column=column)


def read_index(
    folder: str, *, root: str | None = None, column: str | None = None, key: str = "data.path"
) -> ShardIndex:
    """Read an index file; `root` is where its shards are, by default beside it.

    Raises:
        UserError: It is damaged, of another form, or names files outside of its folder.
    """
    try:
        with file_system(folder).open(join(folder, INDEX), "rb") as file:
            about = pq.read_metadata(file)
            groups = map(about.row_group, range(about.num_row_groups))
            if sum(group.total_byte_size for group in groups) > _MAX_INDEX:
                raise OSError("it is larger than any index")
            table = pq.read_table(file)
        about = table.schema.metadata or {}
        notes = [about.get(name, b"").decode().splitlines() for name in _NOTES]
        shards = _listed(table.select(_INDEX_SCHEMA.names).cast(_INDEX_SCHEMA))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{key}: '{join(folder, INDEX)}' is no index of shards: {reason}") from None
    damaged, skipped = (
        [(name, reason) for name, _, reason in (note.partition("\t") for note in lines)]
        for lines in notes
    )
    return ShardIndex(root or folder, shards, damaged, skipped=skipped, column=column)


def _listed(table: pa.Table) -> list[Shard]:
    """Return what an index lists, if it may be taken at its word.

    Lists stay arrays: as numbers of Python those of 200,000 shards would take gigabytes.

    Raises:
        ValueError: A row contradicts itself or what an index is, or leads out of its folder.
    """

    def refuse(rows: NDArray[np.integer], what: str) -> None:
        if len(rows):
            raise ValueError(f"{what} in row {rows[0]}")

    def refuse_in(lists: Ragged[Any], wrong: NDArray[np.bool_], what: str) -> None:
        refuse(np.searchsorted(lists.starts, np.flatnonzero(wrong), side="right") - 1, what)

    paths = table["path"].to_pylist()
    for number, path in enumerate(paths):
        if not isinstance(path, str) or not path.isprintable() or not path.endswith(_ENDINGS):
            raise ValueError(f"no name of a shard ({path!r:.80}) in row {number}")
        if ".." in path.split("/") or path.startswith(("/", "~")) or ":" in path:
            raise ValueError(f"it names '{path}', outside of its folder: refused")
    for name in ("size", "sha256"):
        refuse(np.flatnonzero(table[name].is_null()), "no size or no digest")
    for name in _LISTS:
        refuse(_incomplete(table[name]), "no list of groups")
    counts, starts, ends, losses = (Ragged.of_column(table[name]) for name in _LISTS)
    outside = (counts.values < 0) | (counts.values > MAX_ROWS)
    refuse_in(counts, outside, f"a group of other than 0 to {MAX_ROWS:,} images")
    places = counts.lengths * np.array([is_tar(path) for path in paths], np.int64)
    unlike = (starts.lengths != places) | (ends.lengths != places)
    unlike |= (losses.lengths != 0) & (losses.lengths != counts.lengths)
    refuse(np.flatnonzero(unlike), "as many places as there are groups missing")
    backwards = (starts.values < 0) | (starts.values > ends.values)
    refuse_in(starts, backwards, "a group that ends before it starts")
    facts = zip(paths, table["size"].to_pylist(), table["sha256"].to_pylist(), strict=True)
    return [Shard(*fact, counts[i], starts[i], ends[i], losses[i]) for i, fact in enumerate(facts)]


def _incomplete(column: pa.ChunkedArray) -> NDArray[np.integer]:
    """Return the rows of a column of lists that have none, or one without all of its numbers."""
    missing = [np.zeros(0, bool)]
    for chunk in column.chunks:
        missing.append(np.array(chunk.is_null()))
        holes = chunk.flatten().is_null()
        missing[-1][np.array(pc.list_parent_indices(chunk).filter(holes))] = True
    return np.flatnonzero(np.concatenate(missing))


def write_index(index: ShardIndex, path: Path) -> None:
    """Write the index file aside and put it in place."""
    rows = [{**shard._asdict(), "rows": shard.rows} for shard in index.shards]
    table = pa.Table.from_pylist(rows, schema=_INDEX_SCHEMA)
    notes = {
        what: "\n".join(f"{name}\t{reason}" for name, reason in lines)
        for what, lines in zip(_NOTES, (index.damaged, index.skipped), strict=True)
    }
    table = table.replace_schema_metadata(notes)
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def _index_parquet(root: str, name: str, size: int, column: str | None) -> tuple[Shard, str]:
    with file_system(root).open(join(root, name), "rb") as file:
        about = pq.read_metadata(file)
    column_of_images(about.schema.to_arrow_schema(), column)
    counts = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
    if max(counts, default=0) > MAX_ROWS:
        return Shard(name, size, "", np.zeros(0, np.int32)), f"a row group over {MAX_ROWS:,} rows"
    return Shard(name, size, "", np.array(counts, np.int32)), ""


def _index_tar(root: str, name: str, size: int) -> tuple[Shard, str]:
    """Cut a tar into groups by its headers, and look whether it ends as archives do."""
    starts: list[int] = []
    ends: list[int] = []
    counts: list[int] = []
    with (
        file_system(root).open(join(root, name), "rb") as file,
        tarfile.open(fileobj=file, mode="r:") as archive,
    ):
        for member in images_of(archive):
            end = member.offset_data + member.size
            wide = starts and end - starts[-1] > MAX_RANGE
            if not starts or counts[-1] >= GROUP_ROWS or member.size > MAX_MEMBER or wide:
                starts.append(member.offset)
                ends.append(0)
                counts.append(0)
            counts[-1] += 1
            ends[-1] = end
        last = archive.offset  # where the next header was expected
        file.seek(last)
        tail = file.read(2 * tarfile.BLOCKSIZE)
    reason = ""
    # An archive ends with a block of zeros; one that is cut between two members does not.
    if max(ends, default=0) > size or not tail:
        reason = f"truncated after {sum(counts)} images"
    elif tail.strip(b"\0"):
        reason = f"damaged after {sum(counts)} images"
    bounds = np.array(starts, np.int64), np.array(ends, np.int64)
    return Shard(name, size, "", np.array(counts, np.int32), *bounds), reason


def refuse_inside(out: Path, index: ShardIndex, source: str = "") -> None:
    """Refuse a folder for new shards among those they are made of, which they would be counted to.

    Args:
        out: The folder.
        index: Of the shards; where it lies beside them, it says for good which they are.
        source: What was named: of a single file, no folder counts.

    Raises:
        UserError: It lies there.
    """
    root = local_path(index.root)
    if root is None or Path(root, INDEX).exists() or Path(source or root).expanduser().is_file():
        return
    if out.expanduser().resolve().is_relative_to(root):
        raise UserError(
            f"'{out}' lies inside '{index.root}', to whose shards those written there would be "
            "counted: give a folder elsewhere"
        )


def is_shard(name: str) -> bool:
    """Whether a file is taken for a shard, by its path: an index is none, nor what is hidden."""
    *folders, last = name.split("/")
    hidden = any(part.startswith((".", "_")) for part in (*folders, last))
    return last.endswith(_ENDINGS) and not hidden and last != INDEX


def _files_below(files: Any, path: str) -> Iterator[str]:
    base = fsspec.core.strip_protocol(path).rstrip("/")
    for found in files.find(path):
        yield found[len(base) + 1 :]
