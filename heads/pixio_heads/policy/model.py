"""The policy network: what it reads of a picture, how a history is joined, and an MLP.

Shapes: M images, B samples of V frames, C width of a token, D width of what is read of an image,
P numbers of proprioception, A parts of an action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixio_lightning.errors import UserError
from pixio_lightning.models import Features, Pointwise, SyncedBatchNorm2d

Token = Literal["cls", "first_cls", "patches", "keypoints", "attention"]
Fusion = Literal["flare", "concat", "last"]
Observe = Literal["backbone", "blind", "conv"]

_KEYPOINTS = 32


class KeyPoints(nn.Module):
    """Where in an image each of K maps is strongest: spatial soft-max (Finn et al., 2016).

    Every map is normalised over the image before. Tokens of one image differ by little, and by how
    much depends on the backbone: without it all points would begin in the middle, closer together
    than the statistics of a batch norm behind them can follow.

    Args:
        channels: Of the maps that are read.
        count: Maps K that a 1x1 convolution makes of them.
        sharpness: Deviation of a map at the start, in nats.
    """

    def __init__(self, channels: int, count: int = _KEYPOINTS, sharpness: float = 3.0) -> None:
        super().__init__()
        self.maps = Pointwise(channels, count, bias=False)
        self.sharpness = nn.Parameter(torch.full((count, 1, 1), sharpness))
        self.width = 2 * count

    def forward(self, x: Tensor) -> Tensor:
        """Return the expected positions, `(M, 2K)` in [-1, 1], of maps `(M, C, h, w)`."""
        if x[0, 0].numel() < 2:
            raise UserError(
                "model.token keypoints says where in an image something is, but it is one patch: "
                "set data.image_size higher"
            )
        maps = F.instance_norm(self.maps(x).float()) * self.sharpness
        height, width = maps.shape[-2:]
        share = maps.flatten(2).softmax(dim=-1).view_as(maps)
        at_y = torch.linspace(-1, 1, height, device=x.device)
        at_x = torch.linspace(-1, 1, width, device=x.device)
        # Not as products of matrices, which autocast would round.
        y, x = (share.sum(dim=3) * at_y).sum(dim=2), (share.sum(dim=2) * at_x).sum(dim=2)
        return torch.cat([y, x], dim=1)


class Reader(nn.Module):
    """One vector of the features of an image.

    Args:
        channels: Width C of a token.
        token: The mean class token, the first one, the mean patch, key points, or what one learned
            query attends to among the patches.
    """

    def __init__(self, channels: int, token: Token) -> None:
        super().__init__()
        self.token, self.width = token, channels
        if token == "keypoints":
            self.points = KeyPoints(channels)
            self.width = self.points.width
        if token == "attention":
            heads = max(h for h in (1, 2, 4, 8) if channels % h == 0)
            self.query = nn.Parameter(torch.randn(1, 1, channels) * 0.02)
            self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, features: Features) -> Tensor:
        """Return `(M, D)`."""
        layer = features.layers[-1]
        if self.token == "cls":
            return layer.cls.mean(dim=1)
        if self.token == "first_cls":
            return layer.cls[:, 0]
        if self.token == "patches":
            return layer.patches.mean(dim=(2, 3))
        if self.token == "keypoints":
            return self.points(layer.patches)
        patches = layer.patches.flatten(2).transpose(1, 2)
        query = self.query.expand(len(patches), -1, -1).to(patches.dtype)
        return self.attention(query, patches, patches, need_weights=False)[0][:, 0]


class ConvReader(nn.Module):
    """The same from pixels, without a backbone: three convolutions, then key points."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, width)):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.points = KeyPoints(width)
        self.width = self.points.width

    def forward(self, images: Tensor) -> Tensor:
        """Return `(M, D)` of uint8 images `(M, 3, H, W)`."""
        return self.points(self.layers(images.float() / 127.5 - 1))


def fused(vectors: Tensor, fusion: Fusion) -> Tensor:
    """Join the vectors of a history.

    Args:
        vectors: `(B, V, D)`, the last one now.
        fusion: `flare`: how each differs from the one before, and the last (Shang et al., 2021);
            `concat`: all of them; `last`: the last alone.

    Returns:
        `(B, V * D)`, or `(B, D)`.
    """
    if fusion == "last":
        return vectors[:, -1]
    if fusion == "flare":
        vectors = torch.cat([vectors[:, 1:] - vectors[:, :-1], vectors[:, -1:]], dim=1)
    return vectors.flatten(1)


def check_inputs(batch: Mapping[str, Any], *, history: int, proprio: int) -> None:
    """Refuse a batch without the frames and the numbers that a policy reads.

    Args:
        batch: With `image` `(B, V, 3, H, W)`, or `features`, and `proprio` `(B, P)`.
        history: Frames V that are read; 0 for none.
        proprio: Numbers P that are read; 0 for none.

    Raises:
        UserError: They are not there.
    """
    needed, wrong = [], False
    if history:
        needed.append(f"`image` (B, {history}, 3, H, W)")
        shape: tuple[int, ...] = batch["image"].shape if "image" in batch else ()
        views = shape[1] if len(shape) == 5 else len(shape) // 4  # 1 of pictures, 0 of none
        wrong = "features" not in batch and views != history
    if proprio:
        needed.append(f"`proprio` (B, {proprio})")
        wrong |= "proprio" not in batch or tuple(batch["proprio"].shape[1:]) != (proprio,)
    if wrong:
        raise UserError(
            f"this policy was given other inputs than it reads: expected {' and '.join(needed)}, "
            "so give predict a dict of them (docs/policy_data.md)"
        )


class PolicyNet(nn.Module):
    """From a history of frames and the robot's own state to an action.

    Args:
        channels: Width C of a token.
        history: Frames V.
        proprio: Numbers P of proprioception that are read; 0 for none.
        actions: Parts A of an action.
        observe: What is looked at: the backbone's features, nothing, or the pixels.
        token: What is read of the features.
        fusion: How a history is joined.
        hidden: Width of the hidden layers.
        depth: Hidden layers.
        batch_norm: Whether the input is normalised by its batch.
    """

    def __init__(
        self,
        channels: int,
        *,
        history: int,
        proprio: int,
        actions: int,
        observe: Observe,
        token: Token,
        fusion: Fusion,
        hidden: int,
        depth: int,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.observe, self.fusion, self.history = observe, fusion, history
        self.proprio = proprio
        self.reader: Reader | ConvReader | None = None
        width = 0
        if observe != "blind":
            reader: Reader | ConvReader
            reader = ConvReader() if observe == "conv" else Reader(channels, token)
            width = reader.width * (1 if fusion == "last" else history)
            self.reader = reader
        width += proprio
        self.norm = SyncedBatchNorm2d(width) if batch_norm else nn.Identity()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, actions))
        with torch.no_grad():  # the first actions are small, whatever is seen
            for parameter in self.layers[-1].parameters():
                parameter.mul_(0.01)

    def read(self, features: Features, images: Tensor | None) -> Tensor | None:
        """Return a vector for each image, `(M, D)`; None for a policy that does not look."""
        if self.reader is None:
            return None
        return self.reader(images if self.observe == "conv" else features).float()

    def act(self, vectors: Tensor | None, proprio: Tensor | None) -> Tensor:
        """Return actions `(B, A)`, float32.

        Args:
            vectors: What is read of the history, `(B, V, D)`; None for a policy that does not look.
            proprio: `(B, P)`; not read where P is 0.
        """
        parts = [] if vectors is None else [fused(vectors, self.fusion)]
        if self.proprio:
            assert proprio is not None
            parts.append(proprio.float())
        x = self.norm(torch.cat(parts, dim=1)[..., None, None]).flatten(1)
        return self.layers(x).float()

    def forward(self, features: Features, images: Tensor | None, proprio: Tensor | None) -> Tensor:
        """Return actions `(B, A)`, float32.

        Args:
            features: Of `B * V` images.
            images: uint8 `(B * V, 3, H, W)`, for a policy that reads pixels.
            proprio: `(B, P)`; not read where P is 0.
        """
        vectors = self.read(features, images)
        if vectors is not None:
            vectors = vectors.unflatten(0, (-1, self.history))
        return self.act(vectors, proprio)
