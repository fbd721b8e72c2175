"""J, F, IoU and PCK by hand, and J and F against an implementation by distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from pixio_heads.propagation.boundaries import (
    boundary,
    boundary_accuracy,
    dilated,
    region_similarity,
)
from pixio_heads.propagation.metrics import Joints, ObjectMasks, metrics_of


def square(top: int, left: int, side: int, *, of: int = 40) -> Tensor:
    mask = torch.zeros(1, of, of, dtype=torch.bool)
    mask[:, top : top + side, left : left + side] = True
    return mask


def blobs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random masks of smooth outlines, of which one is empty and one is full."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    masks = ndimage.gaussian_filter(noise, (0, 4, 4)) > 0.02
    masks[0], masks[1] = False, True
    return masks


def by_distances(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """J by sets of pixels; F by the distance of each boundary pixel to the other boundary."""
    a, b = (set(map(tuple, np.argwhere(mask))) for mask in (found, truth))
    j = len(a & b) / len(a | b) if a | b else 1.0
    reach = math.ceil(0.008 * math.sqrt(found.shape[0] ** 2 + found.shape[1] ** 2))
    lines = []
    for mask in (found, truth):
        line = np.zeros_like(mask)
        for y, x in np.ndindex(mask.shape):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            others = [(min(v, mask.shape[0] - 1), min(u, mask.shape[1] - 1)) for v, u in others]
            line[y, x] = any(mask[y, x] != mask[other] for other in others)
        lines.append(line)
    shares = []
    for own, other in (lines, lines[::-1]):
        if not own.any():
            shares.append(1.0)
        elif not other.any():
            shares.append(0.0)
        else:
            shares.append(float((ndimage.distance_transform_edt(~other)[own] <= reach).mean()))
    total = sum(shares)
    return j, 2 * shares[0] * shares[1] / total if total else 0.0


@pytest.mark.parametrize("size", [(48, 70), pytest.param((300, 40), marks=pytest.mark.slow)])
def test_j_and_f_of_random_masks_are_those_by_distances(size: tuple[int, int]) -> None:
    found, truth = blobs(0, (8, *size)), blobs(1, (8, *size))
    found[4] = np.roll(truth[4], 2, axis=1)  # near, and partly beyond the reach
    truth[2] = found[3] = False
    pairs = [
        (torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((found, truth), (truth, found))
    ]
    for own, true in pairs:
        j, f = region_similarity(own, true), boundary_accuracy(own, true)
        expected = [by_distances(a.numpy(), b.numpy()) for a, b in zip(own, true, strict=True)]
        assert j.tolist() == pytest.approx([row[0] for row in expected], abs=1e-9)
        assert f.tolist() == pytest.approx([row[1] for row in expected], abs=1e-9)
        assert {0.0, 1.0} < {round(value, 9) for value in f.tolist()}


def test_j_by_hand() -> None:
    assert region_similarity(square(0, 0, 10), square(0, 5, 10)).item() == 50 / 150
    assert region_similarity(square(0, 0, 10), square(20, 20, 10)).item() == 0
    nothing = square(0, 0, 0)
    assert region_similarity(nothing, nothing).item() == 1
    assert region_similarity(nothing, square(0, 0, 1)).item() == 0


def test_the_boundary_of_a_square() -> None:
    """Its last row and column, and those before its first: pixels that differ from a later one."""
    line = boundary(square(4, 4, 3, of=10))[0]
    expected = torch.zeros(10, 10, dtype=torch.bool)
    expected[3:7, 3:7] = True
    expected[4:6, 4:6] = False
    assert torch.equal(line, expected)
    assert not boundary(square(0, 0, 10, of=10)).any()


def test_f_by_hand() -> None:
    """An image of 40 px has a reach of one pixel."""
    truth = square(10, 10, 10)
    assert boundary_accuracy(truth, truth).item() == 1
    assert boundary_accuracy(square(11, 10, 10), truth).item() == 1
    assert boundary_accuracy(square(25, 25, 10), truth).item() == 0
    # Two pixels lower: 11 pixels of the upper side are lost, but for the two at its ends' reach.
    moved = boundary_accuracy(square(12, 10, 10), truth).item()
    assert moved == by_distances(square(12, 10, 10)[0].numpy(), truth[0].numpy())[1]
    assert 0.3 < moved < 1
    nothing = square(0, 0, 0)
    assert boundary_accuracy(nothing, nothing).item() == 1
    assert boundary_accuracy(nothing, truth).item() == boundary_accuracy(truth, nothing).item() == 0


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 9])
def test_a_dilation_reaches_as_far_as_a_disk(radius: int) -> None:
    points = torch.rand(2, 31, 45) < 0.005
    expected = [ndimage.distance_transform_edt(~mask.numpy()) <= radius for mask in points]
    assert points.any(-1).any(-1).all()
    assert np.array_equal(dilated(points, radius).numpy(), np.stack(expected))


# --- means --------------------------------------------------------------------------------------


def clip(*frames: Tensor) -> Tensor:
    return torch.cat(frames)[None].to(torch.uint8)


def test_j_and_f_are_means_over_objects_of_means_over_frames() -> None:
    """Object 1 is found in all frames, object 2 in one of two; the first and the last are left."""
    one, two = square(2, 2, 8).to(torch.uint8), 2 * square(20, 20, 8).to(torch.uint8)
    truth = clip(one + two, one + two, one + two, one + two)
    found = clip(0 * one, one + two, one, 0 * one)
    metric = ObjectMasks()
    metric.update(found, truth)
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values == pytest.approx({"j": 0.75, "f": 0.75, "jf": 0.75})
    # A second clip with a single object that is lost: three objects, not two clips.
    metric.update(clip(one, 0 * one, one), clip(one, one, one))
    assert float(metric.compute()["j"]) == pytest.approx(0.5)


def test_an_object_that_comes_later_does_not_count_and_unknown_pixels_are_of_none() -> None:
    one, two = square(2, 2, 8).to(torch.uint8), 2 * square(20, 20, 8).to(torch.uint8)
    unknown = 255 * square(2, 10, 8).to(torch.uint8)
    truth = clip(one, one + two + unknown, one)
    found = clip(one, one + (unknown > 0).to(torch.uint8), one)
    metric = ObjectMasks()
    metric.update(found, truth)
    assert float(metric.objects) == 1 and float(metric.compute()["j"]) == 1


def test_of_two_frames_the_second_counts() -> None:
    one = square(2, 2, 8)
    metric = ObjectMasks()
    metric.update(clip(one, square(2, 6, 8)), clip(one, one))
    assert float(metric.compute()["j"]) == pytest.approx(32 / 96)


def test_nothing_to_find_is_nan() -> None:
    metric = ObjectMasks()
    metric.update(clip(square(0, 0, 0)), clip(square(0, 0, 0)))
    assert all(math.isnan(value) for value in metric.compute().values())


def test_miou_pools_pixels_of_all_frames() -> None:
    truth = torch.tensor([[[[0, 0], [1, 255]], [[1, 1], [1, 0]]]], dtype=torch.uint8)
    found = torch.tensor([[[[0, 0], [1, 3]], [[1, 0], [2, 0]]]], dtype=torch.uint8)
    metric = metrics_of("classes", 5)
    metric.update(found, truth)
    # 0: 3 of 4; 1: 2 of 4; 2: 0 of 1; 3 and 4 occur nowhere that counts.
    assert float(metric.compute()["miou"]) == pytest.approx((3 / 4 + 2 / 4 + 0) / 3)


def test_pck_by_hand() -> None:
    """The box is 30 x 40: a tenth of 0.6 diagonals is 3 pixels, a fifth 6."""
    truth = torch.tensor([[10.0, 10], [40, 50], [20, 20]]).repeat(3, 1, 1)
    found = truth.clone()
    found[0] += 50  # it is given
    found[1, 0, 0] += 3
    found[1, 1, 1] -= 3.1
    found[1, 2, 0] += 6.1
    truth[2, 2, 0] = found[2, 2, 0] = -5  # beyond the frame, where it does not count
    found[2, 2] = 0
    metric = Joints(3)
    metric.update(found[None], truth[None], torch.tensor([[60, 80]]))
    values = {name: float(value) for name, value in metric.compute().items()}
    # By joints: 2 of 2; 1 of 2, and 2 of 2 within 6; 0 of 1.
    assert values == pytest.approx({"pck_10": (1 + 0.5 + 0) / 3, "pck_20": (1 + 1 + 0) / 3})


def test_a_joint_that_the_first_frame_has_outside_never_counts() -> None:
    truth = torch.tensor([[[10.0, 10], [300, 50]], [[10, 10], [40, 50]]])
    metric = Joints(2)
    metric.update(truth[None], truth[None], torch.tensor([[60, 80]]))
    assert metric.counted.tolist() == [1, 0] and float(metric.compute()["pck_10"]) == 1


@pytest.mark.parametrize(
    ("kind", "names"),
    [("objects", {"j", "f", "jf"}), ("classes", {"miou"}), ("joints", {"pck_10", "pck_20"})],
)
def test_each_kind_of_label_has_its_metrics(kind: str, names: set[str]) -> None:
    metrics = metrics_of(kind, 4)
    if kind == "joints":
        metrics.update(torch.ones(1, 2, 4, 2), torch.ones(1, 2, 4, 2), torch.tensor([[9, 9]]))
    else:
        ones = torch.ones(1, 3, 8, 8, dtype=torch.uint8)
        metrics.update(ones, ones)
    assert set(metrics.compute()) == names
