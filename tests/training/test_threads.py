"""Threads of a run on the CPU: data workers have cores of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pixio_lightning.training.callbacks import threads
from pixio_lightning.training.callbacks.threads import Threads, threads_for


@pytest.mark.parametrize(
    ("cores", "processes", "workers", "expected"),
    [
        (1, 1, 4, 1),
        (2, 1, 0, 2),
        (2, 1, 1, 1),
        (16, 1, 4, 12),
        (16, 1, 16, 8),  # workers wait for the step as well: never less than half
        (16, 4, 1, 3),
        (2, 8, 0, 1),
    ],
)
def test_data_workers_have_a_core_each(
    cores: int, processes: int, workers: int, expected: int
) -> None:
    assert threads_for(cores, processes=processes, workers=workers) == expected


def set_on_sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the threads that one of two processes on a machine sets, with three data workers."""
    monkeypatch.setattr(threads, "_TORCHS", 16)
    monkeypatch.setattr(threads, "available_cores", lambda: 16)
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        datamodule=SimpleNamespace(num_workers=3),
        world_size=4,
        num_nodes=2,
    )
    Threads().setup(trainer, trainer, "fit")
    return found


@pytest.mark.parametrize("given", [None, "1"])
def test_what_the_user_gives_counts_and_not_what_lightning_sets(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning sets the variable once it has started processes, before callbacks are set up."""
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(threads, "_GIVEN", given)
    assert set_on_sixteen_cores(monkeypatch) == ([] if given else [5])


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        ({"SLURM_LOCALID": "1", "SLURM_CPUS_PER_TASK": "16"}, 13),  # 16 less three workers
        ({"SLURM_LOCALID": "1", "SLURM_CPUS_PER_TASK": "8"}, 5),  # tasks share the node's 16
        ({"SLURM_CPUS_PER_TASK": "16"}, 5),  # a batch script that starts processes by itself
    ],
)
def test_cores_that_slurm_has_bound_to_a_task_are_not_divided_again(
    bound: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_LOCALID", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in bound.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "_GIVEN", None)
    assert set_on_sixteen_cores(monkeypatch) == [expected]
