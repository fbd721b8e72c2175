"""`pixio shard`: pack a folder of images, or tar shards, into parquet shards with an index.

The bytes of the images are copied as they are; nothing is decoded. A shard is written aside and
renamed, and a finished one is left alone, so the same line again goes on after an interruption.
The files are what `datasets` reads as images, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pixio_lightning.data.batches import Bad
from pixio_lightning.data.shards.digests import Digests
from pixio_lightning.data.shards.format import (
    MAX_MEMBER,
    Encoded,
    NoImages,
    Shard,
    ShardIndex,
    column_of_images,
    is_tar,
    read_group,
)
from pixio_lightning.data.shards.index import (
    INDEX,
    is_shard,
    open_index,
    refuse_inside,
    write_index,
)
from pixio_lightning.data.sources import (
    FolderSource,
    digest_of_files,
    files_below,
    is_picture,
)
from pixio_lightning.errors import UserError
from pixio_lightning.files import written_aside
from pixio_lightning.files.atomic import sweep
from pixio_lightning.keyed import key_of, permuted

ROWS = 10_000  # images of a shard, where nothing else is said
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BASE_SCHEMA = pa.schema([("key", pa.string()), ("hash", pa.int64()), ("image", IMAGE)])


Read = Callable[[], Iterator[Encoded]]
Part = TypeVar("Part")
Found = TypeVar("Found")


def pack(
    source: str,
    out: Path,
    *,
    split: str | None = None,
    rows: int | None,
    group: int,
    shuffled: bool,
    jobs: int,
) -> ShardIndex:
    """Pack images into parquet shards.

    Args:
        source: Folder of pictures at any depth, or folder or address of shards.
        out: Folder to write to.
        split: Which shards are packed anew, where their names tell.
        rows: Images of a shard; None for `ROWS`, and where shards are packed anew, which keep
            theirs.
        group: Images of a row group, which are read together; all there are make ten groups at
            least, so that some can be held out.
        shuffled: Whether to put the files of a folder into a random order, always the same; shards
            keep theirs.
        jobs: Shards packed at a time.

    Returns:
        The index, which is written beside the shards.

    Raises:
        UserError: There is nothing to pack, or pictures and shards; an option is of pictures, but
            there are shards; or `out` cannot be written, or lies among the shards.
    """
    if (rows is not None and rows < 1) or group < 1 or jobs < 1:
        raise UserError(f"--rows {rows}, --group {group}, --jobs {jobs}: expected at least 1")
    parts, skipped = _parts(source, out, split=split, rows=rows, shuffled=shuffled)
    schema, alone = shard_schema({}), len(parts) == 1

    def write(path: Path, part: tuple[str, Read]) -> list[Bad]:
        content, read = part
        left_out: list[Bad] = []
        groups = _groups_of(read(), group, left_out, alone=alone)
        tables = (table_of(images, {}, schema) for images in groups)
        return write_shard(path, f"{content} {group}", tables, schema, left_out)

    found = packed(out, parts, write, jobs=jobs, label="packing shards")
    left_out = [bad for some, _ in found for bad in some]
    return finished(out, [shard for _, shard in found], left_out, skipped)


def packed(
    out: Path,
    parts: Sequence[Part],
    write: Callable[[Path, Part], Found],
    *,
    jobs: int,
    label: str,
    beside: tuple[str, ...] = (),
) -> list[tuple[Found, Shard]]:
    """Write a shard of each part, and return what that gives, and its entry in the index.

    Args:
        out: Folder to write to; what killed processes left there is removed.
        parts: What the shards are made of.
        write: Writes a part, unless it is there; several threads call it.
        jobs: Shards at a time.
        label: Of the bar.
        beside: Parquet files that may lie there, too.

    Raises:
        UserError: The folder cannot be written, or holds other shards.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to '{out}': {error.strerror}") from None
    sweep(out)
    names = [f"{number:05d}-of-{len(parts):05d}.parquet" for number in range(len(parts))]
    stray = {p.name for p in out.glob("*.parquet")} - {*names, INDEX, *beside}
    if stray:
        raise UserError(f"'{out}' holds other shards, such as '{min(stray)}': give a new folder")
    digests = Digests(out)

    def one(name: str, part: Part) -> tuple[Found, Shard]:
        return write(out / name, part), entry_of(out / name, digests)

    with ThreadPoolExecutor(jobs) as pool:
        return list(tqdm(pool.map(one, names, parts), label, len(names), disable=None))


def finished(
    out: Path, shards: list[Shard], left_out: Iterable[Bad], skipped: list[Bad] | None = None
) -> ShardIndex:
    """Write the index of packed shards, and list what was left out of them, and return it."""
    index = ShardIndex(str(out), shards, skipped=skipped)
    write_index(index, out / INDEX)
    list_left_out(out, left_out)
    return index


def list_left_out(out: Path, left_out: Iterable[Bad]) -> None:
    """Write bad_files.txt, a name and a reason a line; where all are good, none is left."""
    text = "".join(f"{name}\t{reason}\n" for name, reason in left_out)
    path = out / "bad_files.txt"
    if text:
        path.write_bytes(text.encode(errors="surrogateescape"))
    else:
        path.unlink(missing_ok=True)


def _parts(
    source: str, out: Path, *, split: str | None, rows: int | None, shuffled: bool
) -> tuple[list[tuple[str, Read]], list[tuple[str, str]]]:
    """Return, for each shard to write, what tells it apart and how to read its images.

    And the files beside them that are no shards, with the reason.
    """
    local = Path(source).expanduser()
    pictures, shards, skipped = _contents(local, out) if local.is_dir() else (0, [], [])
    if pictures and shards:
        raise UserError(
            f"'{source}' holds {pictures:,} pictures and {len(shards):,} shards, such as "
            f"{shards[0]}, so it is not clear what to pack: move either somewhere else"
        )
    if local.is_dir() and not shards:
        if split is not None:
            raise UserError(
                f"--split {split} is of data sets of the hub and of shards, but '{source}' holds "
                "pictures: name the folder of the split itself"
            )
        files = FolderSource(local, key="the source")
        n, rows = len(files), ROWS if rows is None else rows
        order = [permuted(i, n, seed=0, step=0) if shuffled else i for i in range(n)]
        cut = [order[start : start + rows] for start in range(0, n, rows)]
        skipped += [(f"*{suffix}", f"{n} of them") for suffix, n in files.skipped.most_common()]
        return [
            (digest_of_files(files.root, map(files.name, part)), partial(_files, files, part))
            for part in cut
        ], skipped
    for given, option in ((rows is not None, f"--rows {rows}"), (not shuffled, "--in-order")):
        if given:
            raise UserError(
                f"{option} is of pictures, but '{source}' holds shards, which keep their images "
                "and the order of these: leave it out"
            )
    index = open_index(source, split=split, key="the source", split_key="--split")
    if index.damaged:
        reasons = "; ".join(": ".join(bad) for bad in index.damaged[:5])
        raise UserError(f"{len(index.damaged)} shards of '{source}' are damaged ({reasons})")
    if not index.rows:
        raise UserError(f"the source '{source}' holds no image: its shards are empty")
    refuse_inside(out, index, source)
    entries = enumerate(index.shards)
    return [
        (f"{entry.path} {entry.size} {index.digest}", partial(_groups, index, number))
        for number, entry in entries
    ], index.skipped


def _contents(folder: Path, out: Path) -> tuple[int, list[str], list[tuple[str, str]]]:
    """Count the pictures below a folder, and list shards, and parquet files that are none.

    What was packed before into a folder inside of it is passed over.
    """
    pictures, shards, skipped = 0, [], []
    for name in files_below(folder, key="the source"):
        pictures += is_picture(name)
        if is_shard(name) and not (folder / name).resolve().is_relative_to(out.resolve()):
            shards.append(name)
    for name in shards if pictures else ():  # a table of captions beside them is no shard
        if not is_tar(name):
            try:
                column_of_images(pq.read_schema(folder / name), None)
            except NoImages as error:
                skipped.append((name, str(error)))
            except (pa.ArrowException, OSError):
                pass  # damaged, and so perhaps a shard
    none = {name for name, _ in skipped}
    return pictures, sorted(name for name in shards if name not in none), skipped


def _files(source: FolderSource, part: list[int]) -> Iterator[Encoded]:
    for number in part:
        name = source.name(number)
        try:
            size = (source.root / name).stat().st_size
            if size > MAX_MEMBER:
                yield Encoded(name, b"", f"over {MAX_MEMBER >> 20} MB")
                continue
            yield Encoded(name, source.read(number))
        except OSError as error:
            yield Encoded(name, b"", f"cannot be read ({error.strerror})")


def _groups(index: ShardIndex, number: int) -> Iterator[Encoded]:
    for group in index.groups_of(number):
        yield from read_group(index, group)


def _groups_of(
    images: Iterator[Encoded], group: int, left_out: list[Bad], *, alone: bool
) -> Iterator[list[Encoded]]:
    """Yield images in groups; of those that cannot be had, add name and reason to `left_out`.

    A few images that are all there are make ten groups.
    """

    def good() -> Iterator[Encoded]:
        for image in images:
            if image.reason or not image.data:
                left_out.append((image.key, image.reason or "empty file"))
            else:
                yield image

    rest, first = good(), list[Encoded]()
    if alone:
        first = list(islice(rest, 10 * group))
        if len(first) < 10 * group:
            group = max(1, len(first) // 10)
    rest = chain(first, rest)
    while some := list(islice(rest, group)):
        yield some


def write_shard(
    path: Path, done: str, groups: Iterable[pa.Table], schema: pa.Schema, left_out: list[Bad]
) -> list[Bad]:
    """Write a shard that appears complete or not at all, unless it is there.

    Args:
        path: The file.
        done: What it is made of and how, by which it is known again.
        groups: Its row groups, which are made as they are written.
        schema: Theirs.
        left_out: What making them leaves out.

    Returns:
        What was left out.
    """
    if path.exists():
        about = pq.read_metadata(path).metadata or {}
        if about.get(b"pixio_source") == done.encode():
            return [tuple(bad) for bad in json.loads(about[b"pixio_left_out"])]
    with written_aside(path) as aside, shard_writer(aside, schema) as writer:
        for table in groups:
            writer.write_table(table)
        about = {"pixio_source": done, "pixio_left_out": json.dumps(left_out)}
        writer.add_key_value_metadata(about)
    return left_out


def shard_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Return what writes the row groups of a shard."""
    return pq.ParquetWriter(
        path,
        schema,
        compression="none",  # JPEG and WebP bytes do not shrink
        use_dictionary=False,
        write_statistics=[name for name in schema.names if name not in BASE_SCHEMA.names],
    )


def shard_schema(columns: dict[str, pa.DataType]) -> pa.Schema:
    """Return the schema of a shard with further columns, which `datasets` reads as images."""
    schema = pa.schema([*BASE_SCHEMA, *columns.items()])
    features: dict[str, Any] = {}
    for name in schema.names:
        kind = str(schema.field(name).type)
        kind = {"float": "float32", "double": "float64"}.get(kind, kind)
        features[name] = {"dtype": kind, "_type": "Value"}
    features["image"] = {"_type": "Image"}
    hub = json.dumps({"info": {"features": features}})
    return schema.with_metadata({"huggingface": hub})


def table_of(images: Sequence[Encoded], columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """Return images and further columns as one row group."""
    # A name need not be UTF-8, but a column of text must.
    encoded = [image.key.encode(errors="surrogateescape") for image in images]
    keys = [key.decode(errors="backslashreplace") for key in encoded]
    base = {
        "key": keys,
        "hash": [key_of(key) for key in keys],
        "image": [{"bytes": image.data, "path": None} for image in images],
    }
    return pa.Table.from_pydict(base | columns, schema=schema)


def entry_of(path: Path, digests: Digests) -> Shard:
    """Return the index entry of a local parquet shard, with its digest."""
    about = pq.read_metadata(path)
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    counts = np.array([group.num_rows for group in groups], np.int32)
    shard = Shard(path.name, path.stat().st_size, digests.of(path), counts)
    if "loss" not in about.schema.names:
        return shard
    at = about.schema.names.index("loss")  # of shards that were sorted by it
    largest = [group.column(at).statistics.max for group in groups]
    return shard._replace(group_max_loss=np.array(largest, np.float32))
