"""Cost of a training step of masked pixel pretraining, ours beside other libraries'.

Every form trains the same sizes on the same random images: forward, backward, optimiser. They take
turns, one step each, in every round, so that a machine that slows down slows all of them; a ratio
is the median over rounds of another form's time over ours. On the CPU the time is the process's
CPU time, on one thread unless told otherwise; on a GPU, the time between two events.

Every other form is as its authors' own example has it, in float32 and with their optimiser. Each is
divided by ours of equal work: lightly's by Pixio with eight class tokens, the MAE forms, which have
one, by PixelPretraining with one (stable-pretraining's decoder does without even that).

"default" is what a run that names no precision takes: bfloat16 under autocast where the device has
units for its products. "not fused" is ours with the optimiser that the other forms have.

Run: python benchmarks/pretrain_step.py [--sizes NAME ...] [--seconds S] [--out FILE]
Forms whose library is not there (benchmarks/peers.txt) are left out and named; compiled ones are
measured with --compile, after a minute or two of compiling each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pixio_lightning import Backbone, PixelPretraining, __version__
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.mae_decoder import DecoderSize, pixel_loss
from pixio_lightning.training.precision import fastest_precision

Step = Callable[[], Tensor]  # one step; returns its loss, for which nothing has to wait


class Size(NamedTuple):
    """Images, encoder and decoder of one comparison."""

    image: int
    patch: int
    width: int
    depth: int
    heads: int
    decoder: DecoderSize
    block: int  # side of a mask block in patches
    batch: int


SIZES = {
    "demo": Size(64, 8, 128, 4, 4, DecoderSize(64, 4, 4), 2, 32),
    "tiny": Size(256, 16, 192, 12, 3, DecoderSize(512, 4, 16), 4, 4),
    "base": Size(256, 16, 768, 12, 12, DecoderSize(512, 8, 16), 4, 4),
}
CLS = 8  # class tokens of Pixio
_LEAST_ROUNDS = 3


def images_of(size: Size, device: str) -> Tensor:
    """Return random images, uint8 `(B, 3, H, W)`."""
    shape = (size.batch, 3, size.image, size.image)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)


def step_of(
    model: nn.Module, loss_of: Callable[[], Tensor], *, fused: bool, half: bool, device: str
) -> Step:
    """Return a training step: forward, backward, AdamW."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=fused or None)

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = loss_of()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach()

    return step


def ours(
    size: Size,
    device: str,
    *,
    cls: int = CLS,
    half: bool = False,
    fused: bool = True,
    compiled: bool = False,
) -> Step:
    """PixelPretraining; it takes uint8 and normalises on the device."""
    args = {"img_size": size.image, "patch_size": size.patch, "embed_dim": size.width}
    args |= {"depth": size.depth, "num_heads": size.heads, "n_cls_tokens": cls}
    backbone = Backbone(
        "pixio_vitt16", weights="random", tune="full", compile=compiled, model_args=args
    )
    model = PixelPretraining(backbone, mask_grid=size.block, decoder=size.decoder)
    model.configure_model()
    model.to(device)
    images, keys = images_of(size, device), torch.arange(size.batch, device=device)

    def loss_of() -> Tensor:
        result = model(images, RandomKey(keys, 0, 0))
        return pixel_loss(result.prediction, result.target).mean()

    return step_of(model, loss_of, fused=fused, half=half, device=device)


def timm_vit(size: Size, **more: Any) -> VisionTransformer:
    """timm's Vision Transformer of a size, as other libraries take it."""
    return VisionTransformer(
        img_size=size.image,
        patch_size=size.patch,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=0,
        **more,
    )


def compile_lists(model: nn.Module) -> None:
    """Compile the blocks of a model one by one, as ours are."""
    for child in model.modules():
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and len(child) >= 4:
            for block in child:
                block.compile(dynamic=False)


def lightly(size: Size, device: str, *, half: bool = False, compiled: bool = False) -> Step:
    """The Pixio of lightly's examples (its masks, its encoder and decoder)."""
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerTIMM, PixioDecoderTIMM

    vit = timm_vit(size, reg_tokens=CLS - 1)
    encoder = MaskedVisionTransformerTIMM(vit=vit)
    decoder = PixioDecoderTIMM(
        num_patches=vit.patch_embed.num_patches,
        patch_size=size.patch,
        embed_dim=size.width,
        decoder_embed_dim=size.decoder.dim,
        decoder_depth=size.decoder.depth,
        decoder_num_heads=size.decoder.heads,
        num_prefix_tokens=CLS,
    )
    images = images_of(size, device).float() / 255
    model = nn.ModuleList([encoder, decoder]).to(device)
    if compiled:
        compile_lists(model)
    tokens = (size.batch, encoder.sequence_length)

    def loss_of() -> Tensor:
        keep, hide = utils.random_grid_token_mask(
            tokens, 0.75, size.block, num_prefix_tokens=CLS, device=device
        )
        embedded = decoder.embed(encoder.encode(images=images, idx_keep=keep))
        x = utils.repeat_token(decoder.mask_token, tokens)
        x = decoder.decode(utils.set_at_index(x, keep, embedded.type_as(x)))
        prediction = decoder.predict(utils.get_at_index(x, hide))
        target = utils.get_at_index(utils.patchify(images, size.patch), hide - CLS)
        return nn.functional.mse_loss(prediction, utils.normalize_mean_var(target))

    return step_of(model, loss_of, fused=False, half=half, device=device)


def transformers(size: Size, device: str, *, half: bool = False, compiled: bool = False) -> Step:
    """ViTMAE of transformers."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        image_size=size.image,
        patch_size=size.patch,
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        decoder_hidden_size=size.decoder.dim,
        decoder_num_hidden_layers=size.decoder.depth,
        decoder_num_attention_heads=size.decoder.heads,
        decoder_intermediate_size=4 * size.decoder.dim,
        norm_pix_loss=True,
    )
    model = ViTMAEForPreTraining(config).to(device).train()
    if compiled:
        compile_lists(model)
    images = images_of(size, device).float() / 255
    return step_of(
        model, lambda: model(pixel_values=images).loss, fused=False, half=half, device=device
    )


def stable_pretraining(size: Size, device: str) -> Step:
    """MAE of stable-pretraining, with block masks."""
    from stable_pretraining.methods.mae import MAE

    model = MAE(
        timm_vit(size),
        decoder_embed_dim=size.decoder.dim,
        decoder_depth=size.decoder.depth,
        decoder_num_heads=size.decoder.heads,
        block_size=size.block,
    ).to(device)
    model.train()
    images = images_of(size, device).float() / 255
    return step_of(model, lambda: model(images).loss, fused=False, half=False, device=device)


ONE = "ours, one class token"
Form = tuple[Callable[[Size, str], Step], str]  # how it is built, and the form it is divided by


def forms(device: str, *, compiled: bool) -> dict[str, Form]:
    """Return all forms of a step by name."""
    half = fastest_precision(device) == "bf16-mixed"
    found: dict[str, Form] = {
        "ours": (ours, "ours"),
        "ours, not fused": (partial(ours, fused=False), "ours"),
        "ours, default": (partial(ours, half=half), "ours"),
        "lightly Pixio": (lightly, "ours"),
        ONE: (partial(ours, cls=1), ONE),
        f"{ONE}, default": (partial(ours, cls=1, half=half), ONE),
        "transformers ViTMAE": (transformers, ONE),
        "stable-pretraining MAE": (stable_pretraining, ONE),
    }
    if compiled:
        found["ours, compiled"] = partial(ours, compiled=True), "ours"
        found["ours, default, compiled"] = partial(ours, half=half, compiled=True), "ours"
    return found


def seconds(step: Step, device: str) -> float:
    """Return what one step takes, in seconds."""
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def compare(
    name: str, device: str, *, rounds: int, seconds_in_all: float, compiled: bool = False
) -> dict[str, Any]:
    """Measure all forms at one size, in so many rounds, or in three where time is up before."""
    torch.manual_seed(0)
    steps, missing, found = {}, {}, forms(device, compiled=compiled)
    for form, (build, _) in found.items():
        try:
            steps[form] = build(SIZES[name], device)
        except ImportError as error:
            missing[form] = str(error)
    for step in steps.values():
        for _ in range(2):
            step()
    times: dict[str, list[float]] = {form: [] for form in steps}
    begin = time.perf_counter()
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and time.perf_counter() - begin > seconds_in_all:
            rounds = number
            break
        for form, step in steps.items():
            times[form].append(seconds(step, device))
    result = {}
    for form, taken in times.items():
        own = found[form][1]
        ratios = sorted(a / b for a, b in zip(taken, times[own], strict=True))
        low, _, high = quantiles(ratios, n=4)
        result[form] = {
            "milliseconds": 1e3 * median(taken),
            "of": own,
            "ratio": median(ratios),
            "quartiles": [low, high],
        }
    about = {"size": SIZES[name]._asdict(), "rounds": rounds}
    return about | {"forms": result, "not installed": missing}


def main() -> None:
    """Print a table for each size, and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--rounds", type=int, default=25, help="of a size, at most, 2 or more")
    parser.add_argument("--seconds", type=float, default=30, help="and about how long they take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="measure compiled forms as well")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = {"version": __version__, "torch": torch.__version__, "device": options.device}
    for name in options.sizes:
        figures[name] = compare(
            name,
            options.device,
            rounds=options.rounds,
            seconds_in_all=options.seconds,
            compiled=options.compile,
        )
        size, rounds = SIZES[name], figures[name]["rounds"]
        print(
            f"\n{name}: encoder {size.width} x {size.depth}, decoder {size.decoder.dim} x "
            f"{size.decoder.depth}, {size.image} px, batch {size.batch}, {rounds} rounds\n\n"
            "| form | a step | of | ratio (quartiles) |\n|---|---|---|---|"
        )
        for form, row in figures[name]["forms"].items():
            low, high = row["quartiles"]
            print(
                f"| {form} | {row['milliseconds']:.1f} ms | {row['of']} "
                f"| {row['ratio']:.2f} ({low:.2f} to {high:.2f}) |"
            )
        for form, reason in figures[name]["not installed"].items():
            print(f"| {form} | not installed: {reason} | | |")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
