"""Losses of surfaces: the directions of their normals, and the gradients of their depth.

Shapes: B sets, V views, H x W pixels. Every loss is one value of each view, `(V,)`, whose sums and
counts are over all sets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LEAST, _MOST, _SMOOTH = (math.radians(degrees) for degrees in (1, 90, 3))
_STEEPEST = 100.0


def normal_loss(points: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Compare normals at the four corners of every quad of 2x2 pixels (MoGe, arXiv 2410.19115).

    The angle is kept within 1 to 90 degrees and smoothed below 3; the sum over corners is divided
    by four times the quads with any valid corner and by the longer side of the map, as there.

    Args:
        points: In the camera `(B, V, H, W, 3)`.
        target: `(B, V, H, W, 3)`.
        valid: bool `(B, V, H, W)`; a corner counts if its three pixels are.
    """
    height, width = valid.shape[-2:]
    corners = ((0, 0), (0, 1), (1, 1), (1, 0))  # clockwise, so that all normals face one way

    def at(x: Tensor, corner: tuple[int, int]) -> Tensor:
        down, across = corner
        return x[:, :, down : height - 1 + down, across : width - 1 + across]

    total = points.new_zeros(points.shape[1])
    any_corner = torch.zeros_like(at(valid, (0, 0)))
    # Where nothing is known, any pair of vectors with a defined angle. Made on the device: numbers
    # of a list would be copied to a GPU, which is waited for.
    filler = torch.eye(3, dtype=points.dtype, device=points.device)[0]
    for i, corner in enumerate(corners):
        after, before = corners[(i + 1) % 4], corners[i - 1]
        normal, goal = (
            torch.linalg.cross(at(x, after) - at(x, corner), at(x, before) - at(x, corner))
            for x in (points, target)
        )
        known = at(valid, corner) & at(valid, after) & at(valid, before)
        normal, goal = (torch.where(known[..., None], x, filler) for x in (normal, goal))
        # Of length 1, since products of the areas of tiny quads vanish in float32.
        normal, goal = (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (normal, goal))
        sine = torch.linalg.cross(normal, goal).norm(dim=-1)
        angle = torch.atan2(sine, (normal * goal).sum(-1)).clamp(_LEAST, _MOST)
        smooth = torch.where(angle < _SMOOTH, angle.square() / (2 * _SMOOTH), angle - _SMOOTH / 2)
        total = total + torch.where(known, smooth, 0.0).sum((0, 2, 3))
        any_corner = any_corner | known
    quads = any_corner.sum((0, 2, 3)).clamp_min(1)
    return total / (4 * quads * max(height, width))


def gradient_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Compare the gradients of two maps at strides 1, 2, 4 and 8 (Li and Snavely, 2018).

    At each stride the absolute differences of the error between valid neighbours, at most 100 each,
    are summed and divided by the number of valid pixels; the strides are added.

    Args:
        prediction: `(B, V, H, W)`.
        target: `(B, V, H, W)`.
        valid: bool `(B, V, H, W)`.
    """
    error = torch.where(valid, prediction - target, 0.0)
    total = prediction.new_zeros(prediction.shape[1])
    for stride in (1, 2, 4, 8):
        e, known = error[..., ::stride, ::stride], valid[..., ::stride, ::stride]
        across = (e[..., 1:] - e[..., :-1]).abs().clamp_max(_STEEPEST)
        down = (e[..., 1:, :] - e[..., :-1, :]).abs().clamp_max(_STEEPEST)
        across = torch.where(known[..., 1:] & known[..., :-1], across, 0.0)
        down = torch.where(known[..., 1:, :] & known[..., :-1, :], down, 0.0)
        size = across.sum((0, 2, 3)) + down.sum((0, 2, 3))
        total = total + size / known.sum((0, 2, 3)).clamp_min(1)
    return total
