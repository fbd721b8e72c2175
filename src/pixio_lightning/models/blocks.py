"""Transformer blocks, the unit in which a model is compiled and sharded, and their attention."""

from __future__ import annotations

from collections.abc import Iterable

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Graphs of one block: encoder, decoder and head, in training and in evaluation, for each size of
# image and batch. A block runs as it is, uncompiled, for the shapes beyond.
_GRAPHS = 64


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Return scaled dot-product attention, `(B, H, Q, C)` of keys and values `(B, H, M, C)`.

    A processor computes it in float32 where it is in half precision and gradients are needed:
    torch's backward kernel for bfloat16 on the CPU is up to nine times slower than the one for
    float32. With 68 tokens of 16 values in a head it takes two thirds of a training step.
    Of a frozen backbone none are needed.
    """
    halved = q.device.type == "cpu" and v.dtype in (torch.bfloat16, torch.float16)
    if not (halved and torch.is_grad_enabled() and v.requires_grad):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    with torch.autocast("cpu", enabled=False):
        attended = F.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), dropout_p=dropout
        )
    return attended.to(v.dtype)


class Attention(timm.layers.Attention):
    """timm's self-attention, of which a processor computes gradients by `attend`."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend over the tokens: `(B, N, D)` to the same."""
        plain = attn_mask is None and not is_causal and self.gate is None
        halved = x.dtype == torch.float32 and torch.is_autocast_enabled("cpu")
        halved = halved or x.dtype in (torch.bfloat16, torch.float16)
        if not (plain and halved and x.device.type == "cpu" and torch.is_grad_enabled()):
            return super().forward(x, attn_mask, is_causal)
        heads = (3, self.num_heads, self.head_dim)
        values = self.qkv(x).unflatten(-1, heads).permute(2, 0, 3, 1, 4)
        q, k, v = self.q_norm(values[0]), self.k_norm(values[1]), values[2]
        dropout = self.attn_drop.p if self.training else 0.0
        attended = attend(q, k, v, dropout).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(attended)))


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of a backbone or decoder, outermost `blocks` lists only."""
    return [
        block
        for name, child in module.named_modules()
        if name.split(".")[-1] == "blocks" and isinstance(child, (nn.ModuleList, nn.Sequential))
        for block in child
    ]


def compile_blocks(blocks: Iterable[nn.Module], *, backend: str = "inductor") -> None:
    """Compile blocks in place, each shape on its own.

    All blocks of one class share a cache, so that a depth of 48 is compiled once. Left to itself,
    torch takes the second number of tokens it meets, the decoder's, for a sign that the number
    changes, and compiles for any number, which is slower.
    """
    config = torch.compiler.config
    config.recompile_limit = max(config.recompile_limit, _GRAPHS)
    for block in blocks:
        block.compile(dynamic=False, backend=backend)
