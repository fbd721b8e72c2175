"""The attentive probe: learned queries choose which tokens of an image are looked at.

Shapes: B batch, T tokens, M queries, C classes, D width of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pixio_lightning.models import Features, SyncedBatchNorm2d

_QUERIES = 8


def attention(x: Tensor, queries: Tensor) -> Tensor:
    """Return how much each query looks at each token: ``softmax(x q / sqrt(D))`` over tokens.

    Args:
        x: Tokens `(B, T, D)`.
        queries: `(D, M)`.

    Returns:
        `(B, T, M)`, which adds up to 1 over T.
    """
    return (x @ queries / math.sqrt(x.shape[-1])).softmax(dim=1)


class AttentiveClassifier(nn.Module):
    """Batch norm without scale and shift, one cross-attention of learned queries, a linear map.

    Masked pretraining leaves what it knows in many tokens, of which a mean keeps little. Here every
    query weighs all of them, class tokens and patches, by itself and gathers a part of their values
    (efficient probing, Psomas et al., 2025, arXiv 2506.10178). A map of the keys would add nothing:
    the queries can absorb it. At first all tokens weigh the same.

    Args:
        width: Width D of a token.
        num_classes: Number of classes C.

    Attributes:
        queries: `(D, M)`; M is the greatest common divisor of D and 8.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = SyncedBatchNorm2d(width, affine=False)
        self.queries = nn.Parameter(torch.zeros(width, math.gcd(width, _QUERIES)))
        self.values = nn.Linear(width, width, bias=False)
        self.linear = nn.Linear(width, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        """Return logits `(B, C)`."""
        x = self.norm(features.tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
        # The m-th query takes the m-th part of the values. These are linear, so what it weighs may
        # as well be added up first: M vectors are mapped in place of T.
        seen = attention(x, self.queries).transpose(1, 2) @ x  # (B, M, D)
        parts = self.values.weight.unflatten(0, (self.queries.shape[1], -1))  # (M, D / M, D)
        return self.linear(torch.einsum("bmd,med->bme", seen, parts).flatten(1))
