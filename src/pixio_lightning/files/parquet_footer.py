"""What the footer of a parquet file says of its columns, without what ends the process.

Where a column's metadata contradicts itself, as in a damaged file, `RowGroupMetaData.column` of
pyarrow aborts: the error is thrown in C++ where nothing catches it; and writing such metadata down
reads memory that is not there. Reading rows raises. So the footer's own bytes are read here, in
Thrift's compact protocol [1]; its structures are those of parquet.thrift [2], whose field numbers
are below.

[1] https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
[2] https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_Wanted = dict[int, "_Wanted"]  # fields of a structure, each with those of its own

# Fields of ColumnMetaData.
_TYPE, _PATH_IN_SCHEMA, _NUM_VALUES, _UNPACKED = 1, 3, 5, 6
# Those that are read of FileMetaData, its row groups, their columns and the metadata of these.
_ROW_GROUPS, _COLUMNS, _META_DATA = 4, 1, 3
_OF_COLUMN: _Wanted = {_TYPE: {}, _PATH_IN_SCHEMA: {}, _NUM_VALUES: {}, _UNPACKED: {}}
_WANTED: _Wanted = {_ROW_GROUPS: {_COLUMNS: {_META_DATA: _OF_COLUMN}}}
# Physical types, by their number.
_TYPES = (
    *("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE"),
    *("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"),
)
# Types of Thrift.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


class ColumnChunk(NamedTuple):
    """What a footer says of a column in a row group; none of it need be true.

    Attributes:
        path: The column's fields, joined by dots, as `image.bytes`.
        physical_type: As parquet names it, as `INT64`; empty of an unknown one.
        num_values: How many values there are.
        unpacked: Bytes of its pages once they are unpacked.
    """

    path: str
    physical_type: str
    num_values: int
    unpacked: int


_sources: WeakKeyDictionary[pq.ParquetFile, Any] = WeakKeyDictionary()
_known: WeakKeyDictionary[pq.ParquetFile, list[list[ColumnChunk]]] = WeakKeyDictionary()


def open_parquet(source: str | Path | Any) -> pq.ParquetFile:
    """Open a parquet file whose `column_chunks` may be asked for.

    Args:
        source: Its path, or an opened file that can be sought in, which may be read in between.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source)
    _sources[file] = source
    return file


def column_chunks(file: pq.ParquetFile, group: int) -> list[ColumnChunk]:
    """Return the columns of a row group that are not encrypted.

    Args:
        file: From `open_parquet`.
        group: Number of the row group.

    Raises:
        pa.ArrowException: The footer is damaged.
        OSError: It cannot be read.
    """
    import pyarrow as pa

    if file not in _known:
        content = _footer(_sources[file])
        try:
            groups = _Reader(content).structure(_WANTED).get(_ROW_GROUPS, [])
            _known[file] = [[*map(_chunk, _of_group(group))] for group in groups]
        except (AttributeError, IndexError, RecursionError, TypeError, ValueError) as error:
            raise pa.ArrowInvalid(f"the footer is damaged: {error}") from None
    return _known[file][group]


def _footer(source: Any) -> bytes:
    """Return the bytes of a footer, behind which stand their number and a mark, of four each."""
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as opened:
            return _footer(opened)
    source.seek(-8, os.SEEK_END)
    # What pyarrow calls its size is how much of it was read: of a damaged one, a part.
    size = int.from_bytes(source.read(4), "little")
    source.seek(-8 - size, os.SEEK_END)
    return source.read(size)


def _of_group(group: dict[int, Any]) -> list[dict[int, Any]]:
    return [chunk[_META_DATA] for chunk in group.get(_COLUMNS, []) if _META_DATA in chunk]


def _chunk(about: dict[int, Any]) -> ColumnChunk:
    path = b".".join(about.get(_PATH_IN_SCHEMA, [])).decode(errors="replace")
    number = about.get(_TYPE, -1)
    kind = _TYPES[number] if 0 <= number < len(_TYPES) else ""
    return ColumnChunk(path, kind, about.get(_NUM_VALUES, 0), about.get(_UNPACKED, 0))


class _Reader:
    """Reads values of Thrift's compact protocol; structures as values by their field's number."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def structure(self, wanted: _Wanted) -> dict[int, Any]:
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            number = number + (head >> 4) if head > 15 else self._integer()
            if kind in (_TRUE, _FALSE):  # fields hold a truth by their type, unlike items of lists
                continue
            if number in wanted:
                found[number] = self._value(kind, wanted[number])
            else:
                self._skip(kind)
        return found

    def _value(self, kind: int, wanted: _Wanted) -> Any:
        if kind in (_I16, _I32, _I64):
            return self._integer()
        if kind == _BINARY:
            size = self._varint()
            self.at += size
            return self.content[self.at - size : self.at]
        if kind == _STRUCT:
            return self.structure(wanted)
        if kind == _LIST:
            kind, size = self._list()
            return [self._value(kind, wanted) for _ in range(size)]
        raise ValueError(f"no value of type {kind} is expected")

    def _skip(self, kind: int) -> None:
        if kind in (_I16, _I32, _I64):
            self._varint()
        elif kind == _BINARY:
            size = self._varint()
            self.at += size
        elif kind == _STRUCT:
            self.structure({})
        elif kind in (_LIST, _SET):
            kind, size = self._list()
            for _ in range(size):
                self._skip(kind)
        elif kind == _MAP:
            size = self._varint()
            kinds = self._byte() if size else 0
            for _ in range(size):
                self._skip(kinds >> 4)
                self._skip(kinds & 15)
        elif kind == _DOUBLE:
            self.at += 8
        elif kind in (_TRUE, _FALSE, _BYTE):
            self.at += 1
        else:
            raise ValueError(f"there is no type {kind}")

    def _list(self) -> tuple[int, int]:
        """Read the type of a list's items and how many there are."""
        head = self._byte()
        return head & 15, head >> 4 if head < 0xF0 else self._varint()

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)  # zigzag: 0, -1, 1, -2 ...

    def _varint(self) -> int:
        byte = self._byte()
        value, shift = byte & 127, 7
        while byte > 127:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
        return value

    def _byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]
