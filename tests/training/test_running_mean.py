"""Means since the last log, kept in a checkpoint for as many processes or others."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pixio_lightning.training.checkpoints import running_mean
from pixio_lightning.training.checkpoints.form import check_form
from pixio_lightning.training.checkpoints.running_mean import RunningMean


def processes(count: int, rank: int = 0, others: torch.Tensor | None = None) -> Any:
    """A trainer as one of so many processes, of which the others have gathered something."""
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"),
        all_gather=lambda own: own if others is None else torch.cat([own[None], others]),
    )
    return SimpleNamespace(world_size=count, global_rank=rank, strategy=strategy)


def module(*losses: float) -> nn.Module:
    made = nn.ModuleList([RunningMean(), nn.Linear(1, 1)])
    for loss in losses:
        made[0].update(torch.tensor(loss))
    return made


def restored(checkpoint: dict[str, Any], count: int, rank: int) -> tuple[float, float]:
    made = module()
    running_mean.restore(processes(count, rank), made, checkpoint)
    return made[0].mean_value.item(), made[0].weight.item()


def test_each_process_has_its_own_back_or_the_first_all_of_them() -> None:
    checkpoint: dict[str, Any] = {}
    running_mean.keep(
        processes(2, others=torch.tensor([[[5.0, 1.0]]])), module(1.0, 2.0), checkpoint
    )
    check_form(checkpoint, "a checkpoint")
    assert [restored(checkpoint, 2, rank) for rank in range(2)] == [(3.0, 2.0), (5.0, 1.0)]
    assert restored(checkpoint, 1, 0) == (8.0, 3.0)
    assert [restored(checkpoint, 3, rank) for rank in range(3)] == [(8.0, 3.0), (0, 0), (0, 0)]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_of_a_loss_that_is_not_finite_nothing_is_kept(loss: float) -> None:
    checkpoint: dict[str, Any] = {}
    running_mean.keep(processes(1), module(1.0, loss), checkpoint)
    check_form(checkpoint, "a checkpoint")
    assert restored(checkpoint, 1, 0) == (0.0, 0.0)


def test_a_checkpoint_without_any_begins_anew() -> None:
    assert restored({}, 1, 0) == (0.0, 0.0)
