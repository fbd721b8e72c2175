"""The scores of a scene on disk, computed row by row: whatever stops it, no row is computed twice.

While they are computed, rows lie one behind another in a file of their own, whose length says how
many there are; whole, they become an npy file that all processes map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data import digest_of
from pixio_lightning.files import default_cache, locked, written_aside

_VERSION = 1  # raise it when the rule changes: old matrices are then left alone
_NUMBER = np.dtype("<f4")

Rows = Iterator[NDArray[np.float32]]


class ScoreFile:
    """A matrix of scores in the cache folder.

    Args:
        facts: Plain data that changes whenever the scores would.
        frames: Rows and columns N.
        rows: Yields the rows `(N,)` from a given one on.
    """

    def __init__(self, facts: Any, frames: int, rows: Callable[[int], Rows]) -> None:
        folder = default_cache() / "covisibility"
        self.path = folder / f"{digest_of(_VERSION, facts)}.npy"
        self.partial = self.path.with_suffix(".rows")
        self.frames, self.rows = frames, rows

    @property
    def missing(self) -> int:
        """How many rows are not on disk."""
        if self.path.exists():
            return 0
        there = self.partial.stat().st_size if self.partial.exists() else 0
        return self.frames - there // (self.frames * _NUMBER.itemsize)

    def complete(self, done: Callable[[], object] = lambda: None) -> None:
        """Compute the rows that are missing; another process that wants them waits.

        Args:
            done: Called after each.
        """
        if self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_suffix(".lock")) as alone:
            if self.path.exists():
                return
            if not alone:  # another may be adding rows to the file of those that are there
                found = []
                for row in self.rows(0):
                    found.append(row.astype(_NUMBER))
                    done()
                self._keep(np.stack(found))
                return
            start = self.frames - self.missing
            with self.partial.open("ab") as file:
                # The last one may have been cut short.
                file.truncate(start * self.frames * _NUMBER.itemsize)
                for row in self.rows(start) if start < self.frames else ():
                    file.write(row.astype(_NUMBER).tobytes())
                    file.flush()
                    done()
            self._keep(np.fromfile(self.partial, _NUMBER).reshape(self.frames, self.frames))
            self.partial.unlink()

    def _keep(self, matrix: NDArray[np.float32]) -> None:
        with written_aside(self.path) as aside, aside.open("wb") as whole:
            np.save(whole, matrix, allow_pickle=False)

    def read(self) -> NDArray[np.float32]:
        """Map the matrix `(N, N)`, computed now where it was not."""
        self.complete()
        return np.load(self.path, mmap_mode="r", allow_pickle=False)
