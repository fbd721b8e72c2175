"""Parquet of others, read within bounds: a value that stands once in a file may be in every row.

A footer says how large its groups are unpacked, and need not be right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pixio_lightning.files import column_chunks, open_parquet

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

    def __init__(self, what: str = "") -> None:
        group = f"a row group over {MAX_GROUP >> 30} GiB or {MAX_ROWS:,} rows"
        super().__init__(what or group)


def read_rows(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table:
    """Read columns of a row group, however little it takes in its file, if it is not too large.

    Raises:
        TooLarge: It is larger than it may be, or has more rows.
    """
    found = list(_batches(file, group, columns))
    return pa.Table.from_batches(found, schema=None if found else pa.schema([]))


def read_groups(
    file: pq.ParquetFile,
    groups: Iterable[int],
    columns: Sequence[str],
    *,
    most: int | None = None,
) -> pa.Table:
    """Read columns of row groups into one table.

    Args:
        file: The file.
        groups: Numbers of the row groups.
        columns: What is read of them.
        most: Bytes that they may take together; None for `MAX_WHOLE`.

    Raises:
        TooLarge: A group is larger than it may be, or all of them are.
    """
    most = MAX_WHOLE if most is None else most
    tables, size = [file.schema_arrow.empty_table().select(columns)], 0
    for group in groups:
        tables.append(read_rows(file, group, columns))
        size += tables[-1].nbytes
        if size > most:
            raise TooLarge(f"over {most / 2**30:.1f} GiB in all")
    return pa.concat_tables(table for table in tables if table.num_columns)


def check_unpacked(path: Path) -> None:
    """Look whether a file that something else is going to read unpacks to what it may.

    It is unpacked for that, if it is small: a large one takes what it costs to make it, and would
    have to be read twice.

    Raises:
        TooLarge: A group is larger than it may be, or has more rows.
        pa.ArrowException: The file is damaged.
    """
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            if path.stat().st_size > _SMALL:
                _check_footer(file, group, file.schema_arrow.names)
            else:
                for _ in _batches(file, group, file.schema_arrow.names):
                    pass


def _batches(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield rows a few at a time, until they are too many."""
    leaves = _check_footer(file, group, columns)
    rows = _NUMBERS_AT_ONCE
    if any("BYTE_ARRAY" in leaf.physical_type for leaf in leaves):  # of any or one length
        rows = _ROWS_AT_ONCE
    elif any(leaf.max_repetition_level for leaf in leaves):
        rows = _LISTS_AT_ONCE
    size = 0
    for batch in file.iter_batches(
        batch_size=rows, row_groups=[group], columns=list(columns), use_threads=False
    ):
        size += batch.nbytes
        if size > MAX_GROUP:
            raise TooLarge
        yield batch


def _check_footer(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> list[Any]:
    """Return the leaves of the schema that columns have, if the footer says not too much of them.

    What it says of each column is read where that matters: it takes as long as many groups do.
    """
    schema, about = file.schema, file.metadata.row_group(group)
    # A name may hold dots, as `observation.state`; below it are its fields.
    names = tuple(f"{column}." for column in columns)
    leaves = [schema.column(i) for i in range(len(schema))]
    leaves = [leaf for leaf in leaves if f"{leaf.path}.".startswith(names)]
    # Equal numbers take next to nothing, unpacked pages included.
    unpacked = about.num_rows * sum(_WIDTHS.get(leaf.physical_type, 0) for leaf in leaves)
    if about.total_byte_size > MAX_GROUP or any(leaf.max_repetition_level for leaf in leaves):
        wanted = [c for c in column_chunks(file, group) if f"{c.path}.".startswith(names)]
        numbers = sum(c.num_values * _WIDTHS.get(c.physical_type, 0) for c in wanted)
        unpacked = max(numbers, sum(c.unpacked for c in wanted))
    if about.num_rows > MAX_ROWS or unpacked > MAX_GROUP:
        raise TooLarge
    return leaves
