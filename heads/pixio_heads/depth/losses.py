"""Losses of metric and of relative depth, in float32 and without waiting for the device.

Shapes: B batch, H x W pixels. Invalid pixels may hold anything, NaN included.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pixio_lightning.models import in_float64

Reduction = Literal["image", "batch"]
Form = Literal["robust", "least_squares"]

# Under the root of SILog, whose gradient would be infinite at zero error.
_ROOT = 1e-6


def silog(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    balance: float = 0.5,
    reduction: Reduction = "image",
    min_depth: float = 1e-3,
) -> Tensor:
    """Return the scale-invariant logarithmic loss (Eigen et al., 2014, arXiv 1406.2283).

    ``sqrt(mean(g^2) - balance * mean(g)^2)`` with ``g = log target - log prediction``, taken as
    ``sqrt(var(g) + (1 - balance) * mean(g)^2)``.

    Args:
        prediction: Metres `(B, H, W)`, clamped at `min_depth`.
        target: Metres `(B, H, W)`.
        valid: bool `(B, H, W)`.
        balance: Share of the scale error that is forgiven.
        reduction: `image` takes the root per image and averages over all B, so that many processes
            equal one; an image without a valid pixel counts 0. `batch` takes one root over all
            valid pixels, the official form.
        min_depth: Least prediction, metres.
    """
    prediction = torch.where(valid, prediction, 1.0).float().clamp_min(min_depth)
    target = torch.where(valid, target, 1.0).float()
    g = target.log() - prediction.log()
    dims = (-2, -1) if reduction == "image" else (-3, -2, -1)
    known = valid.sum(dims, keepdim=True)
    mean = torch.where(valid, g, 0.0).sum(dims, keepdim=True) / known.clamp_min(1)
    # Centred: the difference of the squares loses more digits than the term under the root holds.
    centred = torch.where(valid, g - mean, 0.0)
    variance = centred.square().sum(dims, keepdim=True) / known.clamp_min(1)
    root = (variance + (1 - balance) * mean.square() + _ROOT).sqrt()
    return torch.where(known > 0, root, 0.0).mean()


def align_least_squares(prediction: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift `(B,)` that minimise ``sum (scale * prediction + shift - target)^2``.

    The normal equations of each image, in float64. An image whose valid predictions are all equal
    has scale 0 and the mean target for its shift; one without a valid pixel has 0 and 0.

    Args:
        prediction: `(B, H, W)`.
        target: `(B, H, W)`.
        valid: bool `(B, H, W)`.
    """
    p = in_float64(torch.where(valid, prediction, 0)).flatten(1)
    t = in_float64(torch.where(valid, target, 0)).flatten(1)
    weight = in_float64(valid).flatten(1)
    count = weight.sum(1).clamp_min(1)
    # Centred: the determinant of raw moments loses half of the digits.
    mean_p, mean_t = p.sum(1) / count, t.sum(1) / count
    centred = weight * (p - mean_p[:, None])
    variance = centred.square().sum(1)
    covariance = (centred * (t - mean_t[:, None])).sum(1)
    fits = variance > 1e-12 * count * mean_p.square()
    scale = torch.where(fits, covariance / torch.where(fits, variance, 1), 0)
    return scale, mean_t - scale * mean_p


def normalise_robust(x: Tensor, valid: Tensor) -> Tensor:
    """Subtract each image's median and divide by its mean absolute deviation, over valid pixels.

    The median of an even number of pixels is the lower one of the two in the middle. An image
    whose mean deviation is below 1e-6 is not divided.

    Args:
        x: `(B, H, W)`.
        valid: bool `(B, H, W)`.

    Returns:
        float32 `(B, H, W)`, 0 where invalid.
    """
    x = x.float()
    known = torch.where(valid, x, torch.nan).flatten(1)
    median = known.nanmedian(dim=1).values.nan_to_num(0)[:, None, None]
    centred = torch.where(valid, x - median, 0.0)
    deviation = centred.abs().sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)
    # A division by next to nothing would give a constant prediction gradients of that inverse.
    return centred / torch.where(deviation > 1e-6, deviation, 1.0)[:, None, None]


def affine_invariant(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    form: Form = "robust",
) -> tuple[Tensor, Tensor]:
    """Return the loss between disparities up to scale and shift, and the residual it is made of.

    The target is normalised per image by median and mean absolute deviation. `robust` brings the
    prediction there by the same normalisation and takes the mean absolute residual; `least_squares`
    fits scale and shift and takes half the mean square (Ranftl et al., 2022, arXiv 1907.01341).

    Args:
        prediction: `(B, H, W)`.
        target: Disparity `(B, H, W)`.
        valid: bool `(B, H, W)`.
        form: How the prediction is aligned.

    Returns:
        The loss, a mean over images, and the residual `(B, H, W)`, 0 where invalid.
    """
    prediction = torch.where(valid, prediction, 0.0).float()
    goal = normalise_robust(target, valid)
    if form == "robust":
        residual = normalise_robust(prediction, valid) - goal
        error = residual.abs()
    else:
        scale, shift = (
            x.float().to(goal.device)[:, None, None]
            for x in align_least_squares(prediction, goal, valid)
        )
        residual = torch.where(valid, scale * prediction + shift - goal, 0.0)
        error = residual.square() / 2
    per_image = error.sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)
    return per_image.mean(), residual


def gradient_matching(residual: Tensor, valid: Tensor, *, scales: int = 4) -> Tensor:
    """Return the mean size of the residual's gradients over scales (Li and Snavely, 2018).

    At scale k every 2^k-th pixel is taken; a difference counts if both its pixels are valid, and
    each scale is divided by its number of valid pixels.

    Args:
        residual: `(B, H, W)`.
        valid: bool `(B, H, W)`.
        scales: Number of scales.
    """
    residual = residual.float()
    total = residual.new_zeros(len(residual))
    for k in range(scales):
        r, v = residual[:, :: 2**k, :: 2**k], valid[:, :: 2**k, :: 2**k]
        across = torch.where(v[:, :, 1:] & v[:, :, :-1], r[:, :, 1:] - r[:, :, :-1], 0.0)
        down = torch.where(v[:, 1:] & v[:, :-1], r[:, 1:] - r[:, :-1], 0.0)
        size = across.abs().sum((1, 2)) + down.abs().sum((1, 2))
        total = total + size / v.sum((1, 2)).clamp_min(1)
    return total.mean()
