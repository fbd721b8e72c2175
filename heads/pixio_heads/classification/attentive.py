"""The attentive probe: learned queries choose which tokens of an image are looked at.

Shapes: B batch, T tokens, M queries, C classes, D width of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pixio_lightning.models import Features, SyncedBatchNorm2d

_QUERIES = 8


class AttentiveClassifier(nn.Module):
    """Batch norm without scale and shift, one cross-attention of learned queries, a linear map.

    Masked pretraining leaves what it knows in many tokens, of which a mean keeps little. Here every
    query weighs all of them, class tokens and patches, by itself and gathers a part of their values
    (efficient probing, Psomas et al., 2025, arXiv 2506.10178): ``softmax(x q_m / sqrt(D))`` times
    the m-th part of ``x W``. Keys need no map of their own, as queries are free. At first all
    tokens weigh the same.

    Args:
        width: Width D of a token.
        num_classes: Number of classes C.

    Attributes:
        queries: `(D, M)`; M is 8, or the largest number below that divides D and 8.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = SyncedBatchNorm2d(width, affine=False)
        self.queries = nn.Parameter(torch.zeros(width, math.gcd(width, _QUERIES)))
        self.values = nn.Linear(width, width, bias=False)
        self.linear = nn.Linear(width, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def attention(self, features: Features) -> Tensor:
        """Return how much each query looks at each token of the last tapped layer, `(B, T, M)`."""
        return self._attention(self._normed(features))

    def forward(self, features: Features) -> Tensor:
        """Return logits `(B, C)`."""
        x = self._normed(features)
        values = self.values(x).unflatten(2, (self.queries.shape[1], -1))  # (B, T, M, D / M)
        gathered = (self._attention(x)[..., None] * values).sum(dim=1)
        return self.linear(gathered.flatten(1))

    def _normed(self, features: Features) -> Tensor:
        return self.norm(features.tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)

    def _attention(self, x: Tensor) -> Tensor:
        return (x @ self.queries / math.sqrt(x.shape[-1])).softmax(dim=1)
