"""Errors of patches told apart: their colour, and the rest, which is their structure.

Of rendered scenes half of the variance of a normalised patch is its colour alone, so that a loss
can fall while no structure is learned.

Shapes: B batch, m hidden patches, V = P*P*C values in a patch of P*P pixels and C channels.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Parts(NamedTuple):
    """A patch, or its error, in two orthogonal parts.

    Attributes:
        hue: Each channel's mean over the patch.
        structure: The rest.
    """

    hue: Tensor
    structure: Tensor

    @property
    def whole(self) -> Tensor:
        """Both together."""
        return self.hue + self.structure


def parts_of(patches: Tensor, channels: int) -> Parts:
    """Split patches `(B, m, V)` into parts of the same shape, which add up to them."""
    pixels = patches.unflatten(-1, (-1, channels))
    hue = pixels.mean(dim=-2, keepdim=True).expand_as(pixels).flatten(-2)
    return Parts(hue, patches - hue)


def errors_of(prediction: Tensor, target: Tensor, channels: int) -> Parts:
    """Return the mean squared error of each patch in parts, float32 `(B, m)`; they add up to it."""
    split = parts_of(prediction.float() - target.float(), channels)
    return Parts(*(part.square().mean(dim=-1) for part in split))
