"""From the last maps of a set's views to their poses.

Shapes: B sets, V views, D width of the maps, h x w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixio_lightning.errors import UserError
from pixio_lightning.models import Pointwise


class PoseHead(nn.Module):
    """From the last map of a view to its translation and quaternion.

    Args:
        dim: Width D of the map.
        width: Channels, four times the pixels of a patch.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.widen = Pointwise(dim, width)
        self.units = nn.ModuleList(
            nn.Sequential(
                *(layer for _ in range(3) for layer in (Pointwise(width, width), nn.ReLU()))
            )
            for _ in range(2)
        )
        self.mix = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.translation = nn.Linear(width, 3)
        self.quaternion = nn.Linear(width, 4)

    def forward(self, maps: Tensor) -> Tensor:
        """Return `(B, V, 7)`, translation before quaternion, of maps `(B, V, D, h, w)`."""
        x = self.widen(maps.flatten(0, 1))
        for residual in self.units:
            x = x + residual(x)
        x = self.mix(x.mean(dim=(2, 3)))
        pose = torch.cat([self.translation(x), self.quaternion(x)], dim=-1)
        return pose.unflatten(0, maps.shape[:2])


class FlatPoseHead(nn.Module):
    """From the maps of the reference and of a view to the view's pose, without pooling.

    A small model cannot turn the means of a map into a rotation; it can read it from where things
    are in two maps, at one size of image.

    Args:
        dim: Width D of the maps.
        grid: Their height and width.
        channels: Of a patch, once narrowed.
        width: Of the hidden layers.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], *, channels: int = 24, width: int = 128
    ) -> None:
        super().__init__()
        self.grid = grid
        self.narrow = Pointwise(dim, channels)
        self.mix = nn.Sequential(
            nn.Linear(2 * channels * grid[0] * grid[1], width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.pose = nn.Linear(width, 7)
        with torch.no_grad():
            # No rotation, and so short that a small step turns it: from a random or a long
            # quaternion, rotations are learnt late or never.
            self.pose.bias[3:] = torch.tensor([0.1, 0.0, 0.0, 0.0])

    def forward(self, maps: Tensor) -> Tensor:
        """Return `(B, V, 7)`, translation before quaternion, of maps `(B, V, D, h, w)`.

        Raises:
            UserError: The maps have another size than it was built for.
        """
        if tuple(maps.shape[-2:]) != self.grid:
            raise UserError(
                f"model.sizes.pose_pool flatten is built for {self.grid[0]}x{self.grid[1]} "
                f"patches, and these images have {maps.shape[-2]}x{maps.shape[-1]}: use one size, "
                "or pose_pool: mean"
            )
        own = self.narrow(maps.flatten(0, 1)).unflatten(0, maps.shape[:2]).flatten(2)
        return self.pose(self.mix(torch.cat([own[:, :1].expand_as(own), own], dim=-1)))
