"""Figures of a reconstruction, as MapAnything's benchmark defines them.

Nothing is aligned but the average distance of the points. Figures are means over the views of a
set, then over sets.

Shapes: B sets, V views, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pixio_heads.reconstruction.geometry import (
    Geometry,
    average_distance,
    axis_angle,
    inverse,
    rebased,
    rotation_angle,
)
from pixio_lightning.training import ListMetric

INLIER = 1.03  # greatest ratio of a pixel that `tau` counts
MEANS = (
    *("scale_rel", "points_rel", "points_tau", "depth_rel", "depth_tau"),
    *("pose_auc5", "pose_auc30", "ate_mean", "ate_rmse", "ray_error"),
)


def relative_error(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of ``|p - t| / |t|`` over valid pixels with ``|t| > 0``, per view.

    Args:
        prediction: Vectors `(B, V, H, W, n)`.
        target: `(B, V, H, W, n)`.
        valid: bool `(B, V, H, W)`.

    Returns:
        `(B, V)`; NaN where there is no such pixel.
    """
    length = target.norm(dim=-1)
    valid = valid & (length > 0)
    error = (prediction - target).norm(dim=-1) / torch.where(valid, length, 1)
    return torch.where(valid, error, 0).flatten(2).sum(2) / valid.flatten(2).sum(2)


def inlier_share(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the share of valid pixels whose lengths are within 3 % of each other, per view.

    It is a ratio of lengths and takes no notice of directions; a prediction of length 0 is outside.

    Args:
        prediction: Vectors `(B, V, H, W, n)`.
        target: `(B, V, H, W, n)`.
        valid: bool `(B, V, H, W)`.

    Returns:
        `(B, V)`; NaN where no pixel is valid.
    """
    p, t = prediction.norm(dim=-1), target.norm(dim=-1)
    inside = (p > 0) & (t > 0) & (p < INLIER * t) & (t < INLIER * p)
    return (inside & valid).flatten(2).sum(2) / valid.flatten(2).sum(2)


def pair_errors(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the errors of the relative poses of all pairs of views.

    Args:
        prediction: Poses `(B, V, 4, 4)`.
        target: `(B, V, 4, 4)`.

    Returns:
        Angles in degrees between the relative rotations, and between the lines of the relative
        translations, both `(B, pairs)`.
    """
    views = prediction.shape[1]
    first, second = torch.triu_indices(views, views, 1, device=prediction.device)
    guess, true = (inverse(p[:, first]) @ p[:, second] for p in (prediction, target))
    return rotation_angle(guess, true), axis_angle(guess[..., :3, 3], true[..., :3, 3])


def area_under_curve(errors: Tensor, *, limit: int) -> Tensor:
    """Return the area under the curve of accuracy to `limit` degrees, in percent, per set.

    A histogram of whole degrees, summed up; its last bin is closed.

    Args:
        errors: Degrees `(B, pairs)`.
        limit: The largest that counts.
    """
    edges = torch.arange(1, limit + 1, device=errors.device)
    below = errors[..., None] < edges
    below[..., -1] = errors <= limit
    return 100 * below.double().mean(dim=(1, 2))


def trajectory_errors(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and root mean square distances of camera centres after a rigid alignment.

    The true centres are rotated and moved onto the predicted ones (Horn, 1987), never scaled.

    Args:
        prediction: Centres `(B, V, 3)`.
        target: `(B, V, 3)`.

    Returns:
        Both `(B,)`.
    """
    p, t = (x.double() - x.double().mean(1, keepdim=True) for x in (prediction, target))
    u, _, vh = torch.linalg.svd(t.transpose(1, 2) @ p)
    sign = torch.linalg.det(u @ vh)
    ones = torch.ones_like(sign)
    rotation = u @ torch.diag_embed(torch.stack([ones, ones, sign], -1)) @ vh
    residual = (t @ rotation - p).norm(dim=-1)
    return residual.mean(1), residual.square().mean(1).sqrt()


def set_figures(
    prediction: Geometry, target: Geometry, valid: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the figures of every set, and the pose errors of its pairs.

    Args:
        prediction: In any frame; it is moved into that of its own view 0.
        target: In the frame of view 0, in metres.
        valid: bool `(B, V, H, W)`.

    Returns:
        Figures `(B,)` by name, NaN where a set has none; rotation and translation errors in degrees
        `(B, pairs)`.
    """
    prediction = rebased(prediction)
    z_guess = average_distance(prediction.points, valid).double()
    z_true = average_distance(target.points, valid).double()

    def normal(x: Tensor, z: Tensor) -> Tensor:
        return x.double() / z.view(-1, *[1] * (x.ndim - 1))

    points = normal(prediction.points, z_guess), normal(target.points, z_true)
    depth = normal(prediction.depth, z_guess)[..., None], normal(target.depth, z_true)[..., None]
    # Behind the camera is as wrong as no depth at all.
    depth = depth[0].clamp_min(0), depth[1]
    turns, shifts = pair_errors(prediction.cam2world, target.cam2world)
    worst = torch.maximum(turns, shifts)
    centres = (
        normal(prediction.cam2world[..., :3, 3], z_guess),
        normal(target.cam2world[..., :3, 3], z_true),
    )
    ate_mean, ate_rmse = trajectory_errors(*centres)
    chord = (prediction.rays.double() - target.rays.double()).norm(dim=-1)
    angle = (2 * (chord / 2).clamp_max(1).asin()).rad2deg()
    figures = {
        "scale_rel": (z_guess * prediction.scale.double() - z_true).abs() / z_true,
        "points_rel": relative_error(*points, valid).nanmean(1),
        "points_tau": 100 * inlier_share(*points, valid).nanmean(1),
        "depth_rel": relative_error(*depth, valid).nanmean(1),
        "depth_tau": 100 * inlier_share(*depth, valid).nanmean(1),
        "pose_auc5": area_under_curve(worst, limit=5),
        "pose_auc30": area_under_curve(worst, limit=30),
        "ate_mean": ate_mean,
        "ate_rmse": ate_rmse,
        "ray_error": angle.flatten(1).mean(1),
    }
    return figures, turns, shifts


class ReconstructionMetrics(ListMetric):
    """The figures of `set_figures`, means over the sets of all processes, and medians of pairs.

    `rotation_median` and `translation_median` are of all pairs of views, in degrees, beside the
    quartiles of the true rotations, `true_rotation_q1` to `q3`. `scale_rel` is of metric sets. With
    a prediction that is not finite no mean is: a set a model has no answer to is not left out.
    """

    total: Tensor
    count: Tensor
    turns: list[Tensor]
    shifts: list[Tensor]
    true_turns: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        zeros = torch.zeros(len(MEANS), dtype=torch.float64)
        names = ("turns", "shifts", "true_turns")
        super().__init__(dict.fromkeys(names, zeros[:0]), **kwargs)
        self.add_state("total", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("count", zeros.clone(), dist_reduce_fx="sum")

    def update(self, prediction: Geometry, target: Geometry, valid: Tensor, metric: Tensor) -> None:
        """Add sets.

        Args:
            prediction: See `set_figures`.
            target: The truth.
            valid: bool `(B, V, H, W)`.
            metric: Whether the truth is in metres, bool `(B,)`.
        """
        lost = ~finite_sets(prediction)
        # The truth in their place, as no singular values are found of what is not finite.
        known = Geometry(
            *(
                torch.where(lost.view(-1, *[1] * (guess.ndim - 1)), true, guess)
                for guess, true in zip(prediction, target, strict=True)
            )
        )
        figures, turns, shifts = set_figures(known, target, valid)
        figures["scale_rel"] = torch.where(metric.bool(), figures["scale_rel"], torch.nan)
        stacked = torch.stack([figures[name] for name in MEANS], dim=1)
        self.total += stacked.nansum(0) + torch.where(lost.any(), torch.nan, 0.0)
        self.count += stacked.isfinite().sum(0)
        turns, shifts = (angles.masked_fill(lost[:, None], torch.nan) for angles in (turns, shifts))
        self.turns.append(turns.flatten())
        self.shifts.append(shifts.flatten())
        still = torch.eye(4, device=turns.device).expand_as(target.cam2world)
        self.true_turns.append(pair_errors(still, target.cam2world)[0].flatten())

    def compute(self) -> dict[str, Tensor]:
        """Return all figures; NaN where nothing was added."""
        found = dict(zip(MEANS, self.total / self.count, strict=True))
        turns, shifts, true = (
            # A list until the states of several processes are joined.
            torch.cat([self.total[:0], *(state if isinstance(state, list) else [state])])
            for state in (self.turns, self.shifts, self.true_turns)
        )
        found["rotation_median"] = _quantile(turns, 0.5)
        found["translation_median"] = _quantile(shifts, 0.5)
        for name, share in (("q1", 0.25), ("q2", 0.5), ("q3", 0.75)):
            found[f"true_rotation_{name}"] = _quantile(true, share)
        return found


def finite_sets(geometry: Geometry) -> Tensor:
    """Return which sets have no number that is infinite or none, `(B,)`."""
    finite = [part.isfinite().flatten(1).all(dim=1) for part in geometry if part.ndim > 1]
    return torch.stack([*finite, geometry.scale.isfinite()]).all(dim=0)


def _quantile(values: Tensor, share: float) -> Tensor:
    values = values.double()
    return values.quantile(share) if values.numel() else values.new_tensor(float("nan"))
