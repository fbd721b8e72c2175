"""Threads of a run on the CPU: data workers have cores of their own."""

from __future__ import annotations

import pytest

from pixio_lightning.training.callbacks.threads import threads_for


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
