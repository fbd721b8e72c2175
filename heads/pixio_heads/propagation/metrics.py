"""What propagated labels are judged by: J and F of objects, IoU of classes, joints found.

Shapes: B clips, V frames, Ho x Wo pixels of the frames as they are stored, J joints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from pixio_heads.propagation.boundaries import boundary_accuracy, region_similarity

UNKNOWN = 255  # the label of pixels of which nothing is known
# Of the reach that counts as found, and of the box of the joints that it is a share of.
_SHARES = {"pck_10": 0.1, "pck_20": 0.2}
_OF_DIAGONAL = 0.6


class ObjectMasks(Metric):
    """J, F and their mean J&F, as DAVIS-2017 has them: a mean over objects of means over frames.

    Objects are those of the first frame; it is given, so it does not count, nor does the last one,
    unless there are but two. Pixels that are unknown are of no object.
    """

    full_state_update = False

    j: Tensor
    f: Tensor
    objects: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("j", "f", "objects"):
            # In double precision: the sum over two processes is that over one.
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, default=zero, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add clips.

        Args:
            prediction: uint8 `(B, V, Ho, Wo)`, numbers of objects, 0 for none.
            target: Likewise; 255 is unknown.
        """
        for found, truth in zip(prediction, target, strict=True):
            counted = slice(1, max(2, len(truth) - 1))
            known = truth[counted] != UNKNOWN
            for number in objects_in(truth[0]):
                own = (found[counted] == number) & known
                true = truth[counted] == number
                self.j += region_similarity(own, true).mean()
                self.f += boundary_accuracy(own, true).mean()
                self.objects += 1

    def compute(self) -> dict[str, Tensor]:
        """Return `jf`, `j` and `f`, from 0 to 1; NaN without any object."""
        j, f = self.j / self.objects, self.f / self.objects
        return {"jf": (j + f) / 2, "j": j, "f": f}


def objects_in(mask: Tensor) -> list[int]:
    """Return the numbers of the objects that a mask shows."""
    return [number for number in mask.unique().tolist() if number not in (0, UNKNOWN)]


class Joints(Metric):
    """PCK: the share of joints that are found, a mean over the joints of shares over frames.

    A joint is found if it is no farther from its place than a tenth (`pck_10`) or a fifth
    (`pck_20`) of 0.6 times the diagonal of the box around all joints of its frame. Frames count
    from the second on, and joints that lie inside of the frame there and in the first one.

    Args:
        num_joints: Number of joints J.
    """

    full_state_update = False

    counted: Tensor

    def __init__(self, num_joints: int) -> None:
        super().__init__()
        for name in ("counted", *_SHARES):
            zeros = torch.zeros(num_joints, dtype=torch.float64)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, stored: Tensor) -> None:
        """Add clips.

        Args:
            prediction: x and y in pixels `(B, V, J, 2)`.
            target: Likewise.
            stored: Height and width of the frames `(B, 2)`.
        """
        width_height = stored.flip(1)[:, None, None]
        inside = ((target >= 0) & (target <= width_height - 1)).all(dim=3)
        inside = (inside & inside[:, :1])[:, 1:]
        box = target.amax(dim=2) - target.amin(dim=2)
        reach = _OF_DIAGONAL * box.norm(dim=2)[:, 1:, None]
        distance = (prediction - target).norm(dim=3)[:, 1:]
        self.counted += inside.sum(dim=(0, 1))
        for name, share in _SHARES.items():
            hits = getattr(self, name)
            hits += (inside & (distance <= share * reach)).sum(dim=(0, 1))

    def compute(self) -> dict[str, Tensor]:
        """Return `pck_10` and `pck_20`, from 0 to 1; NaN without any joint."""
        return {name: (getattr(self, name) / self.counted).nanmean() for name in _SHARES}


def metrics_of(kind: str, count: int) -> MetricCollection:
    """Return the metrics of labels of a kind: `objects`, `classes` or `joints`, so many of them."""
    metrics: Any = [ObjectMasks() if kind == "objects" else Joints(count)]
    if kind == "classes":  # those that occur in the truth or in what is found, the background too
        iou = MulticlassJaccardIndex(count, ignore_index=UNKNOWN, validate_args=False)
        metrics = {"miou": iou}
    return MetricCollection(metrics, compute_groups=False)


def protocol_of(kind: str, count: int) -> str:
    """Return one line on what they score."""
    return {
        "objects": "J&F of the first frame's objects, without the first and the last frame",
        "classes": f"mean IoU of {count} classes, pixels of all frames pooled",
        "joints": "PCK of 0.6 box diagonals, joints inside of their frame, from the second frame "
        "on",
    }[kind]
