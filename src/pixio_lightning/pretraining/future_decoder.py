"""The decoder of future prediction: hidden patches of a frame ask the tokens of earlier ones.

Cross-attention to the past, then self-attention, as SiamMAE's decoder (arXiv 2305.14344, section
3); time is told in seconds, because videos have different rates.

Shapes: B batch, K past frames, T class tokens, N patches, n visible, m hidden, P patch side,
C encoder width, D decoder width.
"""

from __future__ import annotations

import math

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixio_lightning.models.blocks import Attention, attend
from pixio_lightning.models.mae_decoder import DecoderSize
from pixio_lightning.models.masking import gather_tokens
from pixio_lightning.models.vit import init_linear, resize_positions, sincos_positions

# Periods of the sines that tell time, each twice the one before: to half a minute.
_SHORTEST, _PERIODS = 0.25, 8


class CrossAttention(nn.Module):
    """Queries `(B, Q, D)` attend to a memory `(B, M, D)`.

    Args:
        dim: Width D.
        heads: Attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = (
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(dim, dim),
        )

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Return `(B, Q, D)`."""
        q = self.q(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class FutureBlock(nn.Module):
    """Pre-norm: attention to the memory, attention among the queries, and an MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.cross = CrossAttention(dim, heads)
        self.attn = Attention(dim, heads, qkv_bias=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Update queries `(B, Q, D)`; the memory stays as it is."""
        x = x + self.cross(self.norm1(x), memory)
        x = x + self.attn(self.norm2(x))
        return x + self.mlp(self.norm3(x))


class FutureDecoder(nn.Module):
    """A transformer from the tokens of past frames to the hidden pixels of a future one.

    Args:
        encoder_dim: Width C of the encoder's tokens.
        patch_values: Values in a patch, P*P*3.
        n_cls_tokens: Class tokens T; may be 0.
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
        n_tokens = n_cls_tokens + grid[0] * grid[1]
        self.embed = nn.Linear(encoder_dim, size.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, size.dim))
        self.past = nn.Parameter(torch.empty(1, 1, size.dim))
        self.pos_embed = nn.Parameter(torch.empty(1, n_tokens, size.dim))
        self.query_time = nn.Linear(2 * _PERIODS, size.dim)
        self.memory_time = nn.Linear(2 * _PERIODS, size.dim)
        self.memory_norm = nn.LayerNorm(size.dim, eps=1e-6)
        self.blocks = nn.ModuleList(FutureBlock(size.dim, size.heads) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.dim, eps=1e-6)
        self.pred = nn.Linear(size.dim, patch_values)
        self.init_weights(size.pos_init)

    @torch.no_grad()
    def init_weights(self, pos_init: str) -> None:
        """Initialise as the decoder of masked pretraining; see `init_linear`."""
        self.apply(init_linear)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.past, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if pos_init == "sincos":
            positions = sincos_positions(self.grid, self.pos_embed.shape[-1])
            self.pos_embed[:, self.n_cls_tokens :] = positions

    def forward(
        self,
        past: Tensor,
        future: Tensor | None,
        gap: Tensor,
        *,
        keep: Tensor,
        hide: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """Predict the hidden patches of the future frame.

        Args:
            past: `(B, K, T + N, C)`, the encoder's normed tokens of the past frames.
            future: `(B, T + n, C)`, those of the visible part of the future; None where all of it
                is hidden.
            gap: float `(B, K)`, seconds from each past frame to the future one, falling.
            keep: int64 `(B, n)`, which patches of the future are visible.
            hide: int64 `(B, m)`, the patches to predict.
            grid: Height and width of a frame in patches.

        Returns:
            `(B, m, P*P*3)`.
        """
        k = self.n_cls_tokens
        positions = resize_positions(self.pos_embed, n_prefix=k, old=self.grid, new=grid)
        patch_positions = positions[:, k:].expand(len(past), -1, -1)
        since_last = gap - gap[:, -1:]
        offset = self.memory_time(time_features(since_last)).to(past.dtype)[:, :, None]
        memory = self.embed(past) + positions[:, None] + self.past + offset
        memory = self.memory_norm(memory.flatten(1, 2))
        queries = [self.mask_token + gather_tokens(patch_positions, hide)]
        if future is not None:
            seen = self.embed(future)
            places = gather_tokens(patch_positions, keep)
            queries = [seen[:, :k] + positions[:, :k], seen[:, k:] + places, *queries]
        x = torch.cat(queries, dim=1) + self.query_time(time_features(gap[:, -1:]))
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, memory, use_reentrant=False)
            else:
                x = block(x, memory)
        return self.pred(self.norm(x[:, -hide.shape[1] :]))


def time_features(seconds: Tensor) -> Tensor:
    """Return sines and cosines of times `(B, K)`, of periods from 0.25 to 32 s: `(B, K, 16)`."""
    periods = _SHORTEST * 2.0 ** torch.arange(_PERIODS, device=seconds.device)
    angle = 2 * math.pi * seconds.float()[..., None] / periods
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
