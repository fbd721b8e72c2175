"""Rows of a Hugging Face data set that a task reads columns of, left encoded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pixio_lightning.data.decode import read_file
from pixio_lightning.data.samples import digest_of
from pixio_lightning.data.sources import open_hub
from pixio_lightning.errors import UserError, nearest


def open_columns(
    path: str, split: str, columns: Mapping[str, str], *, optional: Collection[str] = ()
) -> Any:
    """Return these columns of a split of a data set, its images undecoded.

    Reading a row reads all of its columns, so that others would cost their bytes and, where they
    are broken, the sample. Undecoded, 16 bits stay 16 bits, and our own decoder counts what is bad.

    Args:
        path: Hub id, or a local folder of parquet.
        split: Split to read.
        columns: The columns that must be there, by the key of `data` that names them.
        optional: Names of columns that are kept where they are there.

    Raises:
        UserError: The data set or a column does not exist.
    """
    import datasets

    data = open_hub(path, split)
    for key, column in columns.items():
        if column not in data.column_names:
            raise UserError(
                f"data.{key} is '{column}', but '{path}' has the columns "
                f"{', '.join(data.column_names)}{nearest(column, data.column_names)}"
            )
    wanted = {*columns.values(), *optional}
    data = data.select_columns([name for name in data.column_names if name in wanted])
    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data


def content(value: Any) -> bytes:
    """Return the bytes of an encoded image or array; empty where the row has none."""
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            return read_file(value["path"])
        value = value["bytes"]
    return value or b""


def rows_digest(data: Any, *facts: Any) -> str:
    """Return a short hash that changes when the files of a data set do, or the given facts."""
    files = [file["filename"] for file in data.cache_files]
    stats = [Path(file).stat() for file in files]
    seen = [(file, s.st_size, s.st_mtime_ns) for file, s in zip(files, stats, strict=True)]
    return digest_of("hub", seen, len(data), *facts)


class HubRows:
    """Rows of a split as samples: their number and names; a subclass loads them.

    Attributes:
        split: Name of the split.
        data: What `open_columns` returned.
    """

    split: str
    data: Any

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        return f"{self.split}/{index:08d}"
