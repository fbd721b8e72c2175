"""The index of shards: which there are, how many images each group holds, and where it lies."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pixio_lightning.data.listing.splits import of_split
from pixio_lightning.data.parquet import MAX_ROWS
from pixio_lightning.data.shards.format import (
    GROUP_ROWS,
    MAX_MEMBER,
    MAX_RANGE,
    UNSORTED,
    NoImages,
    Shard,
    ShardIndex,
    column_of_images,
    images_of,
    is_tar,
    short_reason,
)
from pixio_lightning.data.shards.remote import check_address, file_system, join, local_path
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files import default_cache, written_aside

INDEX = "index.parquet"
_ENDINGS = (".parquet", ".tar")
_PACKED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$")
_NOTES = (b"damaged", b"skipped")
_MAX_INDEX = 4 << 30  # bytes, unpacked: ten times what two billion images need
_NO_GROUPS = (np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64), UNSORTED)
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
    cache: Path | None = None,
    split: str | None = None,
    column: str | None = None,
    key: str = "data.path",
    split_key: str = "data.split",
    progress: bool = True,
) -> ShardIndex:
    """Return the index of a folder, an address or a single shard.

    A folder without an index file is indexed now, and the index is kept in the cache. Parquet
    files without images, such as img2dataset writes beside its tars, are skipped.

    Args:
        path: Folder of parquet and tar files at any depth, one such file, or an address such as
            `hf://datasets/ORG/NAME` or `s3://BUCKET/FOLDER`.
        cache: Folder for indices of data that bring none; None takes the usual one.
        split: Which of them are meant where names tell, see `of_split`.
        column: Column of the images in parquet files; None finds it.
        key: What a mistake is blamed on.
        split_key: What a mistake in the split is.
        progress: Whether to show a bar.

    Raises:
        UserError: There is nothing there, or no shard in it, or none of the split.
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
    facts = ["3", column or ""] + [
        f"{n} {i['size']} {i.get('mtime')} {i.get('etag')}"
        for n, i in zip(names, sizes, strict=True)
    ]
    digest = hashlib.blake2b("\n".join([root, *facts]).encode(), digest_size=8).hexdigest()
    kept = (cache or default_cache()) / f"index-{digest}"
    if (kept / INDEX).exists():
        return read_index(str(kept), root=root, column=column)
    index = build_index(root, names, column=column, progress=progress)
    index.skipped += [(name, "compressed") for name in packed]
    if not index.shards and index.skipped:
        raise UserError(f"{key} '{path}' holds no shard of images: {': '.join(index.skipped[0])}")
    write_index(index, kept / INDEX)
    return index


def _refuse_rewritten(index: ShardIndex) -> None:
    """Refuse shards of another size than the index beside them says, where looking is cheap.

    Raises:
        UserError: One of them is.
    """
    for shard in index.shards:
        path = Path(index.root, shard.path)
        size = path.stat().st_size if path.is_file() else shard.size
        if size != shard.size:
            raise UserError(
                f"'{path}' has {size:,} bytes, but '{INDEX}' beside it was made "
                f"of one of {shard.size:,}: remove '{INDEX}', and the shards are indexed anew"
            )


def build_index(
    root: str, names: list[str], *, column: str | None = None, progress: bool
) -> ShardIndex:
    """Look into shards: the footers of parquet files, the headers of tars."""
    skipped: list[tuple[str, str]] = []

    def look(name: str) -> tuple[Shard | None, str]:
        try:
            size = file_system(root).size(join(root, name))
            if is_tar(name):
                return _index_tar(root, name, size)
            return _index_parquet(root, name, size, column)
        except NoImages as error:
            skipped.append((name, str(error)))
            return None, ""
        except Exception as error:
            return None, short_reason(error)

    with ThreadPoolExecutor(8) as pool:
        hide = None if progress else True
        found = list(tqdm(pool.map(look, names), "indexing shards", len(names), disable=hide))
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
        rows = table.select(_INDEX_SCHEMA.names).to_pylist()
        about = table.schema.metadata or {}
        notes = [about.get(name, b"").decode().splitlines() for name in _NOTES]
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{key}: '{join(folder, INDEX)}' is no index of shards: {reason}") from None
    shards = []
    for number, row in enumerate(rows):
        if wrong := _wrong(row):
            raise UserError(
                f"{key}: '{join(folder, INDEX)}' is no index of shards: {wrong} in row {number}"
            )
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
    damaged, skipped = (
        [(name, reason) for name, _, reason in (note.partition("\t") for note in lines)]
        for lines in notes
    )
    return ShardIndex(root or folder, shards, damaged, skipped=skipped, column=column)


def _wrong(row: dict[str, Any]) -> str:
    """Say what is wrong with a row of an index; nothing if it may be taken at its word."""
    path, counts = row["path"], row["group_rows"]
    if not isinstance(path, str) or not path.isprintable() or not path.endswith(_ENDINGS):
        return f"no name of a shard ({path!r:.80})"
    if not isinstance(row["size"], int) or not isinstance(row["sha256"], str):
        return "no size or no digest"
    lists = [row[name] for name in ("group_start", "group_end", "group_max_loss")]
    if not all(isinstance(found, list) for found in (counts, *lists)):
        return "no list of groups"
    if not all(isinstance(n, int) and 0 <= n <= MAX_ROWS for n in counts):
        return f"a group of other than 0 to {MAX_ROWS:,} images"
    starts, ends, losses = lists
    places = len(counts) if is_tar(path) else 0
    if (len(starts), len(ends)) != (places, places) or len(losses) not in (0, len(counts)):
        return "as many places as there are groups missing"
    numbers = [*starts, *ends, *losses]
    if None in numbers or not all(0 <= a <= b for a, b in zip(starts, ends, strict=True)):
        return "a group that ends before it starts"
    return ""


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
        return Shard(name, size, "", *_NO_GROUPS), f"a row group over {MAX_ROWS:,} rows"
    nowhere = np.zeros(0, np.int64)
    shard = Shard(name, size, "", np.array(counts, np.int32), nowhere, nowhere, UNSORTED)
    return shard, ""


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
    return Shard(name, size, "", np.array(counts, np.int32), *bounds, UNSORTED), reason


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
