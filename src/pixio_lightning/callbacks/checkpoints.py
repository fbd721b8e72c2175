"""Keep last.ckpt and best.ckpt in the run folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from pixio_lightning.callbacks.progress import say
from pixio_lightning.run_folder import write_state


class Checkpoints(Checkpoint):
    """Save `last.ckpt` every so many steps and at the end, `best.ckpt` after a better validation.

    Args:
        every_n_steps: Optimiser steps between two saves of `last.ckpt`.
        best: Whether to keep `best.ckpt`, by the module's `monitor`.
    """

    def __init__(self, every_n_steps: int = 1000, best: bool = True) -> None:
        self.every_n_steps, self.best = every_n_steps, best
        self.best_value: float | None = None
        self._saved_step = -1

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far."""
        return {"best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the best value so far."""
        self.best_value = state_dict["best_value"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self.save_last(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save_last(trainer)
        if trainer.is_global_zero:
            finished = 0 < trainer.max_steps <= trainer.global_step
            write_state(Path(trainer.default_root_dir), step=trainer.global_step, finished=finished)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.best or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metric, mode = pl_module.monitor
        if metric not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[metric])
        better = self.best_value is None or (
            value < self.best_value if mode == "min" else value > self.best_value
        )
        if better:
            self.best_value = value
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "best.ckpt")

    def save_last(self, trainer: L.Trainer) -> None:
        """Save `last.ckpt`, once per step."""
        if trainer.global_step == self._saved_step:
            return
        self._saved_step = trainer.global_step
        start = time.perf_counter()
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt")
        if trainer.is_global_zero:
            write_state(Path(trainer.default_root_dir), step=trainer.global_step, finished=False)
            seconds = time.perf_counter() - start
            say(f"step {trainer.global_step}: saved last.ckpt ({seconds:.1f} s)")
