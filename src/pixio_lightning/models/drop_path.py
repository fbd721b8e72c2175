"""Stochastic depth whose decisions are keyed by sample and step instead of drawn from a generator.

So a run with drop path resumes bit for bit and does not change with the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Purpose, RandomKey

Pair = tuple["KeyedDropPath", "KeyedDropPath"]  # of the attention and the MLP branch of a block
Factors = tuple[Tensor | None, Tensor | None]


class KeyedDropPath(nn.Module):
    """Multiply a residual branch by a factor per sample, set by `run`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.factor: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Scale `(B, N, D)` by the factors `(B, 1, 1)`; the identity when none are set."""
        return x if self.factor is None else x * self.factor

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def check(rate: float, *, frozen: bool) -> None:
    """Refuse a rate that is none, or of a backbone that is not trained.

    Raises:
        UserError: It is.
    """
    if not 0 <= rate < 1:
        raise UserError(f"backbone.drop_path is {rate}; expected 0 to below 1")
    if rate and frozen:
        raise UserError(
            f"backbone.drop_path is {rate:g}, but nothing of the backbone is trained, so no block "
            "is ever dropped: give backbone.tune, as full, or leave it out"
        )


def install(blocks: Iterable[nn.Module], rate: float) -> list[Pair]:
    """Replace both branches' drop path of every block; the rate rises linearly from 0 to `rate`.

    Raises:
        UserError: A block keeps its drop path elsewhere than timm's blocks do.
    """
    blocks = list(blocks)
    installed = []
    # On the CPU, whose numbers can be read at once, wherever the caller builds.
    rates = torch.linspace(0, rate, len(blocks), device="cpu").tolist()
    for block, block_rate in zip(blocks, rates, strict=True):
        for name in ("drop_path1", "drop_path2"):
            if not hasattr(block, name):
                raise UserError(
                    f"drop_path {rate}: {type(block).__name__} has no {name}; set drop_path to 0"
                )
        block.drop_path1 = KeyedDropPath(block_rate)
        block.drop_path2 = KeyedDropPath(block_rate)
        installed.append((block.drop_path1, block.drop_path2))
    return installed


def rates_of(pairs: Iterable[Pair]) -> Tensor:
    """Return the rates of all branches in order, float32 `(2 * depth,)`, on the CPU."""
    rates = [module.rate for pair in pairs for module in pair]
    return torch.tensor(rates, dtype=torch.float32, device="cpu")


def draw_factors(rates: Tensor, random_key: RandomKey | None) -> list[Factors]:
    """Decide for every sample and branch: 0 with probability `rate`, else 1 / (1 - rate).

    All branches at once, in a number of kernels that does not grow with the depth.

    Args:
        rates: What `rates_of` returned, on the device of the random key.
        random_key: Of the samples and the step.

    Returns:
        For each block two float32 `(B, 1, 1)`.

    Raises:
        ValueError: There is no key.
    """
    if random_key is None:
        raise ValueError("drop_path is set: training needs random_key=RandomKey(key, seed, step)")
    uniform = random_key.uniform(len(rates), Purpose.DROP_PATH)
    factors = (uniform >= rates).to(uniform.dtype) / (1 - rates.to(uniform.dtype))
    # Contiguous, so that most are aligned in memory: a compiled block copies inputs that are not.
    branches = factors.T.contiguous()[..., None, None].unbind()
    return list(zip(branches[::2], branches[1::2], strict=True))


def run(block: nn.Module, pair: Pair, factors: Factors, x: Tensor, **arguments: Any) -> Tensor:
    """Run a block with its factors, which are set here so that recomputing it sets them again."""
    for module, factor in zip(pair, factors, strict=True):
        module.factor = factor
    return block(x, **arguments)
