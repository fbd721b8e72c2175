"""Clips of what `pixio shard --clips` writes: a row group is a clip, a frame a range of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pixio_lightning.data.batches import Bad
from pixio_lightning.data.clips.pack import TABLE, TABLE_SCHEMA
from pixio_lightning.data.clips.source import Frame
from pixio_lightning.data.decode import BadImage, decode_pixels
from pixio_lightning.data.parquet import TooLarge, read_groups, rows_of
from pixio_lightning.data.shards.format import MAX_MEMBER
from pixio_lightning.data.shards.index import open_index
from pixio_lightning.data.shards.remote import check_address, file_system, join
from pixio_lightning.errors import UserError
from pixio_lightning.files import default_cache


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
        table = _table(path, key)
        self.index = open_index(path, cache=default_cache(), key=key)
        self.max_megapixels = max_megapixels
        if len(table) != self.index.n_groups:
            raise UserError(
                f"{key} '{path}': {TABLE} lists {len(table):,} clips, but the shards hold "
                f"{self.index.n_groups:,}: pack them again"
            )
        self.bad: list[Bad] = []
        self._clips: list[_Packed] = []
        for group, row in enumerate(rows_of(table)):
            number, _ = self.index.locate(group)
            try:
                times = np.array(row["times"], np.float64)
                starts, sizes = (np.array(row[name], np.int64) for name in ("starts", "sizes"))
                clip = _Packed(str(row["clip"]), str(row["file"]), number, times, starts, sizes)
            except (TypeError, ValueError):
                raise UserError(
                    f"{key} '{path}': {TABLE} is damaged: pack the clips again"
                ) from None
            fits = len(times) == len(starts) == len(sizes) == self.index.rows_of(group)
            if not fits or min(starts.min(), sizes.min()) < 0 or not (np.diff(times) > 0).all():
                raise UserError(f"{key} '{path}': {TABLE} does not fit the shards: pack them again")
            if len(times) < frames or times[-1] - times[0] < least:
                reason = f"shorter than {least:g} s, or of fewer than {frames} frames"
                self.bad.append((clip.name, reason))
            else:
                self._clips.append(clip)
        if not self._clips:
            name, reason = self.bad[0]
            raise UserError(f"{key} '{path}' holds no clip that can be used; {name}: {reason}")

    def __len__(self) -> int:
        return len(self._clips)

    def name(self, index: int) -> str:
        return self._clips[index].name

    def file(self, index: int) -> str:
        return self._clips[index].file

    def times(self, index: int) -> NDArray[np.float64]:
        return self._clips[index].times

    def read(self, index: int, frames: Sequence[int]) -> list[Frame]:
        clip, root = self._clips[index], self.index.root
        shard = self.index.shards[clip.shard].path
        files = file_system(root)
        found = []
        for frame in frames:
            start = int(clip.starts[frame])
            stop = start + min(int(clip.sizes[frame]), MAX_MEMBER)
            try:
                data = files.cat_file(join(root, shard), start=start, end=stop)
            except FileNotFoundError:
                raise BadImage("its shard is missing", name=clip.name) from None
            try:
                found.append(decode_pixels(data, max_megapixels=self.max_megapixels))
            except BadImage as error:
                raise BadImage(str(error), name=clip.name) from None
        return found


def _table(path: str, key: str) -> pa.Table:
    """Return what the groups of the shards are.

    Raises:
        UserError: They hold no clips.
    """
    files, _ = check_address(path, key)
    try:
        with files.open(join(path, TABLE), "rb") as opened, pq.ParquetFile(opened) as file:
            return read_groups(file, range(file.num_row_groups), TABLE_SCHEMA.names)
    except (OSError, KeyError, TooLarge, pa.ArrowException):
        raise UserError(
            f"{key} '{path}' holds no shards of clips ({TABLE} is missing or damaged): write "
            "them with `pixio shard DIR SHARDS --clips`"
        ) from None


class _Packed(NamedTuple):
    name: str
    file: str
    shard: int  # its number
    times: NDArray[np.float64]
    starts: NDArray[np.int64]  # of each frame, bytes
    sizes: NDArray[np.int64]
