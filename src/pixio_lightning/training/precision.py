"""In which precision a run computes, and where the trainer's autocast does not reach."""

from __future__ import annotations

from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from pixio_lightning.models.probes import has_float64

_COARSE = (torch.float16, torch.bfloat16)


def fastest_precision(accelerator: str) -> str:
    """Return the trainer's precision that pretraining is fastest in on a device.

    That is bfloat16 under autocast where its products are faster: on GPUs, on processors with AMX,
    and on AMD's with AVX-512's instructions for it (Zen 4 on). A step there takes 0.5 to 0.8 of the
    time of float32 (benchmarks/results/speed.md). With AVX-512's instructions alone Intel's took
    1.2 to 1.5 times as long, and processors without any up to 3.5 times.

    Args:
        accelerator: The trainer's; `auto` is a GPU where there is one.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        fast = _processor_has_units()
    else:
        fast = False
    return "bf16-mixed" if fast else "32-true"


def _processor_has_units() -> bool:
    """Whether products of bfloat16 are faster than those of float32 on this processor."""
    of_cpu: Any = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.10 has none
    can = of_cpu()
    by_amd = "AMD" in str(can.get("cpu_name", "")) and bool(can.get("avx512_bf16", False))
    return by_amd or bool(can.get("amx_bf16", False))


def full_precision(device: torch.device) -> torch.autocast:
    """Switch autocast off: a product of bfloat16 has two or three digits, too few for a loss."""
    return torch.autocast(device.type, enabled=False)


def to_float32(structure: Any) -> Any:
    """Return a structure of tensors with float32 in place of half precision."""

    def widened(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype in _COARSE else tensor

    return apply_to_collection(structure, Tensor, widened)


def taken_by(device: torch.device, structure: Any) -> Any:
    """Return a structure of tensors with float32 in place of float64 where a device has none."""
    if has_float64(device):
        return structure

    def narrowed(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype == torch.float64 else tensor

    return apply_to_collection(structure, Tensor, narrowed)
