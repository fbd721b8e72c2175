"""Lists of numbers of unequal lengths, in memory that data workers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)


class Ragged(Generic[T]):
    """Arrays of one type behind each other; as objects each would cost 112 bytes more.

    Args:
        values: The numbers of all lists.
        lengths: How many each list has, `(n,)`.
    """

    def __init__(self, values: NDArray[T], lengths: NDArray[np.integer]) -> None:
        self.values = values
        self.starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    @classmethod
    def of(cls, arrays: Sequence[NDArray[T]], kind: type[T]) -> Ragged[T]:
        """Return the same numbers in one block of memory."""
        lengths = np.array([len(array) for array in arrays], np.int64)
        return cls(np.concatenate([np.zeros(0, kind), *arrays]).astype(kind, copy=False), lengths)

    @classmethod
    def of_column(cls, column: pa.ChunkedArray) -> Ragged[Any]:
        """Return a column of lists of numbers.

        Raises:
            ValueError: A list or a number in it is missing.
        """
        # Chunk by chunk: together they may hold more numbers than the offsets of one can count.
        chunks = [(chunk, chunk.flatten()) for chunk in column.chunks]
        if any(chunk.null_count or values.null_count for chunk, values in chunks):
            raise ValueError("a list without all of its numbers")
        kind = column.type.value_type.to_pandas_dtype()
        lengths = [chunk.value_lengths().to_numpy() for chunk, _ in chunks]
        return cls(
            np.concatenate([np.zeros(0, kind), *(values.to_numpy() for _, values in chunks)]),
            np.concatenate([np.zeros(0, np.int64), *lengths]),
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> NDArray[T]:
        return self.values[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many numbers each list has."""
        return np.diff(self.starts)
