"""A callback that makes one process come late to what all of them do when training starts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import lightning as L

_PATIENCE = 1.5  # seconds that the others, who should wait, are given to go ahead


class Latecomer(L.Callback):
    """Wait until the others have encoded their share of features, or could have."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank != int(os.environ["LATE_RANK"]):
            return
        share, until = int(os.environ["SHARE"]), time.monotonic() + _PATIENCE
        while time.monotonic() < until and len(names_in(Path(os.environ["PIXIO_CACHE"]))) < share:
            time.sleep(0.01)


def names_in(cache: Path) -> list[str]:
    """Return the lines of all stores in a cache, one for each view that was encoded."""
    return [line for p in sorted(cache.glob("features/*/*.jsonl")) for line in p.open()]
