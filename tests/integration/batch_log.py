"""A callback that writes down every batch a run trains on, and one that asks for its length."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import lightning as L


class BatchLog(L.Callback):
    """Append rank, step, keys and a digest of the pixels to a file for each rank."""

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        images = [batch[name] for name in ("image", "past", "future", "gap") if name in batch]
        pixels = b"".join(image.numpy().tobytes() for image in images)
        line = {
            "step": trainer.global_step,
            "keys": batch["key"].tolist(),
            "pixels": hashlib.sha256(pixels).hexdigest(),
        }
        path = Path(os.environ["BATCH_LOG"]) / f"rank{trainer.global_rank}.jsonl"
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class AsksForLength(L.Callback):
    """Call `estimated_stepping_batches`, which makes Lightning open the loaders early."""

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        assert trainer.estimated_stepping_batches == trainer.max_steps


def read(folder: Path, rank: int) -> dict[int, tuple[list[int], str]]:
    """Return keys and digest by step; of a step that was run again, both must be the same."""
    found: dict[int, tuple[list[int], str]] = {}
    for text in (folder / f"rank{rank}.jsonl").read_text().splitlines():
        line = json.loads(text)
        entry = line["keys"], line["pixels"]
        assert found.setdefault(line["step"], entry) == entry, f"step {line['step']} changed"
    return found
