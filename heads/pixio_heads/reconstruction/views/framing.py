"""From a frame of any size to a view of the set's size, with the camera moved along."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_heads.reconstruction.views.covisibility import rescaled
from pixio_heads.reconstruction.views.frames import Shot
from pixio_lightning.data import BadImage

_LEAST = 16  # pixels: the principal point lies at the image's edge, or beyond it


class Box(NamedTuple):
    """A box in whole pixels of an image."""

    left: int
    top: int
    width: int
    height: int


def centred(size: tuple[int, int], centre: tuple[float, float], aspect: float) -> Box:
    """Return the largest box of an aspect around the principal point, within the image.

    Args:
        size: Height and width of the image.
        centre: Column and row of the principal point; pixel centres are at integer coordinates.
        aspect: Width over height.

    Raises:
        BadImage: Next to nothing lies around it.
    """
    height, width = size
    x, y = centre[0] + 0.5, centre[1] + 0.5  # from the corner of the image
    across = min(2 * min(x, width - x), 2 * min(y, height - y) * aspect)
    if min(across, across / aspect) < _LEAST:
        raise BadImage("principal point outside the image, or at its edge")
    wide = min(width, round(across))
    high = min(height, round(across / aspect))
    left = min(max(round(x - wide / 2), 0), width - wide)
    top = min(max(round(y - high / 2), 0), height - high)
    return Box(left, top, wide, high)


def framed(shot: Shot, size: tuple[int, int]) -> Shot:
    """Crop a frame around its principal point and scale it: Lanczos, and nearest for depth.

    Args:
        shot: The frame.
        size: Height and width of the result.

    Raises:
        BadImage: Next to nothing lies around the principal point.
    """
    height, width = size
    whole = shot.image.shape[:2]
    matrix = shot.intrinsics
    box = centred((whole[0], whole[1]), (matrix[0, 2], matrix[1, 2]), width / height)
    shift = np.array([[1, 0, -box.left], [0, 1, -box.top], [0, 0, 1.0]])
    matrix = rescaled(shift @ matrix, width / box.width, height / box.height)
    image = shot.image[box.top : box.top + box.height, box.left : box.left + box.width]
    if image.shape[:2] != size:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    rows = _nearest(height, box.top, box.height, shot.depth.shape[0] / whole[0])
    columns = _nearest(width, box.left, box.width, shot.depth.shape[1] / whole[1])
    return Shot(image, shot.depth[rows[:, None], columns], matrix, shot.cam2world)


def within(size: tuple[int, int], side: int, *, step: int) -> tuple[int, int]:
    """Return a size scaled down until it fits into a square, in whole steps."""
    scale = min(1.0, side / max(size))
    height, width = (max(step, round(n * scale / step) * step) for n in size)
    return height, width


def _nearest(n: int, start: int, length: int, scale: float) -> NDArray[np.int64]:
    """Return which pixels of a depth map, `scale` times the image, lie nearest to `n` new ones."""
    return np.floor((start + (np.arange(n) + 0.5) * length / n) * scale).astype(np.int64)
