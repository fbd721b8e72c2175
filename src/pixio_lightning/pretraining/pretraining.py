"""What all modules share that train a backbone as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pixio_lightning.errors import UserError, whole_tokens
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.training import visualize
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.optim import Optim

# Held-out samples are always masked as if drawn in this step, whichever it is.
_FIXED_STEP = -1


class Pretraining(BackboneModule):
    """A module whose result is a backbone, trained on images cut into a grid of patches.

    Args:
        backbone: What is trained, or what is learned from.
        optim: Optimiser and schedule.
        seed: Seed of masks and drop path.
    """

    pretrains = True
    reads_pairs = False  # of frames, as `Clips` gives them

    def __init__(self, backbone: Backbone, *, optim: Optim, seed: int) -> None:
        super().__init__(backbone, optim=optim)
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Look at the data before anything is loaded."""
        if self.attached is not None:
            self.read_data_attributes(self.attached.datamodule)

    def read_data_attributes(self, data: Any) -> None:
        """Refuse images that a mask does not fit: their grid is masked, not that of the weights.

        Raises:
            UserError: The images are not whole tokens, or a mask does not fit them; or there are
                pairs of frames in their place.
        """
        super().read_data_attributes(data)
        if hasattr(data, "training_pairs") and not self.reads_pairs:
            raise UserError(
                f"{type(self).__name__} needs images, but {type(data).__name__} gives pairs of "
                "frames: set data to Pixels, or model to FuturePrediction"
            )
        size, stride = getattr(data, "image_size", None), self.backbone.stride
        if not isinstance(size, int):
            return
        whole_tokens("data.image_size", size, stride, self.backbone.name)
        self.check_mask((size // stride, size // stride))

    def check_mask(self, grid: tuple[int, int]) -> None:
        """Refuse a grid of patches that a mask does not fit."""
        raise NotImplementedError

    @property
    def protocol(self) -> str:
        """One line on what the held-out loss is of; losses of other lines may not be compared."""
        return ""

    def fixed_draw(self, batch: dict[str, Any]) -> RandomKey:
        """Return the random key of held-out samples."""
        return RandomKey(batch["key"], self.seed, _FIXED_STEP)

    def drawn(self, batch: dict[str, Any]) -> tuple[visualize.Panel, list[str]]:
        """Draw a row for each sample, without gradients; returns what to say of each, too."""
        raise NotImplementedError

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> visualize.Panel:
        """Draw a row for each sample."""
        return self.drawn(batch)[0]

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Write one picture for each sample, and what is said of it."""
        folder = Path(self.trainer.default_root_dir) / "predictions"
        panel, texts = self.drawn(batch)
        weights = batch["weight"].tolist()
        for name, row, text, weight in zip(batch["name"], panel.rows, texts, weights, strict=True):
            if weight == 0:  # padding, or what could not be read
                continue
            caption = "; ".join(filter(None, (text, panel.caption)))
            one = panel._replace(rows=[row], caption=caption)
            self.show(folder, name, one, suffix=".png", label=f"{name}: {text}")
