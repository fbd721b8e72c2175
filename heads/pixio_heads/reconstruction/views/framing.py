"""From a frame of any size to a view of the set's size, with the camera moved along."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_heads.reconstruction.views.frames import Shot
from pixio_lightning.data import BadImage, Crop, rescaled
from pixio_lightning.errors import UserError

_STEP = 16  # sides are multiples of the backbone's patch
_LEAST = 16  # pixels: the principal point lies at the image's edge, or beyond it


def centred(size: tuple[int, int], centre: tuple[float, float], aspect: float) -> Crop:
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
    return Crop(left, top, wide, high)


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


def sizes_of(
    given: tuple[int, int] | list[tuple[int, int]], *, fit: int | None
) -> list[tuple[int, int]]:
    """Return the sizes that views may have, each height and width.

    Args:
        given: One or several.
        fit: Side of a square that they are scaled down into, in whole steps; None leaves them.

    Raises:
        UserError: There is none, or a side is no multiple of 16.
    """
    sizes = [given] if isinstance(given, tuple) else [(height, width) for height, width in given]
    if not sizes:
        raise UserError("data.image_size is empty; expected height and width")
    if fit is not None:
        return [_within(size, fit) for size in sizes]
    for size in sizes:
        if min(size) < _STEP or any(side % _STEP for side in size):
            raise UserError(
                f"data.image_size {list(size)}: expected height and width, multiples of {_STEP}"
            )
    return sizes


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(size))
    height, width = (max(_STEP, round(n * scale / _STEP) * _STEP) for n in size)
    return height, width


def _nearest(n: int, start: int, length: int, scale: float) -> NDArray[np.int64]:
    """Return which pixels of a depth map, `scale` times the image, lie nearest to `n` new ones."""
    return np.floor((start + (np.arange(n) + 0.5) * length / n) * scale).astype(np.int64)
