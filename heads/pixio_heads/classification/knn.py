"""What images are compared by in k-NN classification."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pixio_lightning.models import Features


def feature(features: Features) -> Tensor:
    """Return what images are compared by: the mean raw class token, of length one.

    Without class tokens it is the mean raw patch.

    Returns:
        float32 `(B, C)`.
    """
    layer = features.layers[-1]
    tokens = layer.raw_cls if layer.n_cls else layer.raw_tokens
    return F.normalize(tokens.float().mean(dim=1), dim=1)
