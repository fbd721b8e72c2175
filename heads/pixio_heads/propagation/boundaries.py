"""Regions and their boundaries, compared as DAVIS does (Perazzi et al., 2016; arXiv 1704.00675).

Shapes: masks are bool `(..., H, W)`, figures `(...)`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_WITHIN = 0.008  # of the diagonal of the image: how far boundaries may be from each other


def region_similarity(found: Tensor, truth: Tensor) -> Tensor:
    """Return J, intersection over union; 1 where the union is empty."""
    union = (found | truth).sum(dim=(-2, -1)).double()
    shared = (found & truth).sum(dim=(-2, -1)).double()
    return torch.where(union > 0, shared / union.clamp_min(1), 1.0)


def boundary_accuracy(found: Tensor, truth: Tensor) -> Tensor:
    """Return F, the harmonic mean of the precision and the recall of a boundary.

    A boundary's pixel is right if one of the other's lies within a disk of 0.8 % of the diagonal.
    """
    reach = math.ceil(_WITHIN * math.hypot(*found.shape[-2:]))
    own, true = boundary(found), boundary(truth)
    precision = _share(own & dilated(true, reach), own)
    recall = _share(true & dilated(own, reach), true)
    # Of a boundary where there is none, and of none where there is one, nothing is right.
    mean = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    return mean.clamp_max(1.0)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return how much of a boundary is right; all of one that is empty."""
    count = whole.sum(dim=(-2, -1)).double()
    return torch.where(count > 0, part.sum(dim=(-2, -1)) / count.clamp_min(1), 1.0)


def boundary(masks: Tensor) -> Tensor:
    """Return the pixels that differ from the one to the right, below, or between the two."""
    wider = torch.cat([masks, masks[..., -1:]], dim=-1)
    wider = torch.cat([wider, wider[..., -1:, :]], dim=-2)
    right, below, between = wider[..., :-1, 1:], wider[..., 1:, :-1], wider[..., 1:, 1:]
    return (masks ^ right) | (masks ^ below) | (masks ^ between)


def dilated(masks: Tensor, radius: int) -> Tensor:
    """Return the pixels within `radius` of a mask's: a dilation by a disk.

    A row of the disk at a time, of which the longer ones grow from the shorter.
    """
    height, width = masks.shape[-2:]
    padded = F.pad(masks, (radius,) * 4)
    row, result = padded[..., radius : radius + width].clone(), torch.zeros_like(masks)
    for half in range(radius + 1):
        if half:
            row |= padded[..., radius - half : radius - half + width]
            row |= padded[..., radius + half : radius + half + width]
        for up in range(-radius, radius + 1):
            if math.isqrt(radius * radius - up * up) == half:
                result |= row[..., radius + up : radius + up + height, :]
    return result
