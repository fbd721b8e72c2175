"""Cameras and points: agreement with the renderer, round trips, and what the fits recover."""

from __future__ import annotations

import math

import pytest
import torch
from rendered_sets import batch, perfect

from pixio_heads.reconstruction import geometry as g
from pixio_lightning.data.scenes.raycast import Pose, camera_rays


def test_rays_and_depth_are_the_renderers() -> None:
    """The renderer casts rays through (x, y, 1); depth is along z."""
    truth = g.truth_of(batch())
    intrinsics = batch()["intrinsics"][0, 0].double()
    size = batch()["size"][0]
    line = (torch.arange(size).double() - intrinsics[0, 2]) / intrinsics[0, 0]
    pose = Pose(torch.eye(3).numpy(), torch.zeros(3).numpy())
    x, y = line.repeat(size).numpy(), line.repeat_interleave(size).numpy()
    direction = torch.from_numpy(camera_rays(pose, x, y)[1]).T.view(size, size, 3)
    expected = direction / direction.norm(dim=-1, keepdim=True)
    assert torch.allclose(truth.rays[0, 0].double(), expected, atol=1e-6)
    assert torch.equal(truth.depth, batch()["depth"])


def test_views_of_a_set_agree_on_the_points_they_share() -> None:
    """A point of view 1, projected into view 0, has the depth that view 0 has there."""
    truth = g.truth_of(batch(size=64))
    points, valid = truth.points[0, 1], batch(size=64)["valid"][0, 1]
    intrinsics = batch(size=64)["intrinsics"][0, 0]
    pixels = points[valid] @ intrinsics.T
    at = (pixels[:, :2] / pixels[:, 2:]).round().long()
    inside = ((at >= 0) & (at < 64)).all(1) & (pixels[:, 2] > 0)
    seen = truth.depth[0, 0][at[inside, 1], at[inside, 0]]
    error = (pixels[inside, 2] - seen).abs() / seen
    assert float(error.quantile(0.6)) < 0.03 and int(inside.sum()) > 500


def test_the_world_is_moved_to_the_first_camera() -> None:
    truth = g.truth_of(batch(views=3))
    assert torch.allclose(truth.cam2world[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-6)
    far = batch(views=3)["cam2world"].clone()
    far[..., :3, 3] += 1e5  # metres, as in a map's coordinates
    moved = g.truth_of(batch(views=3) | {"cam2world": far})
    assert torch.allclose(moved.points, truth.points, atol=1e-4)


def test_a_prediction_in_another_frame_is_brought_back() -> None:
    geometry = perfect(batch(views=3)).compose()
    turn = g.pose_of(g.unit(torch.tensor([[0.9, 0.1, -0.3, 0.2]])), torch.tensor([[1.0, 2, 3]]))
    elsewhere = geometry._replace(
        points=g.moved(geometry.points, turn.expand(2, 3, 4, 4)),
        cam2world=turn @ geometry.cam2world,
    )
    back = g.rebased(elsewhere)
    assert torch.allclose(back.points, geometry.points, atol=1e-4)
    assert torch.allclose(back.cam2world, geometry.cam2world, atol=1e-5)


def test_quaternions_are_poses_and_back() -> None:
    quaternion = g.unit(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    found = g.quaternion_of(g.pose_of(quaternion, torch.zeros(50, 3)))
    assert bool((found[:, 0] >= 0).all())
    assert torch.allclose((found * quaternion).sum(1).abs(), torch.ones(50), atol=1e-5)


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 0.01, 1.0, 30.0, 179.0])
def test_angles_are_exact_near_zero_too(degrees: float) -> None:
    half = math.radians(degrees) / 2
    quaternion = torch.tensor([[math.cos(half), 0, math.sin(half), 0]], dtype=torch.float64)
    still = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    zero = torch.zeros(1, 3, dtype=torch.float64)
    angle = g.rotation_angle(g.pose_of(quaternion, zero), g.pose_of(still, zero))
    assert float(angle) == pytest.approx(degrees, abs=1e-5)


def test_lines_have_no_sign() -> None:
    a = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 0]])
    b = torch.tensor([[-2.0, 0, 0], [1, 1, 0], [1, 0, 0]])
    assert g.axis_angle(a, b).tolist() == pytest.approx([0, 45, 90], abs=1e-5)


def test_intrinsics_are_recovered_from_rays() -> None:
    truth = torch.tensor([[[50.0, 0, 20.5], [0, 60, 15.25], [0, 0, 1]]])
    rays = g.rays_of(truth, (32, 48))
    assert torch.allclose(g.intrinsics_of(rays), truth, atol=1e-3)
    assert torch.allclose(g.intrinsics_of(rays, step=4), truth, atol=1e-3)


def test_average_distance_is_over_valid_points_of_all_views() -> None:
    points = torch.zeros(1, 2, 2, 2, 3)
    points[0, 0, 0, 0, 0], points[0, 1, 1, 1, 2] = 4, 2
    valid = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    valid[0, 0, 0, 0] = valid[0, 1, 1, 1] = True
    assert float(g.average_distance(points, valid)) == pytest.approx(3)
    assert float(g.average_distance(points, torch.zeros_like(valid))) == pytest.approx(1e-8)
