"""A baseline that learns nothing: hidden pixels filled in from the visible ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-6


def pull_push(images: Tensor, visible: Tensor) -> Tensor:
    """Interpolate the hidden pixels of images by the pull-push pyramid.

    Visible colours are averaged down a pyramid, and each level fills the holes of the finer one
    (Gortler et al., 1996, section 3.3, https://doi.org/10.1145/237170.237200).

    Args:
        images: Float `(B, C, H, W)`.
        visible: `(B, 1, H, W)`, 1 where a pixel is known and 0 where it is hidden.

    Returns:
        `(B, C, H, W)`, equal to `images` where visible.
    """
    if min(images.shape[-2:]) == 1 or bool((visible > 0).all()):
        total = visible.sum(dim=(2, 3), keepdim=True).clamp_min(_EPS)
        mean = (images * visible).sum(dim=(2, 3), keepdim=True) / total
        return torch.where(visible > 0, images, mean)
    height, width = images.shape[-2:]
    weight = F.avg_pool2d(visible, 2, ceil_mode=True)
    coarse = F.avg_pool2d(images * visible, 2, ceil_mode=True) / weight.clamp_min(_EPS)
    filled = pull_push(coarse, (weight > 0).to(weight.dtype))
    size = (filled.shape[-2] * 2, filled.shape[-1] * 2)
    up = F.interpolate(filled, size, mode="bilinear", align_corners=False)[..., :height, :width]
    return torch.where(visible > 0, images, up)
