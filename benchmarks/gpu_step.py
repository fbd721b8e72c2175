"""A step of pretraining at the paper's sizes on one GPU: speed, share of the peak, memory.

    python benchmarks/gpu_step.py [--sizes base large huge] [--batch 128] [--out FILE.json]

Every form trains the paper's encoder and its decoder of 32 blocks on the same random images of
256 pixels, in bfloat16 under autocast. The other libraries' are built as in pretrain_step.py;
"compiled" are those whose blocks are compiled one by one. The share of the peak is that of the
operations which torch counts in a step of the form, two for a multiply-add, without any of a
recomputation; ours are the plan's of `pixio check`, whose memory stands beside what was taken.

The first form is timed a second time at the end: how far both differ is the noise.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pretrain_step import Size, Step, lightly, ours, transformers
from torch.utils.flop_counter import FlopCounterMode

from pixio_lightning import Backbone, PixelPretraining, __version__
from pixio_lightning.models.mae_decoder import DecoderSize
from pixio_lightning.pretraining.costs import STATE_BYTES, costs_of

DECODER = DecoderSize(512, 32, 16)
WIDTHS = {"base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}
PEAK = 989e12  # dense bfloat16 of H100 and H200, as their maker states it
FORMS: dict[str, Callable[..., Step]] = {
    "ours": ours,
    "ours, compiled": partial(ours, compiled=True),
    "ours, one class token": partial(ours, cls=1),
    "lightly Pixio": lightly,
    "lightly Pixio, compiled": partial(lightly, compiled=True),
    "transformers ViTMAE": transformers,
    "transformers ViTMAE, compiled": partial(transformers, compiled=True),
}


def size_of(name: str, batch: int) -> Size:
    return Size(256, 16, *WIDTHS[name], DECODER, 4, batch)


def planned(size: Size) -> dict[str, float]:
    """Return what `pixio check` says of our form: operations of a step, and bytes."""
    args = {"img_size": size.image, "embed_dim": size.width, "depth": size.depth}
    args |= {"num_heads": size.heads, "n_cls_tokens": 8}
    backbone = Backbone("pixio_vitt16", weights="random", tune="full", model_args=args)
    model = PixelPretraining(backbone, mask_grid=size.block, decoder=size.decoder)
    with torch.device("meta"):
        model.configure_model()
    costs = costs_of(model, size.image, precision="bf16-mixed")
    parameters = sum(p.numel() for p in model.parameters())
    state = parameters * STATE_BYTES
    return {
        "operations": costs.operations * size.batch,
        "bytes": state + costs.activations * size.batch,
        "parameters": parameters,
    }


def timed(step: Step, *, steps: int, rounds: int) -> list[float]:
    """Return the seconds of a step, in each round of several that nothing waits between."""
    found = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(steps):
            step()
        end.record()
        end.synchronize()
        found.append(float(begin.elapsed_time(end)) / 1e3 / steps)
    return found


def measure(build: Callable[..., Step], size: Size, *, steps: int, rounds: int) -> dict[str, Any]:
    """Build a form, warm it up, and measure it."""
    gc.collect()
    torch.cuda.empty_cache()
    start = time.perf_counter()
    step = build(size, "cuda", half=True)
    loss = [float(step()) for _ in range(3)]
    ready = time.perf_counter() - start
    torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, steps=steps, rounds=rounds)
    return {
        "seconds": median(seconds),
        "range": [min(seconds), max(seconds)],
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "ready_s": ready,
        "losses": loss,
    }


@cache
def operations(form: str, size: Size) -> float:
    """Count the operations of a form's step, of one image, and return those of the batch."""
    step = FORMS[form](size._replace(batch=1), "cuda", half=True)
    with FlopCounterMode(display=False) as counted:
        step()
    return float(counted.get_total_flops()) * size.batch


def rows(
    name: str, batch: int, forms: list[str], *, steps: int, rounds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure forms at one size, and yield each as it is done."""
    size = size_of(name, batch)
    plan = planned(size)
    seen: set[str] = set()
    for form in [*forms, forms[0]]:
        try:
            row = measure(FORMS[form], size, steps=steps, rounds=rounds)
        except ImportError as error:
            print(f"{form}: not installed ({error})")
            continue
        except torch.OutOfMemoryError:
            print(f"{form}: out of memory at a batch of {batch}")
            continue
        pixio = form in ("ours", "ours, compiled")
        row["operations"] = (
            plan["operations"] if pixio else operations(form.removesuffix(", compiled"), size)
        )
        row["mfu"] = row["operations"] / row["seconds"] / PEAK
        row["images_per_s"] = batch / row["seconds"]
        if pixio:
            row["planned_bytes"] = plan["bytes"]
        label = f"{form}, again" if form in seen else form
        seen.add(form)
        low, high = row["range"]
        print(
            f"| {name} | {batch} | {label} | {1e3 * row['seconds']:.1f} ({1e3 * low:.1f} to "
            f"{1e3 * high:.1f}) | {row['images_per_s']:.0f} | {row['mfu']:.1%} | "
            f"{row['peak_bytes'] / 2**30:.1f} | {row['ready_s']:.0f} |",
            flush=True,
        )
        yield label, row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    torch.manual_seed(0)
    about = {"version": __version__, "torch": torch.__version__}
    about["device"] = torch.cuda.get_device_name()
    result: dict[str, Any] = {**about, "peak": PEAK, "rows": {}}
    print(f"{about}\n\n| size | batch | form | ms a step | img/s | of the peak | GiB | ready s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in wanted.sizes:
        for batch in wanted.batch:
            measured = result["rows"].setdefault(f"{name}, batch {batch}", {})
            for form, row in rows(
                name, batch, wanted.forms, steps=wanted.steps, rounds=wanted.rounds
            ):
                measured[form] = row
                if wanted.out:
                    wanted.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
