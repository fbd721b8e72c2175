"""Cameras and points: rays, poses, average distances, and the log space of losses.

Shapes: B sets, V views of a set, H x W pixels. Poses are camera-to-world in OpenCV axes (x right,
y down, z forward), quaternions scalar-first (w, x, y, z), pixel centres at integer coordinates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from kornia.geometry.conversions import quaternion_to_rotation_matrix, rotation_matrix_to_quaternion
from kornia.geometry.depth import unproject_meshgrid
from kornia.geometry.linalg import inverse_transformation
from torch import Tensor

from pixio_lightning.models import in_float64

_TINY = 1e-8


class Geometry(NamedTuple):
    """What the cameras of a set see and where they are, in the frame of view 0.

    Attributes:
        points: Points of all pixels `(B, V, H, W, 3)`.
        depth: Their z-depth in their own camera `(B, V, H, W)`.
        rays: Unit directions of the pixels in their camera `(B, V, H, W, 3)`.
        cam2world: Poses `(B, V, 4, 4)`.
        scale: Metres per unit of points, depth and translations `(B,)`.
    """

    points: Tensor
    depth: Tensor
    rays: Tensor
    cam2world: Tensor
    scale: Tensor


def unit(vectors: Tensor) -> Tensor:
    """Return vectors `(..., n)` of length 1; one shorter than 1e-8 stays short."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(_TINY)


def rays_of(intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the unit directions `(..., H, W, 3)` of all pixels for intrinsics `(..., 3, 3)`."""
    flat = intrinsics.reshape(-1, 3, 3).float()
    rays = unproject_meshgrid(*size, flat, normalize_points=True, device=flat.device)
    return rays.reshape(*intrinsics.shape[:-2], *size, 3)


def pose_of(quaternion: Tensor, translation: Tensor) -> Tensor:
    """Return poses `(..., 4, 4)` of quaternions `(..., 4)` and translations `(..., 3)`."""
    pose = torch.eye(4, dtype=translation.dtype, device=translation.device)
    pose = pose.repeat(*translation.shape[:-1], 1, 1)
    pose[..., :3, :3] = quaternion_to_rotation_matrix(quaternion.reshape(-1, 4)).reshape(
        *quaternion.shape[:-1], 3, 3
    )
    pose[..., :3, 3] = translation
    return pose


def quaternion_of(pose: Tensor) -> Tensor:
    """Return the unit quaternions `(..., 4)` of poses `(..., 4, 4)`, with w >= 0."""
    rotation = pose[..., :3, :3].reshape(-1, 3, 3).contiguous()
    found = rotation_matrix_to_quaternion(rotation).reshape(*pose.shape[:-2], 4)
    return torch.where(found[..., :1] < 0, -found, found)


def inverse(pose: Tensor) -> Tensor:
    """Return the inverses of rigid poses `(..., 4, 4)`."""
    return inverse_transformation(pose.reshape(-1, 4, 4)).reshape(pose.shape)


def moved(points: Tensor, pose: Tensor) -> Tensor:
    """Apply poses `(..., 4, 4)` to maps of points `(..., H, W, 3)`."""
    rotation, translation = pose[..., None, :3, :3], pose[..., None, None, :3, 3]
    return points @ rotation.transpose(-1, -2) + translation


def truth_of(batch: dict[str, Any]) -> Geometry:
    """Return the geometry of a batch in float32, with its world moved to the camera of view 0.

    Args:
        batch: With `depth (B, V, H, W)` in metres, `intrinsics (B, V, 3, 3)` and
            `cam2world (B, V, 4, 4)`.
    """
    depth = batch["depth"].float()
    # In float64: the world's origin may be kilometres away.
    world = in_float64(batch["cam2world"])
    cam2world = (inverse(world[:, :1]).expand_as(world) @ world).float().to(depth.device)
    rays = rays_of(batch["intrinsics"], tuple(depth.shape[-2:]))
    camera = rays * (depth / rays[..., 2].clamp_min(_TINY))[..., None]
    one = torch.ones(len(depth), device=depth.device)
    return Geometry(moved(camera, cam2world), depth, rays, cam2world, one)


def rebased(geometry: Geometry) -> Geometry:
    """Move a prediction into the frame of its own view 0, wherever it believes that to be."""
    back = inverse(geometry.cam2world[:, :1])
    cam2world = back.expand_as(geometry.cam2world) @ geometry.cam2world
    points = moved(geometry.points, back.expand_as(geometry.cam2world))
    return geometry._replace(points=points, cam2world=cam2world)


def average_distance(points: Tensor, valid: Tensor) -> Tensor:
    """Return the mean distance `(B,)` of a set's valid points from its origin, at least 1e-8.

    Args:
        points: `(B, V, H, W, 3)`.
        valid: bool `(B, V, H, W)`.
    """
    distance = torch.where(valid, points.norm(dim=-1), 0).flatten(1).sum(1)
    return (distance / (valid.flatten(1).sum(1) + _TINY)).clamp_min(_TINY)


def log_scaled(vectors: Tensor) -> Tensor:
    """Return ``x / |x| * log(1 + |x|)`` of vectors `(..., n)`."""
    length = vectors.norm(dim=-1, keepdim=True)
    return vectors * (length.log1p() / length.clamp_min(_TINY))


def rotation_angle(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle in degrees `(...)` between the rotations of poses `(..., 4, 4)`.

    From the quaternion of the difference: the arc cosine of a trace loses all digits near 0.
    """
    difference = first[..., :3, :3].transpose(-1, -2) @ second[..., :3, :3]
    quaternion = rotation_matrix_to_quaternion(
        in_float64(difference.reshape(-1, 3, 3)).contiguous()
    )
    angle = 2 * torch.atan2(quaternion[:, 1:].norm(dim=-1), quaternion[:, 0].abs())
    return angle.rad2deg().reshape(first.shape[:-2])


def axis_angle(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle in degrees between the lines along vectors `(..., 3)`: 0 to 90.

    Of a vector without a length the direction is unknown, which counts as 90 degrees.
    """
    cosine = (unit(in_float64(first)) * unit(in_float64(second))).sum(-1).abs()
    return cosine.clamp(0, 1).acos().rad2deg()


def intrinsics_of(rays: Tensor, *, step: int = 1) -> Tensor:
    """Fit intrinsics without skew to rays, by least squares on ``u = cx + fx * r_x / r_z``.

    Args:
        rays: `(..., H, W, 3)`; those that do not point forward are left out.
        step: Only every `step`-th row and column is used.

    Returns:
        `(..., 3, 3)`.
    """
    height, width = rays.shape[-3:-1]
    device, rays = rays.device, in_float64(rays[..., ::step, ::step, :])
    rows = torch.arange(0, height, step, device=rays.device, dtype=rays.dtype)
    columns = torch.arange(0, width, step, device=rays.device, dtype=rays.dtype)
    weight = (rays[..., 2] > 1e-3).to(rays.dtype)
    found = torch.zeros(*rays.shape[:-3], 3, 3, dtype=rays.dtype, device=rays.device)
    found[..., 2, 2] = 1
    for axis, pixels in enumerate((columns.expand(rays.shape[:-1]), rows[:, None])):
        slope = rays[..., axis] / rays[..., 2].clamp_min(1e-3)
        total = weight.sum((-2, -1)).clamp_min(1)
        mean_slope = (weight * slope).sum((-2, -1)) / total
        mean_pixel = (weight * pixels).sum((-2, -1)) / total
        centred = slope - mean_slope[..., None, None]
        covariance = (weight * centred * (pixels - mean_pixel[..., None, None])).sum((-2, -1))
        focal = covariance / (weight * centred.square()).sum((-2, -1)).clamp_min(1e-12)
        found[..., axis, axis] = focal
        found[..., axis, 2] = mean_pixel - focal * mean_slope
    return found.float().to(device)
