"""Where the trainer's autocast does not reach: losses and metrics."""

from __future__ import annotations

from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

_COARSE = (torch.float16, torch.bfloat16)


def full_precision(device: torch.device) -> torch.autocast:
    """Switch autocast off: a product of bfloat16 has two or three digits, too few for a loss."""
    return torch.autocast(device.type, enabled=False)


def to_float32(structure: Any) -> Any:
    """Return a structure of tensors with float32 in place of half precision."""

    def widened(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype in _COARSE else tensor

    return apply_to_collection(structure, Tensor, widened)
