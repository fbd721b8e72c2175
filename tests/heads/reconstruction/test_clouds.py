"""Pictures of clouds: what is in front, what is inside, and the same pixels every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from true_scene import true_scene

from pixio_heads.reconstruction.clouds import Camera, Side, draw, facing, with_cameras
from pixio_heads.reconstruction.frusta import frusta

WHITE = torch.tensor([255, 255, 255], dtype=torch.uint8)
RED, BLUE = torch.tensor([[255, 0, 0], [0, 0, 255]], dtype=torch.uint8)


def cloud() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return points, colours, intrinsics and poses of a true scene."""
    found = true_scene()
    arrays = (found.points[found.mask], found.image[found.mask], found.intrinsics, found.cam2world)
    points, colours, intrinsics, cam2world = (torch.from_numpy(array) for array in arrays)
    return points, colours, intrinsics, cam2world


def painted(picture: Tensor, colour: Tensor) -> Tensor:
    """Return rows and columns `(M, 2)` of the pixels of a colour."""
    return (picture == colour[:, None, None]).all(dim=0).nonzero()


def test_the_nearest_point_is_in_front_whatever_the_order() -> None:
    camera = Camera(torch.eye(4, dtype=torch.float64), 3.0)
    points = torch.tensor([[0.0, 0, 2], [0, 0, 3]])
    for order in ([0, 1], [1, 0]):
        picture = draw(points[order], torch.stack([RED, BLUE])[order], camera, size=64)
        assert len(painted(picture, RED)) == 4 and not len(painted(picture, BLUE))
        assert painted(picture, RED).float().mean(dim=0).tolist() == [31.5, 31.5]
        assert len(painted(picture, WHITE)) == 64 * 64 - 4


@pytest.mark.parametrize(
    ("side", "right", "down"),
    [("front", (1, 0, 0.25), (0, 1, 0)), ("above", (1, 0, 0), (0, 0, -1))],
)
def test_right_and_down_are_where_they_should_be(
    side: Side, right: tuple[float, ...], down: tuple[float, ...]
) -> None:
    ball = torch.nn.functional.normalize(torch.randn(2000, 3), dim=1)
    camera = facing(ball, side)
    grey = torch.full((2000, 3), 128, dtype=torch.uint8)
    for axis, column in ((right, 1), (down, 0)):
        mark = 1.2 * torch.tensor([axis], dtype=torch.float32)
        picture = draw(torch.cat([ball, mark]), torch.cat([grey, RED[None]]), camera, size=128)
        at = painted(picture, RED).float().mean(dim=0)
        assert at[column] > 90 and abs(at[1 - column] - 63.5) < 12


@pytest.mark.parametrize("side", ["front", "above"])
def test_a_cloud_fills_the_picture_and_stays_inside(side: Side) -> None:
    points, colours, _, cam2world = cloud()
    picture = draw(points, colours, facing(points, side, cam2world=cam2world), size=128, splat=1)
    inside = (picture != 255).any(dim=0)
    assert 0.05 < inside.float().mean() < 0.7
    rows, columns = inside.any(dim=1).nonzero(), inside.any(dim=0).nonzero()
    assert max(int(a.max() - a.min()) for a in (rows, columns)) > 64
    assert inside[1:-1, 1:-1].sum() > 0.98 * inside.sum()
    again = draw(points, colours, facing(points, side, cam2world=cam2world), size=128, splat=1)
    assert torch.equal(picture, again)


def test_the_camera_of_a_cloud_is_not_moved_by_a_few_far_points() -> None:
    points, *_ = cloud()
    wild = torch.cat([points, torch.full((20, 3), 1e4), torch.full((20, 3), torch.nan)])
    near, far = facing(points, "front").distance, facing(wild, "front").distance
    assert far == pytest.approx(near, rel=0.05)
    picture = draw(wild, torch.zeros(len(wild), 3, dtype=torch.uint8), facing(wild, "front"))
    assert picture.shape == (3, 192, 192) and (picture == 0).any()


def test_the_cameras_are_drawn_where_they_are() -> None:
    points, colours, intrinsics, cam2world = cloud()
    more, paint = with_cameras(points, colours, intrinsics, cam2world, size=(64, 64))
    assert len(more) == len(paint) == len(points) + 4 * 8 * 60
    assert torch.equal(more[: len(points)], points)
    lines = more[len(points) :].reshape(4, -1, 3)
    assert torch.allclose(lines[:, 0], cam2world[:, :3, 3], atol=1e-6)
    assert len({tuple(p.tolist()) for p in paint[len(points) :: 480]}) == 4
    camera = facing(points, "above", cam2world=cam2world)
    first = painted(draw(more, paint, camera), paint[len(points)])
    assert len(first) > 20
    assert np.ptp(first.numpy(), axis=0).max() < 40


def test_nothing_is_a_white_picture() -> None:
    none = torch.empty(0, 3)
    picture = draw(none, none.to(torch.uint8), facing(none, "above"), size=32)
    assert (picture == 255).all()


def test_a_camera_that_sees_nothing_is_a_line() -> None:
    """An untrained model may predict rays of which none points forward."""
    matrices = np.stack([np.eye(3), np.diag([0.0, 0.0, 1.0])]).astype(np.float32)
    lines = frusta(matrices, np.stack([np.eye(4)] * 2).astype(np.float32), size=(4, 6), length=2)
    assert lines.shape == (2, 8, 2, 3) and np.isfinite(lines).all()
    assert np.ptp(lines[0, :4, 1], axis=0)[:2] == pytest.approx([12, 8])
    assert (lines[1, :4, 1] == [0, 0, 2]).all()
