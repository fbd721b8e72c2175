"""Linear maps of features in closed form: ridge regression whose penalty the data choose.

Shapes: N samples, C width of a feature, D numbers to tell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Penalties per sample, of standardised features, from hardly any to nothing but the mean.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_CHOOSING = 0.2  # share of the samples that choose among them


class LinearMap(NamedTuple):
    """What is told of a feature: ``x @ weight + bias``.

    Attributes:
        weight: `(C, D)`, float32.
        bias: `(D,)`, float32.
    """

    weight: Tensor
    bias: Tensor


def ridge(x: Tensor, y: Tensor, *, penalties: tuple[float, ...] = PENALTIES) -> LinearMap:
    """Fit a linear map in closed form, in float64.

    Features are standardised. For each number by itself, the penalty is that of the least error on
    the last fifth of the samples by a map fitted to the others; then all samples are fitted. So
    samples that belong together, such as views of one scene, have to stand together.

    Args:
        x: Features `(N, C)`.
        y: What they are to tell `(N, D)`; classes as 0 and 1 for each.
        penalties: To choose from; of a single one there is no choice, and none is held back.

    Raises:
        ValueError: There are fewer than two samples.
    """
    if len(x) < 2:
        raise ValueError(f"{len(x)} sample is too few for a linear map; expected two or more")
    x, y = x.double(), y.double()
    mean, std = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    x = (x - mean) / std
    best = torch.zeros(1, 1, y.shape[1], dtype=torch.long, device=x.device)
    cut = len(x) - int(len(x) * _CHOOSING)
    if len(penalties) > 1 and 2 <= cut < len(x):
        weights, biases = _solutions(x[:cut], y[:cut], penalties)
        errors = (x[cut:] @ weights + biases - y[cut:]).square().mean(dim=1, keepdim=True)
        best = errors.argmin(dim=0, keepdim=True)
    weights, biases = _solutions(x, y, penalties)
    weight = weights.gather(0, best.expand(1, x.shape[1], -1))[0] / std[:, None]
    bias = biases.gather(0, best)[0, 0] - mean @ weight
    return LinearMap(weight.float(), bias.float())


def _solutions(x: Tensor, y: Tensor, penalties: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return the weights of each of P penalties `(P, C, D)`, and the biases `(P, 1, D)`."""
    inner, outer = x.mean(dim=0), y.mean(dim=0)
    x = x - inner
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    turned = vectors.T @ (x.T @ (y - outer)) / len(x)
    shrunk = [turned / (values.clamp_min(0) + penalty)[:, None] for penalty in penalties]
    weights = torch.stack([vectors @ one for one in shrunk])
    return weights, (outer - inner @ weights)[:, None]
