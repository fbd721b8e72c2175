"""Figures of reconstructions: perfect ones, scaled ones, and hand-made errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from processes import in_processes, metric_of_one
from rendered_sets import batch, perfect

from pixio_heads.reconstruction import metrics as m
from pixio_heads.reconstruction.geometry import Geometry, pose_of, truth_of


def figures(guess: Geometry, **changes: torch.Tensor) -> dict[str, float]:
    truth = batch(views=3)
    metric = m.ReconstructionMetrics()
    metric.update(guess, truth_of(truth), truth["valid"], changes.get("metric", truth["metric"]))
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("unit", [1.0, 13.0])
def test_a_perfect_reconstruction_is_perfect_in_any_unit(unit: float) -> None:
    found = figures(perfect(batch(views=3), unit=unit).compose())
    for name in ("scale_rel", "points_rel", "depth_rel", "ate_mean", "ate_rmse", "ray_error"):
        assert found[name] == pytest.approx(0, abs=1e-4), name
    for name in ("points_tau", "depth_tau", "pose_auc5", "pose_auc30"):
        assert found[name] == pytest.approx(100), name
    assert found["rotation_median"] == pytest.approx(0, abs=1e-2)
    assert found["true_rotation_q1"] <= found["true_rotation_q2"] <= found["true_rotation_q3"]


def test_nothing_is_aligned_but_the_average_distance() -> None:
    exact = perfect(batch(views=3))
    wrong_scale = figures(exact._replace(scale=exact.scale * 1.5).compose())
    assert wrong_scale["scale_rel"] == pytest.approx(0.5, abs=1e-4)
    assert wrong_scale["points_rel"] == pytest.approx(0, abs=1e-4)
    nearer = exact.distance.clone()
    nearer[:, 1] *= 0.5
    found = figures(exact._replace(distance=nearer).compose())
    assert found["points_rel"] > 0.1 and found["depth_tau"] < 70


def test_sets_that_are_not_metric_have_no_scale_error() -> None:
    wrong = perfect(batch(views=3))._replace(scale=torch.tensor([1.5, 9.0]))
    found = figures(wrong.compose(), metric=torch.tensor([True, False]))
    assert found["scale_rel"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("part", ["points", "depth", "cam2world", "scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_set_without_a_finite_answer_is_not_left_out_of_the_means(
    part: str, value: float
) -> None:
    exact = perfect(batch(views=3)).compose()
    spoiled = getattr(exact, part).clone()
    spoiled[1] = value
    found = figures(exact._replace(**{part: spoiled}))
    true = {name for name in found if name.startswith("true_rotation")}
    assert all(math.isfinite(found[name]) == (name in true) for name in found), found


def test_relative_error_and_inliers_by_hand() -> None:
    target = torch.tensor([1.0, 2, 4, 5]).view(1, 1, 2, 2, 1)
    prediction = torch.tensor([1.02, 2.2, 4, 0]).view(1, 1, 2, 2, 1)
    valid = torch.tensor([[[[True, True], [False, True]]]])
    assert float(m.relative_error(prediction, target, valid)) == pytest.approx((0.02 + 0.1 + 1) / 3)
    assert float(m.inlier_share(prediction, target, valid)) == pytest.approx(1 / 3)
    # A ratio of lengths: direction does not matter.
    assert float(m.inlier_share(-target, target, valid)) == 1


def test_area_under_the_curve_is_a_histogram_of_degrees() -> None:
    errors = torch.tensor([[0.5, 1.0, 4.5, 5.0, 7.0]])
    # Below 1: one, 2 to 4: two, at most 5: four of five.
    expected = 100 / 5 * (1 + 2 + 2 + 2 + 4) / 5
    assert float(m.area_under_curve(errors, limit=5)) == pytest.approx(expected)
    two_views = m.area_under_curve(torch.tensor([[2.5]]), limit=5)
    assert float(two_views) == pytest.approx(60)


def turned(degrees: float, translation: tuple[float, float, float]) -> torch.Tensor:
    half = math.radians(degrees) / 2
    quaternion = torch.tensor([[math.cos(half), 0.0, math.sin(half), 0.0]])
    return pose_of(quaternion, torch.tensor([translation]).float())


def test_pairs_are_compared_by_rotation_and_line() -> None:
    still = turned(0, (0, 0, 0))
    prediction = torch.stack([still, turned(30, (1, 0, 0))], dim=1)
    target = torch.stack([still, turned(50, (-1, 1, 0))], dim=1)
    turns, shifts = m.pair_errors(prediction, target)
    assert turns.tolist() == [[pytest.approx(20, abs=1e-4)]]
    assert shifts.tolist() == [[pytest.approx(45, abs=1e-4)]]


def test_trajectories_are_aligned_by_a_rigid_motion_alone() -> None:
    target = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [1, 2, 0], [0, 0, 3]]])
    moved = turned(70, (5, -2, 1))[0]
    prediction = target @ moved[:3, :3].T + moved[:3, 3]
    mean, root = m.trajectory_errors(prediction, target)
    assert float(mean) == pytest.approx(0, abs=1e-5) and float(root) == pytest.approx(0, abs=1e-5)
    mean, root = m.trajectory_errors(2 * prediction, target)
    centred = target[0] - target[0].mean(0)
    assert float(mean) == pytest.approx(float(centred.norm(dim=1).mean()), rel=1e-5)
    assert float(root) == pytest.approx(float(centred.square().sum(1).mean().sqrt()), rel=1e-5)


def test_depth_behind_the_camera_is_no_inlier() -> None:
    exact = perfect(batch(views=3)).compose()
    assert figures(exact._replace(depth=-exact.depth))["depth_tau"] == 0


def test_sets_count_equally_whatever_the_batch() -> None:
    """Two updates of one set equal one update of two."""
    truth, exact = batch(views=3), perfect(batch(views=3))
    shaken = exact._replace(distance=exact.distance * torch.linspace(0.5, 1.5, 32)).compose()
    apart = m.ReconstructionMetrics()
    for i in range(2):
        one = Geometry(*(part[i : i + 1] for part in shaken))
        true = Geometry(*(part[i : i + 1] for part in truth_of(truth)))
        apart.update(one, true, truth["valid"][i : i + 1], truth["metric"][i : i + 1])
    together = figures(shaken)
    for name, value in apart.compute().items():
        assert float(value) == pytest.approx(together[name], rel=1e-6), name


def test_without_sets_there_are_no_figures() -> None:
    metric = m.ReconstructionMetrics()
    assert all(math.isnan(float(value)) for value in metric.compute().values())


def test_a_process_without_a_set_has_the_figures_of_all(tmp_path: Path) -> None:
    truth = batch(views=3)
    shaken = perfect(truth)
    shaken = shaken._replace(distance=shaken.distance * torch.linspace(0.5, 1.5, 32)).compose()
    given = (shaken, truth_of(truth), truth["valid"], truth["metric"])
    alone = m.ReconstructionMetrics()
    alone.update(*given)
    in_processes(metric_of_one, str(tmp_path), m.ReconstructionMetrics, given)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == alone.compute()
