"""Which points of a reconstruction are exported: sure ones, off the edges, not too many."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pixio_heads.reconstruction.reconstructed import Reconstructed
from pixio_lightning.keyed import Purpose, keyed_numbers

_NORMAL_JUMP = 5.0  # degrees
_DEPTH_JUMP = 0.03  # of the depth


class Cloud(NamedTuple):
    """Points, each of one pixel of one view.

    Attributes:
        points: float32 `(N, 3)`, metres, in the frame of view 0.
        colours: uint8 `(N, 3)`, sRGB.
        view: int64 `(N,)`, the view a point was seen in; in rising order.
        pixel: int64 `(N, 2)`, its (u, v) there.
    """

    points: NDArray[np.float32]
    colours: NDArray[np.uint8]
    view: NDArray[np.int64]
    pixel: NDArray[np.int64]


def select(
    found: Reconstructed,
    *,
    max_points: int | None,
    voxel_size: float | None,
    confidence_percentile: float,
    edge_mask: bool,
) -> Cloud:
    """Return the points to export, the same ones every time.

    Args:
        found: The reconstruction; it stays as it is.
        max_points: Points at most, chosen by a hash of their number; None takes all.
        voxel_size: Side of cubes in metres of which each keeps its surest point; None for none.
        confidence_percentile: Share of the least confident pixels that is dropped, in percent.
        edge_mask: Whether pixels on the edges of objects are dropped.
    """
    keep = found.mask & (found.depth > 0) & np.isfinite(found.points).all(axis=-1)
    if edge_mask:
        for number, kept in enumerate(keep):
            kept &= ~edges(found.points[number], found.depth[number], kept)
    if keep.any():
        keep &= found.confidence >= np.percentile(found.confidence[keep], confidence_percentile)
    index = np.flatnonzero(keep)
    if voxel_size is not None:
        index = _surest(found, index, voxel_size)
    if max_points is not None and len(index) > max_points:
        # Not every n-th, which would leave stripes of the image's columns.
        order = keyed_numbers(index, seed=0, step=0, purpose=Purpose.KEEP)
        index = np.sort(index[np.argpartition(order, max_points)[:max_points]])
    view, row, column = np.unravel_index(index, keep.shape)
    return Cloud(
        points=found.points.reshape(-1, 3)[index],
        colours=found.image.reshape(-1, 3)[index],
        view=view,
        pixel=np.stack([column, row], axis=-1),
    )


def _surest(found: Reconstructed, index: NDArray[np.int64], side: float) -> NDArray[np.int64]:
    """Return of pixels by number the most confident one in each cube."""
    cube = np.floor(found.points.reshape(-1, 3)[index] / side).T
    order = np.lexsort((-found.confidence.reshape(-1)[index], *cube))
    cube = cube[:, order]
    first = np.append(True, (cube[:, 1:] != cube[:, :-1]).any(axis=0))[: len(index)]
    return np.sort(index[order[first]])


def edges(
    points: NDArray[np.float32], depth: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return where, among a pixel and its eight neighbours, both normal and depth jump.

    A surface seen at a grazing angle changes its depth as fast, but keeps its normal.

    Args:
        points: `(H, W, 3)`.
        depth: `(H, W)`.
        mask: `(H, W)`, pixels that count.

    Returns:
        bool `(H, W)`: a jump of more than 5 degrees and more than 3 %.
    """
    around = (3, 3)
    with np.errstate(invalid="ignore", divide="ignore"):
        near = sliding_window_view(
            np.pad(np.where(mask, depth, np.nan), 1, constant_values=np.nan), around
        )
        # fmin and fmax leave out NaN, which are the pixels that do not count.
        low, high = (f.reduce(near, axis=(-2, -1)) for f in (np.fmin, np.fmax))
        normal = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=0))
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        beside = sliding_window_view(
            np.pad(normal, ((1, 1), (1, 1), (0, 0)), mode="edge"), around, axis=(0, 1)
        )
        cosine = np.fmin.reduce(np.einsum("hwc,hwcij->hwij", normal, beside), axis=(-2, -1))
        turned = cosine < np.cos(np.radians(_NORMAL_JUMP))
        return mask & turned & (high - low > _DEPTH_JUMP * depth)
