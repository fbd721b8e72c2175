"""Pictures of held-out images while a model learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from pixio_lightning.training import visualize
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.callbacks.preemption import is_preempted


class Pictures(L.Callback):
    """Write `panels/step-N.png` every so many steps and at the end, and show it in TensorBoard.

    The module draws (`pictures(batch)`, a `visualize.Panel` or None), the data module chooses the
    images (`samples(n)`).

    Args:
        every_n_steps: Optimiser steps between two panels; 0 draws none.
        images: Held-out images in a panel.
    """

    def __init__(self, every_n_steps: int = 1000, images: int = 6) -> None:
        self.every_n_steps, self.images = every_n_steps, images
        self._drawn_step = -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: BackboneModule, *args: Any) -> None:
        step = trainer.global_step  # 0 until the first accumulated batches have made a step
        if step and self.every_n_steps and step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: BackboneModule) -> None:
        if self.every_n_steps:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, module: BackboneModule) -> None:
        if trainer.global_step == self._drawn_step or not hasattr(trainer.datamodule, "samples"):
            return
        if is_preempted(trainer):
            return
        self._drawn_step = trainer.global_step
        batch = trainer.datamodule.samples(self.images)
        batch = trainer.strategy.batch_to_device(batch)
        # Every process draws: a sharded model runs only where all of them call it.
        with (
            module.in_mode(training=False),
            torch.no_grad(),
            trainer.precision_plugin.forward_context(),
        ):
            panel = module.pictures(batch)
        if panel is None or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "panels" / f"step-{trainer.global_step:07d}.png"
        image = visualize.write(path, panel)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                board = logger.experiment
                board.add_image("panels", np.asarray(image), trainer.global_step, dataformats="HWC")
