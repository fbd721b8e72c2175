"""Transformer blocks, the unit in which a model is compiled and sharded."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

# Graphs of one block: encoder, decoder and head, in training and in evaluation, for each size of
# image and batch. A block runs as it is, uncompiled, for the shapes beyond.
_GRAPHS = 64


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
