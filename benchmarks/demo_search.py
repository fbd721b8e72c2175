"""The search for the strongest pretraining in the demo's time: what was tried, and what it gave.

    python benchmarks/demo_search.py [--only WORD] [--seeds 0 1]

Every variant is a change of `pretrain/demo_paper`, pretrained for about its CPU time, which is
recorded, and judged by ridge regression from its frozen features, on scenes of the split `test`,
which no demo prints. What was judged is not judged again: the same line goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import child_run
import pages
import torch
from scene_judge import judged, opened

from pixio_lightning import Backbone

RESULTS = Path(__file__).parent / "results"
LOG = RESULTS / "demo_search.jsonl"
RUNS = Path("runs/demo_search")

_ARGS = "--model.backbone.model_args."
_SINGLE = ("--model.mask_grid", "1")
_DECODER = "--model.decoder.depth"
_SHALLOW = (*_SINGLE, _DECODER, "1", "--trainer.max_steps", "3600")
VARIANTS: dict[str, list[str]] = {
    "demo_paper": [],
    "plain pixels": ["--model.norm_pix", "false"],
    "mask 50 %": ["--model.mask_ratio", "0.5", "--trainer.max_steps", "1900"],
    "mask 60 %": ["--model.mask_ratio", "0.625", "--trainer.max_steps", "2100"],
    "single patches": ["--model.mask_grid", "1"],
    "decoder of 1": [_DECODER, "1", "--trainer.max_steps", "3600"],
    "decoder of 2": [_DECODER, "2", "--trainer.max_steps", "2900"],
    "single patches, decoder of 1": [*_SHALLOW],
    "single patches, decoder of 2": [*_SINGLE, _DECODER, "2", "--trainer.max_steps", "2900"],
    "MAE's": [*_SHALLOW, _ARGS + "n_cls_tokens", "1", "--trainer.max_steps", "3900"],
    "shallow, learning rate 4e-3": [*_SHALLOW, "--model.optim.lr", "4e-3"],
    "shallow, learning rate 1e-3": [*_SHALLOW, "--model.optim.lr", "1e-3"],
    "shallow, plain pixels": [*_SHALLOW, "--model.norm_pix", "false"],
    "shallow, mask 87.5 %": [
        *(*_SHALLOW, "--model.mask_ratio", "0.875", "--trainer.max_steps", "4500"),
    ],
    "shallow, mask 60 %": [
        *(*_SHALLOW, "--model.mask_ratio", "0.625", "--trainer.max_steps", "3000"),
    ],
    "learning rate 1e-3": ["--model.optim.lr", "1e-3"],
    "learning rate 5e-3": ["--model.optim.lr", "5e-3"],
    "all places": ["--data.scenes", "{train: 2500, held_out: 300, views: 2, size: 64}"],
    "one view of 5000": ["--data.scenes.views", "1", "--data.scenes.train", "5000"],
    "encoder of 6 blocks": [_ARGS + "depth", "6", "--trainer.max_steps", "2000"],
    "encoder of 192": [
        *(_ARGS + "embed_dim", "192", _ARGS + "num_heads", "6", "--trainer.max_steps", "1700"),
    ],
    "encoder of 64": [
        *(_ARGS + "embed_dim", "64", _ARGS + "num_heads", "2", "--trainer.max_steps", "3600"),
    ],
    "patches of 4": [_ARGS + "patch_size", "4", "--trainer.max_steps", "600"],
    "batch 128": [
        *("--data.batch_size", "128", "--trainer.max_steps", "640", "--model.optim.lr", "4e-3"),
    ],
    "smaller crops": ["--data.crop_scale", "[0.25, 1.0]"],
    "weight decay 0.2": ["--model.optim.weight_decay", "0.2"],
    "four times as long": ["--trainer.max_steps", "9600"],
}


# --- runs -------------------------------------------------------------------------------------


def add(name: str, seed: int, seconds: float, backbone: Backbone | None) -> None:
    """Judge a variant and keep what was found."""
    entry: dict[str, Any] = {"variant": name, "seed": seed, "cpu_s": round(seconds)}
    entry |= judged(backbone)
    pages.keep(LOG, entry)
    print(json.dumps(entry), flush=True)


def missing(names: list[str], seeds: list[int]) -> Iterator[tuple[str, int]]:
    known = {(entry["variant"], entry["seed"]) for entry in pages.stored(LOG)}
    return ((name, seed) for seed in seeds for name in names if (name, seed) not in known)


def pretrain(name: str, seed: int) -> tuple[Path, float]:
    """Pretrain a variant; return its checkpoint and the CPU seconds that it took."""
    out = RUNS / f"{name.replace(' ', '_').replace('%', 'pct')}-{seed}"
    words = ["fit", "-c", "pretrain/demo_paper", "--panels.every_n_steps", "0"]
    words += ["--seed_everything", str(seed), "--data.seed", str(seed), "--model.seed", str(seed)]
    words += ["--trainer.num_sanity_val_steps", "0", "--data.num_workers", "0", *VARIANTS[name]]
    return out / "last.ckpt", child_run.run(words, out)


def page() -> None:
    """Write what was found as a table between the marks of the page, the best depth first."""
    groups = pages.grouped(pages.stored(LOG), "variant")
    told = [key for key in pages.stored(LOG)[0] if "," in key and "k-NN" not in key]
    table = ["| variant | " + " | ".join(told) + " | CPU, s | seeds |"]
    table.append("|---" * (len(told) + 3) + "|")
    for (name,), group in sorted(groups.items(), key=lambda item: -depth(item[1])):
        cells = [pages.said([entry[key] for entry in group]) for key in told]
        seconds = sum(entry["cpu_s"] for entry in group) / len(group)
        table.append(f"| {name} | " + " | ".join(cells) + f" | {seconds:.0f} | {len(group)} |")
    pages.fill(LOG.with_suffix(".md"), table)


def depth(group: list[dict[str, Any]]) -> float:
    return pages.mean_and_spread([entry["depth, studio"] for entry in group])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="variants whose names hold this word")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    for name, seed in missing(["pixels"], [0]):
        add(name, seed, 0, None)
    size: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 4}
    size |= {"num_heads": 4, "n_cls_tokens": 4, "pos_init": "sincos"}
    for name, seed in missing(["random-init"], [0, 1, 2]):
        add(name, seed, 0, opened(f"random:{seed}", size))
    names = [name for name in VARIANTS if wanted.only in name]
    for name, seed in missing(names, wanted.seeds):
        path, seconds = pretrain(name, seed)
        add(name, seed, seconds, opened(str(path)))
    page()


if __name__ == "__main__":
    main()
