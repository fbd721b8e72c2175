"""Callbacks that make one process come late to what others have done."""

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


class OtherCache(L.Callback):
    """Give the second process a cache of its own, as the disk of another node."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.global_rank == 1:
            os.environ["PIXIO_CACHE"] = os.environ["OTHER_CACHE"]


class OwnFolder(L.Callback):
    """Start each process in a folder of its own, with a cache there, as on the disk of a node."""

    def __init__(self) -> None:
        folder = os.path.join(os.environ["FOLDERS"], os.environ.get("LOCAL_RANK", "0"))
        os.chdir(folder)
        os.environ["PIXIO_CACHE"] = os.path.join(folder, "cache")


class LateReader(L.Callback):
    """Let the second process of a prediction end after the first one, by a fault if told to."""

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank == 1:
            time.sleep(_PATIENCE)
            print("the second process is done", flush=True)
            if os.environ.get("LATE_READER") == "fails":
                os._exit(5)


def names_in(cache: Path) -> list[str]:
    """Return the lines of all stores in a cache, one for each view that was encoded."""
    return [line for p in sorted(cache.glob("features/*/*.jsonl")) for line in p.open()]
