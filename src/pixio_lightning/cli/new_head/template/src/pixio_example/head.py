"""How far the camera looks up, from the class tokens.

Shapes: B batch, K class tokens, C width of a token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection, R2Score

from pixio_example.data import scaled
from pixio_lightning import Backbone, Features, Head
from pixio_lightning.files import output_path


class Example(Head):
    """Predict how far the camera looks up, in degrees, from the class tokens."""

    # best.ckpt is the one with the least mean absolute error.
    monitor = ("val/mae", "min")
    # What an evaluation depends on: attributes of the data, found in `self.evaluation_info`.
    evaluation_attributes = ("image_size",)
    # What stands beside every result: see `baselines`.
    baseline_names = ("constant",)

    def build(self, backbone: Backbone) -> nn.Module:
        """Return all that is trained; it becomes `self.decoder`."""
        return nn.Linear(backbone.embed_dim, 1)

    def forward(self, features: Features, batch: dict[str, Any]) -> Tensor:
        """Return the angle in degrees, `(B,)`."""
        return 10 * self.decoder(features.pooled)[:, 0]

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the mean absolute error."""
        return {"loss": F.l1_loss(prediction, batch["target"])}

    def metrics(self) -> MetricCollection:
        """Return what is measured; torchmetrics adds it up over all processes."""
        return MetricCollection({"mae": MeanAbsoluteError(), "r2": R2Score()})

    def scored(self, prediction: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return what the metrics are updated with."""
        return prediction, batch["target"]

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        """Return what can be known without looking at an image: the median."""
        return {"median": torch.cat([batch["target"] for batch in loader]).median()}

    def baselines(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return predictions that do not look, by the names in `baseline_names`."""
        return {"constant": self.statistics["median"].expand_as(batch["target"])}

    def prepared(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what evaluation sees of a picture `(H, W, 3)` that `predict` is given."""
        return scaled(pixels, self.evaluation_side)

    @property
    def evaluation_side(self) -> int:
        """Side of the images that evaluation sees, in pixels; an export takes such."""
        return self.evaluation_info["image_size"]

    @property
    def output_config(self) -> dict[str, Any]:
        """Return what the numbers of a prediction are, for those who read an export."""
        return {"values": "how far the camera looks up", "unit": "degrees"}

    def write(self, prediction: Tensor, batch: dict[str, Any], folder: Path) -> None:
        """Write a text file for each image."""
        for name, value in zip(batch["name"], prediction.tolist(), strict=True):
            path = output_path(folder, name, ".txt")  # names come from data: any text
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value:.3f}\n")
