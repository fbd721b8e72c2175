"""The decoder of masked pretraining and its loss.

The decoder sees the encoder's class and visible tokens plus one mask token per hidden patch, each
with its own learned position, and predicts the pixels of the hidden patches only.

Shapes: B batch, K class tokens, N patches, n visible, m hidden, P patch side in pixels,
C encoder width, D decoder width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixio_lightning.errors import UserError, at_least, at_least_1, one_of
from pixio_lightning.models.blocks import Attention
from pixio_lightning.models.masking import gather_tokens
from pixio_lightning.models.vit import PosInit, init_linear, resize_positions, sincos_positions


@dataclass(frozen=True)
class DecoderSize:
    """Shape of the decoder.

    Attributes:
        dim: Width; 512 in the paper.
        depth: Blocks; 32 in the paper, 8 in MAE.
        heads: Attention heads; 16 in both.
        pos_init: Start of the positions, as in the encoder.
    """

    dim: int = 512
    depth: int = 32
    heads: int = 16
    pos_init: PosInit = "trunc_normal"

    def __post_init__(self) -> None:
        one_of("decoder.pos_init", self.pos_init, get_args(PosInit))
        at_least_1(**{"decoder.dim": self.dim, "decoder.heads": self.heads})
        at_least(0, **{"decoder.depth": self.depth})
        if self.dim % self.heads:
            raise UserError(f"decoder.heads {self.heads} does not divide decoder.dim {self.dim}")


class MaeDecoder(nn.Module):
    """A Vision Transformer from encoder tokens to the pixels of hidden patches.

    Args:
        encoder_dim: Width C of the encoder's tokens.
        patch_values: Values in a patch, P*P*3.
        n_cls_tokens: Class tokens K; they pass through the decoder.
        grid: Grid of patches the positions are learned on.
        size: Width, depth and heads.
        checkpointing: Recompute the blocks in the backward pass instead of storing them.
    """

    def __init__(
        self,
        encoder_dim: int,
        patch_values: int,
        *,
        n_cls_tokens: int,
        grid: tuple[int, int],
        size: DecoderSize,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.n_cls_tokens, self.grid, self.checkpointing = n_cls_tokens, grid, checkpointing
        n_patches = grid[0] * grid[1]
        self.embed = nn.Linear(encoder_dim, size.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, size.dim))
        self.pos_embed = nn.Parameter(torch.empty(1, n_cls_tokens + n_patches, size.dim))
        self.blocks = nn.ModuleList(
            Block(size.dim, size.heads, qkv_bias=True, attn_layer=Attention)
            for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.dim, eps=1e-6)
        self.pred = nn.Linear(size.dim, patch_values)
        self.init_weights(size.pos_init)

    @torch.no_grad()
    def init_weights(self, pos_init: str) -> None:
        """Initialise as the paper does; see `init_linear`."""
        self.apply(init_linear)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if pos_init == "sincos":
            positions = sincos_positions(self.grid, self.pos_embed.shape[-1])
            self.pos_embed[:, self.n_cls_tokens :] = positions

    def forward(self, tokens: Tensor, keep: Tensor, hide: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predict the hidden patches.

        The order of a transformer's input is free once positions are added, so the hidden tokens
        are simply put last and nothing has to be scattered back.

        Args:
            tokens: `(B, K + n, C)`, the encoder's normed tokens.
            keep: int64 `(B, n)`, which patches they are.
            hide: int64 `(B, m)`, the patches to predict.
            grid: Height and width of the image in patches.

        Returns:
            `(B, m, P*P*3)`.
        """
        k = self.n_cls_tokens
        positions = resize_positions(self.pos_embed, n_prefix=k, old=self.grid, new=grid)
        patch_positions = positions[:, k:].expand(len(tokens), -1, -1)
        x = self.embed(tokens)
        x = torch.cat(
            [
                x[:, :k] + positions[:, :k],
                x[:, k:] + gather_tokens(patch_positions, keep),
                self.mask_token + gather_tokens(patch_positions, hide),
            ],
            dim=1,
        )
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.pred(self.norm(x[:, -hide.shape[1] :]))


def normalize_patches(patches: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Give every patch mean 0 and variance 1 (unbiased; He et al., 2022, section 3).

    Returns:
        The normalised patches `(B, N, V)`, their means and standard deviations `(B, N, 1)`.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    std = (patches.var(dim=-1, keepdim=True) + eps).sqrt()
    return (patches - mean) / std, mean, std


def pixel_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each sample: `(B, m, V)` twice to float32 `(B,)`."""
    return (prediction.float() - target.float()).square().mean(dim=(1, 2))
