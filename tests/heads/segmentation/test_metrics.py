"""Figures and loss of segmentation against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from pixio_heads.segmentation.losses import cross_entropy
from pixio_heads.segmentation.metrics import SegmentationMetrics

# Five classes, of which 3 is only predicted and 4 is nowhere; 255 is no class.
TRUTH = torch.tensor([[[0, 0, 0, 1], [1, 1, 2, 255]], [[2, 2, 255, 0], [0, 0, 0, 0]]])
GUESS = torch.tensor([[[0, 0, 1, 1], [1, 3, 2, 4]], [[2, 0, 4, 0], [0, 0, 0, 2]]])
# Class 0: 6 right, 8 in the truth, 7 predicted; 1: 2, 3, 3; 2: 2, 3, 3; 3: 0, 0, 1.
IOU = [6 / 9, 2 / 4, 2 / 4, 0.0]


def measured(guess: Tensor, truth: Tensor, classes: int = 5) -> dict[str, float]:
    metric = SegmentationMetrics(classes)
    metric.update(guess, truth)
    return {name: float(value) for name, value in metric.compute().items()}


def test_figures_by_hand_with_ignored_pixels_and_absent_classes() -> None:
    found = measured(GUESS, TRUTH)
    assert found["miou"] == pytest.approx(sum(IOU) / 4)
    assert found["miou_all"] == pytest.approx(sum(IOU) / 5)
    assert found["accuracy"] == pytest.approx(10 / 14)


def test_bytes_and_scores_count_as_indices_do() -> None:
    scores = torch.nn.functional.one_hot(GUESS, 5).movedim(-1, 1).float() * 3 - 1
    expected = measured(GUESS, TRUTH)
    assert measured(scores, TRUTH.to(torch.uint8)) == expected
    assert measured(GUESS.to(torch.uint8), TRUTH.to(torch.uint8)) == expected


def test_it_is_torchmetrics_jaccard_index() -> None:
    truth, guess = torch.randint(0, 7, (3, 9, 9)), torch.randint(0, 7, (3, 9, 9))
    truth[torch.rand(3, 9, 9) < 0.2] = 255
    jaccard = MulticlassJaccardIndex(7, ignore_index=255)
    assert measured(guess, truth, 7)["miou"] == pytest.approx(float(jaccard(guess, truth)))


def test_pixels_are_pooled_over_batches() -> None:
    metric = SegmentationMetrics(5)
    for i in range(2):
        metric.update(GUESS[i : i + 1], TRUTH[i : i + 1])
    alone = [measured(GUESS[i : i + 1], TRUTH[i : i + 1])["miou"] for i in range(2)]
    assert float(metric.compute()["miou"]) == measured(GUESS, TRUTH)["miou"]
    assert float(metric.compute()["miou"]) != pytest.approx(sum(alone) / 2, rel=1e-3)


def test_nothing_labelled_is_nan() -> None:
    assert all(value != value for value in measured(GUESS, torch.full_like(TRUTH, 255)).values())


# --- loss -------------------------------------------------------------------------------------


def by_hand(scores: Tensor, truth: Tensor) -> list[float]:
    """The negative log-probability of the truth at each labelled pixel."""
    shares = scores.double().exp() / scores.double().exp().sum(0)
    places = (truth != 255).nonzero().tolist()
    return [-float(shares[truth[r, c], r, c].log()) for r, c in places]


def test_cross_entropy_by_hand() -> None:
    scores, truth = torch.randn(2, 5, 2, 4), TRUTH.clone()
    truth[1, 0] = 255
    pixels = [by_hand(scores[i], truth[i]) for i in range(2)]
    means = [sum(values) / len(values) for values in pixels]
    pooled = sum(map(sum, pixels)) / sum(map(len, pixels))
    small = truth.to(torch.uint8)
    assert float(cross_entropy(scores, small)) == pytest.approx(sum(means) / 2, rel=1e-5)
    batch = float(cross_entropy(scores, small, reduction="batch"))
    assert batch == pytest.approx(pooled, rel=1e-5)
    assert batch == pytest.approx(
        float(torch.nn.functional.cross_entropy(scores, truth, ignore_index=255)), rel=1e-5
    )


@pytest.mark.parametrize("reduction", ["image", "batch"])
def test_without_a_label_loss_and_gradients_are_zero(reduction: str) -> None:
    scores = torch.randn(2, 5, 2, 4, requires_grad=True)
    loss = cross_entropy(scores, torch.full((2, 2, 4), 255), reduction=reduction)  # type: ignore[arg-type]
    loss.backward()
    assert float(loss.detach()) == 0 and scores.grad is not None and not scores.grad.any()


def test_shares_of_processes_average_to_the_whole() -> None:
    scores, truth = torch.randn(4, 5, 2, 4), TRUTH.repeat(2, 1, 1)
    truth[0, :, 1:] = 255
    halves = [float(cross_entropy(scores[i : i + 2], truth[i : i + 2])) for i in (0, 2)]
    assert float(cross_entropy(scores, truth)) == pytest.approx(sum(halves) / 2, rel=1e-6)
