"""A mirrored set is a set: its views agree on the points they share."""

from __future__ import annotations

import numpy as np
import torch
from rendered_sets import batch

from pixio_heads.reconstruction.geometry import truth_of
from pixio_heads.reconstruction.views.mirror import mirrored

NAMES = ("depth", "valid", "non_ambiguous", "intrinsics", "cam2world")


def sample() -> dict[str, np.ndarray]:
    found = {name: batch()[name][0].numpy() for name in NAMES}
    found["intrinsics"] = found["intrinsics"].copy()
    found["intrinsics"][:, 0, 2] += 3  # a principal point off the middle
    return found | {"image": batch()["image"][0].movedim(1, -1).numpy()}


def points(of: dict[str, np.ndarray]) -> torch.Tensor:
    arrays = {n: torch.from_numpy(np.ascontiguousarray(of[n]))[None] for n in NAMES}
    return truth_of(arrays | {"size": None}).points[0]


def test_points_are_mirrored_in_the_first_camera() -> None:
    plain, other = sample(), mirrored(sample())
    expected = points(plain).flip(2) * torch.tensor([-1.0, 1.0, 1.0])
    assert torch.allclose(points(other), expected, atol=1e-4)
    assert np.array_equal(other["image"][:, :, 0], plain["image"][:, :, -1])
    assert np.allclose(np.linalg.det(other["cam2world"][:, :3, :3]), 1)


def test_twice_mirrored_is_as_before() -> None:
    plain, twice = sample(), mirrored(mirrored(sample()))
    for name, array in plain.items():
        assert np.allclose(twice[name], array, atol=1e-6), name
