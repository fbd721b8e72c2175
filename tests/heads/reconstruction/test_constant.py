"""The constant reconstruction: its parts are the best constants for what they are scored by."""

from __future__ import annotations

import pytest
import torch
from rendered_sets import batch, perfect

from pixio_heads.reconstruction.constant import (
    best_pose,
    constant_geometry,
    fit_constant,
    weighted_centre,
    weighted_median,
)
from pixio_heads.reconstruction.geometry import (
    average_distance,
    pose_of,
    rotation_angle,
    truth_of,
    unit,
)
from pixio_heads.reconstruction.metrics import ReconstructionMetrics, set_figures
from pixio_lightning.errors import UserError


def test_the_weighted_median_is_the_best_relative_constant() -> None:
    values = torch.rand(101, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    found = weighted_median(values, 1 / values)
    tried = torch.linspace(0.1, 1.1, 2001)
    errors = ((tried[:, None, None] - values).abs() / values).mean(1)
    mine = ((found - values).abs() / values).mean(0)
    assert torch.allclose(mine, errors.min(0).values, atol=1e-3)
    assert bool(weighted_median(values, torch.zeros_like(values)).isnan().all())


def test_the_weighted_centre_has_the_least_sum_of_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(60, 3, generator=generator).exp()
    weights = torch.rand(60, generator=generator)
    centre = weighted_centre(points, weights)

    def cost(at: torch.Tensor) -> float:
        return float((weights * (points - at).norm(dim=-1)).sum())

    assert all(cost(centre) <= cost(centre + 0.05 * torch.randn(3)) for _ in range(50))


def test_one_set_is_its_own_best_constant() -> None:
    one = {k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in batch(size=48).items()}
    guess = constant_geometry(fit_constant([one]), one)
    figures, turns, shifts = set_figures(guess, truth_of(one), one["valid"])
    for name in ("scale_rel", "points_rel", "depth_rel"):
        assert float(figures[name]) == pytest.approx(0, abs=2e-3), name
    assert float(turns) == pytest.approx(0, abs=1e-3)
    assert float(shifts) == pytest.approx(0, abs=1e-3)
    assert float(figures["ray_error"]) == pytest.approx(0, abs=0.01)


def test_a_set_in_the_place_of_a_bad_one_does_not_count() -> None:
    sets = batch(sets=2, size=48)
    both = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in sets.items()}
    both["depth"][1] *= 3
    both["weight"] = torch.tensor([1.0, 0.0])
    first = {k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in sets.items()}
    found, expected = fit_constant([both]), fit_constant([first])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    both["weight"] = torch.zeros(2)
    with pytest.raises(UserError, match="no constant to compare with"):
        fit_constant([both])


def test_it_beats_no_model_that_looks() -> None:
    truth = batch(sets=6, size=48)
    metric, perfection = ReconstructionMetrics(), ReconstructionMetrics()
    for meter, guess in (
        (metric, constant_geometry(fit_constant([truth]), truth)),
        (perfection, perfect(truth).compose()),
    ):
        meter.update(guess, truth_of(truth), truth["valid"], truth["metric"])
    found, best = metric.compute(), perfection.compute()
    assert 0.1 < float(found["points_rel"]) < 1 and float(best["points_rel"]) < 1e-4
    assert 0.1 < float(found["depth_rel"]) < 1


def test_no_other_unit_of_depth_is_better() -> None:
    """Depth is scored in units of the constant's own points."""
    truth = batch(sets=6, size=48)
    guess = constant_geometry(fit_constant([truth]), truth)

    def error(factor: float) -> float:
        scored = guess._replace(depth=guess.depth * factor)
        return float(set_figures(scored, truth_of(truth), truth["valid"])[0]["depth_rel"].mean())

    assert all(error(1.0) <= error(factor) + 1e-4 for factor in (0.9, 0.95, 1.05, 1.1))
    true, lengths = truth_of(truth), average_distance(truth_of(truth).points, truth["valid"])
    moved = (true.cam2world[:, 1, :3, 3].norm(dim=-1) / lengths).median()
    mine = guess.cam2world[:, 1, :3, 3].norm(dim=-1)
    assert torch.allclose(mine / average_distance(guess.points, truth["valid"]), moved)


def test_where_no_depth_was_known_the_nearest_pixel_counts() -> None:
    truth = batch(sets=6, size=48)
    seen = truth["valid"].clone()
    seen[..., :12, :] = False
    found = fit_constant([truth | {"valid": seen}])
    assert torch.equal(found["points"][:, :12], found["points"][:, 12:13].expand(2, 12, 48, 3))
    assert torch.equal(found["depth"][:, :12], found["depth"][:, 12:13].expand(2, 12, 48))
    assert float(found["points"].norm(dim=-1).min()) > 0.1
    seen[:, 1] = False
    found = fit_constant([truth | {"valid": seen}])
    guess = constant_geometry(found, truth)
    assert torch.allclose(found["points"][1].norm(dim=-1), torch.ones(48, 48))
    assert all(bool(part.isfinite().all()) for part in guess)


def test_views_that_move_on_alike_have_a_perfect_constant_pose() -> None:
    step = pose_of(unit(torch.tensor([1.0, 0.1, 0.2, 0])), torch.tensor([0.3, 0.1, 0]))
    poses = [torch.eye(4)]
    for _ in range(3):
        poses.append(poses[-1] @ step)
    walk = batch(sets=1, views=4, size=48) | {"cam2world": torch.stack(poses)[None]}
    guess, true = constant_geometry(fit_constant([walk]), walk), truth_of(walk)
    _, turns, shifts = set_figures(guess, true, walk["valid"])
    assert float(turns.max()) < 0.01 and float(shifts.max()) < 0.1


def test_other_sizes_and_numbers_of_views_have_a_constant_too() -> None:
    parts = fit_constant([batch(size=48)])
    other = batch(views=3, size=32)
    guess = constant_geometry(parts, other)
    assert guess.points.shape == (2, 3, 32, 32, 3) and guess.cam2world.shape == (2, 3, 4, 4)
    assert torch.allclose(guess.rays.norm(dim=-1), torch.ones(2, 3, 32, 32), atol=1e-5)


def test_the_best_pose_is_at_least_as_near_as_none() -> None:
    generator = torch.Generator().manual_seed(0)
    quaternion = unit(
        torch.tensor([1.0, 0, 0.3, 0]) + 0.1 * torch.randn(80, 4, generator=generator)
    )
    poses = pose_of(quaternion, torch.tensor([1.0, 0, 0]) + 0.1 * torch.randn(80, 3))
    found = best_pose(poses)
    still = torch.eye(4).expand_as(poses)
    near = rotation_angle(found.expand_as(poses), poses).median()
    assert float(near) < float(rotation_angle(still, poses).median()) / 2
    assert abs(float(unit(found[:3, 3])[0])) > 0.95


def test_without_a_set_there_is_no_constant() -> None:
    with pytest.raises(UserError, match="none of the training sets can be used"):
        fit_constant([])
