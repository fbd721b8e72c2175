"""Labels carried from frame to frame, against a reference of plain loops and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pixio_heads.propagation import label_propagation
from pixio_heads.propagation.label_propagation import (
    Search,
    grid_to_joints,
    grid_to_mask,
    joints_to_grid,
    mask_to_grid,
    propagate,
)


def by_loops(
    features: np.ndarray, first: np.ndarray, grid: tuple[int, int], search: Search
) -> list[np.ndarray]:
    """Propagate patch by patch in float64, with a list of frames as context."""
    unit = features / np.linalg.norm(features, axis=2, keepdims=True)
    place = [(i // grid[1], i % grid[1]) for i in range(grid[0] * grid[1])]
    known = [first]
    for t in range(1, len(features)):
        before = [max(0, s) for s in range(t - search.context, t)]
        new = np.zeros_like(first)
        for q, here in enumerate(place):
            votes = []
            for number, s in enumerate([0, *before]):
                for p, there in enumerate(place):
                    if number == 0 or math.dist(here, there) < search.radius:
                        votes.append((float(unit[t, q] @ unit[s, p]), s, p))
            votes.sort(key=lambda vote: -vote[0])
            best = votes[: search.k]
            weights = np.exp([vote[0] / search.temperature for vote in best])
            for weight, (_, s, p) in zip(weights / weights.sum(), best, strict=True):
                new[q] += weight * known[s][p]
        known.append(new)
    return known


@pytest.mark.parametrize(
    "search",
    [
        Search(k=7, context=20, radius=20.0, temperature=0.7),
        Search(k=5, context=2, radius=2.0, temperature=0.1),
        Search(k=3, context=0, radius=1.0, temperature=0.7),
        Search(k=100, context=1, radius=1.0, temperature=0.7),  # more than there are
    ],
)
@pytest.mark.parametrize("at_once", [1, 1000, 1 << 24])
def test_it_is_what_plain_loops_do(
    search: Search, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_propagation, "_AT_ONCE", at_once)
    rng, grid = np.random.default_rng(0), (3, 4)
    features, first = rng.standard_normal((6, 12, 5)), rng.random((12, 3))
    expected = by_loops(features, first, grid, search)
    given = (torch.from_numpy(feature) for feature in features)
    found = list(propagate(given, torch.from_numpy(first), grid, search))
    assert len(found) == 6 and all(labels.dtype == torch.float32 for labels in found)
    for labels, reference in zip(found, expected, strict=True):
        assert np.allclose(labels.numpy(), reference, atol=1e-5)


def test_before_there_is_a_past_the_first_frame_stands_for_it() -> None:
    """Its best match is there 21 times, so it takes all of 7 votes; alone it has the most."""
    features = torch.eye(4)[None].expand(2, 4, 4)
    first = torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]])
    (_, repeated) = propagate(iter(features), first, (2, 2), Search())
    assert torch.equal(repeated, first)
    (_, alone) = propagate(iter(features), first, (2, 2), Search(k=4, context=0))
    e = math.exp(1 / 0.7)
    assert alone[0].tolist() == pytest.approx([e / (e + 3), 3 / (e + 3)])


def test_a_frame_far_in_the_past_is_forgotten_but_for_the_first() -> None:
    features = torch.nn.functional.normalize(torch.randn(6, 4, 8), dim=2)
    features[5] = features[1]
    first = torch.eye(4)
    short, long = Search(k=1, context=2), Search(k=1, context=4)
    found = [list(propagate(iter(features), first, (2, 2), search)) for search in (short, long)]
    # Four frames back the very same one is found; two frames back others must do.
    assert torch.equal(found[1][5], found[1][1])
    assert not torch.equal(found[0][5], found[0][1])


def test_only_the_context_is_kept() -> None:
    """Features are asked for one at a time, after the labels of those before are out."""
    asked = []

    def frames() -> object:
        for i in range(5):
            asked.append(i)
            yield torch.randn(4, 3)

    labels = propagate(frames(), torch.eye(4), (2, 2), Search(context=2))
    for i in range(5):
        next(labels)
        assert asked == list(range(i + 1))


def test_bfloat16_around_it_rounds_nothing() -> None:
    features = torch.randn(4, 16, 8)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(list(propagate(iter(features), torch.eye(16), (4, 4), Search()))[-1])
    assert torch.equal(*found)


# --- masks --------------------------------------------------------------------------------------


def test_masks_that_fill_cells_go_through_the_grid_unchanged() -> None:
    ids = torch.tensor([0, 3, 7])
    mask = ids[torch.randint(0, 3, (4, 4))].to(torch.uint8)
    large = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
    shares = mask_to_grid(large, ids, (32, 32), (4, 4))
    assert shares.shape == (16, 3) and torch.equal(ids[shares.argmax(1)].view(4, 4), mask.long())
    assert torch.allclose(shares.sum(dim=1), torch.ones(16))
    back = grid_to_mask(shares, ids, (4, 4), (32, 32), large.shape)
    assert back.dtype == torch.uint8 and (back == large).float().mean() > 0.7


def test_a_mask_of_another_size_comes_back_at_its_own() -> None:
    ids, mask = torch.tensor([0, 1]), torch.zeros(30, 50, dtype=torch.uint8)
    mask[:, 25:] = 1
    shares = mask_to_grid(mask, ids, (64, 64), (8, 8))
    # An antialiased patch sees an eighth of its neighbour.
    assert shares[:, 1].view(8, 8)[0].tolist() == [0, 0, 0, 0.125, 0.875, 1, 1, 1]
    back = grid_to_mask(shares, ids, (8, 8), (64, 64), mask.shape)
    assert torch.equal(back, mask)


def test_unknown_pixels_and_other_numbers_are_background() -> None:
    mask = torch.tensor([[255, 9], [2, 0]], dtype=torch.uint8)
    shares = mask_to_grid(mask, torch.tensor([0, 2]), (2, 2), (2, 2))
    assert shares.tolist() == [[1, 0], [1, 0], [0, 1], [1, 0]]


# --- joints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [(240, 320), (160, 160)])
def test_joints_go_through_the_grid_to_within_a_fraction_of_a_cell(
    stored: tuple[int, int],
) -> None:
    size = torch.tensor(stored, dtype=torch.float32)
    joints = torch.rand(50, 2) * (size.flip(0) * 0.8) + size.flip(0) * 0.1
    back = grid_to_joints(joints_to_grid(joints, size, (20, 20)), size, (20, 20))
    cell = size.flip(0) / 20
    assert ((back - joints) / cell).abs().max() < 0.25


def test_a_joint_in_the_middle_of_a_cell_comes_back_exactly() -> None:
    size = torch.tensor([200.0, 400.0])
    joints = torch.tensor([[49.5, 84.5], [209.5, 114.5]])  # columns of 20, rows of 10 pixels
    maps = joints_to_grid(joints, size, (20, 20))
    assert maps[:, 0].argmax() == 8 * 20 + 2 and maps.amax(0).tolist() == [1, 1]
    assert maps[8 * 20 + 3, 0] == pytest.approx(math.exp(-2))  # one cell away, of deviation 0.5
    assert torch.allclose(grid_to_joints(maps, size, (20, 20)), joints, atol=1e-3)


def test_a_joint_that_is_nowhere_has_a_place_all_the_same() -> None:
    found = grid_to_joints(torch.zeros(16, 2), torch.tensor([64.0, 64.0]), (4, 4))
    assert isinstance(found, Tensor) and bool(found.isfinite().all())
