"""Save and stop when the machine is about to be taken away, or at Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from types import FrameType
from typing import Any

import lightning as L

from pixio_lightning.data.workers import leave_workers_unwatched
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

    Before the first step, while features are computed, stop at once. A validation is left after the
    batch it is at, and run again when the run goes on. A second Ctrl-C stops at once.

    Args:
        requeue: After SIGUSR1, the notice of a time limit, ask SLURM to queue the job again
            (`scontrol requeue`). SIGTERM is what `scancel` sends, too; a job that SLURM itself
            pre-empts, it queues again by itself (`#SBATCH --requeue`).

    Attributes:
        signal: The signal that was received, or None.
        stopping: Whether it ends the training.
        noticed: Whether it, or an earlier one, was SIGUSR1.
    """

    def __init__(self, requeue: bool = False) -> None:
        self.requeue = requeue
        self.signal: int | None = None
        self.stopping = self.noticed = False
        self._speaks = True
        self._step: int | None = None  # None before the first one, and after the last
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._speaks = trainer.is_global_zero
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._handlers[number] = signal.signal(number, self._received)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        # In place of Lightning's own handlers, which train on after SIGUSR1 and exit 0 on SIGTERM.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            if number == signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue  # as a shell asks for what it starts in the background
            earlier = signal.signal(number, self._received)
            self._handlers.setdefault(number, earlier)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self._step is None and number != signal.SIGINT:
            if not self._handlers:  # Lightning has put this back after a run that has ended
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            name = signal.Signals(number).name
            text = f"{name} before the first step: nothing to save; the same line starts it again"
            os.write(2, f"\n{text}\n".encode() if self._speaks else b"")
            raise SystemExit(128 + number)
        if number == signal.SIGINT:
            if self.signal == number:
                raise KeyboardInterrupt
            # Not by `print`, which the signal may have interrupted.
            os.write(2, b"\ninterrupted: the step is finished and saved; again to stop at once\n")
        self.signal = number
        self.noticed |= number == signal.SIGUSR1

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
            # The first process, which asks for the job again, may have been told nothing itself.
            if stop and trainer.strategy.reduce_boolean_decision(self.noticed, all=False):
                self.signal, self.noticed = self.signal or signal.SIGUSR1, True
        return stop

    def _save(self, trainer: L.Trainer) -> None:
        self.signal, self.stopping = self.signal or signal.SIGTERM, True
        # No batch is asked for any more, and one that ends now must not interrupt the writing.
        leave_workers_unwatched()
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
        if self.requeue and self.noticed and job and shutil.which("scontrol"):
            subprocess.run(["scontrol", "requeue", job], check=False)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            # Lightning may have put back what was there before its own.
            if signal.getsignal(number) == self._received:
                signal.signal(number, handler)
        self._handlers.clear()
        self._step = None
