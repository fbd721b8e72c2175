"""Gradients of every head lie in memory as DDP's buckets do, which would copy them otherwise."""

from __future__ import annotations

from pathlib import Path

import gradient_layout
import pytest
import test_contract

from pixio_lightning.cli.main import main

# Heads that train a module on maps, whose channels lie last in memory.
RUNS = {
    "depth": ("TestDepth", ()),
    "dpt": ("TestDepthWithDPT", ()),
    "segmentation": ("TestSegmentation", ()),
    "policy": ("TestPolicy", ("--model.token", "keypoints")),
    "reconstruction": ("TestReconstruction", ()),
    "reconstruction_flat": (
        "TestReconstruction",
        ("--model.sizes.pose_pool", "flatten", "--model.sizes.pose_grid", "[3, 3]"),
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_gradients_lie_as_their_parameters_do(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "pixio-cache"))
    gradient_layout.seen.clear()
    gradient_layout.copied.clear()
    name, more = RUNS[run]
    words = getattr(test_contract, name)().words(tmp_path / "run", trainer__max_steps=1)
    log = "--trainer.callbacks+=gradient_layout.GradientLayout"
    assert main(["fit", *words, *more, log]) == 0
    assert gradient_layout.seen and not gradient_layout.copied
