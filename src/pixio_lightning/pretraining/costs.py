"""What a step of masked pretraining costs: operations, memory, and days on so many devices.

Operations are counted while the real model runs on the meta device, so they follow whatever it
does. Memory is a sum of what is known to be kept; what a library takes beside that is not in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.mae_decoder import pixel_loss
from pixio_lightning.models.masking import count_blocks
from pixio_lightning.pretraining.masked_pixels import PixelPretraining

# Bytes that a pre-norm block keeps for its backward pass, for each token and channel: the inputs of
# both norms, and those of the products, the attention and the activation, 14 values in all. Under
# autocast the residual stream stays in float32 and the norms' outputs are kept as cast.
BLOCK_BYTES = {"32-true": 64, "bf16-mixed": 36, "16-mixed": 36}
# Weight, gradient and both moments of AdamW, in float32.
STATE_BYTES = 16
# Dense products of bfloat16, as the makers state them, and the share of it that a good run reaches.
PEAKS = {"H100": 989e12, "A100": 312e12}
UTILISATION = 0.4
# Images that a core decodes and crops in a second, see docs/scale.md.
LOADED = 950


class Costs(NamedTuple):
    """What one image costs in a training step.

    Attributes:
        encoder: Floating-point operations of forward and backward pass, two for a multiply-add;
            with those that checkpointing does a second time, without those of flash attention.
        decoder: The same.
        activations: Bytes that the blocks keep for the backward pass.
    """

    encoder: float
    decoder: float
    activations: float


def costs_of(model: PixelPretraining, image_size: int, *, precision: str = "32-true") -> Costs:
    """Count what a model costs.

    Args:
        model: With its decoder built; its values are given up.
        image_size: Side of the images in pixels.
        precision: The trainer's.
    """
    in_chans = model.backbone.vit.patch_embed.proj.in_channels
    shape = (1, in_chans, image_size, image_size)
    images = torch.empty(shape, dtype=torch.uint8, device="meta")
    key = RandomKey(torch.empty(1, dtype=torch.int64, device="meta"), 0, 0)
    model.backbone.compile_blocks = False
    model.backbone.load_empty()
    model.to("meta")
    with FlopCounterMode(display=False) as counted:
        result = model(images, key)
        pixel_loss(result.prediction, result.target).mean().backward()
    decoder = sum(counted.get_flop_counts()[f"{type(model).__name__}.decoder"].values())
    model.zero_grad()
    return Costs(
        counted.get_total_flops() - decoder, decoder, activations(model, image_size, precision)
    )


def activations(model: PixelPretraining, image_size: int, precision: str) -> float:
    """Return the bytes that the blocks keep of one image for the backward pass.

    With checkpointing, the inputs of all blocks and what one of them keeps while it runs again.
    """
    backbone, decoder = model.backbone, model.decoder_size
    side = image_size // backbone.stride
    _, visible = count_blocks((side, side), model.mask_grid, model.mask_ratio)
    encoder_tokens = backbone.vit.num_prefix_tokens + visible * model.mask_grid**2
    decoder_tokens = backbone.n_cls_tokens + side**2
    each = BLOCK_BYTES.get(precision, BLOCK_BYTES["32-true"])
    parts = (
        (encoder_tokens * backbone.embed_dim, backbone.depth),
        (decoder_tokens * decoder.dim, decoder.depth),
    )
    if backbone.checkpointing:
        return sum(4 * values * depth for values, depth in parts) + each * max(parts)[0]
    return sum(each * values * depth for values, depth in parts)


def plan(
    model: PixelPretraining,
    image_size: int,
    *,
    precision: str,
    batch: int,
    devices: int,
    steps: int,
    accumulate: int = 1,
    on_gpu: bool = True,
) -> dict[str, str]:
    """Say what a run costs, by name.

    Args:
        model: As in `costs_of`.
        image_size: Side of the images in pixels.
        precision: The trainer's.
        batch: Images that a device has at once.
        devices: How many there are.
        steps: Optimiser steps of the run; -1 is no end.
        accumulate: Batches of a step.
        on_gpu: Whether to say how long it takes.
    """
    costs = costs_of(model, image_size, precision=precision)
    flops = costs.encoder + costs.decoder
    states = STATE_BYTES * _count(model)
    facts = {
        "compute": f"{_digits(flops / 1e9)} GFLOP an image and step, "
        f"{costs.decoder / flops:.0%} of it in the decoder",
        "memory": f"{_bytes(states)} for weights, gradients and AdamW, {_bytes(costs.activations)} "
        f"an image for the backward pass: {_bytes(states + batch * costs.activations)} with "
        f"{batch} on a device (sharding divides the first, torch.compile makes less of the second)",
    }
    for name, peak in PEAKS.items() if on_gpu else ():
        rate = UTILISATION * peak / flops
        days = steps * batch * accumulate / rate / 86_400
        duration = f"{days:.1f} days on {devices}, and " if steps > 0 else ""
        facts[f"on an {name}"] = (
            f"{rate:,.0f} img/s at {UTILISATION:.0%} of {peak / 1e12:.0f} TFLOP/s in bf16: "
            f"{duration}{rate / LOADED:.1f} cores a device to load JPEGs"
        )
    return facts


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _digits(value: float) -> str:
    """Write a number with three digits or more, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
