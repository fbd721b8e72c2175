"""Depth maps as `pixio predict` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from pixio_lightning.data import encode_png


def enlarged(depth: Tensor, size: Sequence[int]) -> Tensor:
    """Return a map `(H, W)` at the size of its image."""
    if depth.shape == tuple(size):
        return depth
    return F.interpolate(depth[None, None], tuple(size), mode="bilinear")[0, 0]


def write_map(path: Path, depth: Tensor, *, unit: float | None = None) -> None:
    """Write a depth map: as 16-bit PNG that says its unit in a text field, or as float32 npy.

    Args:
        path: Where to.
        depth: `(H, W)` in metres.
        unit: Metres per unit of a PNG, see `unit_of`; None for npy.
    """
    array = depth.detach().float().cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    if unit is None:
        np.save(path, array)
    else:
        path.write_bytes(encode_png(array, unit=unit))
