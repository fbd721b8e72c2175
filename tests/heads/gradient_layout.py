"""A callback that notes the parameters whose gradients DDP would have to copy."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

# Of the last run: parameters that had a gradient, and those where it lies otherwise in memory.
seen: set[str] = set()
copied: set[str] = set()


def _note(name: str, parameter: Tensor) -> None:
    seen.add(name)
    if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
        copied.add(name)


class GradientLayout(L.Callback):
    """Look when the gradient is there, as DDP does: the trainer may replace it afterwards."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.threads = torch.get_num_threads()
        torch.set_num_threads(2)  # one would take other convolutions, which a GPU has not
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                hook: Any = partial(_note, name)
                parameter.register_post_accumulate_grad_hook(hook)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.set_num_threads(self.threads)
