"""Covisibility: the share of what one view shows that another view shows too.

A pixel of view a is seen by view b if its point lies in front of b, inside b's image, and at the
depth that b has there, give or take 0.1 + 0.005 z + 0.1 log 2 metres; the rule and its numbers are
those of MapAnything (https://arxiv.org/abs/2509.13414). The score is the share of all of a's
pixels, those without depth among them.

Shapes: N frames, P points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data import resampled, rescaled

SIDE = 224  # pixels of a depth map's longer side, at most
_NEAREST = 0.04  # metres in front of a camera from which on a point counts
_SLACK = 0.1 + 0.1 * math.log(2)  # metres
_RELATIVE_SLACK = 0.005
_TILE = 16  # pixels: a smaller one is skipped more often, and looked at for longer

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
    matrix = rescaled(intrinsics, width / depth.shape[1], height / depth.shape[0])
    return resampled(depth, (height, width)), matrix


def rows(
    depths: Sequence[Floats],
    intrinsics: Sequence[Floats],
    cam2world: Sequence[Floats],
    *,
    start: int = 0,
) -> Iterator[NDArray[np.float32]]:
    """Yield for each view how much of it every view sees, `(N,)`: the share of its pixels.

    Args:
        depths: N maps `(H, W)` of z-depth in metres; what is not positive and finite is invalid.
        intrinsics: N matrices `(3, 3)`.
        cam2world: N poses `(4, 4)` in OpenCV axes.
        start: The first view that is asked about.
    """
    surfaces = [np.where(np.isfinite(d) & (d > 0), d, np.inf).astype(np.float32) for d in depths]
    reach = np.array([_reach(surface) for surface in surfaces])
    to_pixels = np.stack(intrinsics) @ np.linalg.inv(np.stack(cam2world))[:, :3]
    for a in range(start, len(depths)):
        row = np.zeros(len(depths), dtype=np.float32)
        cloud = _cloud(surfaces[a], intrinsics[a])
        matrices = to_pixels @ cam2world[a]
        turns, shifts = matrices[..., :3], matrices[..., 3:]
        for b in np.flatnonzero(~_hidden(turns @ cloud.box + shifts, reach)):
            corners = (turns[b] @ cloud.corners + shifts[b]).reshape(3, -1, 8).swapaxes(0, 1)
            points = cloud.points[:, ~_hidden(corners, reach[b])].reshape(3, -1)
            turn, shift = turns[b].astype(np.float32), shifts[b].astype(np.float32)
            row[b] = _seen(points, turn, shift, surfaces[b]) / surfaces[a].size
        yield row


class _Cloud(NamedTuple):
    """The points of a view in its camera's frame, by T square tiles of its image.

    Attributes:
        points: `(3, T, pixels of a tile)`; NaN where a pixel has none.
        corners: Corners of the boxes around the points of each tile `(3, 8 * T)`.
        box: Corners of the box around all `(3, 8)`.
    """

    points: NDArray[np.float32]
    corners: Floats
    box: Floats


def _cloud(surface: Floats, intrinsics: Floats) -> _Cloud:
    """Unproject a depth map whose invalid pixels are infinite."""
    height, width = surface.shape
    depth = np.full((-height % _TILE + height, -width % _TILE + width), np.nan)
    depth[:height, :width] = np.where(np.isfinite(surface), surface, np.nan)
    down, across = np.indices(depth.shape).reshape(2, -1)
    pixels = np.stack([across, down, np.ones_like(down)]).astype(np.float64)
    points = (np.linalg.inv(intrinsics) @ pixels * depth.ravel()).astype(np.float32)
    tiles = points.reshape(3, depth.shape[0] // _TILE, _TILE, -1, _TILE).swapaxes(2, 3)
    tiles = tiles.reshape(3, -1, _TILE**2)
    tiles = tiles[:, np.isfinite(tiles[2]).any(1)]
    if not tiles.size:
        return _Cloud(tiles, np.zeros((3, 0)), np.zeros((3, 0)))
    # By more than points are rounded by.
    margin = 1e-5 * np.nanmax(np.abs(tiles))
    low = np.nanmin(tiles, axis=2).astype(np.float64) - margin
    high = np.nanmax(tiles, axis=2).astype(np.float64) + margin
    whole = _corners(low.min(1, keepdims=True), high.max(1, keepdims=True))
    return _Cloud(tiles, _corners(low, high), whole)


def _corners(low: Floats, high: Floats) -> Floats:
    """Return the corners `(3, 8 * T)` of T boxes from `low` to `high`, `(3, T)` each."""
    sides = np.stack([low, high])
    corners = [sides[[i & 1, i >> 1 & 1, i >> 2], range(3)] for i in range(8)]
    return np.stack(corners, axis=-1).reshape(3, -1)


def _reach(surface: Floats) -> tuple[float, ...]:
    """Return height, width, and between which depths a camera sees points at all."""
    known = surface[np.isfinite(surface)]
    if not known.size:
        return (*surface.shape, np.inf, -np.inf)
    nearest = (known.min() - _SLACK) / (1 + _RELATIVE_SLACK)
    farthest = (known.max() + _SLACK) / (1 - _RELATIVE_SLACK)
    return (*surface.shape, max(float(nearest), _NEAREST), float(farthest))


def _hidden(corners: Floats, reach: Floats) -> NDArray[np.bool_]:
    """Return which boxes, and so all in them, lie beyond one side of what a camera sees.

    Args:
        corners: `(..., 3, 8)`, column and row in pixels times depth, and depth.
        reach: `(..., 4)` as of `_reach`.
    """
    x, y, z = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    height, width, nearest, farthest = np.moveaxis(reach[..., None], -2, 0)
    hidden = (z < nearest).all(-1) | (z > farthest).all(-1)
    hidden |= (x < -0.5 * z).all(-1) | (y < -0.5 * z).all(-1)
    return hidden | (x > (width - 0.5) * z).all(-1) | (y > (height - 0.5) * z).all(-1)


def _seen(points: Floats, turn: Floats, shift: Floats, surface: Floats) -> int:
    """Count the points `(3, P)` that a camera with a depth map sees."""
    moved = turn @ points
    moved += shift
    z = moved[2]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Compared before they become integers, which a point beside the camera would not fit into.
        across, down = np.divide(moved[:2], z, out=moved[:2])
        moved[:2] += np.float32(0.5)
    height, width = surface.shape
    within = (z > _NEAREST) & (across >= 0) & (across < width) & (down >= 0) & (down < height)
    inside = np.flatnonzero(within)
    z = z[inside]
    pixel = down[inside].astype(np.intp) * width + across[inside].astype(np.intp)
    there = surface.ravel().take(pixel)
    return int(np.count_nonzero(np.abs(z - there) < _SLACK + _RELATIVE_SLACK * z))


class Neighbours:
    """Which views see enough of which: of each view on demand, since all would be N^2.

    Args:
        scores: `(N, N)`, the rows of `rows`. A frame that cannot be read has NaN: it is nobody's
            neighbour, but has all for its own, so that it is met as the start of a walk, where
            loading it says what is wrong.
        threshold: Least score, relative to the view's score with itself.
    """

    def __init__(self, scores: Floats, *, threshold: float) -> None:
        self.scores, self.threshold = scores, threshold

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, view: int) -> NDArray[np.bool_]:
        """Return bool `(N,)`: the neighbours of a view, which is never its own."""
        own = self.scores[view, view]
        if np.isnan(own):
            near = ~np.isnan(np.diag(self.scores))
        else:
            both = (self.scores[view] + self.scores[:, view]) / 2
            with np.errstate(divide="ignore", invalid="ignore"):
                near = np.asarray(both / own > self.threshold)
        near[view] = False
        return near
