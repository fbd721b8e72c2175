"""What the tests of the page share: small runs, trained once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the page needs Gradio")

import app_runs

from pixio_lightning.cli.app.loaded import open_run
from pixio_lightning.cli.app.server import served
from pixio_lightning.files import locked


@pytest.fixture(scope="package", autouse=True)
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what Gradio's client downloads, and leaves behind, among the files of the tests."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("downloads"))
    yield
    tempfile.tempdir = before


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs, which several test processes share."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, done = shared / "app", shared / "app-done"
    with locked(shared / "app-lock"):
        if not done.exists():
            folder.mkdir()
            app_runs.train_all(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pictures."""
    folder = tmp_path_factory.mktemp("own") / "photographs"
    app_runs.write_photographs(folder)
    return folder


@pytest.fixture(scope="module")
def address(runs: Path, photographs: Path) -> Iterator[str]:
    """Serve a page with a tab of every kind; returns its address."""
    names = ("pretrain", "depth", "segmentation", "classification", "reconstruction", "video")
    loaded = [open_run(runs / name) for name in (*names, "depth-that-acted")]
    with served(
        [*loaded, app_runs.plug_in()], host="127.0.0.1", port=0, folder=photographs
    ) as page:
        yield page
