"""What classification is judged by: accuracy among the first guesses, mean average precision.

Shapes: B batch, C classes, K numbers of neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from pixio_lightning.training import ListMetric


def accuracies(num_classes: int) -> MetricCollection:
    """Return `top1`, the share of images recognised, and `top5` where there are more classes."""
    found: dict[str, Metric | MetricCollection] = {
        f"top{n}": MulticlassAccuracy(num_classes, top_k=n, average="micro")
        for n in _tops(num_classes)
    }
    return MetricCollection(found, compute_groups=False)


def _tops(num_classes: int) -> list[int]:
    return [n for n in (1, 5) if n < num_classes]


def by_frequency(frequency: Tensor) -> Tensor:
    """Return scores `(C,)` that put the most frequent class first, and 0 for those that are absent.

    Of classes that are equally frequent, as all are in a balanced set, the first comes first: by
    the frequencies themselves none of them would be the majority.
    """
    order = frequency.argsort(descending=True, stable=True)
    scores = torch.zeros_like(frequency, dtype=torch.float32)
    scores[order] = torch.arange(len(order), 0, -1, device=order.device) / len(order)
    return scores * (frequency > 0)


class MeanAveragePrecision(ListMetric):
    """Mean over classes of the average precision, of the classes that any image shows.

    torchmetrics' macro average counts a class that is nowhere to be found as 0.

    Args:
        num_classes: Number of classes C.
    """

    def __init__(self, num_classes: int) -> None:
        scores = torch.zeros(0, num_classes)
        super().__init__({"scores": scores, "targets": scores.long()})

    scores: list[Tensor]
    targets: list[Tensor]

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Add scores `(B, C)`, of which only the order counts, and targets of 0 and 1."""
        self.scores.append(scores.detach().float())
        self.targets.append(target.long())

    def compute(self) -> Tensor:
        """Return the mean; NaN where no class is shown."""
        scores, targets = dim_zero_cat(self.scores), dim_zero_cat(self.targets)
        shown = targets.any(dim=0)
        if not bool(shown.any()):
            return torch.tensor(torch.nan, device=scores.device)
        pairs = zip(scores[:, shown].T, targets[:, shown].T, strict=True)
        return torch.stack([binary_average_precision(_ranked(s), t) for s, t in pairs]).mean()


def _ranked(scores: Tensor) -> Tensor:
    """Return the ranks of scores `(N,)`, of equal ones the same, from 0 to 1.

    torchmetrics takes what is beyond 0 and 1 for logits, whose sigmoids are equal where they
    saturate.
    """
    ranks = scores.unique(return_inverse=True)[1]
    # Some devices have no float64; in float32 the ranks of 8 million scores are still apart.
    return ranks.float() / max(1, len(scores) - 1)


class _AccuracyAt(MeanMetric):
    """Accuracy of the `at`-th of the predictions that the k-NN protocol makes of an image.

    The true class is found where it has votes, and at most `top_k` classes have as many: one that
    no neighbour votes for is not found by being sorted before others without votes.
    """

    def __init__(self, *, top_k: int, at: int) -> None:
        super().__init__(nan_strategy="disable")  # or every update would wait for the device
        self.top_k, self.at = top_k, at

    def update(self, votes: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Add votes `(B, K, C)` and classes `(B,)`."""
        shares = votes[:, self.at]
        own = shares.gather(1, target[:, None])
        as_many = (shares >= own).sum(dim=1)  # the class itself is one of them
        super().update(((own[:, 0] > 0) & (as_many <= self.top_k)).float())


def neighbour_accuracies(num_classes: int, ks: Sequence[int]) -> MetricCollection:
    """Return `top1_kK`, and `top5_kK` where there are more classes, for each number K."""
    found: dict[str, Metric | MetricCollection] = {
        f"top{n}_k{k}": _AccuracyAt(top_k=n, at=i)
        for n in _tops(num_classes)
        for i, k in enumerate(ks)
    }
    # Grouped, those that agree on the first batch would share one state ever after.
    return MetricCollection(found, compute_groups=False)
