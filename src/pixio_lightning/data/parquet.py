"""Parquet of others, read within bounds: a value that stands once in a file may be in every row.

A footer says how large its groups are unpacked, and need not be right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pixio_lightning.files import ColumnChunk, column_chunks

MAX_GROUP = 1 << 30  # bytes of one group, unpacked
MAX_ROWS = 1 << 20  # rows of one group
MAX_WHOLE = 4 << 30  # bytes of all groups that are held at once
_ROWS_AT_ONCE = 4
_NUMBERS_AT_ONCE = 1 << 14  # rows that hold nothing but one number each
_LISTS_AT_ONCE = 1 << 8  # rows of lists of numbers
_WIDTHS = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8}  # bytes of a value
_SMALL = 32 << 20  # bytes of a file


class TooLarge(ValueError):
    """Something that would fill the memory; the text says what."""

    def __init__(self) -> None:
        super().__init__(f"a row group over {MAX_GROUP >> 30} GiB or {MAX_ROWS:,} rows")


def read_rows(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table:
    """Read columns of a row group, however little it takes in its file, if it is not too large.

    Raises:
        TooLarge: It is larger than it may be, or has more rows.
    """
    found = list(_batches(file, group, columns))
    return pa.Table.from_batches(found, schema=None if found else pa.schema([]))


def read_groups(file: pq.ParquetFile, groups: Iterable[int], columns: Sequence[str]) -> pa.Table:
    """Read columns of row groups into one table.

    Raises:
        TooLarge: A group is larger than it may be, or all of them are.
    """
    tables, size = [file.schema_arrow.empty_table().select(columns)], 0
    for group in groups:
        tables.append(read_rows(file, group, columns))
        size += tables[-1].nbytes
        if size > MAX_WHOLE:
            raise TooLarge
    return pa.concat_tables(table for table in tables if table.num_columns)


def check_unpacked(path: Path) -> None:
    """Look whether a file that something else is going to read unpacks to what it may.

    It is unpacked for that, if it is small: a large one takes what it costs to make it, and would
    have to be read twice.

    Raises:
        TooLarge: A group is larger than it may be, or has more rows.
        pa.ArrowException: The file is damaged.
    """
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            if path.stat().st_size > _SMALL:
                if about.num_rows > MAX_ROWS or about.total_byte_size > MAX_GROUP:
                    raise TooLarge
            else:
                for _ in _batches(file, group, file.schema_arrow.names):
                    pass


def _batches(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield rows a few at a time, until they are too many."""
    parts = _check_footer(file, group, columns)
    rows, size = _NUMBERS_AT_ONCE, 0
    if any("BYTE_ARRAY" in part.physical_type for part in parts):  # of any or one length
        rows = _ROWS_AT_ONCE
    elif _has_lists(file, {part.path for part in parts}):
        rows = _LISTS_AT_ONCE
    for batch in file.iter_batches(
        batch_size=rows, row_groups=[group], columns=list(columns), use_threads=False
    ):
        size += batch.nbytes
        if size > MAX_GROUP:
            raise TooLarge
        yield batch


def _has_lists(file: pq.ParquetFile, paths: set[str]) -> bool:
    schema = file.schema
    leaves = (schema.column(i) for i in range(len(schema)))
    return any(leaf.path in paths and leaf.max_repetition_level for leaf in leaves)


def _check_footer(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> list[ColumnChunk]:
    """Return what the footer says of columns, if it is not too much."""
    # A name may hold dots, as `observation.state`; below it are its fields.
    names = tuple(f"{column}." for column in columns)
    wanted = [c for c in column_chunks(file, group) if f"{c.path}.".startswith(names)]
    # Equal numbers take next to nothing, unpacked pages included.
    numbers = sum(chunk.num_values * _WIDTHS.get(chunk.physical_type, 0) for chunk in wanted)
    unpacked = sum(chunk.unpacked for chunk in wanted)
    rows = file.metadata.row_group(group).num_rows
    if rows > MAX_ROWS or max(unpacked, numbers) > MAX_GROUP:
        raise TooLarge
    return wanted
