"""Means over the steps since something was last logged, which checkpoints keep.

A run that goes on in the middle of such steps so logs what it would have logged.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import nn
from torchmetrics import MeanMetric

KEY = "running_means"  # of a checkpoint


class RunningMean(MeanMetric):
    """The mean of what all processes have added since it was reset.

    NaN is not looked for: that would wait for the device in every step.
    """

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")


def begin(module: nn.Module) -> None:
    """Begin each mean with nothing: what was trained before may have been broken off."""
    for mean in _means(module):
        mean.reset()


def keep(trainer: L.Trainer, module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Add to a checkpoint sum and weight of each mean, by process; a collective of all."""
    means = _means(module)
    if not means:
        return
    own = torch.stack([torch.stack([mean.mean_value, mean.weight]) for mean in means])  # (M, 2)
    # After a training the module is on the CPU, where processes of several GPUs cannot gather.
    own = own.to(trainer.strategy.root_device)
    every = trainer.strategy.all_gather(own).reshape(-1, len(means), 2).float().cpu()
    # Of a loss that was not finite, which a lower rate may mend, nothing is kept.
    checkpoint[KEY] = torch.where(every.isfinite().all(), every, 0.0).tolist()


def restore(trainer: L.Trainer, module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Take back what `keep` has added: each process its own, or of another number the first all.

    Those of another module, or of a checkpoint without any, begin with nothing.
    """
    means, every = _means(module), torch.tensor(checkpoint.get(KEY, []))
    if every.ndim != 3 or every.shape[1:] != (len(means), 2):
        return
    if len(every) != trainer.world_size:
        others = every.new_zeros(trainer.world_size - 1, len(means), 2)
        every = torch.cat([every.sum(0, keepdim=True), others])
    for mean, (value, weight) in zip(means, every[trainer.global_rank], strict=True):
        mean.mean_value.copy_(value)
        mean.weight.copy_(weight)


def _means(module: nn.Module) -> list[RunningMean]:
    return [part for part in module.modules() if isinstance(part, RunningMean)]
