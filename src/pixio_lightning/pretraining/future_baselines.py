"""What predicts a frame without learning: copies of the last one.

Shapes: B batch, m hidden patches, V = P*P*C values in a patch of P*P pixels and C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixio_lightning.models.probes import in_float64
from pixio_lightning.pretraining.baselines import parts_of

_BINS = 8  # of gaps, for each of which a hedged copy has factors of its own


class HedgedCopy(nn.Module):
    """A copy whose hue and structure are each multiplied by the factor that is best at its gap.

    Of a squared error this is the least that copying costs: the farther the future, the nearer it
    comes to predicting nothing. The factors are fitted to training pairs, a range of gaps at a
    time: ``sum(copy * target) / sum(copy^2)``.

    Args:
        channels: Of a pixel.
    """

    factors: Tensor
    range: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("factors", torch.zeros(2, _BINS))
        self.register_buffer("range", torch.tensor([0.0, 1.0]))  # seconds of the fitted gaps

    @property
    def fitted(self) -> bool:
        """Whether the factors are known."""
        return bool(self.factors.any())

    def begin(self, low: float, high: float) -> Tensor:
        """Set the range of gaps in seconds; returns sums for `add`, `(2, 2, bins)`."""
        self.range.copy_(torch.tensor([low, high]))
        return in_float64(torch.zeros(2, 2, _BINS, device=self.range.device))

    def add(self, sums: Tensor, copy: Tensor, target: Tensor, gap: Tensor) -> None:
        """Take in pairs: copies and targets `(B, m, V)`, and seconds `(B,)` between them."""
        at = self._bins(gap).to(sums.device)
        ours, theirs = parts_of(copy, self.channels), parts_of(target, self.channels)
        for i, (own, wanted) in enumerate(zip(ours, theirs, strict=True)):
            sums[0, i].index_add_(0, at, in_float64((own * wanted).sum(dim=(1, 2))))
            sums[1, i].index_add_(0, at, in_float64(own.square().sum(dim=(1, 2))))

    def finish(self, sums: Tensor) -> None:
        """Set the factors; a range without pairs takes that of all."""
        product, square = sums
        whole = product.sum(1, keepdim=True) / square.sum(1, keepdim=True).clamp_min(1e-12)
        self.factors.copy_(torch.where(square > 0, product / square.clamp_min(1e-12), whole))

    def forward(self, copy: Tensor, gap: Tensor) -> Tensor:
        """Return the hedged copies `(B, m, V)` at gaps `(B,)` in seconds."""
        hue, structure = parts_of(copy, self.channels)
        of_hue, of_structure = self.factors[:, self._bins(gap), None, None]
        return of_hue * hue + of_structure * structure

    def _bins(self, gap: Tensor) -> Tensor:
        low, high = self.range
        share = (gap - low) / (high - low).clamp_min(1e-6)
        return (share * _BINS).long().clamp(0, _BINS - 1)
