"""Nearest neighbours: a search through a bank of features, and the vote of those it finds.

Shapes: B queries, M entries of the bank, C width of a feature, n neighbours, N classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Entries of the bank compared at a time: in float32 84 MB of 1280 channels, whatever its size.
_CHUNK = 16_384


def nearest_neighbours(
    queries: Tensor, bank: Tensor, *, n: int, chunk: int = _CHUNK
) -> tuple[Tensor, Tensor]:
    """Find the entries of a bank most similar to each query, by the dot product in float32.

    Args:
        queries: `(B, C)`.
        bank: `(M, C)`, of any floating type.
        n: Neighbours to find; no more than M are.
        chunk: Entries compared at a time.

    Returns:
        Similarities `(B, n)`, the greatest first, and the entries' indices `(B, n)`.
    """
    best = queries.new_zeros(len(queries), 0, dtype=torch.float32)
    where = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)
    # bfloat16 would round many neighbours to one similarity.
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, len(bank), chunk):
            similarity = queries.float() @ bank[start : start + chunk].float().T
            found, index = similarity.topk(min(n, similarity.shape[1]), dim=1)
            best, order = torch.cat([best, found], dim=1).sort(dim=1, descending=True, stable=True)
            where = torch.cat([where, index + start], dim=1).gather(1, order)
            best, where = best[:, :n], where[:, :n]
    return best, where


def vote(similarity: Tensor, labels: Tensor, *, num_classes: int, temperature: float) -> Tensor:
    """Let neighbours vote with weight ``exp(similarity / T)`` (Wu et al., 2018, arXiv 1805.01978).

    Args:
        similarity: `(B, n)`.
        labels: int64 `(B, n)`, the neighbours' classes.
        num_classes: Number of classes N.
        temperature: T.

    Returns:
        `(B, N)`, each class's share of the votes.
    """
    votes = torch.zeros(len(similarity), num_classes, device=similarity.device)
    return votes.scatter_add(1, labels, (similarity.float() / temperature).softmax(dim=1))
