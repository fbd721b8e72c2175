"""Figures of segmentation, of one confusion matrix over all pixels of all images.

Shapes: B batch, K classes, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

IGNORED = 255  # the label of pixels that belong to no class


class SegmentationMetrics(MulticlassConfusionMatrix):
    """Mean intersection over union and pixel accuracy, pooled over images and processes.

    `update` takes class indices `(B, H, W)` or scores `(B, K, H, W)`, whose greatest counts, and
    labels `(B, H, W)`; pixels with the label 255 do not count, whatever is predicted there.

    Args:
        num_classes: Number of classes K.

    Attributes:
        occurring: How many classes the labels held that `compute` last saw.
    """

    occurring = 0

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        # Labels are checked where they are read, image by image.
        super().__init__(num_classes, ignore_index=IGNORED, validate_args=False, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Return `miou`, `miou_all` and `accuracy`, each from 0 to 1, NaN without any pixel.

        The union of a class is what is labelled or predicted as it. `miou` leaves out classes
        without a union; in `miou_all`, the official form, they count 0. The two are equal where
        every class occurs.
        """
        matrix = self.confmat.double()
        correct = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - correct
        iou = correct / union
        total = matrix.sum()
        self.occurring = int((matrix.sum(1) > 0).sum())
        return {
            "miou": iou.nanmean(),
            "miou_all": torch.where(total > 0, iou.nan_to_num(0).mean(), torch.nan),
            "accuracy": correct.sum() / total,
        }

    @property
    def protocol(self) -> str:
        """One line on what is scored and how."""
        return f"{self.num_classes} classes, {IGNORED} ignored, pixels of all images pooled"
