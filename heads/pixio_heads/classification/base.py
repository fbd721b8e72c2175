"""ClassHead: what a probe and nearest neighbours share.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pixio_heads.classification.picture import bars, shown
from pixio_lightning.data import centre
from pixio_lightning.training import Batch, Head, visualize


class ClassHead(Head):
    """What both ways to tell classes share: the classes, the pictures, the table of predictions."""

    data_attributes = ("num_classes", "class_names", "multilabel")
    same_as_trained = ("multilabel", "class_names", "num_classes")
    model_as_trained = (*Head.model_as_trained, "pool")
    evaluation_attributes = ("centre_crop",)
    baseline_names = ("majority",)
    table = "predictions"

    def probabilities(self, prediction: Tensor) -> Tensor:
        """Return `(B, C)` in [0, 1]."""
        raise NotImplementedError

    def prepared(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the centre that evaluation sees; all, where the data have said none."""
        crop = self.evaluation_info.get("centre_crop")
        return pixels if crop is None else centre(pixels, *crop)

    @property
    def evaluation_side(self) -> int | None:
        """Side of the centre crop; None where the data have said none."""
        crop = self.evaluation_info.get("centre_crop")
        return None if crop is None else crop[0]

    @property
    def seen(self) -> str:
        """Return what evaluation sees of an image."""
        side, share = self.evaluation_info["centre_crop"]
        return f"centre crop of {side} px" + (f", {share:g} of the short side" if share < 1 else "")

    def picture(self, batches: list[Batch], predictions: list[Tensor]) -> visualize.Panel:
        """Draw images in a row, and below each what it is taken for, the truth in green."""
        names = self.data_info["class_names"]
        images, guesses, titles = [], [], []
        for batch, prediction in zip(batches, predictions, strict=True):
            target, several = batch["target"][0], self.data_info["multilabel"]
            truth = target.nonzero().flatten().tolist() if several else [int(target)]
            images.append(shown(batch["image"][0]))
            guesses.append(bars(names, self.probabilities(prediction)[0].cpu(), truth))
            titles.append("" if several else names[truth[0]])
        return visualize.Panel([images, guesses], titles)

    def write(self, prediction: Tensor, batch: Batch, folder: Path) -> None:
        """Add the likeliest class of each image to predictions.csv, with its probability.

        Where an image may be of several classes it has a line for each that is likelier than not,
        at least one.
        """
        classes, several = self.data_info["class_names"], self.data_info["multilabel"]
        rows = []
        for name, row in zip(batch["name"], self.probabilities(prediction).cpu(), strict=True):
            likely = (row > 0.5).nonzero().flatten().tolist() if several else []
            for index in likely or [int(row.argmax())]:
                rows.append([name, classes[index], f"{float(row[index]):.4f}"])
        self.add_to_table(folder, ["name", "label", "probability"], rows)
