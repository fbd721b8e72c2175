"""Attention that alternates between all views of a set and each view alone.

Shapes: B sets, V views, N patches of a view, C width of the encoder, D of this transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixio_lightning.models import Attention


def reference_embedding(dim: int) -> Tensor:
    """Return what marks the reference view: a sinusoid at position 0, ``(0, 1, 0, 1, ...)``."""
    return torch.arange(dim).remainder(2).float()


class AlternatingAttention(nn.Module):
    """A transformer over the patches of a set, global at even blocks and per view at odd ones.

    There are no positions: the encoder's features know theirs, and views but the first have no
    order. One norm serves the output and what is tapped on the way.

    Args:
        in_dim: Width C of the features.
        dim: Width D.
        depth: Number of blocks.
        heads: Attention heads.
        taps: Blocks whose output is returned beside the last one's.
        checkpointing: Recompute blocks in the backward pass.
    """

    reference: Tensor

    def __init__(
        self,
        in_dim: int,
        *,
        dim: int,
        depth: int,
        heads: int,
        taps: Sequence[int],
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.taps, self.checkpointing = tuple(taps), checkpointing
        self.project = nn.Linear(in_dim, dim) if in_dim != dim else nn.Identity()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(
            Block(dim, heads, qkv_bias=True, norm_layer=norm, attn_layer=Attention)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("reference", reference_embedding(dim), persistent=False)
        self.apply(_init)

    def forward(self, patches: Tensor, scale_token: Tensor) -> tuple[list[Tensor], Tensor]:
        """Mix the views of every set.

        Args:
            patches: `(B, V, N, C)`; view 0 is the reference.
            scale_token: `(B, C)`.

        Returns:
            The tapped maps of patches and the last one, each `(B, V, N, D)`, and the scale token
            `(B, D)`.
        """
        batch, views, count, _ = patches.shape
        x = self.project(patches)
        x = torch.cat([x[:, :1] + self.reference.to(x.dtype), x[:, 1:]], dim=1)
        token = self.project(scale_token)[:, None]
        tapped = []
        for number, block in enumerate(self.blocks):
            if number % 2 == 0:
                both = self._run(block, torch.cat([x.flatten(1, 2), token], dim=1))
                x, token = both[:, :-1].unflatten(1, (views, count)), both[:, -1:]
            else:
                x = self._run(block, x.flatten(0, 1)).unflatten(0, (batch, views))
            if number in self.taps:
                tapped.append(self.norm(x))
        return [*tapped, self.norm(x)], self.norm(token)[:, 0]

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
