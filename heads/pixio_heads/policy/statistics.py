"""What is known of actions before anything is learned: their scale, and what proprioception tells.

Shapes: N steps of demonstrations, B samples, P numbers of proprioception, A parts of an action.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pixio_lightning.models import ridge
from pixio_lightning.training import full_precision

_CONSTANT = 1e-6  # a deviation of what never changes
_UNEVEN = 10.0  # times that deviations may differ before it is noted


def statistics_of(actions: Tensor, proprio: Tensor) -> dict[str, Tensor]:
    """Return `mean` and `std` of actions, each `(A,)`, and a linear map to them.

    The map, `weight` `(P, A)` and `bias` `(A,)`, is fitted by ridge regression; there is none where
    there are no two steps, or no proprioception.

    Args:
        actions: `(N, A)`.
        proprio: `(N, P)`, of the same steps.
    """
    std = actions.std(dim=0, correction=0)
    # A part that never changes is not scaled.
    found = {"mean": actions.mean(dim=0), "std": torch.where(std < _CONSTANT, 1.0, std)}
    if len(actions) > 1 and proprio.shape[1]:
        found |= ridge(proprio, actions)._asdict()
    return found


def learned_scale(statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, as statistics, the scale that weights give actions in.

    It stays where they go on with other demonstrations, whose mean and deviation are others.
    """
    mean, std = _scale_of(statistics, learned=True)
    return {"learned_mean": mean, "learned_std": std}


def normalized(
    actions: Tensor, statistics: Mapping[str, Tensor], *, learned: bool = False
) -> Tensor:
    """Return actions `(..., A)` in units of their deviation among demonstrations.

    Args:
        actions: As they are taken.
        statistics: Of a policy.
        learned: As its weights give them, and not by the demonstrations at hand.
    """
    mean, std = _scale_of(statistics, learned=learned)
    return (actions - mean) / std


def unscaled(actions: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    """Return what the weights give, `(..., A)`, as the actions that are taken."""
    mean, std = _scale_of(statistics, learned=True)
    return actions * std + mean


def _scale_of(statistics: Mapping[str, Tensor], *, learned: bool) -> tuple[Tensor, Tensor]:
    begin = "learned_" if learned and "learned_mean" in statistics else ""
    return statistics[f"{begin}mean"], statistics[f"{begin}std"]


def unevenness(actions: Tensor) -> str:
    """Return what to say where raw actions hide parts of themselves; empty where they do not."""
    std = actions.std(dim=0, correction=0)
    changing = std[std >= _CONSTANT]
    if not len(changing) or (ratio := float(changing.max() / changing.min())) <= _UNEVEN:
        return ""
    return (
        f"one part of the actions varies {ratio:.3g} times as much as another, which the loss "
        "hardly counts: consider model.normalize_actions true"
    )


def from_proprio(statistics: Mapping[str, Tensor], proprio: Tensor) -> Tensor:
    """Return what the linear map tells of proprioception `(B, P)`: actions `(B, A)`.

    They are NaN where there is no map, as without proprioception.
    """
    mean = statistics["mean"]
    if "weight" not in statistics:
        return mean.new_full((len(proprio), len(mean)), torch.nan)
    with full_precision(proprio.device):
        return proprio.float() @ statistics["weight"] + statistics["bias"]
