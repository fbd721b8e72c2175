"""What of a data set's depth is geometry: masks that come with it, and depth that is too far.

As MapAnything's loaders have it, in training and in its benchmark: a renderer gives the sky a depth
of kilometres, windows that of what is behind them, and a reconstruction guesses where it sees none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data import BadImage, decode_numbers, resampled

USABLE, SKY = "pred_mask/moge2", "skymask"
MODALITIES = (USABLE, SKY)


@dataclass(frozen=True)
class DepthRule:
    """What of the depth of a data set counts, in the order in which it is applied.

    Attributes:
        sky: Whether depth is taken out where the mask `skymask` is true.
        zero_is_ambiguous: Whether nothing can be said where depth is 0, as of a sky rendered so.
        percentile: Depth above this one of its image is taken out; None keeps all.
        usable: Whether the mask `pred_mask/moge2` is true where depth counts; elsewhere nothing can
            be said of it.
    """

    sky: bool = False
    zero_is_ambiguous: bool = False
    percentile: float | None = None
    usable: bool = False

    @property
    def masks(self) -> tuple[str, ...]:
        """The masks that it needs."""
        return (SKY,) * self.sky + (USABLE,) * self.usable

    @property
    def keeps_all(self) -> bool:
        """Whether depth stays as it is."""
        return self == DepthRule()

    def applied(
        self, depth: NDArray[np.float32], masks: Mapping[str, NDArray[np.bool_]]
    ) -> NDArray[np.float32]:
        """Return depth `(H, W)` with 0 where it does not count, and -1 where nothing can be said.

        Args:
            depth: Of the whole image; what is not finite or below 0 was not measured.
            masks: `(h, w)`, those that it needs.

        Raises:
            BadImage: A mask is of another aspect.
        """
        if self.keeps_all:
            return depth
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
        ambiguous = depth == 0 if self.zero_is_ambiguous else np.zeros(depth.shape, dtype=bool)
        if self.sky:
            depth[_fitted(masks[SKY], depth.shape)] = 0
        if self.percentile is not None:
            depth[depth > np.percentile(depth, self.percentile)] = 0
        if self.usable:
            ambiguous |= ~_fitted(masks[USABLE], depth.shape)
        return np.where(ambiguous, np.float32(-1), depth)


def rule_of_files(names: Iterable[str]) -> DepthRule:
    """Return the rule of a set that is not known: the masks that its files have count."""
    there = {*names}
    return DepthRule(sky=SKY in there, usable=USABLE in there)


def read_mask(data: bytes, *, max_megapixels: float) -> NDArray[np.bool_]:
    """Read a mask `(H, W)` of a PNG, true where it is above 0.

    Raises:
        BadImage: It is damaged, of another format or too large.
    """
    array = decode_numbers(data, max_megapixels=max_megapixels)
    if array.ndim != 2:
        raise BadImage("mask: it has several channels; expected one")
    return array > 0


def _fitted(mask: NDArray[np.bool_], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Bring a mask to the size of the depth: the nearest of its pixels."""
    if mask.shape == size:
        return mask
    if abs(mask.shape[0] * size[1] - mask.shape[1] * size[0]) > max(*mask.shape, *size):
        raise BadImage(f"mask of {mask.shape[1]}x{mask.shape[0]} for depth of {size[1]}x{size[0]}")
    return resampled(mask, size)
