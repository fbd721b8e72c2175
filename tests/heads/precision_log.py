"""A callback that writes down in what precision the losses and metrics of a head are computed."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning_utilities.core.apply_func import apply_to_collection

# (what was called, whether autocast was on, the half-precision tensors it was given or gave)
calls: list[tuple[str, bool, list[torch.dtype]]] = []


def _coarse(*structures: Any) -> list[torch.dtype]:
    found: list[torch.dtype] = []
    apply_to_collection(structures, torch.Tensor, lambda tensor: found.append(tensor.dtype))
    return [dtype for dtype in found if dtype in (torch.float16, torch.bfloat16)]


def _noted(name: str, function: Any, *, results: bool = False) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        enabled = torch.is_autocast_enabled("cpu")
        calls.append((name, enabled, _coarse(args, result if results else None)))
        return result

    return call


class PrecisionLog(L.Callback):
    """Note every call of the head's own methods, of its backbone, and of its metrics."""

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.loss = _noted("loss", pl_module.loss, results=True)
        pl_module.scored = _noted("scored", pl_module.scored, results=True)
        pl_module.picture = _noted("picture", pl_module.picture)
        pl_module.write = _noted("write", pl_module.write)
        pl_module.backbone.register_forward_hook(_noted("backbone", lambda *_: None))

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for meter in pl_module.evaluation.meters.values():
            meter.update = _noted("metric", meter.update)
