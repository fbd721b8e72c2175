"""Losses and figures of depth against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from torch import Tensor
from torchmetrics.functional.image import image_gradients

from pixio_heads.depth.losses import (
    affine_invariant,
    align_least_squares,
    gradient_matching,
    normalise_robust,
    silog,
)
from pixio_heads.depth.metrics import Alignment, DepthMetrics, align, crop_mask, depth_errors


def scene(n: int = 3, side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions and truths, invalid at some pixels, where the truth is NaN, 0 or infinite."""
    target = torch.rand(n, side, side) * 8 + 0.5
    prediction = target * (torch.rand(n, side, side) + 0.6)
    valid = torch.rand(n, side, side) > 0.3
    target[:, 0, 0], target[:, 0, 1], target[:, 0, 2] = torch.nan, 0.0, torch.inf
    valid[:, 0, :3] = False
    return prediction, target, valid


def by_hand(prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, float]:
    p, d = (x[valid].double().numpy() for x in (prediction, target))
    g = np.log(d) - np.log(p)
    ratio = np.maximum(p / d, d / p)
    return {
        "abs_rel": np.mean(np.abs(p - d) / d),
        "sq_rel": np.mean((p - d) ** 2 / d),
        "rmse": math.sqrt(np.mean((p - d) ** 2)),
        "rmse_log": math.sqrt(np.mean(g**2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(d))),
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.25**2),
        "delta3": np.mean(ratio < 1.25**3),
        "silog": math.sqrt(np.mean(g**2) - 0.5 * np.mean(g) ** 2),
    }


def test_figures_are_means_of_per_image_values() -> None:
    prediction, target, valid = scene()
    metric = DepthMetrics(max_depth=10.0)
    for i in range(3):
        metric.update(prediction[i : i + 1], target[i : i + 1], valid[i : i + 1])
    found = metric.compute()
    images = [by_hand(*(x[i] for x in (prediction, target, valid))) for i in range(3)]
    pooled = by_hand(prediction, target, valid)
    for name in pooled:
        assert float(found[name]) == pytest.approx(np.mean([v[name] for v in images]), rel=1e-9)
    assert float(found["rmse"]) != pytest.approx(pooled["rmse"], rel=1e-3)
    assert found["images"] == 3 and found["skipped"] == 0


def test_images_with_too_few_pixels_are_counted_apart() -> None:
    prediction, target, valid = scene()
    valid[1] = False
    metric = DepthMetrics()
    metric.update(prediction, target, valid)
    assert metric.compute()["skipped"] == 1 and metric.compute()["images"] == 2
    assert DepthMetrics().compute()["abs_rel"].isnan()


def test_the_range_is_inclusive_and_the_crop_counts() -> None:
    target = torch.full((1, 480, 640), 10.0)
    target[:, 0] = 10.1
    prediction = torch.full_like(target, 20.0)
    metric = DepthMetrics(max_depth=10.0)
    metric.update(prediction, target, target > 0)
    assert metric.compute()["abs_rel"] == pytest.approx(1.0)
    assert crop_mask(480, 640, "eigen_nyu").sum() == 426 * 560
    garg = crop_mask(375, 1242, "garg").nonzero()
    assert garg.amin(0).tolist() == [153, 44] and garg.amax(0).tolist() == [370, 1196]


def _measure(rank: int, folder: str, data: tuple[Tensor, ...], sizes: list[int]) -> None:
    address = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=len(sizes))
    metric = DepthMetrics()
    metric.update(*(x.split(sizes)[rank] for x in data))
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_uneven_processes_measure_what_one_does(tmp_path: Path) -> None:
    data = scene(5)
    in_processes(_measure, str(tmp_path), data, [4, 1])
    metric = DepthMetrics()
    metric.update(*data)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in metric.compute().items():
            assert torch.allclose(found[name], value, rtol=1e-12)


def test_silog_equals_its_formula_and_ignores_what_is_invalid() -> None:
    prediction, target, valid = scene()
    prediction.requires_grad_()
    loss = silog(prediction, target, valid)
    expected = np.mean(
        [by_hand(*(x[i].detach() for x in (prediction, target, valid)))["silog"] for i in range(3)]
    )
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert prediction.grad is not None and prediction.grad.isfinite().all()
    assert not prediction.grad[~valid].any()
    pooled = silog(prediction, target, valid, reduction="batch")
    assert float(pooled) == pytest.approx(
        by_hand(prediction.detach(), target, valid)["silog"], rel=1e-4
    )
    one = [x[:1] for x in (prediction, target, valid)]
    assert silog(*one) == silog(*one, reduction="batch")


@pytest.mark.parametrize("reduction", ["image", "batch"])
def test_silog_is_finite_without_error_and_without_pixels(reduction: str) -> None:
    target = torch.rand(2, 4, 4) + 1
    for valid in (torch.ones(2, 4, 4, dtype=torch.bool), torch.zeros(2, 4, 4, dtype=torch.bool)):
        prediction = target.clone().requires_grad_()
        loss = silog(prediction, target, valid, reduction=reduction)
        loss.backward()
        assert loss.isfinite() and prediction.grad.isfinite().all()
        assert float(loss) < 2e-3


def test_scale_and_shift_are_recovered_exactly() -> None:
    _, target, valid = scene()
    disparity = torch.where(valid, 1 / target, torch.nan).double()
    output = (disparity - 0.7) / 3.0
    scale, shift = align_least_squares(output, disparity, valid)
    assert torch.allclose(scale, torch.tensor(3.0).double(), atol=1e-9)
    assert torch.allclose(shift, torch.tensor(0.7).double(), atol=1e-9)
    for space in ("disparity", "depth"):
        alignment = Alignment(space=space, cap=80.0)
        prediction, goal = align(output, target, valid, alignment)
        assert depth_errors(prediction, goal, valid)["abs_rel"].max() < 1e-6
        metric = DepthMetrics(alignment=alignment)
        metric.update(output, target, valid)
        assert metric.compute()["abs_rel"] < 1e-6 and space in metric.protocol


def test_a_constant_prediction_aligns_to_the_mean() -> None:
    target = torch.tensor([[[1.0, 3.0]]])
    valid = torch.ones_like(target, dtype=torch.bool)
    scale, shift = align_least_squares(torch.full_like(target, 5.0), target, valid)
    assert scale.item() == 0 and shift.item() == 2


@pytest.mark.parametrize("form", ["robust", "least_squares"])
def test_the_affine_invariant_loss_is_zero_for_an_affine_map(form: str) -> None:
    prediction, target, valid = scene()
    target = torch.where(valid, target, 0)
    loss, residual = affine_invariant(2 * target + 5, target, valid, form=form)
    assert loss < 1e-5 and residual.abs().max() < 1e-4
    worse, _ = affine_invariant(prediction, target, valid, form=form)
    assert worse > 0.01


def test_robust_normalisation_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0, 9.0, 100.0]]])
    valid = torch.tensor([[[True, True, True, False]]])
    deviation = (1 + 0 + 7) / 3
    expected = torch.tensor([[[-1 / deviation, 0, 7 / deviation, 0]]])
    assert torch.allclose(normalise_robust(x, valid), expected)


def test_gradient_matching_where_all_is_valid_and_across_a_hole() -> None:
    residual = torch.randn(2, 16, 16)
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    expected = 0.0
    for k in range(4):
        r = residual[:, None, :: 2**k, :: 2**k]
        down, across = image_gradients(r)
        expected += (
            float((down.abs().sum((1, 2, 3)) + across.abs().sum((1, 2, 3))).mean()) / r[0].numel()
        )
    assert float(gradient_matching(residual, valid)) == pytest.approx(expected, rel=1e-5)
    hole = torch.zeros(1, 1, 3)
    hole[0, 0, 1] = 50.0
    known = torch.tensor([[[True, False, True]]])
    assert gradient_matching(hole, known, scales=1) == 0
