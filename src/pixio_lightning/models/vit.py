"""The Pixio encoder as timm models.

A plain pre-norm Vision Transformer (arXiv 2512.15715, table 10): a strided convolution embeds the
patches, several class tokens stand first, and positions are learned for both. It is timm's own
`VisionTransformer` with two parameters widened, so the released weights load strictly under their
own key names, and everything that works on a timm ViT works here.

Shapes: B batch, K class tokens, N = h*w patches, D embedding width.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pixio_lightning.models.blocks import Attention


class Size(NamedTuple):
    """Width, depth and attention heads of one member of the family."""

    embed_dim: int
    depth: int
    num_heads: int


SIZES: dict[str, Size] = {
    "pixio_vitt16": Size(192, 12, 3),
    "pixio_vits16": Size(384, 12, 6),
    "pixio_vitb16": Size(768, 12, 12),
    "pixio_vitl16": Size(1024, 24, 16),
    "pixio_vith16": Size(1280, 32, 16),
    "pixio_vit1b16": Size(1536, 48, 24),
    "pixio_vit5b16": Size(3072, 48, 32),
}

PosInit = Literal["trunc_normal", "sincos"]


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Return the two-dimensional sine-cosine position embedding.

    Half of the channels encode the row, half the column, each with wavelengths from 2 pi to
    10000 * 2 pi (Vaswani et al., 2017, section 3.5).

    Returns:
        float32 of shape `(1, h*w, dim)`.

    Raises:
        ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width that 4 divides, got {dim}")
    frequency = 10000.0 ** -(torch.arange(dim // 4, device="cpu", dtype=torch.float64) * 4 / dim)
    axes = [torch.arange(n, device="cpu", dtype=torch.float64) for n in grid]
    row, column = (x.flatten()[:, None] * frequency for x in torch.meshgrid(*axes, indexing="ij"))
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1).float()[None]


def resize_positions(
    pos_embed: Tensor,
    *,
    n_prefix: int,
    old: tuple[int, int],
    new: tuple[int, int],
    offset: float = 0.0,
) -> Tensor:
    """Interpolate the patch part of a position embedding; the prefix part stays as it is.

    Bicubic, half-pixel centres, no antialiasing: the released encoders were trained and are
    evaluated with exactly this form.

    Args:
        pos_embed: `(1, n_prefix + old_h*old_w, D)`.
        n_prefix: Tokens that stand before the patches.
        old: Grid of `pos_embed`.
        new: Grid wanted.
        offset: Added to the sides of `new` where the scale is computed.

    Returns:
        `(1, n_prefix + new_h*new_w, D)`.
    """
    if tuple(old) == tuple(new):
        return pos_embed
    prefix, patches = pos_embed[:, :n_prefix], pos_embed[:, n_prefix:]
    grid = patches.reshape(1, *old, -1).permute(0, 3, 1, 2)
    # Interpolated in float32 whatever the parameter is kept in: bicubic weights lose in bfloat16.
    how: dict[str, Any] = {"size": new}
    if offset:
        how = {"scale_factor": [(n + offset) / o for n, o in zip(new, old, strict=True)]}
    grid = F.interpolate(grid.float(), **how, mode="bicubic", align_corners=False)
    return torch.cat([prefix, grid.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)


# Families whose own code resizes positions otherwise than timm, by the name of a model with its
# tag: without antialiasing, and with so much added to the grid (`offset` of `resize_positions`).
_OFFSETS = {
    r"_patch\d+_dinov2(\.|$)": 0.1,  # `interpolate_offset`; those with registers do as timm does
    r"\.dino$": 0.1,
    r"\.mae$": 0.0,
}


def published_positions(name: str, vit: Any, grid: tuple[int, int]) -> Tensor | None:
    """Return the positions of patches `(1, h*w, D)` as the models of a family are evaluated with.

    Args:
        name: Of the model, with its tag.
        vit: The model.
        grid: Height and width in patches.

    Returns:
        None where that is as timm does it.
    """
    offsets = [offset for pattern, offset in _OFFSETS.items() if re.search(pattern, name)]
    if not offsets or vit.pos_embed is None or vit.no_embed_class:
        return None
    n_prefix, old = vit.num_prefix_tokens, tuple(vit.patch_embed.grid_size)
    resized = resize_positions(
        vit.pos_embed, n_prefix=n_prefix, old=old, new=grid, offset=offsets[0]
    )
    return resized[:, n_prefix:]


def init_linear(module: nn.Module) -> None:
    """Initialise one module as Pixio does: xavier-uniform weights, zero biases, unit norms.

    The patch convolution's own bias is as PyTorch draws it, U(+-1 / sqrt(values in a patch)).
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        kernel = module.weight.view(module.weight.shape[0], -1)
        nn.init.xavier_uniform_(kernel)
        if module.bias is not None:
            bound = kernel.shape[1] ** -0.5
            nn.init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


# Of timm's arguments those that would change nothing: tokens and positions are made here.
_NOT_READ = (
    *("class_token", "reg_tokens", "no_embed_class", "pos_embed", "pos_drop_rate"),
    *("patch_drop_rate", "global_pool", "dynamic_img_pad"),
)


class PixioViT(VisionTransformer):
    """Vision Transformer with several class tokens that have positions of their own.

    Args:
        n_cls_tokens: Class tokens K; 8 in the released family, 1 in MAE.
        pos_init: Start of the patch positions. `trunc_normal` is the paper's; `sincos` gives small
            runs, and random-initialisation baselines, the position for free.
        kwargs: timm's `VisionTransformer` arguments (`img_size`, `patch_size`, `in_chans`,
            `embed_dim`, `depth`, `num_heads`, ...).

    Raises:
        ValueError: `n_cls_tokens` is below 1 or `pos_init` is unknown.
    """

    def __init__(
        self, *, n_cls_tokens: int = 8, pos_init: PosInit = "trunc_normal", **kwargs: Any
    ) -> None:
        if n_cls_tokens < 1:
            raise ValueError(f"n_cls_tokens must be 1 or more, got {n_cls_tokens}")
        if pos_init not in ("trunc_normal", "sincos"):
            raise ValueError(f"pos_init must be 'trunc_normal' or 'sincos', got {pos_init!r}")
        for name in _NOT_READ:
            if name in kwargs:
                raise ValueError(f"{name} is no setting of Pixio's encoder")
        kwargs.pop("dynamic_img_size", True)  # it always is
        kwargs = {"num_classes": 0, "img_size": 256, "attn_layer": Attention} | kwargs
        super().__init__(weight_init="skip", dynamic_img_size=True, **kwargs)
        self.num_prefix_tokens = n_cls_tokens
        device = self.patch_embed.proj.weight.device
        n_tokens = n_cls_tokens + self.patch_embed.num_patches
        self.cls_token = nn.Parameter(torch.empty(1, n_cls_tokens, self.embed_dim, device=device))
        self.pos_embed = nn.Parameter(torch.empty(1, n_tokens, self.embed_dim, device=device))
        self.pos_init = pos_init
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as the paper does; see `init_linear` and `pos_init`."""
        self.apply(init_linear)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.pos_init == "sincos" and not self.pos_embed.is_meta:
            patches = sincos_positions(self.patch_embed.grid_size, self.embed_dim)
            self.pos_embed[:, self.num_prefix_tokens :] = patches.to(self.pos_embed)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Put the class tokens first and add the positions: `(B, h, w, D)` to `(B, K+h*w, D)`."""
        batch, height, width, _ = x.shape
        positions = resize_positions(
            self.pos_embed,
            n_prefix=self.num_prefix_tokens,
            old=self.patch_embed.grid_size,
            new=(height, width),
        )
        return torch.cat([self.cls_token.expand(batch, -1, -1), x.flatten(1, 2)], 1) + positions


default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, 256, 256),
            "num_classes": 0,
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for name in SIZES
    }
)


def _register(name: str, size: Size) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> PixioViT:
        arguments = {"patch_size": 16, **size._asdict(), **kwargs}
        return build_model_with_cfg(PixioViT, name, pretrained, **arguments)

    build.__name__ = name
    build.__doc__ = f"Build {name}: width {size.embed_dim}, {size.depth} blocks."
    register_model(build)


for _name, _size in SIZES.items():
    _register(_name, _size)
