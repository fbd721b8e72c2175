"""What is held out of shards: some of their groups, whole videos where they hold frames.

Or other shards, none of which may be trained on.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.clips.table import TABLE, numbered, read_clips
from pixio_lightning.data.shards.format import ShardIndex, is_tar
from pixio_lightning.data.shards.remote import file_system, join, parquet_file, place_of
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import permuted


def held_out_groups(index: ShardIndex, *, limit: int) -> NDArray[np.int64]:
    """Choose groups to hold out, the same ones every time: for `limit` images, at most a tenth.

    Of shards of clips all groups of a video are held out, or none: one of its frames looks like
    the next.

    Raises:
        UserError: There is one group only, or one video, or it cannot be told which video is which.
    """
    videos = _videos_of(index)
    part: NDArray[np.integer] = np.arange(index.n_groups)
    of = "group of images"
    if videos is not None:
        part, of = videos, "video"
    rows = np.bincount(part, weights=index.group_rows).astype(np.int64)
    n = len(rows)
    if n < 2:
        raise UserError(
            f"the shards have a single {of}, from which none can be held out: give "
            "data.val_path, or pack more"
        )
    chosen: list[int] = []
    while rows[chosen].sum() < limit and len(chosen) < max(1, n // 10):
        chosen.append(permuted(len(chosen), n, seed=0, step=0))
    return np.flatnonzero(np.isin(part, chosen))


def _videos_of(index: ShardIndex) -> NDArray[np.int32] | None:
    """Return the number of each group's video, as `pixio shard --clips` wrote; None of pictures.

    Raises:
        UserError: They are of videos, but what tells which is missing, damaged or of others.
    """
    videos = np.zeros(0, np.int32)
    if (table := read_clips(index.root, ["file"])) is not None:
        with suppress(ValueError):
            _, videos = numbered(table["file"])
    elif not file_system(index.root).exists(join(index.root, TABLE)) and not _holds_clips(index):
        return None
    if len(videos) != index.n_groups:
        raise UserError(
            f"'{index.root}' holds shards of clips, of which no {TABLE} beside them tells which "
            "video each is of, so none can be held out: give the folder that `pixio shard --clips` "
            "wrote, or data.val_path"
        )
    return videos


def _holds_clips(index: ShardIndex) -> bool:
    """Whether the first parquet shard has the columns that tell a frame's clip and video."""
    for shard in index.shards:
        if not is_tar(shard.path):
            try:
                names = parquet_file(index.root, shard.path).schema_arrow.names
            except Exception:  # what readers raise of damaged bytes has no common class
                return False
            return {"clip", "file", "frame"} <= {*names}
    return False


def refuse_trained_on(index: ShardIndex, apart: ShardIndex, given: str) -> None:
    """Refuse to hold out shards that are trained on, by whatever name or link.

    Args:
        index: Those that are trained on.
        apart: Those that are held out.
        given: What names the latter, for the message.

    Raises:
        UserError: A shard is of both.
    """
    own = {place_of(index.root, shard.path) for shard in index.shards}
    shared = [s.path for s in apart.shards if place_of(apart.root, s.path) in own]
    if shared:
        raise UserError(
            f"{given} holds out {len(shared)} of the shards that are trained on, the first is "
            f"'{shared[0]}': give others, or leave it out, and some groups are held out"
        )
