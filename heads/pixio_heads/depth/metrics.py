"""Figures of depth: means of per-image values, of metric or of aligned predictions.

Shapes: B batch, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from pixio_heads.depth.losses import align_least_squares
from pixio_lightning.errors import UserError

EvalCrop = Literal["none", "eigen_nyu", "eigen_kitti", "garg"]
FIGURES = (
    *("abs_rel", "sq_rel", "rmse", "rmse_log", "log10"),
    *("delta1", "delta2", "delta3", "silog"),
)

# Shares of the height and width, as the evaluations of KITTI have them since Eigen et al., 2014,
# and Garg et al., 2016.
_SHARES: dict[str, tuple[float, float, float, float]] = {
    "eigen_kitti": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}
_EIGEN_NYU = (45, 471, 41, 601)


@dataclass(frozen=True)
class Alignment:
    """How a prediction is brought to the truth's scale and shift before it is scored.

    Attributes:
        space: `none` for metric depth; `disparity` fits the predicted disparity to 1 / depth and
            scores it there; `depth` fits it there too, and scores its inverse as depth.
        cap: Greatest aligned depth in metres.
    """

    space: Literal["none", "depth", "disparity"] = "none"
    cap: float | None = None

    def __str__(self) -> str:
        if self.space == "none":
            return "no alignment"
        cap = f", depth capped at {self.cap:g} m" if self.space == "depth" and self.cap else ""
        return f"scale and shift by least squares on disparity, scored as {self.space}{cap}"


def crop_mask(height: int, width: int, name: EvalCrop) -> Tensor:
    """Return what an evaluation crop keeps of an image: bool `(H, W)`.

    The NYUv2 crop is one of 480x640 images; an image of its own size, 426x560, has had it already.

    Raises:
        UserError: The NYUv2 crop of an image of any other size.
    """
    mask = torch.zeros(height, width, dtype=torch.bool)
    if name == "none" or (name == "eigen_nyu" and (height, width) == (426, 560)):
        return ~mask
    if name == "eigen_nyu":
        if (height, width) != (480, 640):
            raise UserError(
                f"eval_crop eigen_nyu is of images of 480x640 or, cropped already, 426x560, and "
                f"this one is {height}x{width}; use eval_crop: none"
            )
        top, bottom, left, right = _EIGEN_NYU
    else:
        shares = zip(_SHARES[name], (height, height, width, width), strict=True)
        top, bottom, left, right = (int(share * n) for share, n in shares)
    mask[top:bottom, left:right] = True
    return mask


def align(
    output: Tensor, depth: Tensor, valid: Tensor, alignment: Alignment
) -> tuple[Tensor, Tensor]:
    """Return prediction and target `(B, H, W)` in the space that is scored.

    Args:
        output: Depth in metres for the space `none`; else disparity up to scale and shift.
        depth: Metres.
        valid: bool, the pixels that are fitted.
        alignment: What to do.
    """
    if alignment.space == "none":
        return output, depth
    disparity = torch.where(valid, 1 / depth.double(), 0)
    scale, shift = align_least_squares(output, disparity, valid)
    fitted = scale[:, None, None] * output.double() + shift[:, None, None]
    if alignment.space == "disparity":
        return fitted, disparity
    farthest = 1 / alignment.cap if alignment.cap else 1e-6
    return 1 / fitted.clamp_min(farthest), depth


def depth_errors(prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Return the figures of each image, `(B,)`, means over its valid pixels.

    ``abs_rel`` mean |p - d| / d, ``sq_rel`` mean (p - d)^2 / d, ``rmse``, ``rmse_log`` (natural),
    ``log10`` mean |log10 p - log10 d|, ``delta k`` share of max(p/d, d/p) < 1.25^k, and ``silog``
    sqrt(mean g^2 - mean(g)^2 / 2) with g = log d - log p. A prediction below 1e-6 counts as 1e-6
    inside logarithms and ratios, where it is as wrong as can be.

    Args:
        prediction: `(B, H, W)`.
        target: `(B, H, W)`, positive where valid.
        valid: bool `(B, H, W)`, at least one pixel in each image.
    """
    d = torch.where(valid, target, 1).double()
    p = torch.where(valid, prediction, 1).double()
    count = valid.sum((1, 2)).double()

    def mean(x: Tensor) -> Tensor:
        return torch.where(valid, x, 0).sum((1, 2)) / count

    positive = p.clamp_min(1e-6)
    g = d.log() - positive.log()
    ratio = torch.maximum(positive / d, d / positive)
    return {
        "abs_rel": mean((p - d).abs() / d),
        "sq_rel": mean((p - d).square() / d),
        "rmse": mean((p - d).square()).sqrt(),
        "rmse_log": mean(g.square()).sqrt(),
        "log10": mean(g.abs()) / math.log(10),
        **{f"delta{k}": mean((ratio < 1.25**k).double()) for k in (1, 2, 3)},
        "silog": (mean(g.square()) - mean(g).square() / 2).clamp_min(0).sqrt(),
    }


class DepthMetrics(Metric):
    """The figures of `depth_errors`, means of per-image values over all processes.

    Args:
        min_depth: Least depth that is scored, metres.
        max_depth: Greatest depth that is scored, metres; both inclusive.
        eval_crop: Part of the image that is scored.
        alignment: How the prediction is aligned first.
        min_pixels: Images with fewer valid pixels are left out, and counted as `skipped`.
    """

    full_state_update = False
    total: Tensor
    images: Tensor
    skipped: Tensor

    def __init__(
        self,
        *,
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
        eval_crop: EvalCrop = "none",
        alignment: Alignment = Alignment(),  # noqa: B008 (frozen)
        min_pixels: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.min_depth, self.max_depth, self.min_pixels = min_depth, max_depth, min_pixels
        self.eval_crop, self.alignment = eval_crop, alignment
        # Double precision, so that the order of the images does not show.
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("total", zero.repeat(len(FIGURES)), dist_reduce_fx="sum")
        self.add_state("images", zero.clone(), dist_reduce_fx="sum")
        self.add_state("skipped", zero.clone(), dist_reduce_fx="sum")

    def update(self, output: Tensor, depth: Tensor, valid: Tensor) -> None:
        """Add images.

        Args:
            output: Predictions `(B, H, W)`, see `align`.
            depth: Metres `(B, H, W)`.
            valid: bool `(B, H, W)`.
        """
        height, width = depth.shape[-2:]
        valid = valid & (depth >= self.min_depth) & (depth <= self.max_depth)
        if self.eval_crop != "none":
            valid = valid & crop_mask(height, width, self.eval_crop).to(valid.device)
        enough = valid.sum((1, 2)) >= self.min_pixels
        self.skipped += (~enough).sum()
        if not bool(enough.any()):
            return
        output, depth, valid = output[enough], depth[enough], valid[enough]
        prediction, target = align(output, depth, valid, self.alignment)
        errors = depth_errors(prediction, target, valid)
        self.total += torch.stack([errors[name].sum() for name in FIGURES])
        self.images += enough.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the nine means, NaN without any image, with `images` and `skipped`."""
        means = self.total / self.images
        counts = {"images": self.images, "skipped": self.skipped}
        return dict(zip(FIGURES, means, strict=True)) | counts

    @property
    def protocol(self) -> str:
        """One line on what is scored and how."""
        return (
            f"depth {self.min_depth:g} to {self.max_depth:g} m, crop {self.eval_crop}, "
            f"{self.alignment}, mean of per-image values"
        )
