"""From the patches of several views to rays, depth, poses and a metric scale.

The factored form of MapAnything (arXiv 2509.13414): geometry up to scale, and the scale apart.

Shapes: B sets, V views, N = h*w patches, C width of the encoder, D of the transformer, H x W
pixels, P pixels along a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixio_heads.reconstruction.attention import AlternatingAttention
from pixio_heads.reconstruction.geometry import Geometry, moved, pose_of, unit
from pixio_heads.reconstruction.pose_heads import FlatPoseHead, PoseHead
from pixio_lightning.errors import UserError, at_least_1, one_of
from pixio_lightning.models import DPT, Features, Pointwise, upsample

PosePool = Literal["mean", "flatten"]
# exp() of more overflows; of less, the gradient vanishes.
_MOST_LOGIT = 20.0
_PIXELS = 1 << 20  # decoded at once outside of training: about 2 GB of activations
_CHANNELS = 6  # three of the ray, depth, confidence, mask


@dataclass(frozen=True)
class Sizes:
    """How large the head is; the defaults are MapAnything's first version, as Pixio was measured.

    Attributes:
        dim: Width of the transformer over views.
        depth: Its blocks, alternately global and per view.
        heads: Its attention heads.
        taps: Two of its blocks that the maps read beside features and output.
        stages: Channels of the pyramid's levels, shallow to deep.
        features: Width of the pyramid's trunk.
        pose_pool: `mean` pools the pose over patches; `flatten` keeps their places, for small
            models with images of the one size `pose_grid`.
        pose_grid: Height and width in patches that `flatten` is built for.
    """

    dim: int = 768
    depth: int = 24
    heads: int = 12
    taps: tuple[int, int] = (11, 17)
    stages: tuple[int, int, int, int] = (96, 192, 384, 768)
    features: int = 256
    pose_pool: PosePool = "mean"
    pose_grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        one_of("model.sizes.pose_pool", self.pose_pool, get_args(PosePool))
        for name in ("dim", "depth", "heads", "features"):
            at_least_1(**{f"model.sizes.{name}": getattr(self, name)})
        at_least_1(**{"model.sizes.stages": min(self.stages)})
        if self.dim % self.heads:
            raise UserError(
                f"model.sizes.heads {self.heads} does not divide model.sizes.dim {self.dim}"
            )
        if len({*self.taps} & {*range(self.depth)}) < 2:
            raise UserError(
                f"model.sizes.taps is {list(self.taps)}, but expected two blocks of model.sizes."
                f"depth, 0 to {self.depth - 1}"
            )


class Prediction(NamedTuple):
    """What the head says of a set, in float32; lengths are up to `scale`.

    Attributes:
        rays: Unit directions of the pixels in their camera `(B, V, H, W, 3)`.
        distance: Along the ray `(B, V, H, W)`.
        confidence: At least 1 `(B, V, H, W)`.
        mask_logits: Of a pixel having a geometry, which the sky has not `(B, V, H, W)`.
        translation: Of the cameras `(B, V, 3)`.
        quaternion: Unit, scalar first `(B, V, 4)`.
        scale: Metres per unit of length `(B,)`.
    """

    rays: Tensor
    distance: Tensor
    confidence: Tensor
    mask_logits: Tensor
    translation: Tensor
    quaternion: Tensor
    scale: Tensor

    @property
    def camera_points(self) -> Tensor:
        """Points in the camera of their own view `(B, V, H, W, 3)`."""
        return self.rays * self.distance[..., None]

    def compose(self) -> Geometry:
        """Return points, depth, rays and poses in the frame of the reference view."""
        cam2world = pose_of(self.quaternion, self.translation)
        camera = self.camera_points
        points = moved(camera, cam2world)
        return Geometry(points, camera[..., 2], self.rays, cam2world, self.scale)


class MapDecoder(nn.Module):
    """From four maps to six channels of every pixel.

    Args:
        in_channels: Widths of the maps.
        sizes: Of the pyramid.
    """

    def __init__(self, in_channels: tuple[int, int, int, int], *, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.features
        self.trunk = DPT(in_channels, sizes.stages, features=width, double_and_crop=True)
        self.narrow = nn.Conv2d(width, width // 2, 3, padding=1)
        self.tail = nn.Sequential(
            nn.Conv2d(width // 2, width // 2, 3, padding=1),
            nn.ReLU(),
            Pointwise(width // 2, _CHANNELS),
        )

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Return `(M, 6, H, W)`."""
        return self.tail(upsample(self.narrow(self.trunk(maps)), size))


class ScaleHead(nn.Sequential):
    """From the scale token `(B, D)` to the logarithm of the metric scale `(B, 1)`.

    Args:
        dim: Width D of the token.
        width: Of the hidden layers.
    """

    def __init__(self, dim: int, *, width: int = 196) -> None:
        super().__init__(
            nn.Linear(dim, width),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )


class Reconstructor(nn.Module):
    """The head's trained module: fusion norm, attention over views, and three decoders.

    Known intrinsics, poses or depth would be embedded and added to the patches before the norm.

    Args:
        in_dim: Width C of the encoder's features.
        patch: Pixels P along a patch.
        sizes: How large it is.
        checkpointing: Recompute blocks and maps in the backward pass.
        views_per_chunk: Views whose maps are decoded at once; None for all while training, else for
            a million pixels.
    """

    def __init__(
        self,
        in_dim: int,
        patch: int,
        *,
        sizes: Sizes,
        checkpointing: bool = False,
        views_per_chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.checkpointing, self.views_per_chunk = checkpointing, views_per_chunk
        dim = sizes.dim
        self.norm = nn.LayerNorm(in_dim, eps=1e-6)
        # A vector, which weight decay leaves alone.
        self.scale_token = nn.Parameter(torch.zeros(in_dim))
        nn.init.trunc_normal_(self.scale_token, std=0.02)
        self.attention = AlternatingAttention(
            in_dim,
            dim=dim,
            depth=sizes.depth,
            heads=sizes.heads,
            taps=sizes.taps,
            checkpointing=checkpointing,
        )
        self.maps = MapDecoder((in_dim, dim, dim, dim), sizes=sizes)
        if sizes.pose_pool == "mean":
            self.pose: nn.Module = PoseHead(dim, 4 * patch * patch)
        else:
            if sizes.pose_grid is None:
                raise UserError("model.sizes.pose_pool flatten needs model.sizes.pose_grid, [h, w]")
            self.pose = FlatPoseHead(dim, sizes.pose_grid)
        self.scale = ScaleHead(dim)

    def forward(self, features: Features, views: int, size: tuple[int, int]) -> Prediction:
        """Reconstruct sets of `views` images of `size` from the features of `B * views` images."""
        patches = features.layers[-1].patches
        grid = tuple(patches.shape[-2:])
        batch = len(patches) // views
        tokens = patches.flatten(2).transpose(1, 2).unflatten(0, (batch, views))
        with torch.autocast(patches.device.type, enabled=False):
            fused = self.norm(tokens.float())
        scale_token = self.scale_token.expand(batch, -1)
        levels, token = self.attention(fused, scale_token)
        # float32 from here: the exponentials of bfloat16 come in steps of a percent.
        with torch.autocast(patches.device.type, enabled=False):
            maps = [
                level.float().transpose(-1, -2).unflatten(-1, grid) for level in (fused, *levels)
            ]
            dense = self._decoded([m.flatten(0, 1) for m in maps], size)
            pose = self.pose(maps[-1])
            scale = self.scale(token.float())[:, 0]
        dense = dense.unflatten(0, (batch, views))
        return activated(dense, pose, scale)

    def _decoded(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        chunk = self.views_per_chunk
        if chunk is None:
            chunk = len(maps[0]) if self.training else max(1, _PIXELS // (size[0] * size[1]))
        pieces = zip(*(m.split(chunk) for m in maps), strict=True)
        if self.checkpointing and self.training:
            decoded = [checkpoint(self.maps, list(p), size, use_reentrant=False) for p in pieces]
        else:
            decoded = [self.maps(list(piece), size) for piece in pieces]
        return torch.cat(decoded)


def activated(dense: Tensor, pose: Tensor, scale: Tensor) -> Prediction:
    """Turn outputs into geometry.

    Args:
        dense: `(B, V, 6, H, W)`: rays, log distance, log of confidence - 1, mask.
        pose: `(B, V, 7)`: translation, quaternion.
        scale: Logarithm of the metric scale `(B,)`.
    """
    ray, distance, confidence, mask = dense.split((3, 1, 1, 1), dim=2)

    def exp(x: Tensor) -> Tensor:
        return x.clamp(-_MOST_LOGIT, _MOST_LOGIT).exp()

    return Prediction(
        rays=unit(ray.movedim(2, -1)),
        distance=exp(distance[:, :, 0]),
        confidence=1 + exp(confidence[:, :, 0]),
        mask_logits=mask[:, :, 0],
        translation=pose[..., :3],
        quaternion=unit(pose[..., 3:]),
        scale=exp(scale).clamp_min(1e-8),
    )
