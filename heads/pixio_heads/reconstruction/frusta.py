"""Cameras as lines to draw beside what they saw."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

_SHARE = 0.05  # length of a drawn camera, as a share of the extent of what there is to see
_LEAST = 1e-3  # metres


def frusta(
    intrinsics: NDArray[np.float32],
    cam2world: NDArray[np.float32],
    *,
    size: tuple[int, int],
    length: float,
) -> NDArray[np.float32]:
    """Return the edges of cameras as lines `(V, 8, 2, 3)` in the world.

    Args:
        intrinsics: `(V, 3, 3)`, pixel centres at integers. One that cannot be inverted, as an
            untrained model may predict, is drawn as a line straight ahead.
        cam2world: `(V, 4, 4)`.
        size: Height and width of the pictures.
        length: Metres from a camera's centre to the plane of the far corners.
    """
    height, width = size
    # The outer corners of the picture, in a ring.
    u = np.array([-0.5, width - 0.5, width - 0.5, -0.5])
    v = np.array([-0.5, -0.5, height - 0.5, height - 0.5])
    matrices = intrinsics.astype(np.float64)
    blind = (np.linalg.matrix_rank(matrices) < 3)[:, None, None]
    rays = np.linalg.inv(np.where(blind, np.eye(3), matrices)) @ [u, v, np.ones(4)]
    corners = length * np.where(blind, [[0.0], [0.0], [1.0]], rays)
    rotation, centre = cam2world[:, :3, :3], cam2world[:, :3, 3:]
    ring = (rotation @ corners + centre).transpose(0, 2, 1)
    centres = np.broadcast_to(centre.transpose(0, 2, 1), ring.shape)
    spokes = np.stack([centres, ring], axis=2)
    sides = np.stack([ring, np.roll(ring, -1, axis=1)], axis=2)
    return np.concatenate([spokes, sides], axis=1).astype(np.float32)


def frustum_length(points: NDArray[np.float32], cam2world: NDArray[np.float32]) -> float:
    """Return how long to draw cameras `(V, 4, 4)` beside points `(N, 3)`, in metres."""
    seen = np.concatenate([points, cam2world[:, :3, 3]])
    # Without the farthest points, of which a few are far off.
    low, high = np.percentile(seen, [5, 95], axis=0)
    return max(_SHARE * float(np.linalg.norm(high - low)), _LEAST)


def view_colour(view: int, views: int) -> NDArray[np.uint8]:
    """Return the sRGB colour `(3,)` of a camera: red for the first, then around the circle."""
    colour = colorsys.hsv_to_rgb(0.8 * view / max(views - 1, 1), 0.85, 0.9)
    return np.round(255 * np.array(colour)).astype(np.uint8)
