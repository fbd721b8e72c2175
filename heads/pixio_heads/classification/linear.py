"""The linear classifier: a vector for each image, batch norm, a linear map.

Shapes: B batch, C classes, D width of a token.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pixio_lightning.models import Features, SyncedBatchNorm2d

Averaged = Literal["cls", "patches", "both"]


def pooled(features: Features, pool: Averaged) -> Tensor:
    """Return one vector per image of the last tapped layer.

    Returns:
        The mean class token `(B, D)`, the mean patch `(B, D)`, or both `(B, 2D)`.
    """
    layer = features.layers[-1]
    parts = [] if pool == "patches" else [layer.cls.mean(dim=1)]
    parts += [] if pool == "cls" else [layer.patches.mean(dim=(2, 3))]
    return torch.cat(parts, dim=1)


class LinearClassifier(nn.Module):
    """Batch norm without scale and shift, then a linear map.

    The norm lets one learning rate suit features of any backbone (He et al., 2022, arXiv
    2111.06377, appendix A.1).

    Args:
        width: Width D of a token.
        num_classes: Number of classes C.
        pool: What is read of the features.
    """

    def __init__(self, width: int, num_classes: int, *, pool: Averaged) -> None:
        super().__init__()
        self.pool = pool
        width = width * (2 if pool == "both" else 1)
        self.norm = SyncedBatchNorm2d(width, affine=False)
        self.linear = nn.Linear(width, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        """Return logits `(B, C)`."""
        return self.linear(self.norm(pooled(features, self.pool)[..., None, None]).flatten(1))
