"""The loss of segmentation.

Shapes: B batch, K classes, H x W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pixio_heads.segmentation.metrics import IGNORED

Reduction = Literal["image", "batch"]


def cross_entropy(scores: Tensor, target: Tensor, *, reduction: Reduction = "image") -> Tensor:
    """Return the mean cross-entropy of labelled pixels; without any it is 0, where torch has NaN.

    Random crops of padded images often hold no label at all.

    Args:
        scores: Logits or log-probabilities `(B, K, H, W)`.
        target: Class indices `(B, H, W)`, 255 where there is none.
        reduction: `image` takes the mean over the labelled pixels of each image and averages over
            all B, so that many processes equal one. `batch` takes one mean over all labelled
            pixels, the official form.
    """
    per_pixel = F.cross_entropy(
        scores.float(), target.long(), ignore_index=IGNORED, reduction="none"
    )
    dims = (-2, -1) if reduction == "image" else (-3, -2, -1)
    known = (target != IGNORED).sum(dims).clamp_min(1)
    return (per_pixel.sum(dims) / known).mean()
