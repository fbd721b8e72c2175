"""Sets changed in training: mirrored ones are sets, and colours change places in all views."""

from __future__ import annotations

import numpy as np
import torch
from rendered_sets import batch

from pixio_heads.reconstruction.data import ReconstructionData
from pixio_heads.reconstruction.geometry import truth_of
from pixio_heads.reconstruction.views.colour import Colour, recoloured
from pixio_heads.reconstruction.views.mirror import mirrored
from pixio_lightning.data.samples import RandomKey

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


def test_half_of_the_training_sets_are_mirrored() -> None:
    data = ReconstructionData(image_size=(32, 32), mirror=True)
    plain = sample()
    views = [data.augment(plain, RandomKey(key, 0, 0))["image"] for key in range(40)]
    mirrored_views = [np.array_equal(view, plain["image"][:, :, ::-1]) for view in views]
    assert 10 < sum(mirrored_views) < 30


def test_colours_change_places_in_all_views_alike() -> None:
    only = Colour(jitter=0, grey=0, blur=0, permute=1.0)
    images = sample()["image"]
    orders = set()
    for key in range(60):
        changed = recoloured(images, only, RandomKey(key, 0, 0))
        order = [
            next(c for c in range(3) if np.array_equal(changed[..., i], images[..., c]))
            for i in range(3)
        ]
        assert sorted(order) == [0, 1, 2]
        orders.add(tuple(order))
    assert len(orders) == 6
