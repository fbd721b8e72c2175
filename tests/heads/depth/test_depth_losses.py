"""Losses of depth: against numpy in float64, without pixels, with bad ones, and in bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pixio_heads.depth.losses import (
    affine_invariant,
    align_least_squares,
    gradient_matching,
    normalise_robust,
    silog,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def robust(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    loss, residual = affine_invariant(prediction, target, valid, form="robust")
    return loss + 2 * gradient_matching(residual, valid)


def least_squares(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    loss, residual = affine_invariant(prediction, target, valid, form="least_squares")
    return loss + 2 * gradient_matching(residual, valid)


def silog_batch(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    return silog(prediction, target, valid, reduction="batch")


every_loss = pytest.mark.parametrize("loss", [silog, silog_batch, robust, least_squares])


def maps(n: int = 3, height: int = 9, width: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """Unrelated positive maps, an odd number of pixels valid in each, so that medians are one."""
    generator = torch.Generator().manual_seed(7)
    prediction, target = torch.rand(2, n, height, width, generator=generator) * 4 + 0.2
    order = torch.rand(n, height * width, generator=generator).argsort(1)
    valid = torch.zeros(n, height * width, dtype=torch.bool)
    for i in range(n):
        valid[i, order[i, : 31 + 20 * i]] = True
    return prediction, target, valid.view(n, height, width)


# --- what is not valid does not count ---------------------------------------------------------


@every_loss
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0])
def test_invalid_pixels_change_neither_loss_nor_gradient(loss: Loss, bad: float) -> None:
    prediction, target, valid = maps()
    found = []
    for filler in (1.0, bad):
        p = torch.where(valid, prediction, filler).requires_grad_()
        value = loss(p, torch.where(valid, target, filler), valid)
        value.backward()
        found.append((value.detach(), p.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][1].isfinite().all() and found[0][1].abs().max() > 0
    assert not found[0][1][~valid].any()


@every_loss
def test_no_valid_pixel_costs_nothing(loss: Loss) -> None:
    prediction, target, _ = maps()
    prediction.requires_grad_()
    value = loss(prediction, target, torch.zeros_like(target, dtype=torch.bool))
    value.backward()
    assert value == 0 and not prediction.grad.any()


@pytest.mark.parametrize("loss", [silog, robust, least_squares])
def test_an_image_without_pixels_stays_in_the_denominator(loss: Loss) -> None:
    """Two processes that average their gradients then equal one with both their batches."""
    prediction, target, valid = maps(4)
    valid[2] = False
    parts = [loss(*(x[i : i + 2] for x in (prediction, target, valid))) for i in (0, 2)]
    alone = loss(prediction[3:], target[3:], valid[3:])
    assert float(parts[1]) == pytest.approx(float(alone) / 2, rel=1e-6)
    whole = loss(prediction, target, valid)
    assert float(whole) == pytest.approx(float(sum(parts)) / 2, rel=1e-6)


def test_only_the_official_silog_depends_on_how_images_are_batched() -> None:
    prediction, target, valid = maps()
    parts = [silog_batch(*(x[i : i + 1] for x in (prediction, target, valid))) for i in range(3)]
    whole = float(silog_batch(prediction, target, valid))
    assert abs(whole - float(sum(parts)) / 3) > 1e-3 * whole
    assert float(silog(prediction, target, valid)) == pytest.approx(float(sum(parts)) / 3, rel=1e-6)


# --- precision --------------------------------------------------------------------------------


@every_loss
def test_bfloat16_inputs_and_autocast_are_computed_in_float32(loss: Loss) -> None:
    prediction, target, valid = maps()
    prediction, target = prediction.bfloat16(), target.bfloat16()
    expected = loss(prediction.float(), target.float(), valid)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(prediction, target, valid)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    residual = (prediction - target).requires_grad_()
    assert gradient_matching(residual, valid).dtype == torch.float32


@pytest.mark.parametrize("reduction", ["image", "batch"])
def test_silog_of_a_constant_factor_is_what_balance_leaves_of_it(reduction: str) -> None:
    """With balance 1 nothing is left, and the difference of squares would be below zero."""
    target = torch.linspace(1, 80, 40)[:, None, None].expand(-1, 16, 16)
    valid = torch.ones_like(target, dtype=torch.bool)
    prediction = (target / 1000).requires_grad_()
    for balance in (0.5, 0.85, 1.0):
        value = silog(prediction, target, valid, balance=balance, reduction=reduction)
        left = math.sqrt((1 - balance) * math.log(1000) ** 2 + 1e-6)
        assert value.item() == pytest.approx(left, rel=1e-3)
    value.backward()
    assert prediction.grad.isfinite().all()


def test_silog_clamps_the_prediction() -> None:
    target, valid = torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    prediction = torch.tensor([[[-3.0, 0.0], [1e-9, 0.01]]], requires_grad=True)
    value = silog(prediction, target, valid, min_depth=0.01)
    assert value.item() == pytest.approx(math.log(100) * math.sqrt(0.5), rel=1e-5)
    value.backward()
    assert prediction.grad.isfinite().all()


@every_loss
def test_nothing_waits_for_the_device(loss: Loss) -> None:
    """Tensors of the meta device have no values: what asks for one, or for a mask's size, fails."""
    prediction, target, valid = (x.to("meta") for x in maps())
    with pytest.raises((RuntimeError, NotImplementedError)):
        prediction[valid]
    prediction.requires_grad_()
    loss(prediction, target, valid).backward()
    assert prediction.grad.shape == target.shape


# --- scale and shift --------------------------------------------------------------------------


def test_least_squares_equal_those_of_numpy() -> None:
    prediction, target, valid = maps()
    scale, shift = align_least_squares(prediction, target, valid)
    for i in range(3):
        p, t = (x[i][valid[i]].double().numpy() for x in (prediction, target))
        expected = np.linalg.lstsq(np.stack([p, np.ones_like(p)], 1), t, rcond=None)[0]
        assert np.allclose([scale[i], shift[i]], expected, rtol=1e-10)


def test_least_squares_far_from_zero_keep_their_digits() -> None:
    _, target, valid = maps()
    prediction = (target.double() - 0.25) / 3 + 1e5
    scale, shift = align_least_squares(prediction, target, valid)
    assert torch.allclose(scale, torch.full((3,), 3.0).double(), rtol=1e-8)
    assert torch.allclose(scale * 1e5 + shift, torch.full((3,), 0.25).double(), atol=1e-6)


def test_least_squares_where_no_line_is_determined() -> None:
    target = torch.tensor([[[1.0, 3.0]], [[2.0, 9.0]], [[2.0, 9.0]]])
    valid = torch.tensor([[[True, True]], [[True, False]], [[False, False]]])
    scale, shift = align_least_squares(torch.full_like(target, 0.1), target, valid)
    assert scale.tolist() == [0, 0, 0] and shift.tolist() == [2, 2, 0]


# --- affine-invariant loss and gradient matching ----------------------------------------------


def robust_by_hand(x: np.ndarray) -> np.ndarray:
    centred = x - np.median(x)
    return centred / np.abs(centred).mean()


@pytest.mark.parametrize("form", ["robust", "least_squares"])
def test_affine_invariant_by_hand(form: str) -> None:
    prediction, target, valid = maps()
    loss, residual = affine_invariant(prediction, target, valid, form=form)
    costs = []
    for i in range(3):
        p, t = (x[i][valid[i]].double().numpy() for x in (prediction, target))
        goal = robust_by_hand(t)
        if form == "robust":
            expected = robust_by_hand(p) - goal
            costs.append(np.abs(expected).mean())
        else:
            expected = np.polyval(np.polyfit(p, goal, 1), p) - goal
            costs.append((expected**2).mean() / 2)
        assert np.allclose(residual[i][valid[i]], expected, atol=1e-5)
    assert float(loss) == pytest.approx(np.mean(costs), rel=1e-5)
    assert residual.shape == target.shape and not residual[~valid].any()


@pytest.mark.parametrize("form", ["robust", "least_squares"])
def test_affine_invariant_loss_does_not_see_scale_and_shift(form: str) -> None:
    prediction, target, valid = maps()
    expected, _ = affine_invariant(prediction, target, valid, form=form)
    for p, t in ((5 * prediction - 3, target), (prediction, 0.2 * target + 4)):
        assert float(affine_invariant(p, t, valid, form=form)[0]) == pytest.approx(
            float(expected), rel=1e-4
        )


def test_a_constant_prediction_has_gradients_to_leave_it_by() -> None:
    _, target, valid = maps()
    prediction = torch.full_like(target, 0.3, requires_grad=True)
    loss, _ = affine_invariant(prediction, target, valid, form="robust")
    loss.backward()
    assert loss.item() == pytest.approx(1, rel=1e-5)  # the target's own mean deviation
    assert 0 < prediction.grad.abs().max() <= 1


def test_the_median_of_an_even_number_is_the_lower_one() -> None:
    x = torch.tensor([[[1.0, 2.0, 4.0, 9.0]]])
    found = normalise_robust(x, torch.ones_like(x, dtype=torch.bool))
    assert torch.allclose(found, (x - 2) / 2.5)


def test_gradient_matching_by_hand_with_holes() -> None:
    residual, _, valid = maps(3, 13, 10)
    images = []
    for r, v in zip(residual.double().numpy(), valid.numpy(), strict=True):
        total = 0.0
        for step in (1, 2, 4):
            size, count = 0.0, 0
            for y in range(0, 13, step):
                for x in range(0, 10, step):
                    count += v[y, x]
                    for down, across in ((y + step, x), (y, x + step)):
                        if down < 13 and across < 10 and v[y, x] and v[down, across]:
                            size += abs(r[down, across] - r[y, x])
            total += size / max(count, 1)
        images.append(total)
    assert min(images) > 0
    found = gradient_matching(residual, valid, scales=3)
    assert float(found) == pytest.approx(np.mean(images), rel=1e-5)
