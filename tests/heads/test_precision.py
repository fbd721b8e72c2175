"""Losses and metrics of every head are computed in full precision, whatever the trainer's."""

from __future__ import annotations

from pathlib import Path

import precision_log
import pytest
import test_contract

from pixio_lightning.cli import main
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
    words = HEADS[name]().words(tmp_path / "run", trainer__precision="bf16-mixed")
    log = "--trainer.callbacks+=precision_log.PrecisionLog"
    assert main(["fit", *words, log]) == 0
    seen = {name for name, *_ in precision_log.calls}
    # Without autocast where the backbone runs, nothing would be shown.
    assert {enabled for name, enabled, _ in precision_log.calls if name == "backbone"} == {True}
    trained = {"loss"} if (tmp_path / "run" / "last.ckpt").exists() else set()
    assert {"backbone", "scored", "metric"} | trained <= seen
    for name, enabled, coarse in precision_log.calls:
        if name != "backbone":
            assert not enabled and coarse == [], name
