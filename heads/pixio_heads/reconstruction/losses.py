"""The factored loss: every part of the geometry up to scale, and the scale apart.

After MapAnything (arXiv 2509.13414) as its configuration has it. All in float32. A term is a mean
over the batch of one process, view by view, then a sum over views: over the valid pixels of all its
sets, over those of its synthetic sets (normals, gradients), over its metric sets (scale), over the
poses that count. So a set weighs more in a batch where fewer others have what a term is about, and
many processes, which average their gradients, equal one only where each of them has as much of it.

Shapes: B sets, V views, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pixio_heads.reconstruction.geometry import (
    average_distance,
    inverse,
    log_scaled,
    moved,
    quaternion_of,
    truth_of,
)
from pixio_heads.reconstruction.model import Prediction
from pixio_heads.reconstruction.surface_losses import gradient_loss, normal_loss

_SCALE = 0.05  # of the robust loss: where it turns from a square into a root
_CONFIDENCE = 0.2  # what confidence costs less of, the larger it is
_KEPT = 95  # percent of real pixels; those that fit worst are left out as mistakes of the sensor


@dataclass(frozen=True)
class Weights:
    """Weights of the terms; 0 leaves a term out.

    The defaults are MapAnything's `overall_loss`; `HIGH_POINTS` are those of its later recipes,
    which weigh world points ten times as much as anything else.

    Attributes:
        points: Points in the frame of view 0, weighted by confidence.
        camera_points: Points in the frame of their own view.
        depth: Distance along the ray.
        rays: Directions of the pixels.
        quaternion: Rotations of the cameras.
        translation: Translations of the cameras.
        scale: Metric scale, of sets that are metric.
        normal: Directions of surfaces, of synthetic sets.
        gradient: Gradients of log depth, of synthetic sets.
        mask: Which pixels have a geometry.
        relative_poses: Compare the poses of all pairs of views as well.
    """

    points: float = 1.0
    camera_points: float = 1.0
    depth: float = 1.0
    rays: float = 1.0
    quaternion: float = 1.0
    translation: float = 1.0
    scale: float = 1.0
    normal: float = 3.0
    gradient: float = 3.0
    mask: float = 0.3
    relative_poses: bool = False


HIGH_POINTS = Weights(
    points=1.0,
    camera_points=0.1,
    depth=0.1,
    rays=0.1,
    quaternion=0.1,
    translation=0.1,
    scale=0.1,
    normal=0.3,
    gradient=0.3,
    mask=0.03,
    relative_poses=True,
)


def robust(prediction: Tensor, target: Tensor) -> Tensor:
    """Return Barron's general robust loss (arXiv 1701.03077) of vectors `(..., n)` as `(...)`.

    With alpha 0.5 and c 0.05: ``3 * ((e / 1.5 + 1)^0.25 - 1)`` of ``e = |difference|^2 / c^2``.
    """
    error = ((prediction - target) / _SCALE).square().sum(-1)
    return 3 * ((error / 1.5 + 1).pow(0.25) - 1)


def mean_over(values: Tensor, valid: Tensor) -> Tensor:
    """Return the means `(V,)` over the valid pixels of a batch of maps `(B, V, H, W)`, by view.

    Where a view has no valid pixel in the whole batch, it is 0.
    """
    count = valid.sum((0, 2, 3)).clamp_min(1)
    return torch.where(valid, values, 0.0).sum((0, 2, 3)) / count


def without_worst(values: Tensor, valid: Tensor, real: Tensor) -> Tensor:
    """Return `valid` with the 95 % smallest values of each view, rounded down, for real sets.

    Args:
        values: `(B, V, H, W)`.
        valid: bool `(B, V, H, W)`.
        real: bool `(B,)`.
    """
    order = torch.where(valid, values.detach(), torch.inf).flatten(2).argsort(dim=2)
    kept = valid.flatten(2).sum(2, keepdim=True) * _KEPT // 100
    ranks = torch.arange(order.shape[2], device=order.device).expand_as(order)
    best = torch.zeros_like(order, dtype=torch.bool).scatter(2, order, ranks < kept)
    return valid & (best.view_as(valid) | ~real[:, None, None, None])


def factored_loss(
    prediction: Prediction, batch: dict[str, Any], *, weights: Weights, training: bool
) -> dict[str, Tensor]:
    """Return every term that has a weight, and their weighted sum as `loss`.

    Args:
        prediction: In the frame of view 0.
        batch: The truth: `depth`, `valid`, `non_ambiguous`, `intrinsics`, `cam2world`, and for each
            set whether it is `metric` and `synthetic`.
        weights: Of the terms.
        training: Whether world points are weighted by confidence; otherwise the worst ones of real
            sets are left out.
    """
    truth = truth_of(batch)
    valid, real = batch["valid"], ~batch["synthetic"].bool()
    # Depth of nothing may be anything; where it is squared it must not be infinite.
    known = valid[..., None]
    guess_camera = prediction.camera_points
    pose = prediction.compose().cam2world
    guess_points = torch.where(known, moved(guess_camera, pose), 0.0)
    goal_points = torch.where(known, truth.points, 0.0)
    goal_camera = torch.where(known, moved(truth.points, inverse(truth.cam2world)), 0.0)
    goal_distance = goal_camera.norm(dim=-1, keepdim=True)
    z_guess = average_distance(guess_points, valid)
    z_goal = average_distance(goal_points, valid)
    by_guess, by_goal = z_guess[:, None, None, None, None], z_goal[:, None, None, None, None]

    terms: dict[str, Tensor] = {}
    points = robust(log_scaled(guess_points / by_guess), log_scaled(goal_points / by_goal))
    if training:
        weighted = prediction.confidence * points - _CONFIDENCE * prediction.confidence.log()
        terms["points"] = mean_over(weighted, valid).sum()
    else:
        terms["points"] = mean_over(points, without_worst(points, valid, real)).sum()
    camera = robust(log_scaled(guess_camera / by_guess), log_scaled(goal_camera / by_goal))
    terms["camera_points"] = mean_over(camera, without_worst(camera, valid, real)).sum()
    distance = robust(
        (prediction.distance[..., None] / by_guess).log1p(), (goal_distance / by_goal).log1p()
    )
    terms["depth"] = mean_over(distance, without_worst(distance, valid, real)).sum()
    terms["rays"] = robust(prediction.rays, truth.rays).mean((0, 2, 3)).sum()
    terms |= pose_terms(
        pose,
        prediction.quaternion,
        truth.cam2world,
        lengths=(z_guess, z_goal),
        seen=valid.flatten(2).any(2),
        relative=weights.relative_poses,
    )
    # The geometry is told apart from its scale: no gradient of this term reaches it.
    scale = robust((prediction.scale * z_guess.detach()).log1p()[:, None], z_goal.log1p()[:, None])
    metric = batch["metric"].bool()
    terms["scale"] = torch.where(metric, scale, 0.0).sum() / metric.sum().clamp_min(1)
    surfaces = valid & ~real[:, None, None, None]
    if weights.normal:
        guess, goal = guess_camera / by_guess, goal_camera / by_goal
        terms["normal"] = normal_loss(guess, goal, surfaces).sum()
    if weights.gradient:
        depths = [(x[..., 2:] / by) for x, by in ((guess_camera, by_guess), (goal_camera, by_goal))]
        guess, goal = (log_scaled(depth)[..., 0] for depth in depths)
        terms["gradient"] = gradient_loss(guess, goal, surfaces).sum()
    mask = F.binary_cross_entropy_with_logits(
        prediction.mask_logits, batch["non_ambiguous"].float(), reduction="none"
    )
    terms["mask"] = mask.mean((0, 2, 3)).sum()
    counted = {
        field.name: getattr(weights, field.name)
        for field in fields(weights)
        if field.name in terms and getattr(weights, field.name)
    }
    total = sum(weight * terms[name] for name, weight in counted.items())
    # Of a parameter that no term reaches a gradient of 0: without one, DDP ends the run.
    total = total + sum(0 * part.sum() for part in prediction)
    return {"loss": total} | {name: terms[name] for name in counted}


def pose_terms(
    pose: Tensor,
    quaternion: Tensor,
    truth: Tensor,
    *,
    lengths: tuple[Tensor, Tensor],
    seen: Tensor,
    relative: bool,
) -> dict[str, Tensor]:
    """Compare rotations, with either sign of the quaternion, and translations.

    Args:
        pose: Predicted `(B, V, 4, 4)`.
        quaternion: Its rotations `(B, V, 4)`.
        truth: `(B, V, 4, 4)`.
        lengths: What predicted and true translations are divided by, `(B,)` each.
        seen: Views with a valid pixel `(B, V)`; translations of others do not count.
        relative: Average each view's terms with those of ``inv(T_i) T_j`` for all other j, of which
            translations count where both views do.

    Returns:
        `quaternion` and `translation`, sums over views of means over the poses that count.
    """
    z_guess, z_goal = (z[:, None, None] for z in lengths)
    goal = quaternion_of(truth)
    turn = torch.minimum(robust(quaternion, goal), robust(quaternion, -goal))
    shift = robust(pose[..., :3, 3] / z_guess, truth[..., :3, 3] / z_goal)
    turn, shift, counted = turn[..., None], shift[..., None], seen[..., None]
    if relative:
        guess, true = (inverse(x)[:, :, None] @ x[:, None] for x in (pose, truth))
        a, b = quaternion_of(guess), quaternion_of(true)
        turns = torch.minimum(robust(a, b), robust(a, -b))
        shifts = robust(
            guess[..., :3, 3] / z_guess[..., None], true[..., :3, 3] / z_goal[..., None]
        )
        own = torch.eye(pose.shape[1], dtype=torch.bool, device=pose.device)
        turn, shift = torch.where(own, turn, turns), torch.where(own, shift, shifts)
        counted = counted & seen[:, None]
    total = torch.where(counted, shift, 0.0).sum((0, 2))
    translation = total / counted.sum((0, 2)).clamp_min(1)
    return {"quaternion": turn.mean((0, 2)).sum(), "translation": translation.sum()}
