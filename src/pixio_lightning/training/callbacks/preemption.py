"""Save and stop when the machine is about to be taken away."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from types import FrameType
from typing import Any

import lightning as L

from pixio_lightning.training.callbacks.checkpoints import Checkpoints
from pixio_lightning.training.callbacks.progress import say

# All processes have to stop at the same step, and agreeing is a collective: not at every step.
_AGREE_EVERY = 20


def is_preempted(trainer: L.Trainer) -> bool:
    """Whether a signal ends the training, so that there is time for nothing but to save."""
    return any(isinstance(c, Preemption) and c.stopping for c in trainer.callbacks)


class Preemption(L.Callback):
    """On SIGTERM or SIGUSR1 finish the step, save `last.ckpt` and stop.

    Args:
        requeue: Ask SLURM to queue the job again (`scontrol requeue`).

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
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._handlers[number] = signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self._step:
            return  # a batch of several that make a step: half of one cannot be resumed
        self._step = trainer.global_step
        stop = self.signal is not None
        if trainer.world_size > 1:
            if trainer.global_step % _AGREE_EVERY:
                return
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if not stop or trainer.should_stop:
            return
        self.signal, self.stopping = self.signal or signal.SIGTERM, True
        for callback in trainer.callbacks:
            if isinstance(callback, Checkpoints):
                callback.save_last(trainer)
        trainer.should_stop = True
        # Lightning would validate before it ends, which may take longer than there is left.
        trainer.limit_val_batches = 0
        if trainer.is_global_zero:
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
