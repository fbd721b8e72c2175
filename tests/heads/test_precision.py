"""Losses and metrics of every head are computed in full precision, whatever the trainer's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import precision_log
import pytest
import test_contract
import torch
from PIL import Image

from pixio_lightning.cli.main import main
from pixio_lightning.testing import HeadContract

HEADS = {
    name: head
    for name, head in vars(test_contract).items()
    if isinstance(head, type) and issubclass(head, HeadContract) and head is not HeadContract
}
# They differ from another only in a decoder that takes long.
SLOW = ("TestDepthWithDPT", "TestOrdinalDepth")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in HEADS]
)
def test_losses_and_metrics_see_full_precision(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "pixio-cache"))
    precision_log.calls.clear()
    keys = {"trainer__precision": "bf16-mixed", "panels__every_n_steps": 2}
    words = HEADS[name]().words(tmp_path / "run", **keys)
    log = "--trainer.callbacks+=precision_log.PrecisionLog"
    assert main(["fit", *words, log]) == 0
    seen = {name for name, *_ in precision_log.calls}
    # Without autocast where the backbone runs, nothing would be shown.
    assert {enabled for name, enabled, _ in precision_log.calls if name == "backbone"} == {True}
    trained = (tmp_path / "run" / "last.ckpt").exists()
    assert {"backbone", "scored", "metric"} <= seen and trained == ({"loss", "picture"} <= seen)
    assert found_coarse() == []


@pytest.mark.parametrize("name", ["TestDepth", "TestReconstruction"])
def test_what_is_written_is_computed_in_full_precision(name: str, tmp_path: Path) -> None:
    precision_log.calls.clear()
    (tmp_path / "photos").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    words = HEADS[name]().words(tmp_path / "run", trainer__precision="bf16-mixed")
    words += ["--data.source", "folder", "--data.path", str(tmp_path / "photos")]
    words += ["--data.image_size", "[48, 48]"] if name == "TestReconstruction" else []
    words += ["--ckpt_path", "none"]
    log = "--trainer.callbacks+=precision_log.PrecisionLog"
    assert main(["predict", *words, log]) == 0
    assert {"backbone", "write"} == {name for name, *_ in precision_log.calls}
    assert found_coarse() == []


def found_coarse() -> list[tuple[str, bool, list[torch.dtype]]]:
    """Return what was computed under autocast, or of half precision, and should not have been."""
    return [call for call in precision_log.calls if call[0] != "backbone" and any(call[1:])]
