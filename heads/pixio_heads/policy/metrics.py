"""How often a policy succeeds, and what so many episodes can tell.

Shapes: B episodes or samples, A parts of an action.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_Z = 1.959963984540054  # 97.5 % of the normal distribution lie below


def wilson(successes: float, n: float, *, z: float = _Z) -> tuple[float, float]:
    """Return the interval that covers a rate of success with 95 %.

    The score interval of Wilson (1927), which is right for few episodes and for rates of 0 and 1.

    Args:
        successes: How many of the episodes.
        n: Episodes; of none, the ends are NaN.
        z: Quantile of the normal distribution.
    """
    if not n:
        return math.nan, math.nan
    rate, square = successes / n, z * z
    centre = (rate + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(rate * (1 - rate) / n + square / (4 * n * n)) / (1 + square / n)
    # Exactly 0 and 1 at the ends, where rounding would leave a trace.
    return centre - half if successes else 0.0, centre + half if successes < n else 1.0


class EpisodeMetrics(Metric):
    """Rates of success with their interval, return and length, of episodes with fresh starts.

    `success` is at the last step, `success_any` at any. Episodes that begin where a demonstration
    began count for `demonstration_success` alone. A broken episode is no success.
    """

    full_state_update = False
    fresh: Tensor
    again: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Episodes, then sums of the columns of `episodes.row`.
        self.add_state("fresh", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("again", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outcomes: Tensor, of_demonstration: Tensor) -> None:
        """Add episodes.

        Args:
            outcomes: `(B, 5)`, see `episodes.row`.
            of_demonstration: bool `(B,)`.
        """
        rows = torch.cat([torch.ones_like(outcomes[:, :1]), outcomes], dim=1).double()
        self.fresh += rows[~of_demonstration].sum(dim=0)
        self.again += rows[of_demonstration].sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics by name; NaN for what no episode tells."""
        n, success, success_any, total, steps, broken = self.fresh
        low, high = wilson(float(success), float(n))
        values: dict[str, Any] = {
            "success": success / n,
            "success_low": low,
            "success_high": high,
            "success_any": success_any / n,
            "return": total / n,
            "steps": steps / n,
            "broken": broken,
        }
        if self.again[0]:
            values["demonstration_success"] = self.again[1] / self.again[0]
        return {k: torch.as_tensor(v, dtype=torch.float32) for k, v in values.items()}
