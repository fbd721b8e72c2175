"""Images through windows: cut some at a time, predict each, put together as they come.

Shapes: B images, n windows of an image, m windows at a time, C channels, K channels of a
prediction, S side of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def origins(length: int, *, window: int, stride: int, inside: bool = False) -> list[int]:
    """Return where windows start along a side: 0, `stride`, 2 `stride`, ... while inside.

    The last ones may reach over the border. A side as long as a window has a second one, unless
    the stride is as long, too; a shorter side may have only the first.

    Args:
        length: Of the side.
        window: Side of a window.
        stride: Distance between origins.
        inside: No window reaches over the border instead: they are spread evenly, no more than
            `stride` apart. A side shorter than a window has one.

    Raises:
        ValueError: The stride would leave pixels out.
    """
    if not 0 < stride <= window:
        raise ValueError(f"a stride of {stride} with windows of {window} leaves pixels out")
    if not inside:
        return list(range(0, length, stride))
    room = max(0, length - window)
    steps = -(-room // stride)
    return [room * step // max(1, steps) for step in range(steps + 1)]


def corners(
    size: tuple[int, int], *, window: int, stride: int, inside: bool = False
) -> list[tuple[int, int]]:
    """Return the top and left of every window over an image `(H, W)`, row by row."""
    rows, columns = (origins(n, window=window, stride=stride, inside=inside) for n in size)
    return [(top, left) for top in rows for left in columns]


def cut(
    images: Tensor,
    *,
    window: int,
    stride: int,
    at_once: int,
    inside: bool = False,
    prepare: Callable[[Tensor], Tensor] = lambda piece: piece,
) -> Iterator[Tensor]:
    """Cut images into windows, the windows of an image after each other, row by row.

    Args:
        images: `(B, C, H, W)`.
        window: Side of a window in pixels.
        stride: Distance between origins.
        at_once: Windows in a tensor, at most.
        inside: As in `origins`.
        prepare: Normalises a piece `(1, C, h, w)`; what is beyond the right and bottom border is 0
            afterwards.

    Yields:
        `(m, C, S, S)`.
    """
    size = (images.shape[-2], images.shape[-1])
    places = corners(size, window=window, stride=stride, inside=inside)
    everywhere = [(image, *place) for image in range(len(images)) for place in places]
    for start in range(0, len(everywhere), at_once):
        pieces = []
        for image, top, left in everywhere[start : start + at_once]:
            piece = prepare(images[image, None, :, top : top + window, left : left + window])
            beyond = (0, window - piece.shape[-1], 0, window - piece.shape[-2])
            pieces.append(F.pad(piece, beyond))
        yield torch.cat(pieces)


class Mean:
    """Predictions of windows put together; where they overlap, their mean counts.

    Args:
        images: Number of images B.
        size: Their height and width.
        window: Side of a window in pixels.
        stride: Distance between origins.
        blend: Whether windows lie inside, see `origins`, and count less towards their borders, so
            that no seam is seen there.
    """

    def __init__(
        self,
        images: int,
        size: tuple[int, int],
        *,
        window: int,
        stride: int,
        blend: bool = False,
    ) -> None:
        self.images, self.size, self.window, self.stride = images, size, window, stride
        self._places = corners(size, window=window, stride=stride, inside=blend)
        rising = torch.arange(1.0, window + 1)
        # Along a side; of a pixel, the product of the two.
        self._weights = rising.minimum(rising.flip(0)) if blend else torch.ones(window)
        self._blend, self._added = blend, 0
        self._total: Tensor | None = None

    def add(self, predictions: Tensor) -> None:
        """Add the next windows `(m, K, S, S)` in the order of `cut`."""
        if self._total is None:
            shape = (self.images, predictions.shape[1], *self.size)
            # Sums of half precision would lose digits, and so would its weights.
            dtype = torch.promote_types(predictions.dtype, torch.float32)
            self._total = predictions.new_zeros(shape, dtype=dtype)
        for prediction in predictions:
            image, place = divmod(self._added, len(self._places))
            top, left = self._places[place]
            # What lies over the border is cut back.
            height, width = (
                min(self.window, self.size[0] - top),
                min(self.window, self.size[1] - left),
            )
            part = self._total[image, :, top : top + height, left : left + width]
            seen = prediction[:, :height, :width]
            if self._blend:
                weights = self._weights.to(part)
                seen = seen * (weights[:height, None] * weights[:width])
            part += seen
            self._added += 1

    def result(self) -> Tensor:
        """Return the mean `(B, K, H, W)` of all windows, which were added."""
        assert self._total is not None and self._added == self.images * len(self._places)
        rows, columns = (self._counts(n) for n in self.size)
        return self._total.div_((rows[:, None] * columns).to(self._total))

    def _counts(self, length: int) -> Tensor:
        """Return how many windows cover each pixel along a side, by their weights."""
        found = torch.zeros(length)
        for start in origins(length, window=self.window, stride=self.stride, inside=self._blend):
            weights = self._weights[: length - start]
            found[start : start + len(weights)] += weights
        return found
