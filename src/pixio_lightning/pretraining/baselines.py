"""What a loss is compared with: hidden pixels filled in from the visible ones; and its two parts.

Of rendered scenes half of the variance of a normalised patch is its colour alone, so that a loss
can fall while no structure is learned.

Shapes: B batch, m hidden patches, V = P*P*C values in a patch of P*P pixels and C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pixio_lightning.models.mae_decoder import normalize_patches
from pixio_lightning.models.probes import in_float64
from pixio_lightning.training.run_folder import Metrics


class Parts(NamedTuple):
    """A patch, or its error, in two orthogonal parts.

    Attributes:
        hue: Each channel's mean over the patch.
        structure: The rest.
    """

    hue: Tensor
    structure: Tensor

    @property
    def whole(self) -> Tensor:
        """Both together."""
        return self.hue + self.structure


def parts_of(patches: Tensor, channels: int) -> Parts:
    """Split patches `(B, m, V)` into parts of the same shape, which add up to them."""
    pixels = patches.unflatten(-1, (-1, channels))
    hue = pixels.mean(dim=-2, keepdim=True).expand_as(pixels).flatten(-2)
    return Parts(hue, patches - hue)


def errors_of(prediction: Tensor, target: Tensor, channels: int) -> Parts:
    """Return the mean squared error of each patch in parts, float32 `(B, m)`; they add up to it."""
    split = parts_of(prediction.float() - target.float(), channels)
    return Parts(*(part.square().mean(dim=-1) for part in split))


def beside_baselines(metrics: Metrics, titles: Mapping[str, str]) -> dict[str, str]:
    """Tell the held-out loss at the start and the end, beside what needs no learning.

    Args:
        metrics: Of a run.
        titles: What is logged as `val/NAME`, under which title it is told.
    """
    loss = metrics.first_and_last("val/loss")
    if loss is None:
        return {}
    facts = {"held-out loss": f"first {digits(loss[0])}, last {digits(loss[1])}"}
    for name, title in titles.items():
        baseline = metrics.first_and_last(f"val/{name}")
        if baseline is None:
            continue
        facts[title] = digits(baseline[1])
        if baseline[1]:  # of images of one colour nothing need be learned
            gap = 1 - loss[1] / baseline[1]
            side = "below" if gap >= 0 else "above"
            facts[title] += f" (the last loss is {abs(gap):.0%} {side})"
    return facts


def digits(value: float) -> str:
    """Write a loss with three places, or three digits where it is small."""
    return f"{value:.3g}" if 0 < value < 0.1 else f"{value:.3f}"


def capped(patches: Tensor, truth: Tensor) -> Tensor:
    """Show patches as a prediction of normalised ones: without their means, at the true contrast.

    Where they have more contrast than the truth, they are divided by their own: a copy of a busy
    patch where there is none would cost more than predicting nothing.

    Args:
        patches: Pixels to predict with, `(B, m, V)`.
        truth: Pixels that are predicted.
    """
    _, mean, own = normalize_patches(patches)
    _, _, contrast = normalize_patches(truth)
    return (patches - mean) / torch.maximum(own, contrast)


def inverse_distance(images: Tensor, visible: Tensor, *, power: float = 3.0) -> Tensor:
    """Fill each hidden pixel with the mean of all visible ones, the nearer the more.

    The weight is ``(distance + 1/2) ^ -power``: half a pixel more than in Shepard's method (1968,
    https://doi.org/10.1145/800186.810616), so that that of a pixel on itself is finite. On rendered
    scenes it came out ahead of Gaussians and of the pull-push pyramid: a strong baseline.

    Args:
        images: Float `(B, C, H, W)`.
        visible: `(B, 1, H, W)`, 1 where a pixel is known and 0 where it is hidden.
        power: Exponent of the distance, measured in pixels.

    Returns:
        `(B, C, H, W)`, equal to `images` where visible.
    """
    height, width = images.shape[-2:]
    home = in_float64(images.new_zeros(0)).device
    # Distances between any two pixels, laid out for a circular convolution of twice the size.
    rows = torch.arange(2 * height, device=home, dtype=torch.float64)
    columns = torch.arange(2 * width, device=home, dtype=torch.float64)
    rows, columns = rows.minimum(2 * height - rows), columns.minimum(2 * width - columns)
    kernel = (torch.hypot(rows[:, None], columns) + 0.5) ** -power
    spectrum = torch.fft.rfft2(kernel)

    def spread(x: Tensor) -> Tensor:
        # Double precision: the weights span eight orders of magnitude.
        size = (2 * height, 2 * width)
        product = torch.fft.rfft2(in_float64(x), s=size) * spectrum
        return torch.fft.irfft2(product, s=size)[..., :height, :width]

    filled = spread(images * visible) / spread(visible)
    return torch.where(visible > 0, images, filled.to(images))
