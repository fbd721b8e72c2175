"""Stochastic depth whose decisions are keyed by sample and step instead of drawn from a generator.

So a run with drop path resumes bit for bit and does not change with the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Draw, Stream


class KeyedDropPath(nn.Module):
    """Multiply a residual branch by a factor per sample, set before the forward pass."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.factor: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Scale `(B, N, D)` by the factors `(B, 1, 1)`; the identity when none are set."""
        return x if self.factor is None else x * self.factor

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def install(blocks: Iterable[nn.Module], rate: float) -> list[KeyedDropPath]:
    """Replace both branches' drop path of every block; the rate rises linearly from 0 to `rate`.

    Raises:
        UserError: A block keeps its drop path elsewhere than timm's blocks do.
    """
    blocks = list(blocks)
    installed = []
    for block, block_rate in zip(blocks, torch.linspace(0, rate, len(blocks)), strict=True):
        for name in ("drop_path1", "drop_path2"):
            if not hasattr(block, name):
                raise UserError(
                    f"drop_path {rate}: {type(block).__name__} has no {name}; set drop_path to 0"
                )
            module = KeyedDropPath(float(block_rate))
            setattr(block, name, module)
            installed.append(module)
    return installed


def set_factors(modules: list[KeyedDropPath], draw: Draw | None) -> None:
    """Decide for every sample and branch: 0 with probability `rate`, else 1 / (1 - rate).

    Args:
        modules: What `install` returned.
        draw: Whom to draw for; None switches drop path off.
    """
    if draw is None:
        for module in modules:
            module.factor = None
        return
    uniform = draw.uniform(len(modules), Stream.DROP_PATH)
    for i, module in enumerate(modules):
        kept = (uniform[:, i] >= module.rate).to(uniform.dtype) / (1 - module.rate)
        module.factor = kept[:, None, None]
