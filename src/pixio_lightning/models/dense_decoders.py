"""From features to maps: the linear probe, and the trunk of the dense prediction transformer.

Shapes: B batch, C width of dense features, F width of the trunk, K output channels, h x w grid of
patches, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pixio_lightning.errors import UserError, at_least_1
from pixio_lightning.models.features import Features


class _Total(torch.autograd.Function):
    """The sum over all processes; what each passes on moves all of their results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics are those of all processes, on any device.

    torch's SyncBatchNorm refuses the CPU, and DDP refuses whatever is derived from it there. With
    one process this is BatchNorm2d itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, C, h, w)`, in training by the statistics of the global batch.

        Raises:
            UserError: In training there is one value per channel, of which there is no variance.
        """
        synced = self.training and dist.is_initialized() and dist.get_world_size() > 1
        if self.training and not synced and x.numel() == x.shape[1]:
            raise UserError(
                "batch norm cannot train on a single value per channel: set data.batch_size to at "
                "least 2"
            )
        if not synced:
            return super().forward(x)
        values = x.float()
        count = torch.full_like(values[0, :1, 0, 0], values.numel() / values.shape[1])
        # Two passes: the difference of two large sums would lose the variance of shifted features.
        reduced = _Total.apply(torch.cat([values.sum((0, 2, 3)), count]))
        total, n = reduced[:-1], reduced[-1].detach()
        mean = total / n
        centred = values - mean[:, None, None]
        variance = _Total.apply(centred.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self._track(mean, variance * n / (n - 1))
        normal = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            normal = normal * self.weight[:, None, None] + self.bias[:, None, None]
        return normal.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


class DenseDecoder(nn.Module):
    """A module from features to a map of K channels at any size.

    Args:
        in_channels: Width C of a layer's dense features.
        out_channels: Channels K of the map.
        taps: Layers it reads.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.taps = in_channels, out_channels, taps

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Return the map `(B, K, H, W)` for a size (H, W), in float32 also under autocast."""
        raise NotImplementedError


# A decoder that still has to be told its channels and taps, which are the head's to give: how
# jsonargparse reads a class with init_args.
MakeDecoder = Callable[[int, int, int], DenseDecoder]


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly, the corners of the maps on each other (`align_corners`)."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class Pointwise(nn.Conv2d):
    """A convolution of one pixel, as a matrix product: maps have their channels last in memory.

    The gradient of its weight then lies as the weight does, which that of a convolution does not.

    Args:
        in_channels: Channels it reads.
        out_channels: Channels it gives.
        bias: Add one to each channel that it gives.
        full_precision: Compute and give float32, whatever the precision around it: what becomes
            a depth or a score has too few values in bfloat16, 128 from one power of 2 to the next.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        full_precision: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)
        self.full_precision = full_precision

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, K, h, w)` for `(B, C, h, w)`."""
        if not self.full_precision:
            return self._product(x, self.weight, self.bias)
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self._product(x.float(), self.weight.float(), bias)

    @staticmethod
    def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


class LinearDecoder(DenseDecoder):
    """The linear probe: batch norm, then one linear map per patch, upsampled.

    Args:
        in_channels: Width C of a layer's dense features.
        out_channels: Channels K of the map.
        taps: Layers whose features are concatenated.
        positions: Grid (h, w) of a free bias per position, which gives every backbone what a
            head can know without looking; None for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        taps: int = 1,
        *,
        positions: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, taps)
        if positions and min(positions) < 1:
            raise UserError(
                f"decoder.positions is {list(positions)}, but expected height and width, 1 or more"
            )
        self.norm = SyncedBatchNorm2d(in_channels * taps)
        self.projection = Pointwise(in_channels * taps, out_channels, full_precision=True)
        self.bias_map = (
            nn.Parameter(torch.zeros(1, out_channels, *positions)) if positions else None
        )

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Return the map `(B, K, H, W)`."""
        layers = [features.dense(i) for i in range(len(features.layers))]
        out = self.projection(self.norm(torch.cat(layers, dim=1)))
        if self.bias_map is not None:
            bias = self.bias_map
            out = out + (
                bias if bias.shape[-2:] == out.shape[-2:] else upsample(bias, out.shape[-2:])
            )
        return upsample(out, size)


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions beside the identity.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(width, width, 3, padding=1)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, F, h, w)`."""
        return x + self.convolution2(F.relu(self.convolution1(F.relu(x))))


class Fusion(nn.Module):
    """Add a shallower map to what comes from below, refine it, and bring it to the next size.

    Args:
        width: Channels.
        joins: Whether there is a map from below; the deepest has none, and no unit to join it.
        double_and_crop: See `DPT`.
    """

    def __init__(self, width: int, *, joins: bool, double_and_crop: bool = False) -> None:
        super().__init__()
        self.double_and_crop = double_and_crop
        self.join = ResidualUnit(width) if joins else None
        self.refine = ResidualUnit(width)
        self.project = Pointwise(width, width)

    def forward(self, x: Tensor, below: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Return the fused map at `size`."""
        if self.join is not None:
            x = below + self.join(x)
        x = self.refine(x)
        if self.double_and_crop:
            doubled = upsample(x, (2 * x.shape[-2], 2 * x.shape[-1]))
            return self.project(doubled[..., : size[0], : size[1]])
        return self.project(upsample(x, size))


class DPT(nn.Module):
    """The trunk of the dense prediction transformer (Ranftl et al., 2021, arXiv 2103.13413).

    Four maps of one grid become a pyramid of 4, 2, 1 and half the grid, which is fused from deep
    to shallow. The deepest level has nothing to join, so it has no unit for it.

    Args:
        in_channels: Width C of each map, or of all four.
        out_channels: Channels of the pyramid's levels, shallow to deep.
        features: Width F of the trunk.
        double_and_crop: Whether a fused map is doubled and cropped to the size of the next level,
            as in MapAnything; otherwise it is resized straight to that size. They differ where h or
            w is odd: half of it, rounded up, is more than half.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: Sequence[int] = (256, 512, 1024, 1024),
        *,
        features: int = 256,
        double_and_crop: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels] * 4 if isinstance(in_channels, int) else in_channels
        self.projections = nn.ModuleList(
            Pointwise(width, n) for width, n in zip(widths, out_channels, strict=True)
        )
        first, second, _, last = out_channels
        self.resizes = nn.ModuleList(
            [
                nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(last, last, 3, stride=2, padding=1),
            ]
        )
        self.convolutions = nn.ModuleList(
            nn.Conv2d(n, features, 3, padding=1, bias=False) for n in out_channels
        )
        self.fusions = nn.ModuleList(
            Fusion(features, joins=i < 3, double_and_crop=double_and_crop) for i in range(4)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse four maps `(B, C, h, w)`, shallow to deep, into one `(B, F, 8h, 8w)`."""
        levels = [
            convolution(resize(projection(x)))
            for x, projection, resize, convolution in zip(
                maps, self.projections, self.resizes, self.convolutions, strict=True
            )
        ]
        height, width = levels[0].shape[-2:]
        sizes = [(2 * height, 2 * width), *(level.shape[-2:] for level in levels[:-1])]
        fused = self.fusions[3](levels[3], None, sizes[3])
        for i in (2, 1, 0):
            fused = self.fusions[i](levels[i], fused, sizes[i])
        return fused


class DPTDecoder(DenseDecoder):
    """The DPT trunk with two convolutions behind it.

    Args:
        in_channels: Width C of a layer's dense features.
        out_channels: Channels K of the map.
        taps: Layers it reads: four.
        features: Width of the trunk.
        stages: Channels of the pyramid's levels, shallow to deep.

    Raises:
        UserError: The backbone does not tap four layers, or a width is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        taps: int = 4,
        *,
        features: int = 256,
        stages: tuple[int, int, int, int] = (256, 512, 1024, 1024),
    ) -> None:
        super().__init__(in_channels, out_channels, taps)
        if taps != 4:
            raise UserError(
                f"DPTDecoder reads four layers, but the backbone taps {taps}: "
                "set model.backbone.layers to quarters, or to four blocks"
            )
        at_least_1(**{"decoder.features": features, "decoder.stages": min(stages)})
        self.trunk = DPT(in_channels, stages, features=features)
        self.tail = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1),
            nn.ReLU(),
            Pointwise(features, out_channels, full_precision=True),
        )

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Return the map `(B, K, H, W)`."""
        maps = [features.dense(i) for i in range(4)]
        return upsample(self.tail(self.trunk(maps)), size)
