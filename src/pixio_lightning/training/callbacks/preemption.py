"""Save and stop when the machine is about to be taken away, or at Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from types import FrameType
from typing import Any

import lightning as L

from pixio_lightning.training import results
from pixio_lightning.training.callbacks.checkpoints import Checkpoints
from pixio_lightning.training.callbacks.progress import say

# All processes have to stop at the same step, and agreeing is a collective: not at every step.
_AGREE_EVERY = 20


def is_preempted(trainer: L.Trainer) -> bool:
    """Whether a signal ends the training, so that there is time for nothing but to save."""
    return any(isinstance(c, Preemption) and c.stopping for c in trainer.callbacks)


class Preemption(L.Callback):
    """On SIGTERM, SIGUSR1 or Ctrl-C finish the step, save `last.ckpt` and stop.

    A validation is left after the batch it is at, and run again when the run goes on. A second
    Ctrl-C stops at once.

    Args:
        requeue: Ask SLURM to queue the job again (`scontrol requeue`), unless it was Ctrl-C.

    Attributes:
        signal: The signal that was received, or None.
        stopping: Whether it ends the training.
    """

    def __init__(self, requeue: bool = False) -> None:
        self.requeue = requeue
        self.signal: int | None = None
        self.stopping = False
        self._step = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        # In place of Lightning's own handlers, which train on after SIGUSR1 and exit 0 on SIGTERM.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue  # as a shell asks for what it starts in the background
            self._handlers[number] = signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.signal == number:
                raise KeyboardInterrupt
            # Not by `print`, which the signal may have interrupted.
            os.write(2, b"\ninterrupted: the step is finished and saved; again to stop at once\n")
        self.signal = number

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self._step:
            return  # a batch of several that make a step: half of one cannot be resumed
        self._step = trainer.global_step
        if trainer.should_stop or not self._agreed(trainer, trainer.global_step):
            return
        self._save(trainer)
        trainer.should_stop = True
        # Lightning would validate before it ends, which may take longer than there is left.
        trainer.limit_val_batches = 0

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if trainer.state.fn == "fit" and self._agreed(trainer, batch_idx + 1):
            self._save(trainer)
            raise KeyboardInterrupt  # the one way to leave a validation that Lightning has

    def _agreed(self, trainer: L.Trainer, count: int) -> bool:
        """Whether any process was told to stop, as far as all of them are asked at this count."""
        if results.at_last_step(trainer):
            return False  # what is left is to evaluate and save it, which ends the run
        stop = self.signal is not None
        if trainer.world_size > 1:
            if count % _AGREE_EVERY:
                return False
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        return stop

    def _save(self, trainer: L.Trainer) -> None:
        self.signal, self.stopping = self.signal or signal.SIGTERM, True
        for callback in trainer.callbacks:
            if isinstance(callback, Checkpoints):
                callback.save_last(trainer)
        if not trainer.is_global_zero:
            return
        if self.signal == signal.SIGINT:
            say(f"interrupted at step {trainer.global_step}: saved; the same line goes on")
            return
        name = signal.Signals(self.signal).name
        say(f"{name} at step {trainer.global_step}: saved last.ckpt, stopping")
        self._requeue()

    def _requeue(self) -> None:
        job = os.environ.get("SLURM_JOB_ID")
        if self.requeue and job and shutil.which("scontrol"):
            subprocess.run(["scontrol", "requeue", job], check=False)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            # Lightning may have put back what was there before its own.
            if signal.getsignal(number) == self._received:
                signal.signal(number, handler)
        self._handlers.clear()
