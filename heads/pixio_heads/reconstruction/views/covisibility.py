"""Covisibility: the share of what one view shows that another view shows too.

A pixel of view a is seen by view b if its point lies in front of b, inside b's image, and at the
depth that b has there, give or take 0.1 + 0.005 z + 0.1 log 2 metres; the rule and its numbers are
those of MapAnything (https://arxiv.org/abs/2509.13414). The score is the share of all of a's
pixels, those without depth among them.

Shapes: N frames, P points.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.samples import digest_of
from pixio_lightning.data.scene_store import default_cache, locked

SIDE = 224  # pixels of a depth map's longer side, at most
_NEAREST = 0.04  # metres in front of a camera from which on a point counts
_SLACK = 0.1 + 0.1 * math.log(2)  # metres
_RELATIVE_SLACK = 0.005
_VERSION = 1  # raise it when the rule changes: old matrices are then left alone

Floats = NDArray[Any]


def shrunk(depth: Floats, intrinsics: Floats, *, side: int = SIDE) -> tuple[Floats, Floats]:
    """Return a depth map whose longer side is at most `side`, nearest, and its intrinsics.

    Args:
        depth: `(H, W)`.
        intrinsics: `(3, 3)`, for pixel centres at integer coordinates.
        side: Pixels.
    """
    scale = min(1.0, side / max(depth.shape))
    height, width = (max(1, round(n * scale)) for n in depth.shape)
    rows, columns = (
        ((np.arange(n) + 0.5) * whole / n).astype(int)
        for n, whole in zip((height, width), depth.shape, strict=True)
    )
    return depth[rows[:, None], columns], rescaled(
        intrinsics, width / depth.shape[1], height / depth.shape[0]
    )


def rescaled(intrinsics: Floats, across: float, down: float) -> Floats:
    """Return the intrinsics `(3, 3)` of an image resized by two factors.

    Pixel centres are at integer coordinates, so the image's corner is at -0.5 before and after.
    """
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    return np.linalg.inv(half) @ np.diag([across, down, 1.0]) @ half @ intrinsics


def pairwise(
    depths: Sequence[Floats], intrinsics: Sequence[Floats], cam2world: Sequence[Floats]
) -> NDArray[np.float32]:
    """Return how much of each view every view sees.

    Args:
        depths: N maps `(H, W)` of z-depth in metres; what is not positive and finite is invalid.
        intrinsics: N matrices `(3, 3)`.
        cam2world: N poses `(4, 4)` in OpenCV axes.

    Returns:
        `(N, N)`: in row a and column b the share of a's pixels that b sees.
    """
    scores = np.zeros((len(depths), len(depths)), dtype=np.float32)
    to_pixels = np.stack(intrinsics) @ np.linalg.inv(np.stack(cam2world))[:, :3]
    for a, depth in enumerate(depths):
        points = _unprojected(depth, intrinsics[a])
        if not points.size:
            continue
        corners = _corners(points)
        for b, (matrix, other) in enumerate(zip(to_pixels @ cam2world[a], depths, strict=True)):
            turn, shift = matrix[:, :3], matrix[:, 3:]
            if not _outside(turn @ corners + shift, other.shape):
                seen = _seen(points, turn.astype(np.float32), shift.astype(np.float32), other)
                scores[a, b] = seen / depth.size
    return scores


def _unprojected(depth: Floats, intrinsics: Floats) -> NDArray[np.float32]:
    """Return the valid points `(3, P)` in the camera's frame."""
    rows, columns = np.nonzero(np.isfinite(depth) & (depth > 0))
    pixels = np.stack([columns, rows, np.ones_like(rows)]).astype(np.float64)
    return (np.linalg.inv(intrinsics) @ pixels * depth[rows, columns]).astype(np.float32)


def _corners(points: Floats) -> Floats:
    """Return the corners `(3, 8)` of the box around points `(3, P)`."""
    sides = np.stack([points.min(1), points.max(1)]).astype(np.float64)
    return np.stack([sides[[i & 1, i >> 1 & 1, i >> 2], range(3)] for i in range(8)], axis=1)


def _outside(corners: Floats, size: tuple[int, ...]) -> bool:
    """Return whether a box, and so all in it, lies beyond one side of what a camera sees.

    Args:
        corners: `(3, 8)`, column and row in pixels times depth, and depth.
        size: Height and width of the camera's image.
    """
    x, y, z = corners
    height, width = size
    beyond = [z <= _NEAREST]
    beyond += [x < -0.5 * z, y < -0.5 * z, x >= (width - 0.5) * z, y >= (height - 0.5) * z]
    return any(bool(side.all()) for side in beyond)


def _seen(points: Floats, turn: Floats, shift: Floats, depth: Floats) -> int:
    """Count the points `(3, P)` that a camera with a depth map sees."""
    x, y, z = turn @ points + shift
    ahead = z > _NEAREST
    x, y, z = x[ahead], y[ahead], z[ahead]
    # Compared before they become integers, which a point beside the camera would not fit into.
    column, row = np.floor(x / z + 0.5), np.floor(y / z + 0.5)
    height, width = depth.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    z = z[inside]
    there = depth[row[inside].astype(int), column[inside].astype(int)]
    there = np.where(np.isfinite(there) & (there > 0), there, np.inf)
    return int(np.count_nonzero(np.abs(z - there) < _SLACK + _RELATIVE_SLACK * z))


def neighbours(scores: Floats, *, threshold: float) -> NDArray[np.bool_]:
    """Return which views see enough of which.

    Args:
        scores: `(N, N)` as from `pairwise`. A frame that cannot be read has NaN: it is nobody's
            neighbour, but has all for its own, so that it is met as the start of a walk, where
            loading it says what is wrong.
        threshold: Least score, relative to the view's score with itself.

    Returns:
        bool `(N, N)`: in row a the neighbours of a, never a itself.
    """
    own = np.diag(scores)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        near = (scores + scores.T) / 2 / own > threshold
    near |= np.isnan(own) & ~np.isnan(own.T)
    np.fill_diagonal(near, False)
    return near


def cached(facts: Any, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return a matrix of scores from disk, made and kept there on first use by one process.

    Args:
        facts: Plain data that changes whenever the scores would.
        make: Computes them.
    """
    folder = default_cache() / "covisibility"
    path = folder / f"{digest_of(_VERSION, facts)}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                aside = path.with_name(f".{path.name}.{os.getpid()}")
                with aside.open("wb") as file:
                    np.save(file, make(), allow_pickle=False)
                os.replace(aside, path)
    return np.load(path, mmap_mode="r", allow_pickle=False)
