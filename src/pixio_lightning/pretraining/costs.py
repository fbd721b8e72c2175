"""What a step of pretraining costs: operations, memory, and days on so many devices.

Operations are counted while the real model runs on the meta device, so they follow whatever it
does. Memory is a sum of what is known to be kept; what a library takes beside that is not in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.mae_decoder import pixel_loss
from pixio_lightning.models.masking import count_blocks
from pixio_lightning.pretraining.distillation import Distillation
from pixio_lightning.pretraining.masked_pixels import PixelPretraining
from pixio_lightning.pretraining.token_loss import distillation_loss

# What the costs of are known.
Counted = PixelPretraining | Distillation

# Bytes that a pre-norm block keeps for its backward pass, for each token and channel: the inputs of
# both norms, and those of the products, the attention and the activation, 14 values in all. Under
# autocast the residual stream stays in float32 and the norms' outputs are kept as cast.
BLOCK_BYTES = {"32-true": 64, "bf16-mixed": 36, "16-mixed": 36}
# Weight, gradient and both moments of AdamW, in float32.
STATE_BYTES = 16
# Dense products of bfloat16, as the makers state them, and the share of it that a compiled step of
# so many images reached on an H200, which computes as an H100 does, by the width of the encoder
# (benchmarks/results/gpu_step.md). Of an encoder below the least width that says nothing.
PEAKS = {"H100": 989e12, "A100": 312e12}
UTILISATION = {768: 0.29, 1024: 0.32, 1280: 0.36}
FULL_BATCH = 256
LEAST_WIDTH = 384
MEMORY = 80 << 30  # bytes of either card, of the A100 in its larger form
# Photographs of 640x480 that a core decodes and crops in a second (benchmarks/results/speed.md).
LOADED = 688


class Costs(NamedTuple):
    """What one image costs in a training step.

    Attributes:
        encoder: Floating-point operations of forward and backward pass, two for a multiply-add;
            with those that checkpointing does a second time, without those of flash attention. Of
            distillation, of all students with their projectors.
        decoder: The same.
        activations: Bytes that the blocks keep for the backward pass.
        teacher: Operations of a teacher's forward pass.
    """

    encoder: float
    decoder: float
    activations: float
    teacher: float = 0.0

    @property
    def operations(self) -> float:
        """All of them."""
        return self.encoder + self.decoder + self.teacher


def costs_of(model: Counted, image_size: int, *, precision: str = "32-true") -> Costs:
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
    for backbone in filter(lambda module: isinstance(module, Backbone), model.modules()):
        backbone.compile_blocks = False
        backbone.load_empty()
    model.to("meta")
    with FlopCounterMode(display=False) as counted:
        if isinstance(model, PixelPretraining):
            result = model(images, key)
            loss = pixel_loss(result.prediction, result.target).mean()
        else:
            found = model(images, key).matches.values()
            losses = [distillation_loss(m, model.loss, model.weighting) for m in found]
            loss = torch.stack(losses).mean()
        loss.backward()
    model.zero_grad()
    total, kept = counted.get_total_flops(), activations(model, image_size, precision)
    by_module, name = counted.get_flop_counts(), type(model).__name__
    if isinstance(model, Distillation):
        teacher = sum(by_module[f"{name}.backbone"].values())
        return Costs(total - teacher, 0.0, kept, teacher)
    decoder = sum(by_module[f"{name}.decoder"].values())
    return Costs(total - decoder, decoder, kept)


def activations(model: Counted, image_size: int, precision: str) -> float:
    """Return the bytes that the blocks keep of one image for the backward pass."""
    side = image_size // model.backbone.stride
    if isinstance(model, Distillation):
        return sum(
            _kept([_encoder(s.backbone, side, s.mask_grid, s.mask_ratio)], s.backbone, precision)
            for s in model.students.values()
        )
    backbone, decoder = model.backbone, model.decoder_size
    tokens = backbone.n_cls_tokens + side**2
    parts = [
        _encoder(backbone, side, model.mask_grid, model.mask_ratio),
        (tokens * decoder.dim, decoder.depth),
    ]
    return _kept(parts, backbone, precision)


def _encoder(backbone: Backbone, side: int, block: int, ratio: float) -> tuple[int, int]:
    """Return the values in a block's input, and the number of blocks that run."""
    visible = count_blocks((side, side), block, ratio)[1] * block**2 if ratio else side**2
    return (backbone.vit.num_prefix_tokens + visible) * backbone.embed_dim, backbone.blocks_run


def _kept(parts: list[tuple[int, int]], backbone: Backbone, precision: str) -> float:
    """Return the bytes that blocks keep.

    With checkpointing, the inputs of all blocks and what one of them keeps while it runs again.
    """
    each = BLOCK_BYTES.get(precision, BLOCK_BYTES["32-true"])
    if backbone.checkpointing:
        return sum(4 * values * depth for values, depth in parts) + each * max(parts)[0]
    return sum(each * values * depth for values, depth in parts)


def plan(
    model: Counted,
    image_size: int,
    *,
    precision: str,
    batch: int,
    devices: int,
    steps: int,
    accumulate: int = 1,
    sharded: bool = False,
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
        sharded: Whether weights, gradients and AdamW are divided among the devices.
        on_gpu: Whether to say how long it takes, where the model is not far below those that were
            measured.
    """
    costs = costs_of(model, image_size, precision=precision)
    flops = costs.operations
    part, of_part = ("teacher", costs.teacher) if costs.teacher else ("decoder", costs.decoder)
    states = STATE_BYTES * _count(model)
    fixed = 4 * sum(p.numel() for p in model.parameters() if not p.requires_grad)
    states, what, less = states + fixed, "", "sharding divides the first, "
    if costs.teacher:
        what, less = "the teacher, ", ""
    facts = {
        "compute": f"{_digits(flops / 1e9)} GFLOP an image and step, "
        f"{of_part / flops:.0%} of it in the {part}",
        "memory": f"{_bytes(states)} for {what}weights, gradients and AdamW, "
        f"{_bytes(costs.activations)} "
        f"an image for the backward pass: {_bytes(states + batch * costs.activations)} with "
        f"{batch} on a device ({less}torch.compile makes less of the second)",
    }
    held = states / devices if sharded else states
    if on_gpu and held + batch * costs.activations > MEMORY:
        facts["memory"] += f"; a card has {_bytes(MEMORY)}: "
        if held <= MEMORY:
            facts["memory"] += (
                "take a smaller data.batch_size, and raise trainer.accumulate_grad_batches by as "
                "much"
            )
        elif costs.teacher:  # which is not sharded
            facts["memory"] += "no batch fits beside the first; give fewer or smaller students"
        else:
            least = int(states // MEMORY) + 1
            add = "" if sharded else "add -c with/fsdp, which divides it, and "
            facts["memory"] += f"no batch fits beside the first; {add}take at least {least} devices"
    width = model.backbone.embed_dim
    for name, peak in PEAKS.items() if on_gpu and width >= LEAST_WIDTH else ():
        share = utilisation(width)
        rate = share * peak / flops
        days = steps * batch * accumulate / rate / 86_400
        most = "at most " if batch < FULL_BATCH or width < min(UTILISATION) else ""
        unmeasured = "" if name == "H100" else " (not measured)"
        duration = f"{days:.1f} days on {devices}, and " if steps > 0 else ""
        facts[f"on an {name}"] = (
            f"{most}{rate:,.0f} img/s, compiled, at {share:.0%} "
            f"of {peak / 1e12:.0f} TFLOP/s in bf16{unmeasured}: "
            f"{duration}{rate / LOADED:.1f} cores a device to load JPEGs"
        )
    return facts


def utilisation(width: int) -> float:
    """Return the share of the peak that the encoder of the nearest width reached."""
    return UTILISATION[min(UTILISATION, key=lambda measured: abs(measured - width))]


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _digits(value: float) -> str:
    """Write a number with three digits or more, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
