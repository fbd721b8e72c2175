"""Large images through windows: cut, predict each, put together.

Shapes: B images, n windows of an image, C channels, K channels of a prediction, S side of a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def origins(length: int, *, window: int, stride: int) -> list[int]:
    """Return where windows start along a side: 0, `stride`, 2 `stride`, ... while inside.

    The last ones may reach over the border.

    Raises:
        ValueError: The stride would leave pixels out.
    """
    if not 0 < stride <= window:
        raise ValueError(f"a stride of {stride} with windows of {window} leaves pixels out")
    return list(range(0, length, stride))


def corners(size: tuple[int, int], *, window: int, stride: int) -> list[tuple[int, int]]:
    """Return the top and left of every window over an image `(H, W)`, row by row."""
    rows, columns = (origins(n, window=window, stride=stride) for n in size)
    return [(top, left) for top in rows for left in columns]


def cut(images: Tensor, *, window: int, stride: int) -> Tensor:
    """Cut normalised images into windows.

    Args:
        images: `(B, C, H, W)`; beyond the right and bottom border they count as zero.
        window: Side of a window in pixels.
        stride: Distance between origins.

    Returns:
        `(B * n, C, S, S)`, the windows of an image together, row by row.
    """
    height, width = images.shape[-2:]
    places = corners((height, width), window=window, stride=stride)
    bottom, right = (max(ends) + window for ends in zip(*places, strict=True))
    padded = F.pad(images, (0, right - width, 0, bottom - height))
    pieces = [padded[..., top : top + window, left : left + window] for top, left in places]
    return torch.stack(pieces, dim=1).flatten(0, 1)


def merge(predictions: Tensor, size: tuple[int, int], *, window: int, stride: int) -> Tensor:
    """Put the predictions of windows together; where they overlap, their mean counts.

    Args:
        predictions: `(B * n, K, S, S)`, in the order of `cut`.
        size: Height and width of the images.
        window: Side of a window in pixels.
        stride: Distance between origins.

    Returns:
        `(B, K, H, W)`.
    """
    places = corners(size, window=window, stride=stride)
    pieces = predictions.unflatten(0, (-1, len(places)))
    total = predictions.new_zeros(len(pieces), predictions.shape[1], *size)
    count = predictions.new_zeros(1, 1, *size)
    for i, (top, left) in enumerate(places):
        # What lies over the border is cut back.
        height, width = min(window, size[0] - top), min(window, size[1] - left)
        inside = (..., slice(top, top + height), slice(left, left + width))
        total[inside] += pieces[:, i, :, :height, :width]
        count[inside] += 1
    return total / count
