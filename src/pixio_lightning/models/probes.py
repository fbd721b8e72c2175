"""Probes that take no steps, the vote of nearest neighbours and ridge regression, and float64.

Shapes: B queries, M entries of a bank, N samples, C width of a feature, n neighbours, K classes, D
numbers to tell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Entries of the bank compared at a time: in float32 84 MB of 1280 channels, whatever its size.
_CHUNK = 16_384
# Penalties per sample, of standardised features, from hardly any to nothing but the mean.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Of so many runs of neighbouring samples every fifth chooses among them.
_RUNS, _EVERY = 50, 5
# Kinds of device that have no double precision.
_WITHOUT_FLOAT64 = ("mps",)


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in double precision; Apple's MPS does not."""
    return device.type not in _WITHOUT_FLOAT64


def in_float64(x: Tensor) -> Tensor:
    """Return a tensor in double precision, on the CPU where its device has none."""
    return x.double() if has_float64(x.device) else x.cpu().double()


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
        num_classes: Number of classes K.
        temperature: T.

    Returns:
        `(B, K)`, each class's share of the votes.
    """
    votes = torch.zeros(len(similarity), num_classes, device=similarity.device)
    return votes.scatter_add(1, labels, (similarity.float() / temperature).softmax(dim=1))


class LinearMap(NamedTuple):
    """What is told of a feature: ``x @ weight + bias``.

    Attributes:
        weight: `(C, D)`, float32.
        bias: `(D,)`, float32.
    """

    weight: Tensor
    bias: Tensor


def ridge(x: Tensor, y: Tensor, *, penalties: tuple[float, ...] = PENALTIES) -> LinearMap:
    """Fit a linear map in closed form, in float64; the map is on the features' device.

    Features are standardised. For each number by itself, the penalty is that of the least error on
    a fifth of the samples by a map fitted to the others; then all samples are fitted. The fifth is
    ten runs of neighbours, spread over all: samples that belong together, such as views of one
    scene, have to stand together, and they may be sorted.

    Args:
        x: Features `(N, C)`.
        y: What they are to tell `(N, D)`; classes as 0 and 1 for each.
        penalties: To choose from; of a single one there is no choice, and none is held back.

    Raises:
        ValueError: There are fewer than two samples.
    """
    if len(x) < 2:
        raise ValueError(f"{len(x)} sample is too few for a linear map; expected two or more")
    device = x.device
    x, y = in_float64(x), in_float64(y)
    mean, std = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    x = (x - mean) / std
    best = torch.zeros(1, 1, y.shape[1], dtype=torch.long, device=x.device)
    run = torch.arange(len(x), device=x.device) * min(_RUNS, len(x)) // len(x)
    held = run % _EVERY == _EVERY - 1
    if len(penalties) > 1 and held.any():
        weights, biases = _solutions(x[~held], y[~held], penalties)
        errors = (x[held] @ weights + biases - y[held]).square().mean(dim=1, keepdim=True)
        best = errors.argmin(dim=0, keepdim=True)
    weights, biases = _solutions(x, y, penalties)
    weight = weights.gather(0, best.expand(1, x.shape[1], -1))[0] / std[:, None]
    bias = biases.gather(0, best)[0, 0] - mean @ weight
    return LinearMap(weight.float().to(device), bias.float().to(device))


def _solutions(x: Tensor, y: Tensor, penalties: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return the weights of each of P penalties `(P, C, D)`, and the biases `(P, 1, D)`."""
    inner, outer = x.mean(dim=0), y.mean(dim=0)
    x = x - inner
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    turned = vectors.T @ (x.T @ (y - outer)) / len(x)
    shrunk = [turned / (values.clamp_min(0) + penalty)[:, None] for penalty in penalties]
    weights = torch.stack([vectors @ one for one in shrunk])
    return weights, (outer - inner @ weights)[:, None]
