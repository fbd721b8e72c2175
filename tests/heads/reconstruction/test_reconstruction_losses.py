"""The factored loss: what a perfect prediction costs, and what each term is blind to."""

from __future__ import annotations

import math

import pytest
import torch
from rendered_sets import batch, perfect

from pixio_heads.reconstruction import losses
from pixio_heads.reconstruction.losses import HIGH_POINTS, Weights, factored_loss, robust
from pixio_heads.reconstruction.surface_losses import gradient_loss, normal_loss

REGRESSION = ("points", "camera_points", "depth", "rays", "quaternion", "translation", "scale")


def noisy(seed: int = 0, unit: float = 1.0) -> losses.Prediction:
    """Return a prediction that is off by some percent."""
    generator = torch.Generator().manual_seed(seed)
    truth = perfect(batch(), unit=unit)

    def shaken(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 0.1 * torch.randn(x.shape, generator=generator))

    return truth._replace(
        distance=shaken(truth.distance),
        translation=shaken(truth.translation),
        quaternion=torch.nn.functional.normalize(shaken(truth.quaternion), dim=-1),
        rays=torch.nn.functional.normalize(shaken(truth.rays), dim=-1),
    )


@pytest.mark.parametrize("weights", [Weights(), HIGH_POINTS])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_prediction_costs_nothing(weights: Weights, sign: int) -> None:
    guess = perfect(batch())
    guess = guess._replace(quaternion=sign * guess.quaternion)
    found = factored_loss(guess, batch(), weights=weights, training=True)
    for name in (*REGRESSION, "gradient"):
        assert float(found[name]) < 1e-5, name
    # Angles count as a degree at least: 1 / 6 degrees, over 32 pixels, in both views.
    assert float(found["normal"]) == pytest.approx(2 * math.radians(1 / 6) / 32, rel=0.02)
    assert float(found["mask"]) < 1e-5


def test_only_the_product_of_unit_and_scale_counts() -> None:
    first = factored_loss(noisy(), batch(), weights=HIGH_POINTS, training=False)
    other = factored_loss(noisy(unit=7.0), batch(), weights=HIGH_POINTS, training=False)
    for name, value in first.items():
        assert float(other[name]) == pytest.approx(float(value), rel=2e-4, abs=1e-6), name


def test_the_scale_term_moves_the_scale_alone() -> None:
    guess = noisy()
    parts = [guess.distance, guess.translation, guess.quaternion, guess.rays, guess.scale * 1.3]
    for part in parts:
        part.requires_grad_()
    distance, translation, quaternion, rays, scale = parts
    guess = guess._replace(
        distance=distance, translation=translation, quaternion=quaternion, rays=rays, scale=scale
    )
    found = factored_loss(guess, batch(), weights=Weights(), training=True)
    gradients = torch.autograd.grad(
        found["scale"], [distance, translation, quaternion, rays, scale],
        allow_unused=True, retain_graph=True,
    )  # fmt: skip
    assert all(g is None or not g.any() for g in gradients[:-1]) and gradients[-1].any()
    others = sum(value for name, value in found.items() if name not in ("scale", "loss"))
    (moved,) = torch.autograd.grad(others, [scale], allow_unused=True)
    assert moved is None or not moved.any()


def test_sets_that_are_not_metric_have_no_scale() -> None:
    guess = noisy()._replace(scale=torch.tensor([1.0, 3.0]))
    one = factored_loss(guess, batch(), weights=Weights(), training=True)
    shapeless = batch() | {"metric": torch.tensor([True, False])}  # the first one's fits better
    other = factored_loss(guess, shapeless, weights=Weights(), training=True)
    assert float(other["scale"]) < float(one["scale"])
    assert float(other["points"]) == float(one["points"])


def test_confidence_weighs_world_points_while_training() -> None:
    guess = noisy()
    sure = guess._replace(confidence=torch.full_like(guess.confidence, 3.0))
    plain = factored_loss(guess, batch(), weights=Weights(), training=True)["points"]
    weighed = factored_loss(sure, batch(), weights=Weights(), training=True)["points"]
    views = 2
    expected = 3 * plain - views * 0.2 * torch.tensor(3.0).log()
    assert float(weighed) == pytest.approx(float(expected), rel=1e-5)


def test_the_worst_pixels_of_real_sets_are_left_out() -> None:
    values = torch.arange(100.0).view(1, 1, 10, 10)
    for count, left in ((60, 57), (61, 57), (70, 66), (99, 94), (20, 19), (1, 0)):
        valid = values < count
        kept = losses.without_worst(values, valid, torch.tensor([True]))
        assert torch.equal(kept, values < left), count
        assert torch.equal(losses.without_worst(values, valid, torch.tensor([False])), valid)
    # Equal values: as many as that are kept, not all of them.
    same = losses.without_worst(0 * values, values < 60, torch.tensor([True]))
    assert same.sum() == 57 and not (same & (values >= 60)).any()


# --- means over a batch -----------------------------------------------------------------------


def small(values: list[list[float]]) -> torch.Tensor:
    """Return maps `(B, 1, 1, n)`."""
    return torch.tensor(values)[:, None, None]


def test_dense_terms_are_means_over_the_valid_pixels_of_the_batch() -> None:
    values = small([[1.0, 2.0, 3.0, 9.0], [9.0, 9.0, 8.0, 9.0]])
    valid = small([[1, 1, 1, 0], [0, 0, 1, 0]]).bool()
    # (1 + 2 + 3 + 8) / 4, and not the mean of 2 and 8.
    assert losses.mean_over(values, valid).tolist() == [3.5]
    assert losses.mean_over(values, torch.zeros_like(valid)).tolist() == [0.0]


def test_surface_terms_are_means_over_the_eligible_pixels_of_the_batch() -> None:
    """A set that is not eligible changes nothing; two that are count by their pixels."""
    valid = torch.ones(2, 1, 12, 12, dtype=torch.bool)
    guess, goal = torch.stack([plane(0.0), plane(1.0)]), torch.stack([plane(0.0)] * 2)
    alone = normal_loss(guess[1:], goal[1:], valid[1:])
    valid[0] = False
    assert torch.allclose(normal_loss(guess, goal, valid), alone)
    # 11 rows of quads cost the least of angles, 5 rows that of 45 degrees.
    valid[0], valid[1, :, 6:] = True, False
    low, high = math.radians(1) ** 2 / 2 / math.radians(3), math.pi / 4 - math.radians(1.5)
    expected = (11 * low + 5 * high) / 16 / 12
    assert float(normal_loss(guess, goal, valid)) == pytest.approx(expected, rel=1e-4)

    ramp = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])[:, None, None]
    flat = torch.zeros_like(ramp)
    known = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()[:, None, None]
    # Stride 1: 2 over 5 pixels; 2: 2 over 3; 4 and 8: no neighbours.
    assert float(gradient_loss(ramp, flat, known)) == pytest.approx(2 / 5 + 2 / 3)
    known[1] = False
    assert float(gradient_loss(ramp, flat, known)) == pytest.approx(2 / 3 + 2 / 2)


def test_the_scale_is_a_mean_over_metric_sets() -> None:
    guess = noisy()._replace(scale=torch.tensor([1.5, 3.0]))

    def scale(*metric: bool) -> float:
        given = batch() | {"metric": torch.tensor(metric)}
        found = factored_loss(guess, given, weights=Weights(), training=True)
        return float(found["scale"])

    first, second = scale(True, False), scale(False, True)
    assert first > 0 and second > 0 and scale(False, False) == 0
    assert scale(True, True) == pytest.approx((first + second) / 2, rel=1e-5)
    alone = losses.Prediction(*(part[:1] for part in guess))
    one = {n: v[:1] if isinstance(v, torch.Tensor) else v for n, v in batch().items()}
    found = factored_loss(alone, one, weights=Weights(), training=True)
    assert first == pytest.approx(float(found["scale"]), rel=1e-5)


def test_translations_are_means_over_the_poses_that_count() -> None:
    """Three views, of which the last of the first set has no valid pixel."""
    none, off = torch.eye(4).expand(2, 3, 4, 4), torch.eye(4).repeat(2, 3, 1, 1)
    off[0, 1, 0, 3], off[1, 1, 1, 3], off[:, 2, 2, 3] = 1.0, 2.0, 4.0
    seen = torch.tensor([[True, True, False], [True, True, True]])
    still = torch.tensor([1.0, 0, 0, 0]).expand(2, 3, 4)
    lengths = (torch.ones(2), torch.ones(2))

    def translation(relative: bool) -> float:
        found = losses.pose_terms(off, still, none, lengths=lengths, seen=seen, relative=relative)
        assert float(found["quaternion"]) == 0
        return float(found["translation"])

    def cost(*shift: float) -> float:
        e = sum(x * x for x in shift) / 0.05**2
        return 3 * ((e / 1.5 + 1) ** 0.25 - 1)

    far = cost(0, 2, 4)
    assert translation(False) == pytest.approx((cost(1) + cost(2)) / 2 + cost(4), rel=1e-5)
    # View 0 of both sets: itself (0), and the others that are seen: 1 of set 0, both of set 1.
    first = (cost(1) + cost(2) + cost(4)) / 5
    second = (cost(1) + cost(2) + cost(1) + cost(2) + far) / 5
    third = (cost(4) + cost(4) + far) / 3
    assert translation(True) == pytest.approx(first + second + third, rel=1e-5)


def test_a_view_without_a_valid_pixel_keeps_its_rotation_alone() -> None:
    valid = batch()["valid"].clone()
    valid[:, 1] = False
    blind = batch() | {"valid": valid}
    guess = noisy()
    odd = guess.distance.clone()
    odd[:, 1] *= 5
    a = factored_loss(guess, blind, weights=Weights(), training=True)
    b = factored_loss(guess._replace(distance=odd), blind, weights=Weights(), training=True)
    assert all(float(a[name]) == pytest.approx(float(b[name])) for name in a)
    shifted = guess.translation.clone()
    shifted[:, 1] += 1
    c = factored_loss(guess._replace(translation=shifted), blind, weights=Weights(), training=True)
    assert float(c["translation"]) == pytest.approx(float(a["translation"]))
    assert torch.isfinite(torch.stack(list(a.values()))).all()


def test_invalid_depth_may_be_anything() -> None:
    depth = batch()["depth"].clone()
    valid = batch()["valid"].clone()
    valid[0, 0, :5] = False
    depth[0, 0, :5] = float("nan")
    guess = noisy()
    distance = guess.distance.clone().requires_grad_()
    found = factored_loss(
        guess._replace(distance=distance),
        batch() | {"depth": depth, "valid": valid},
        weights=HIGH_POINTS,
        training=True,
    )
    found["loss"].backward()
    assert torch.isfinite(found["loss"]) and torch.isfinite(distance.grad).all()


def test_a_batch_averages_sets_that_have_as_many_valid_pixels() -> None:
    """And is no such mean where they have not: those with more count more."""

    def terms(given: dict, *rows: int) -> dict[str, torch.Tensor]:
        chosen = list(rows)
        return factored_loss(
            losses.Prediction(*(part[chosen] for part in noisy())),
            {n: v[chosen] if isinstance(v, torch.Tensor) else v for n, v in given.items()},
            weights=Weights(),
            training=True,
        )

    even = batch() | {"valid": torch.ones_like(batch()["valid"])}
    sparse = even["valid"].clone()
    sparse[1, :, 4:] = False
    uneven = even | {"valid": sparse}
    for given, equal in ((even, True), (uneven, False)):
        whole, first, second = terms(given, 0, 1), terms(given, 0), terms(given, 1)
        for name in ("points", "camera_points", "depth", "normal", "gradient"):
            mean = float(first[name] + second[name]) / 2
            assert (float(whole[name]) == pytest.approx(mean, rel=1e-4)) == equal, name
    share = 32 * 32 / (32 * 32 + 4 * 32)
    expected = share * first["points"] + (1 - share) * second["points"]
    assert float(whole["points"]) == pytest.approx(float(expected), rel=1e-4)


def test_robust_is_the_general_robust_loss() -> None:
    """Barron's form with alpha 0.5 and c 0.05, written out."""
    a, b = torch.randn(50, 3).double(), torch.randn(50, 3).double()
    e = ((a - b) / 0.05).square().sum(-1)
    general = (abs(0.5 - 2) / 0.5) * ((e / abs(0.5 - 2) + 1) ** (0.5 / 2) - 1)
    assert torch.allclose(robust(a, b), general)
    close = torch.zeros(1, 3, requires_grad=True)
    robust(close, torch.zeros(1, 3)).sum().backward()
    assert torch.equal(close.grad, torch.zeros(1, 3))


def plane(slope: float, size: int = 12) -> torch.Tensor:
    """Return the points `(1, H, W, 3)` of a plane that rises along x: one set or view."""
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    return torch.stack([x, y, 2 + slope * x], dim=-1)[None].float()


def test_normals_of_two_planes_differ_by_their_angle() -> None:
    flat, risen = plane(0.0)[None], plane(1.0)[None]
    valid = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    angle = torch.pi / 4
    expected = (angle - torch.pi * 3 / 180 / 2) / 12
    assert float(normal_loss(risen, flat, valid)) == pytest.approx(expected, rel=1e-5)
    # Of the quads over the border of what is valid, no corner has its three pixels.
    valid[:, :, 4:] = False
    assert float(normal_loss(risen, flat, valid)) == pytest.approx(expected, rel=1e-5)
    assert float(normal_loss(risen, flat, torch.zeros_like(valid))) == 0


def test_gradients_match_up_to_a_constant() -> None:
    depth = torch.rand(1, 1, 16, 16)
    valid = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    assert float(gradient_loss(depth + 3, depth, valid)) == pytest.approx(0, abs=1e-5)
    ramp = torch.arange(16.0).expand(1, 1, 16, 16) * 0.1
    # 0.1 a pixel at stride 1 in 15 of 16 columns, 0.2 at stride 2 in 7 of 8, ...
    expected = sum(0.1 * s * (16 // s - 1) / (16 // s) for s in (1, 2, 4, 8))
    assert float(gradient_loss(depth + ramp, depth, valid)) == pytest.approx(expected, rel=1e-4)
