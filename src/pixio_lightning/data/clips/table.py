"""What the groups of all shards of clips are, in order: a table beside their index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pixio_lightning.data.parquet import MAX_WHOLE, TooLarge, read_groups
from pixio_lightning.data.shards.remote import file_system, join
from pixio_lightning.errors import UserError
from pixio_lightning.files import open_parquet, written_aside

TABLE = "_clips.parquet"  # its name keeps it from being taken for a shard
TABLE_SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("file", pa.string()),
        ("times", pa.list_(pa.float64())),
        # Where the bytes of each frame stand in the shard, so that two of thirty can be read alone.
        ("starts", pa.list_(pa.int64())),
        ("sizes", pa.list_(pa.int32())),
    ]
)
_GROUP_FRAMES = 1 << 20  # of a row group of the table: 20 MB, however many clips there are
# Unpacked bytes for each of the file. Numbers of real clips have three or four.
_MOST_UNPACKED = 16


def write_clips(table: pa.Table, folder: Path) -> None:
    """Write the table, whole or not at all, in row groups that a reader holds one by one."""
    longest = pc.max(pc.list_value_length(table["times"])).as_py()
    rows = max(1, _GROUP_FRAMES // max(1, longest or 0))
    with written_aside(folder / TABLE) as aside:
        pq.write_table(table, aside, compression="zstd", row_group_size=rows)


def read_clips(root: str, columns: Sequence[str]) -> pa.Table | None:
    """Read columns of the table; None where it is missing, damaged or another one.

    Args:
        root: Folder or address of the shards.
        columns: Which.

    Raises:
        UserError: It is larger than it may be.
    """
    files, place = file_system(root), join(root, TABLE)
    try:
        most = max(MAX_WHOLE, _MOST_UNPACKED * (files.size(place) or 0))
        with files.open(place, "rb") as opened, open_parquet(opened) as file:
            groups = range(file.num_row_groups)
            found: dict[str, pa.ChunkedArray] = {}
            # Text is read by a few rows at a time, which for lists of numbers is slow.
            texts = [name for name in columns if pa.types.is_string(TABLE_SCHEMA.field(name).type)]
            for names in filter(None, (texts, [name for name in columns if name not in texts])):
                part = read_groups(file, groups, names, most=most)
                found |= {name: part[name] for name in names}
            schema = pa.schema([TABLE_SCHEMA.field(name) for name in columns])
            return pa.table({name: found[name] for name in columns}).cast(schema)
    except TooLarge as error:
        raise UserError(
            f"'{place}' is larger than it may be ({error}): pack the clips again"
        ) from None
    except (OSError, KeyError, pa.ArrowException):
        return None


def numbered(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int32]]:
    """Return the different texts of a column in order, and the number of each row's.

    Raises:
        ValueError: A row has none.
    """
    if column.null_count:
        raise ValueError("a row without a text")
    first: dict[str, int] = {}
    rows = (text for chunk in column.chunks for text in chunk.to_pylist())
    found = np.fromiter((first.setdefault(text, len(first)) for text in rows), np.int32)
    names = sorted(first)
    place = np.zeros(len(names), np.int32)
    place[[first[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    return names, place[found]
