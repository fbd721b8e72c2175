"""Figures of depth: crops, spaces, caps, predictions that are not depths, and what is stated."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from pixio_heads.depth.layouts import kb_box
from pixio_heads.depth.metrics import (
    FIGURES,
    Alignment,
    DepthMetrics,
    align,
    crop_mask,
    depth_errors,
)
from pixio_lightning.cli import recipes
from pixio_lightning.data.decode import BadImage
from pixio_lightning.errors import UserError


def rooms(n: int = 3, height: int = 12, width: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    """Disparities up to an affine map and with noise, depths of 0.5 to 8 m, valid pixels."""
    generator = torch.Generator().manual_seed(3)
    depth, noise, random_key = torch.rand(3, n, height, width, generator=generator)
    depth = depth * 7.5 + 0.5
    return 0.4 / depth - 1 + 0.03 * noise, depth, random_key > 0.3


def box(mask: Tensor) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of a mask that is one rectangle."""
    at = mask.nonzero()
    (top, left), (bottom, right) = at.amin(0).tolist(), (at.amax(0) + 1).tolist()
    assert mask.sum() == (bottom - top) * (right - left)
    return top, bottom, left, right


# --- crops ------------------------------------------------------------------------------------


def test_boxes_of_the_crops() -> None:
    """Worked out by hand: 0.3324324 of 352 rows is 117.02, 0.91351351 of them 321.56, and so on."""
    assert box(crop_mask(352, 1216, "eigen_kitti")) == (117, 321, 43, 1172)
    assert box(crop_mask(352, 1216, "garg")) == (143, 349, 43, 1172)
    assert box(crop_mask(480, 640, "eigen_nyu")) == (45, 471, 41, 601)
    assert crop_mask(426, 560, "eigen_nyu").all() and crop_mask(7, 5, "none").all()


def test_zeroshot_nyuv2_scores_the_same_pixels_of_whole_and_of_cut_images() -> None:
    recipe = yaml.safe_load(recipes.find("depth/zeroshot_nyuv2").read_text())
    _, depth, valid = rooms(1, 480, 640)
    noise = 1 + torch.rand(depth.shape, generator=torch.Generator().manual_seed(4))
    found = []
    for rows, columns in ((slice(None), slice(None)), (slice(45, 471), slice(41, 601))):
        metric = DepthMetrics(eval_crop=recipe["model"]["init_args"]["eval_crop"])
        metric.update(*(values[:, rows, columns] for values in (depth * noise, depth, valid)))
        found.append(metric.compute()["abs_rel"])
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-6)


def test_the_nyu_crop_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match="480x640 .* this one is 240x320; use eval_crop: none"):
        crop_mask(240, 320, "eigen_nyu")


def test_the_benchmark_crop_of_kitti() -> None:
    assert kb_box(375, 1242) == (23, 375, 13, 1229)
    assert kb_box(376, 1241) == (24, 376, 12, 1228)
    assert kb_box(352, 1216) == (0, 352, 0, 1216)
    for size in ((351, 1242), (375, 1215)):
        with pytest.raises(BadImage, match=f"{size[1]}x{size[0]} pixels, smaller than .* 1216x352"):
            kb_box(*size)


def test_only_what_the_crop_keeps_is_scored() -> None:
    _, depth, valid = rooms(2, 40, 60)
    kept = crop_mask(40, 60, "garg")
    prediction = torch.where(kept, depth * 1.5, 50.0)
    metric, whole = DepthMetrics(eval_crop="garg"), DepthMetrics()
    for each in (metric, whole):
        each.update(prediction, depth, valid)
    assert float(metric.compute()["abs_rel"]) == pytest.approx(0.5, rel=1e-6)
    assert float(whole.compute()["abs_rel"]) > 1


def test_depths_out_of_range_are_not_scored_even_if_they_are_called_valid() -> None:
    depth = torch.full((1, 4, 5), 2.0)
    depth[0, 0] = torch.tensor([0.0, -1.0, math.nan, math.inf, 10.5])
    metric = DepthMetrics()
    metric.update(torch.where(depth == 2, 3.0, 1e6), depth, torch.ones_like(depth).bool())
    found = metric.compute()
    assert found["images"] == 1 and found["abs_rel"] == 0.5 and found["rmse"] == 1


def test_ten_pixels_are_enough_and_nine_are_not() -> None:
    depth = torch.full((2, 4, 5), 2.0)
    valid = torch.zeros_like(depth, dtype=torch.bool)
    valid[0, :2], valid[1, :2] = True, True
    valid[1, 0, 0] = False
    metric = DepthMetrics()
    metric.update(depth, depth, valid)
    assert metric.compute()["images"] == 1 and metric.compute()["skipped"] == 1


# --- errors -----------------------------------------------------------------------------------


def test_predictions_that_are_not_positive_are_as_wrong_as_can_be() -> None:
    prediction = torch.tensor([[[0.0, -3.0, 2.0]]])
    depth = torch.full_like(prediction, 2.0)
    found = depth_errors(prediction, depth, torch.ones_like(depth).bool())
    g = math.log(2e6)
    expected = {
        "abs_rel": (1 + 2.5 + 0) / 3,
        "sq_rel": (2 + 12.5 + 0) / 3,
        "rmse": math.sqrt((4 + 25 + 0) / 3),
        "rmse_log": math.sqrt(2 * g**2 / 3),
        "log10": 2 * math.log10(2e6) / 3,
        **dict.fromkeys(("delta1", "delta2", "delta3"), 1 / 3),
        "silog": math.sqrt(2 * g**2 / 3 - 0.5 * (2 * g / 3) ** 2),
    }
    assert set(found) == set(expected) == set(FIGURES)
    for name, value in expected.items():
        assert found[name].tolist() == pytest.approx([value], rel=1e-9)


def test_a_prediction_that_is_nan_shows() -> None:
    _, depth, valid = rooms()
    prediction = depth.clone()
    prediction[valid] = math.nan
    metric = DepthMetrics()
    metric.update(prediction, depth, valid)
    assert metric.compute()["abs_rel"].isnan() and metric.compute()["images"] == 3


def test_states_are_sums_whatever_the_batches() -> None:
    _, depth, valid = rooms(5)
    prediction = depth * torch.linspace(0.7, 1.6, 5)[:, None, None]
    once, often = DepthMetrics(), DepthMetrics()
    once.update(prediction, depth, valid)
    for part in ([0], [1, 2, 3], [4]):
        often.update(prediction[part], depth[part], valid[part])
    for name, value in once.compute().items():
        assert torch.allclose(often.compute()[name], value, rtol=1e-12)
        assert value.dtype == torch.float64 and value.shape == ()
    once.reset()
    once.update(depth, depth, valid)
    assert once.compute()["abs_rel"] == 0 and once.compute()["images"] == 5


# --- alignment --------------------------------------------------------------------------------


def test_each_space_against_numpy() -> None:
    output, depth, valid = rooms()
    for space in ("disparity", "depth"):
        metric = DepthMetrics(alignment=Alignment(space=space, cap=20.0))
        metric.update(output, depth, valid)
        images = []
        for i in range(3):
            q, d = (x[i][valid[i]].double().numpy() for x in (output, depth))
            fitted = np.polyval(np.polyfit(q, 1 / d, 1), q)
            if space == "disparity":
                images.append(np.mean(np.abs(fitted - 1 / d) * d))
            else:
                images.append(np.mean(np.abs(1 / np.maximum(fitted, 1 / 20) - d) / d))
        assert float(metric.compute()["abs_rel"]) == pytest.approx(np.mean(images), rel=1e-6)


def test_the_spaces_agree_on_delta_and_not_on_abs_rel() -> None:
    output, depth, valid = rooms()
    found = []
    for space in ("disparity", "depth"):
        prediction, target = align(output, depth, valid, Alignment(space=space))
        assert (prediction[valid] > 0).all()
        found.append(depth_errors(prediction, target, valid))
    assert torch.equal(found[0]["delta1"], found[1]["delta1"])
    assert 0 < found[0]["delta1"].min() < 1
    # Of second order in the noise: e and e / (1 + e).
    assert (found[0]["abs_rel"] - found[1]["abs_rel"]).abs().min() > 1e-4


def test_the_cap_bounds_the_aligned_depth() -> None:
    """The fit goes through 1/d = 1 and 0.02, so that the third pixel's disparity is negative."""
    output = torch.tensor([[[1.0, 0.02, -1.0]]])
    depth = torch.tensor([[[1.0, 50.0, 7.0]]])
    valid = torch.tensor([[[True, True, False]]])
    for cap, expected in ((80.0, [1, 50, 80]), (30.0, [1, 30, 30])):
        prediction, target = align(output, depth, valid, Alignment(space="depth", cap=cap))
        assert prediction[0, 0].tolist() == pytest.approx(expected, rel=1e-5)
        assert torch.equal(target, depth)


def test_metric_depth_is_left_as_it_is() -> None:
    _, depth, valid = rooms()
    prediction, target = align(depth * 2, depth, valid, Alignment())
    assert torch.equal(prediction, depth * 2) and torch.equal(target, depth)


# --- what is stated ---------------------------------------------------------------------------


def test_the_protocol_tells_every_choice() -> None:
    assert DepthMetrics().protocol == (
        "depth 0.001 to 10 m, crop none, no alignment, mean of per-image values"
    )
    others = [
        DepthMetrics(min_depth=0.1),
        DepthMetrics(max_depth=80.0),
        DepthMetrics(eval_crop="garg"),
        *(
            DepthMetrics(alignment=Alignment(space=space, cap=cap))
            for space, cap in (("disparity", None), ("depth", None), ("depth", 80.0))
        ),
    ]
    lines = {metric.protocol for metric in (DepthMetrics(), *others)}
    assert len(lines) == 7 and not any("\n" in line for line in lines)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Alignment().cap = 3.0  # type: ignore[misc]
