"""Keep last.ckpt and best.ckpt in the run folder, whole and in step with its evaluations."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from pixio_lightning.errors import at_least, nearest, some_of
from pixio_lightning.training import results
from pixio_lightning.training.callbacks.csv_logger import MetricsLog
from pixio_lightning.training.callbacks.progress import say
from pixio_lightning.training.checkpoints import running_mean
from pixio_lightning.training.checkpoints.checkpoint_io import read_plain
from pixio_lightning.training.run_folder import write_state


class Checkpoints(Checkpoint):
    """Save `last.ckpt` every so many steps and at the end, `best.ckpt` after a better validation.

    A step that is saved and validated is saved first: a validation may be long. The checkpoint then
    says that its validation is still to come, and a run that goes on from it begins with that one.
    The last step is saved when everything else of the run is done.

    Args:
        every_n_steps: Optimiser steps between two saves of `last.ckpt`; 0 saves at the end only.
        best: Whether to keep `best.ckpt`, by the module's `monitor`.

    Raises:
        UserError: `every_n_steps` is negative; or, after the first validation, that did not log
            what the module's `monitor` names.
    """

    def __init__(self, every_n_steps: int = 1000, best: bool = True) -> None:
        at_least(0, **{"checkpoint.every_n_steps": every_n_steps})
        self.every_n_steps, self.best = every_n_steps, best
        self.best_value: float | None = None
        self._validation_to_come = False
        self._saved_step = self._validated_step = -1

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, and whether the step's validation is still to come."""
        return {"best_value": self.best_value, "validation_to_come": self._validation_to_come}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there."""
        self.best_value = state_dict["best_value"]
        self._validation_to_come = state_dict.get("validation_to_come", False)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the means since the last log; let a validation read as if it were not begun.

        Lightning takes up a validation where it was, but not what it had measured.
        """
        running_mean.keep(trainer, pl_module, checkpoint)
        if not (self._validation_to_come and trainer.validating):
            return
        counts = checkpoint["loops"]["fit_loop"]
        for part in ("total", "current"):
            counts["epoch_loop.batch_progress"][part]["completed"] -= 1
            counts["epoch_loop.val_loop.batch_progress"][part] = dict.fromkeys(
                counts["epoch_loop.val_loop.batch_progress"][part], 0
            )

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with the means since the last log."""
        running_mean.restore(trainer, pl_module, checkpoint)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the folder tell of no more than the step that the run goes on from."""
        folder = Path(trainer.default_root_dir)
        self._saved_step = trainer.global_step
        if trainer.global_step:
            if not (folder / "best.ckpt").exists():  # of another folder's run, or removed
                self.best_value = None
            self._take_best(folder, pl_module.monitor)
        if trainer.is_global_zero:
            results.rewind(folder, trainer.global_step - self._validation_to_come)
        for logger in trainer.loggers:
            # Before the validation, which is logged under the step before.
            if trainer.global_step and isinstance(logger, MetricsLog):
                logger.rewind(trainer.global_step)
        trainer.strategy.barrier("rewound")
        if self._validation_to_come:
            _validate(trainer)

    def _take_best(self, folder: Path, monitor: tuple[str, str]) -> None:
        """Take the value of best.ckpt, which may be of a later step than the run goes on from."""
        path = folder / "best.ckpt"
        if not self.best or not path.exists():
            return
        state = read_plain(path).get("callbacks", {}).get(self.state_key, {})
        value = state.get("best_value")
        if value is not None and _is_better(value, self.best_value, monitor[1]):
            self.best_value = value

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if results.at_last_step(trainer):
            return  # saved in `on_train_end`
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self.save_last(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        ended = results.at_last_step(trainer) and trainer.global_step != self._saved_step
        if ended and trainer.enable_validation and self._validated_step != trainer.global_step:
            _validate(trainer)  # the steps of an epoch need not divide those of the run
        self.save_last(trainer)
        if trainer.is_global_zero:
            finished = results.at_last_step(trainer)
            write_state(Path(trainer.default_root_dir), step=trainer.global_step, finished=finished)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validation_to_come, self._validated_step = False, trainer.global_step
        if not self.best:
            return
        metric, mode = pl_module.monitor
        if metric not in trainer.callback_metrics:
            logged = [name for name in trainer.callback_metrics if name.startswith("val/")]
            pl_module.note(
                f"pixio: note: there is no best.ckpt, which is chosen by {metric}, the monitor of "
                f"{type(pl_module).__name__}: the validation logged "
                f"{some_of(logged, limit=10) or 'nothing'}{nearest(metric, logged)}"
            )
            return
        value = float(trainer.callback_metrics[metric])
        if _is_better(value, self.best_value, mode):
            self.best_value = value
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "best.ckpt")

    def save_last(self, trainer: L.Trainer) -> None:
        """Save `last.ckpt`, once per step."""
        if trainer.global_step == self._saved_step:
            return
        self._saved_step = trainer.global_step
        validated = self._validated_step == trainer.global_step
        self._validation_to_come = trainer.validating or (
            not validated and _validation_follows(trainer)
        )
        start = time.perf_counter()
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt")
        if trainer.is_global_zero:
            write_state(Path(trainer.default_root_dir), step=trainer.global_step, finished=False)
            seconds = time.perf_counter() - start
            say(f"step {trainer.global_step}: saved last.ckpt ({seconds:.1f} s)")


def _is_better(value: float, best: float | None, mode: str) -> bool:
    """Whether a value beats the best so far; what is not finite beats nothing."""
    if not math.isfinite(value):
        return False
    if best is None or not math.isfinite(best):
        return True
    return value < best if mode == "min" else value > best


def _validation_follows(trainer: L.Trainer) -> bool:
    """Whether the batch that has just ended is one that Lightning validates after."""
    epochs = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (epochs and (trainer.current_epoch + 1) % epochs):
        return False
    loop, interval = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    if interval in (None, float("inf")):
        return trainer.is_last_batch
    batches = (loop.batch_idx if epochs else loop.total_batch_idx) + 1
    return batches % interval == 0


def _validate(trainer: L.Trainer) -> None:
    """Run the validation that the run was killed in, or before."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # from the first batch on, not from where an earlier one ended
    trainer.validating = True
    loop.run()
    trainer.training = True
