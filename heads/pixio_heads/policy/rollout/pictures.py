"""Pictures of environments: to a square of one size, and to PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the middle square of a picture, scaled to `(size, size, 3)`."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    scaled = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.array(scaled)


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return a picture as a PNG file; of an empty one, nothing."""
    if not image.size:
        return b""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=3)
    return file.getvalue()
