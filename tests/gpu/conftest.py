"""Tests that need an NVIDIA GPU: `make test-gpu`. Elsewhere they are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ON_GPU = ("--trainer.accelerator", "gpu", "--trainer.devices", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture
def gpu() -> tuple[str, ...]:
    """The words of a command line that put a trainer on the GPU."""
    return ON_GPU


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.getbasetemp() / "pixio-cache"
    monkeypatch.setenv("PIXIO_CACHE", str(cache))
