"""Block masks: which patches the encoder sees and which the decoder reconstructs; embedding them.

The grid of patches is cut into aligned blocks of g x g patches and whole blocks are hidden
(arXiv 2512.15715, section 3.2); g = 1 is MAE's random masking.

Shapes: B batch, N = h*w patches, n visible patches, m = N - n hidden ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pixio_lightning.errors import UserError


class Mask(NamedTuple):
    """Indices into the row-major grid of patches, each row in ascending order.

    Attributes:
        keep: int64 `(B, n)`, the visible patches.
        hide: int64 `(B, m)`, the hidden ones.
    """

    keep: Tensor
    hide: Tensor


def count_blocks(
    grid: tuple[int, int], block: int, ratio: float, *, key: str = "model.mask_ratio"
) -> tuple[int, int]:
    """Return how many blocks the grid has and how many of them stay visible.

    Args:
        grid: Height and width in patches.
        block: Side of a block in patches.
        ratio: Share of the blocks to hide.
        key: What a mistake is blamed on.

    Raises:
        UserError: The block does not divide the grid, or nothing or everything would be hidden.
    """
    height, width = grid
    if block < 1 or height % block or width % block:
        divisors = [str(g) for g in range(1, min(grid) + 1) if height % g == width % g == 0]
        raise UserError(
            f"model.mask_grid {block} does not divide the {height} x {width} grid of patches; "
            f"use one of {', '.join(divisors)}"
        )
    total = (height // block) * (width // block)
    # The small term undoes floating point: 10 * (1 - 0.9) is 0.9999999999999998.
    visible = int(total * (1 - ratio) + 1e-6)
    if not 0 < visible < total:
        raise UserError(
            f"{key} {ratio} keeps {visible} of {total} blocks of {block} x {block} "
            "patches; at least one must stay visible and one be hidden"
        )
    return total, visible


def block_mask(noise: Tensor, *, grid: tuple[int, int], block: int, ratio: float) -> Mask:
    """Hide the blocks with the largest noise.

    Args:
        noise: `(B, n_blocks)`, one number per block, see `count_blocks`.
        grid: Height and width of the image in patches.
        block: Side g of a block in patches.
        ratio: Share of blocks to hide; ``int(n_blocks * (1 - ratio))`` stay visible.

    Returns:
        The mask; every sample keeps the same number of patches.
    """
    height, width = grid
    total, visible = count_blocks(grid, block, ratio)
    if noise.shape[1] != total:
        raise ValueError(f"noise must be (B, {total}) for this grid, got {tuple(noise.shape)}")
    patches = torch.arange(height * width, device=noise.device).view(height, width)
    blocks = patches.view(height // block, block, width // block, block)
    blocks = blocks.transpose(1, 2).reshape(total, block * block)
    order = noise.argsort(dim=1)
    keep, hide = order[:, :visible], order[:, visible:]
    return Mask(
        blocks[keep].flatten(1).sort(dim=1).values, blocks[hide].flatten(1).sort(dim=1).values
    )


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick `index (B, n)` out of `tokens (B, N, D)`: returns `(B, n, D)`."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images into flat patches.

    Args:
        images: `(B, C, h*P, w*P)`.
        patch: Side P of a patch in pixels.

    Returns:
        `(B, h*w, P*P*C)`; inside a patch the order is (row, column, channel).
    """
    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Undo `patchify`: `(B, h*w, P*P*C)` to `(B, C, h*P, w*P)`."""
    x = patches.reshape(len(patches), *grid, patch, patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, grid[0] * patch, grid[1] * patch)


def embed(
    vit: Any,
    images: Tensor,
    grid: tuple[int, int],
    keep: Tensor | None,
    *,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Embed all patches or the kept ones, prefix tokens first, with their positions.

    Args:
        vit: Any of timm's Vision Transformers.
        images: Normalised `(B, C, h*P, w*P)`.
        grid: Height and width in patches.
        keep: int64 `(B, n)`, the patches to embed; None embeds all.
        positions: Of all patches `(1, N, D)`; None takes those of timm.

    Returns:
        Tokens `(B, prefix + n, D)`, and rotary positions, if the model has any.
    """
    # Embedding an empty image gives prefix tokens and positions of any timm ViT, because
    # every family only concatenates the first and adds the second. Two images, as the gradient
    # of prefix tokens of one is a view into that of all tokens, and DDP tells of its strides.
    embedded, rope = vit._pos_embed(images.new_zeros(2, *grid, vit.embed_dim)), None
    if isinstance(embedded, tuple):
        embedded, rope = embedded
    prefix, timms = embedded[:1].tensor_split([vit.num_prefix_tokens], dim=1)
    positions = timms if positions is None else positions
    if keep is None:
        patches = vit.patch_embed(images).flatten(1, 2) + positions
    else:
        convolution = vit.patch_embed.proj
        visible = gather_tokens(patchify(images, convolution.kernel_size[0]), keep)
        kernel = convolution.weight.permute(0, 2, 3, 1).flatten(1)
        patches = vit.patch_embed.norm(F.linear(visible, kernel, convolution.bias))
        patches = patches + gather_tokens(positions.expand(images.shape[0], -1, -1), keep)
        if rope is not None:
            rope = rope[keep][:, None]
    prefix = prefix.expand(images.shape[0], -1, -1)
    return vit.norm_pre(torch.cat([prefix, patches], dim=1)), rope
