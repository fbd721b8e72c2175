"""A bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from pixio_lightning.data.stream import EndlessLoader
from pixio_lightning.errors import visible_lines


def say(text: str) -> None:
    """Print a line without breaking a bar, and nothing that a terminal would obey."""
    tqdm.write(visible_lines(text), file=sys.stdout)
    sys.stdout.flush()


class Progress(ProgressBar):
    """Show step, images per second, share of time spent waiting for data, loss, rate and ETA.

    On a terminal a bar; elsewhere a line every `trainer.log_every_n_steps`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._on = True
        self._bar: tqdm | None = None
        self._waited = 0.0
        self._first_step = 0
        self._window_start = time.perf_counter()

    def disable(self) -> None:
        """Show nothing; Lightning calls this on all processes but the first."""
        self._on = False

    def enable(self) -> None:
        """Show progress again."""
        self._on = True

    def _open(self, total: float, unit: str, description: str, start: int = 0) -> None:
        if self._on and _shows_a_bar(sys.stderr):
            count = int(total) if 0 < total < float("inf") else None
            self._bar = tqdm(total=count, initial=start, unit=unit, desc=description, leave=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    # --- training -----------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open(trainer.max_steps, "step", "fit", start=trainer.global_step)
        self._reset_window(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
        # A batch that is accumulated ends no step.
        steps = trainer.global_step - self._first_step
        # Metrics are read only when they are logged: reading waits for the device.
        every = trainer.log_every_n_steps
        if steps and every and trainer.global_step % every == 0:
            self._report(trainer, pl_module, steps)

    def _report(self, trainer: L.Trainer, pl_module: L.LightningModule, steps: int) -> None:
        elapsed = time.perf_counter() - self._window_start
        facts = {"img/s": f"{pl_module.global_batch * steps / elapsed:.0f}"}
        if isinstance(trainer.train_dataloader, EndlessLoader):
            waited = trainer.train_dataloader.waited - self._waited
            facts["wait"] = f"{min(1.0, waited / elapsed):.0%}"
        for key, name in (("train/loss", "loss"), ("train/lr", "lr")):
            value = trainer.callback_metrics.get(key)
            if value is not None:
                facts[name] = f"{float(value):.4g}"
        if self._bar is not None:
            self._bar.set_postfix(facts)
        elif self._on:
            left = max(0, trainer.max_steps - trainer.global_step) * elapsed / steps
            line = "  ".join(f"{key} {value}" for key, value in facts.items())
            total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
            say(f"step {trainer.global_step}{total}  {line}  eta {duration(left)}")
        self._reset_window(trainer)

    def _reset_window(self, trainer: L.Trainer) -> None:
        self._first_step, self._window_start = trainer.global_step, time.perf_counter()
        self._waited = getattr(trainer.train_dataloader, "waited", 0.0)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    # --- validation inside training does not count ---------------------------------------------

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._reset_window(trainer)
        else:
            self._close()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._open(sum(trainer.num_val_batches), "batch", "validate")

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None and self.trainer.state.fn != "fit":
            self._bar.update()

    # --- test and predict ---------------------------------------------------------------------

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open(sum(trainer.num_test_batches), "batch", "test")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open(sum(trainer.num_predict_batches), "batch", "predict")

    def _advance(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    on_test_batch_end = on_predict_batch_end = _advance

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    on_predict_end = on_test_end


def _shows_a_bar(stream: TextIO) -> bool:
    """Whether a stream is a terminal with room: that of many a container has no rows."""
    return stream.isatty() and all(os.get_terminal_size(stream.fileno()))


def duration(seconds: float) -> str:
    """Write seconds as `1:02:03` or `2:03`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
