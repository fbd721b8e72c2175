"""The factored loss: every part of the geometry up to scale, and the scale apart.

After MapAnything (arXiv 2509.13414) as its configuration has it. All in float32; every term is a
mean over the valid pixels of a view, a sum over views and a mean over sets, so that many processes
equal one.

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
_EXCLUDED = 0.05  # share of real pixels, those that fit worst, left out as mistakes of the sensor


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
    """Return the mean of valid pixels `(B, V)` of maps `(B, V, H, W)`; 0 where there are none."""
    count = valid.flatten(2).sum(2).clamp_min(1)
    return torch.where(valid, values, 0.0).flatten(2).sum(2) / count


def without_worst(values: Tensor, valid: Tensor, real: Tensor) -> Tensor:
    """Return `valid` without the largest 5 % of the values of each view, for real sets.

    Args:
        values: `(B, V, H, W)`.
        valid: bool `(B, V, H, W)`.
        real: bool `(B,)`.
    """
    flat = torch.where(valid, values.detach(), torch.inf).flatten(2).sort(dim=2).values
    count = valid.flatten(2).sum(2, keepdim=True)
    kept = count - (count * _EXCLUDED).floor().long()
    largest = flat.gather(2, (kept - 1).clamp_min(0))[..., None]
    return valid & ((values <= largest) | ~real[:, None, None, None])


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
        terms["points"] = mean_over(weighted, valid).sum(1)
    else:
        terms["points"] = mean_over(points, without_worst(points, valid, real)).sum(1)
    camera = robust(log_scaled(guess_camera / by_guess), log_scaled(goal_camera / by_goal))
    terms["camera_points"] = mean_over(camera, without_worst(camera, valid, real)).sum(1)
    distance = robust(
        (prediction.distance[..., None] / by_guess).log1p(), (goal_distance / by_goal).log1p()
    )
    terms["depth"] = mean_over(distance, without_worst(distance, valid, real)).sum(1)
    terms["rays"] = robust(prediction.rays, truth.rays).flatten(2).mean(2).sum(1)
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
    terms["scale"] = torch.where(batch["metric"].bool(), scale, 0.0)
    surfaces = valid & ~real[:, None, None, None]
    if weights.normal:
        normal = normal_loss(
            (guess_camera / by_guess).flatten(0, 1),
            (goal_camera / by_goal).flatten(0, 1),
            surfaces.flatten(0, 1),
        )
        terms["normal"] = normal.unflatten(0, valid.shape[:2]).sum(1)
    if weights.gradient:
        depths = [(x[..., 2:] / by) for x, by in ((guess_camera, by_guess), (goal_camera, by_goal))]
        guess, goal = (log_scaled(depth)[..., 0].flatten(0, 1) for depth in depths)
        gradient = gradient_loss(guess, goal, surfaces.flatten(0, 1))
        terms["gradient"] = gradient.unflatten(0, valid.shape[:2]).sum(1)
    mask = F.binary_cross_entropy_with_logits(
        prediction.mask_logits, batch["non_ambiguous"].float(), reduction="none"
    )
    terms["mask"] = mask.flatten(2).mean(2).sum(1)
    means = {
        field.name: terms[field.name].mean() for field in fields(weights) if field.name in terms
    }
    total = sum(getattr(weights, name) * mean for name, mean in means.items())
    return {"loss": total} | {name: mean for name, mean in means.items() if getattr(weights, name)}


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
        relative: Average each view's terms with those of ``inv(T_i) T_j`` for all other j.

    Returns:
        `quaternion` and `translation`, `(B,)` each.
    """
    z_guess, z_goal = (z[:, None, None] for z in lengths)
    goal = quaternion_of(truth)
    turn = torch.minimum(robust(quaternion, goal), robust(quaternion, -goal))
    shift = robust(pose[..., :3, 3] / z_guess, truth[..., :3, 3] / z_goal)
    shift = torch.where(seen, shift, 0.0)
    if relative:
        views = pose.shape[1]
        guess, true = (inverse(x)[:, :, None] @ x[:, None] for x in (pose, truth))
        a, b = quaternion_of(guess), quaternion_of(true)
        turns = torch.minimum(robust(a, b), robust(a, -b))
        shifts = robust(
            guess[..., :3, 3] / z_guess[..., None], true[..., :3, 3] / z_goal[..., None]
        )
        shifts = torch.where(seen[:, :, None] & seen[:, None], shifts, 0.0)
        others = ~torch.eye(views, dtype=torch.bool, device=pose.device)
        turn = (turn + torch.where(others, turns, 0.0).sum(2)) / views
        shift = (shift + torch.where(others, shifts, 0.0).sum(2)) / views
    return {"quaternion": turn.sum(1), "translation": shift.sum(1)}
