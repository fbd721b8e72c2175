"""What the tests of a cluster share: a tiny recipe, and one SLURM."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm
from shard_files import jpeg

sys.path.append(str(Path(__file__).parents[1] / "integration"))  # running, batch_log


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 small images."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        (folder / f"{i:02d}.jpg").write_bytes(jpeg(i, side=80))
    return folder


@pytest.fixture(scope="session")
def recipe(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretraining recipe on the images."""
    from running import write_recipe

    return write_recipe(tmp_path_factory.mktemp("recipe"), pictures)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    """A SLURM of one node with two processors."""
    if reason := slurm.why_not():
        pytest.skip(reason)
    running = slurm.Slurm(tmp_path_factory.mktemp("slurm"))
    yield running
    running.stop()
