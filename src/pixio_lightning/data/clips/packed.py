"""Clips of what `pixio shard --clips` writes: a row group is a clip, a frame a range of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.batches import Bad
from pixio_lightning.data.clips.source import Frame
from pixio_lightning.data.clips.table import TABLE, TABLE_SCHEMA, numbered, read_clips
from pixio_lightning.data.decode import BadImage, decode_pixels
from pixio_lightning.data.listing.names import Names
from pixio_lightning.data.listing.ragged import Ragged
from pixio_lightning.data.shards.format import MAX_MEMBER, short_reason
from pixio_lightning.data.shards.index import open_index
from pixio_lightning.data.shards.remote import check_address, file_system, join, retried
from pixio_lightning.errors import UserError


class PackedClips:
    """The clips of shards in a folder, on a hub or in an object store.

    Args:
        path: Folder or address.
        least: Seconds that a clip spans at least.
        frames: Frames that it has at least.
        max_megapixels: Larger frames are bad.
        key: What a mistake is blamed on.

    Attributes:
        bad: Clips that are too short, and why.
        lost: Their names, and how many clips there are.

    Raises:
        UserError: There are no shards of clips, or none is long enough.
    """

    def __init__(
        self,
        path: str,
        *,
        least: float,
        frames: int,
        max_megapixels: float,
        key: str = "data.path",
    ) -> None:
        check_address(path, key)
        if (table := read_clips(path, TABLE_SCHEMA.names)) is None:
            raise UserError(
                f"{key} '{path}' holds no shards of clips ({TABLE} is missing or damaged): write "
                "them with `pixio shard DIR SHARDS --clips`"
            )
        # By every process: what one alone refused, in `setup`, the others would wait for.
        self.index = open_index(path, key=key)
        self.max_megapixels = max_megapixels
        if len(table) != self.index.n_groups:
            raise UserError(
                f"{key} '{path}': {TABLE} lists {len(table):,} clips, but the shards hold "
                f"{self.index.n_groups:,}: pack them again"
            )
        try:
            # By group, in arrays, which workers share: of a list each would copy what it reads.
            self._names = Names(table["clip"].to_pylist())
            files, self._file_of = numbered(table["file"])
            self._files = Names(files)
            self._times, self._starts, self._sizes = (
                Ragged.of_column(table[name]) for name in ("times", "starts", "sizes")
            )
            self._check()
        except (ValueError, AttributeError):  # of names that are missing or no text, too
            raise UserError(
                f"{key} '{path}': {TABLE} is damaged or does not fit the shards: pack them again"
            ) from None
        lengths, values = self._times.lengths, self._times.values
        first, last = self._times.starts[:-1], self._times.starts[1:] - 1
        fit = (lengths >= frames) & (values[last] - values[first] >= least)
        self._clips = np.flatnonzero(fit)  # their groups
        reason = f"shorter than {least:g} s, or of fewer than {frames} frames"
        self.bad: list[Bad] = [(self._names[int(i)], reason) for i in np.flatnonzero(~fit)]
        self.lost = [name for name, _ in self.bad], len(fit)
        if not len(self._clips):
            name, reason = self.bad[0]
            raise UserError(f"{key} '{path}' holds no clip that can be used; {name}: {reason}")

    def _check(self) -> None:
        """Raise a ValueError where the table contradicts itself or the shards."""
        rows = self.index.group_rows
        lengths = (self._times.lengths, self._starts.lengths, self._sizes.lengths)
        if rows.min() < 1 or not all(np.array_equal(each, rows) for each in lengths):
            raise ValueError("not as many frames as images")
        times = self._times.values
        rises = np.diff(times) > 0
        rises[self._times.starts[1:-1] - 1] = True  # from the last frame of a clip to the next one
        if not (rises.all() and np.isfinite(times).all()):
            raise ValueError("times that do not rise")
        if min(self._starts.values.min(), self._sizes.values.min()) < 0:
            raise ValueError("bytes before the file")

    def __len__(self) -> int:
        return len(self._clips)

    def name(self, index: int) -> str:
        return self._names[int(self._clips[index])]

    def file(self, index: int) -> str:
        return self._files[int(self._file_of[self._clips[index]])]

    def times(self, index: int) -> NDArray[np.float64]:
        return self._times[self._clips[index]]

    def read(self, index: int, frames: Sequence[int]) -> list[Frame]:
        group, root = int(self._clips[index]), self.index.root
        starts, sizes = self._starts[group], self._sizes[group]
        shard = self.index.shards[self.index.locate(group)[0]].path
        files = file_system(root)
        found = []
        for frame in frames:
            start = int(starts[frame])
            stop = start + min(int(sizes[frame]), MAX_MEMBER)
            read = partial(files.cat_file, join(root, shard), start=start, end=stop)
            try:
                data = retried(read, join(root, shard))
            except Exception as error:  # of the network, or of who may read
                reason = short_reason(error, of="its shard")
                raise BadImage(reason, name=self.name(index)) from None
            try:
                found.append(decode_pixels(data, max_megapixels=self.max_megapixels))
            except BadImage as error:
                raise BadImage(str(error), name=self.name(index)) from None
        return found

    def facts(self) -> Iterator[tuple[str, Any]]:
        """Yield the name of each clip, and what it shares with its copies."""
        for group in map(int, self._clips):
            name = self._names[group]
            yield name, (name, self._times[group].tobytes(), self._sizes[group].tobytes())

    def files_of(self, clip: int) -> list[Path]:
        """Return no file: frames of equal names, times and sizes are the same ones."""
        return []
