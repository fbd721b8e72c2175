"""The best reconstruction that looks at nothing: one answer to all sets, fitted to training sets.

Each part is the best constant for the figure it is scored by, whether or not they agree with one
another, so that a model that beats it has used the pictures. Points are the best ones before their
average distance is brought to 1.

Shapes: S sets, B sets of a batch, V views, h x w pixels of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pixio_heads.reconstruction.geometry import (
    Geometry,
    average_distance,
    axis_angle,
    inverse,
    rotation_angle,
    truth_of,
    unit,
)
from pixio_lightning.errors import UserError
from pixio_lightning.models import in_float64

_THUMBNAIL = (48, 48)  # so that sets may differ in size
_CANDIDATES = 400  # rotations and directions tried


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Return the median of values `(S, ...)` over S by weights; NaN where all weights are 0.

    With weights ``1 / t`` it is the constant c with the least sum of ``|c - t| / t``.
    """
    order = values.argsort(dim=0)
    values, weights = values.gather(0, order), weights.gather(0, order)
    total = weights.cumsum(0)
    at = (total < total[-1:] / 2).sum(0, keepdim=True).clamp_max(len(values) - 1)
    found = values.gather(0, at)[0]
    return torch.where(total[-1] > 0, found, torch.nan)


def weighted_centre(points: Tensor, weights: Tensor, *, steps: int = 30) -> Tensor:
    """Return the point with the least weighted sum of distances (Weiszfeld, 1937).

    Args:
        points: `(S, ..., 3)`.
        weights: `(S, ...)`.
        steps: Of the iteration.

    Returns:
        `(..., 3)`; 0 where all weights are.
    """
    centre = torch.zeros_like(points[0])
    pull = weights
    for _ in range(steps):
        share = pull / pull.sum(0, keepdim=True).clamp_min(1e-12)
        centre = (share[..., None] * points).sum(0)
        pull = weights / (points - centre).norm(dim=-1).clamp_min(1e-4)
    return centre


def fit_constant(batches: Iterable[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the parts of the constant reconstruction by name.

    Maps have one row for the reference and one for all other views: `depth (2, h, w)`,
    `points (2, h, w, 3)` and `rays (2, h, w, 3)`, in units of the average distance; `pose (4, 4)`
    is of a view as the one before it sees it, and `scale` the average distance in metres.

    Raises:
        UserError: There is no batch with a set in it.
    """
    depths, points, valid, rays, poses, scales = [], [], [], [], [], []
    for batch in batches:
        # A set that cannot be read has another in its place, of weight 0.
        known = batch.get("weight", batch["metric"].new_ones(len(batch["metric"]))) > 0
        batch = {k: v[known] if isinstance(v, Tensor) else v for k, v in batch.items()}
        if not known.any():
            continue
        truth = truth_of(batch)
        z = average_distance(truth.points, batch["valid"])
        metric = batch["metric"].bool()
        scales.append(z[metric])
        steps = inverse(truth.cam2world[:, :-1]) @ truth.cam2world[:, 1:]
        steps[..., :3, 3] /= z[:, None, None]
        poses.append(steps.flatten(0, 1))
        depths.append(_thumbnails((truth.depth / z[:, None, None, None])[..., None])[..., 0])
        points.append(_thumbnails(truth.points / z[:, None, None, None, None]))
        valid.append(_thumbnails(batch["valid"][..., None].float())[..., 0] > 0)
        rays.append(_thumbnails(truth.rays))
    if not depths:
        raise UserError(
            "none of the training sets can be used, so there is no constant to compare with; "
            "bad_files.txt in the run folder says what is wrong with them"
        )
    found: dict[str, list[Tensor]] = {"depth": [], "points": [], "rays": []}
    for views in (slice(0, 1), slice(1, None)):
        depth, point, known, ray = (
            torch.cat([x[:, views].flatten(0, 1) for x in maps])
            for maps in (depths, points, valid, rays)
        )
        if not len(depth):  # sets of one view
            continue
        ever, mean_ray = known.any(0), unit(ray.mean(0))
        median = weighted_median(depth, known / depth.clamp_min(1e-3))
        centre = weighted_centre(point, known / point.norm(dim=-1).clamp_min(1e-3))
        if not ever.any():  # of views without depth: all at the average distance
            median, centre = mean_ray[..., 2], mean_ray
        found["depth"].append(_filled(median, ever))
        found["points"].append(_filled(centre, ever))
        found["rays"].append(mean_ray)
    stacked = {name: torch.stack(parts) for name, parts in found.items()}
    z = torch.cat(scales)
    scale = weighted_median(z, 1 / z) if len(z) else z.new_tensor(1.0)
    return stacked | {"scale": scale, "pose": best_pose(torch.cat(poses))}


def best_pose(poses: Tensor) -> Tensor:
    """Return the pose `(4, 4)` nearest to many `(S, 4, 4)`: least median angles of its two parts.

    Its rotation is one of theirs, their mean, or none; the line of its translation one of theirs or
    their principal axis.
    """
    still = torch.eye(4, dtype=poses.dtype, device=poses.device)
    pose = still.clone()
    if not len(poses):
        return pose
    chosen = poses[:: -(-len(poses) // _CANDIDATES)]
    u, _, vh = torch.linalg.svd(in_float64(poses[:, :3, :3]).mean(0))
    sign = torch.linalg.det(u @ vh)
    one = torch.ones_like(sign)
    mean = still.clone()
    mean[:3, :3] = (u @ torch.diag(torch.stack([one, one, sign])) @ vh).to(poses)
    tried = torch.cat([still[None], mean[None], chosen])
    medians = [rotation_angle(t.expand_as(poses), poses).median() for t in tried]
    pose[:3, :3] = tried[int(torch.stack(medians).argmin()), :3, :3]
    lines = poses[:, :3, 3]
    axis = torch.linalg.eigh(in_float64(unit(lines).mT @ unit(lines)))[1][:, -1].to(poses)
    tried = torch.cat([axis[None], unit(chosen[:, :3, 3])])
    medians = [axis_angle(t.expand_as(lines), lines).median() for t in tried]
    pose[:3, 3] = tried[int(torch.stack(medians).argmin())] * lines.norm(dim=-1).median()
    return pose


def constant_geometry(parts: dict[str, Tensor], batch: dict[str, Any]) -> Geometry:
    """Return the constant reconstruction of a batch, on its device."""
    shape = batch["depth"].shape
    views = torch.arange(shape[1], device=batch["depth"].device)
    # Wherever the caller keeps them.
    parts = {name: part.to(views.device) for name, part in parts.items()}
    row = views.clamp_max(len(parts["depth"]) - 1)
    maps = {
        name: _resized(parts[name][..., None] if name == "depth" else parts[name], shape[-2:])
        for name in ("depth", "points", "rays")
    }
    # Every other view of a set stands further along the same line.
    pose = torch.eye(4, device=views.device).repeat(shape[1], 1, 1)
    for view in range(1, shape[1]):
        pose[view] = pose[view - 1] @ parts["pose"]
    points = maps["points"][row].expand(*shape, 3)
    # All lengths will be divided by this, but were fitted in units of the true average distance.
    length = average_distance(points, batch["valid"])
    cam2world = pose.repeat(len(length), 1, 1, 1)
    cam2world[..., :3, 3] *= length[:, None, None]
    return Geometry(
        points=points,
        depth=maps["depth"][row, ..., 0] * length[:, None, None, None],
        rays=unit(maps["rays"][row]).expand(*shape, 3),
        cam2world=cam2world,
        scale=parts["scale"] / length,
    )


def _filled(values: Tensor, known: Tensor) -> Tensor:
    """Return a map `(h, w, ...)` with the value of the nearest known pixel where none is known."""
    if known.all() or not known.any():
        return values
    at, every = known.nonzero(), torch.ones_like(known).nonzero()
    apart = torch.cdist(every.float(), at.float(), compute_mode="donot_use_mm_for_euclid_dist")
    row, column = at[apart.argmin(dim=1)].T
    return values[row, column].view_as(values)


def _thumbnails(maps: Tensor) -> Tensor:
    """Return maps `(B, V, H, W, n)` as `(B, V, h, w, n)`.

    Nearest: means over the border of an object are points of nothing.
    """
    flat = maps.flatten(0, 1).movedim(-1, 1)
    small = F.interpolate(flat, _THUMBNAIL, mode="nearest-exact")
    return small.movedim(1, -1).unflatten(0, maps.shape[:2])


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps `(n, h, w, c)` as `(n, H, W, c)`."""
    flat = maps.movedim(-1, 1)
    return F.interpolate(flat, tuple(size), mode="bilinear", align_corners=False).movedim(1, -1)
