"""How much of each attribute a linear map explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from pixio_heads.attributes.samples import Columns


class Explained(Metric):
    """The share of variance that predictions explain, of each attribute and from each reading.

    It is ``1 - sum (y - p)^2 / sum (y - m)^2`` with the mean m of the training samples, over all
    numbers of an attribute: 0 for who knows the mean alone, 1 for who knows all, less than 0 for
    who is worse than the mean.

    Args:
        columns: The attributes, with the names of their D numbers.
        readings: Names of the R readings; that of an empty name gives its attributes' own names,
            and their mean, `explained`.
    """

    full_state_update = False
    error: Tensor
    total: Tensor

    def __init__(self, columns: Columns, readings: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.columns, self.readings = columns, list(readings)
        width = sum(map(len, columns.values()))
        self.add_state("error", torch.zeros(len(self.readings), width), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(width), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, mean: Tensor) -> None:
        """Add predictions `(B, R, D)` beside the truth `(B, D)` and the training mean `(D,)`."""
        self.error += (prediction - target[:, None]).square().sum(dim=0)
        self.total += (target - mean).square().sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        """Return each share by the name of its attribute and reading."""
        found: dict[str, Tensor] = {}
        for number, reading in enumerate(self.readings):
            shares, start = {}, 0
            for name, own in self.columns.items():
                cut = slice(start, start := start + len(own))
                shares[name] = 1 - self.error[number, cut].sum() / self.total[cut].sum()
            shares["explained"] = torch.stack(list(shares.values())).mean()
            ending = f"_{reading}" if reading else ""
            found |= {name + ending: share for name, share in shares.items()}
        return found
