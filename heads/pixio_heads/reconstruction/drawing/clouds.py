"""Pictures of point clouds, as splats on a virtual camera: from the front and from above.

Shapes: N points, H x W pixels of the picture. The clouds are in the frame of view 0, in OpenCV
axes, so that y points down.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pixio_heads.reconstruction.drawing.frusta import frusta, frustum_length, view_colour

Side = Literal["front", "above"]

# Directions in which the camera looks, and what is up in its picture.
_SIDES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "front": ((-0.25, 0.3, 1.0), (0.0, -1.0, 0.0)),
    "above": ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}
_FOCAL = 1.5  # of the side of the picture: about 37 degrees
_MARGIN = 1.1
_BACKGROUND = 255
_STEPS = 60  # points that a line is drawn with


class Camera(NamedTuple):
    """A virtual camera: world-to-camera `(4, 4)`, and how far it is from what it looks at."""

    world2cam: Tensor
    distance: float


def facing(points: Tensor, side: Side, *, cam2world: Tensor | None = None) -> Camera:
    """Return a camera that sees a cloud from a side, all but its farthest points.

    Two clouds can be compared in the pictures of one camera.

    Args:
        points: `(N, 3)`.
        side: Where to look from.
        cam2world: Cameras `(V, 4, 4)` to be in the picture as well.
    """
    forward, up = (torch.tensor(axis, dtype=torch.float64) for axis in _SIDES[side])
    forward = forward / forward.norm()
    right = torch.linalg.cross(forward, up)
    right = right / right.norm()
    world2cam = torch.eye(4, dtype=torch.float64)
    world2cam[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
    cloud = points.detach().cpu().double()
    cloud = cloud[torch.isfinite(cloud).all(dim=1)] @ world2cam[:3, :3].T
    bounds = [torch.empty(0, 3, dtype=torch.float64)]
    if len(cloud):
        ends = torch.tensor([0.02, 0.98], dtype=torch.float64)
        # Of at most 10,000: torch's quantile refuses large inputs.
        bounds.append(cloud[:: 1 + len(cloud) // 10_000].quantile(ends, dim=0))
    if cam2world is not None:
        bounds.append(cam2world[:, :3, 3].detach().cpu().double() @ world2cam[:3, :3].T)
    shown = torch.cat(bounds)
    if not len(shown):
        return Camera(world2cam, 1.0)
    low, high = shown.amin(dim=0), shown.amax(dim=0)
    half = _MARGIN * (high - low) / 2
    # Far enough for the front of the box, which is half[2] nearer than its middle.
    distance = max(float(2 * _FOCAL * half[:2].max() + half[2]), 1e-3)
    world2cam[:3, 3] = -(low + high) / 2
    world2cam[2, 3] += distance
    return Camera(world2cam, distance)


def with_cameras(
    points: Tensor, colours: Tensor, intrinsics: Tensor, cam2world: Tensor, *, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return a cloud with the cameras that saw it, drawn as points too; the first one is red.

    Args:
        points: `(N, 3)`.
        colours: uint8 `(N, 3)`.
        intrinsics: `(V, 3, 3)`.
        cam2world: `(V, 4, 4)`.
        size: Height and width of the cameras' pictures.
    """
    points, colours = points.detach().cpu().float(), colours.cpu()
    poses = cam2world.detach().cpu().float().numpy()
    matrices = intrinsics.detach().cpu().float().numpy()
    lines = frusta(matrices, poses, size=size, length=frustum_length(points.numpy(), poses))
    share = np.linspace(0, 1, _STEPS, dtype=np.float32)[:, None]
    drawn = lines[:, :, :1] * (1 - share) + lines[:, :, 1:] * share
    paint = np.stack([view_colour(view, len(poses)) for view in range(len(poses))])
    paint = paint.repeat(drawn[0].size // 3, axis=0)
    return (
        torch.cat([points, torch.from_numpy(drawn.reshape(-1, 3))]),
        torch.cat([colours, torch.from_numpy(paint)]),
    )


def draw(
    points: Tensor, colours: Tensor, camera: Camera, *, size: int = 192, splat: int = 2
) -> Tensor:
    """Draw a cloud, the nearest point in front.

    Args:
        points: `(N, 3)`; those that are not finite are left out.
        colours: uint8 `(N, 3)`.
        camera: See `facing`.
        size: Side of the picture in pixels.
        splat: Side of a point in pixels.

    Returns:
        uint8 `(3, size, size)`, white where there is nothing.
    """
    points, colours = points.detach().cpu().double(), colours.cpu()
    seen = points @ camera.world2cam[:3, :3].T + camera.world2cam[:3, 3]
    z = seen[:, 2]
    # What is much nearer than the rest hides it: the ceiling of a room that is seen from above.
    visible = torch.isfinite(seen).all(dim=1) & (z > 0.05 * camera.distance)
    seen, colours = seen[visible], colours[visible]
    z = seen[:, 2]
    corner = _FOCAL * size * seen[:, :2] / z[:, None] + size / 2 - splat / 2
    corner = corner.clamp(-splat, size).round().long()
    step = torch.arange(splat)
    u, v = corner[:, 0, None, None] + step, corner[:, 1, None, None] + step[:, None]
    inside = (u >= 0) & (u < size) & (v >= 0) & (v < size)
    pixel = torch.where(inside, v * size + u, size * size).flatten(1)
    picture = torch.full((size * size + 1, 3), _BACKGROUND, dtype=torch.uint8)
    # Far to near, and of those that meet in a pixel the last: the same ones every time.
    order = z.argsort(descending=True, stable=True)
    rank = torch.arange(len(order))[:, None].expand(-1, splat * splat)
    front = torch.full((size * size + 1,), -1, dtype=torch.long)
    front = front.scatter_reduce(0, pixel[order].flatten(), rank.flatten(), "amax")
    drawn = front >= 0
    drawn[-1] = False  # what lies outside
    picture[drawn] = colours[order[front[drawn]]]
    return picture[:-1].reshape(size, size, 3).movedim(-1, 0).contiguous()
