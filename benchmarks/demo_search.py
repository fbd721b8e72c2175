"""The search for the strongest pretraining in the demo's time: what was tried, and what it gave.

    python benchmarks/demo_search.py [--only WORD] [--seeds 0 1]

Every variant is pretrained for about the CPU time of `pretrain/demo`, which is recorded beside it,
and judged by ridge regression from its frozen features, on scenes of the split `test`, which no
demo prints. What was judged is not judged again: the same line goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import child_run
import numpy as np
import torch
from torch import Tensor

from pixio_heads.attributes.samples import SceneAttributes
from pixio_lightning import Backbone
from pixio_lightning.data import Scenes, SceneSamples
from pixio_lightning.models import ridge

RESULTS = Path(__file__).parent / "results"
LOG = RESULTS / "demo_search.jsonl"
RUNS = Path("runs/demo_search")
SIDE, CLASSES = 8, 16
# Scenes of each world that maps are fitted to, and that they are judged on.
FITTED, JUDGED = 600, 300
WORLDS: dict[str, list[str] | None] = {"studio": ["studio"], "all": None}

_ARGS = "--model.backbone.model_args."
VARIANTS: dict[str, list[str]] = {
    "demo": [],
    "plain pixels": ["--model.norm_pix", "false"],
    "mask 50 %": ["--model.mask_ratio", "0.5", "--trainer.max_steps", "1900"],
    "mask 60 %": ["--model.mask_ratio", "0.625", "--trainer.max_steps", "2100"],
    "single patches": ["--model.mask_grid", "1"],
    "learning rate 1e-3": ["--model.optim.lr", "1e-3"],
    "learning rate 5e-3": ["--model.optim.lr", "5e-3"],
    "all places": ["--data.scenes", "{train: 2500, held_out: 300, views: 2, size: 64}"],
    "one view of 5000": ["--data.scenes.views", "1", "--data.scenes.train", "5000"],
    "decoder of 2 blocks": ["--model.decoder.depth", "2", "--trainer.max_steps", "2900"],
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


# --- judging ----------------------------------------------------------------------------------


@cache
def views(world: str, split: str) -> dict[str, Tensor]:
    """Return images `(N, 3, 64, 64)`, depth and classes of patches, and attributes `(N, D)`."""
    places = WORLDS[world]
    size = {"train": FITTED, "held_out": JUDGED, "views": 1, "size": 64}
    scenes = Scenes(**size, places=tuple(places) if places else None)
    samples = SceneSamples(split, scenes, ("image", "depth", "valid", "class_id"))
    loaded = [samples.load(i) for i in range(len(samples))]
    known = SceneAttributes(split, scenes)
    rows = [known.load(i)["target"] for i in range(len(known))]
    found = {name: torch.from_numpy(np.stack([one[name] for one in loaded])) for name in loaded[0]}
    depth, valid = in_patches(found["depth"]), in_patches(found["valid"])
    depth = torch.where(valid, depth, depth.new_tensor(80.0)).clamp_min(0.1)  # the sky is far
    one_hot = torch.nn.functional.one_hot(in_patches(found["class_id"]).long(), CLASSES)
    return {
        "images": found["image"].permute(0, 3, 1, 2).contiguous(),
        "depth": depth.log().mean(dim=-1, keepdim=True),  # (N, 64, 1)
        "classes": one_hot.float().mean(dim=-2),  # (N, 64, 16)
        "attributes": torch.from_numpy(np.stack(rows)),
    }


def in_patches(maps: Tensor) -> Tensor:
    """Cut maps `(N, 64, 64)` into 64 patches of 64 pixels, `(N, 64, 64)`."""
    n, side = len(maps), maps.shape[1] // SIDE
    parts = maps.reshape(n, SIDE, side, SIDE, side).transpose(2, 3)
    return parts.reshape(n, SIDE * SIDE, side * side)


def grey(images: Tensor) -> Tensor:
    """Take the colours away."""
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True).round().to(torch.uint8).expand_as(images)


@torch.no_grad()
def read(backbone: Backbone | None, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return features of patches `(N, 64, C)` and of images `(N, D)`; of none, their pixels."""
    if backbone is None:
        side = images.shape[-1] // SIDE
        pixels = torch.nn.functional.pixel_unshuffle(images.float(), side)  # (N, 3 side^2, 8, 8)
        return pixels.flatten(2).transpose(1, 2), images.float().mean(dim=(2, 3))
    dense, whole = [], []
    for chunk in images.split(64):
        features = backbone(chunk)
        maps = [features.dense(i) for i in range(len(features.layers))]
        at = torch.cat(maps, dim=1)
        dense.append(torch.nn.functional.adaptive_avg_pool2d(at, SIDE).flatten(2).transpose(1, 2))
        whole.append(features.pooled)
    return torch.cat(dense), torch.cat(whole)


def explained(fit: tuple[Tensor, Tensor], judge: tuple[Tensor, Tensor]) -> Tensor:
    """Return the share of variance of each number that a linear map explains, `(D,)`."""
    found = ridge(*fit)
    left = judge[0] @ found.weight + found.bias - judge[1]
    return 1 - left.square().sum(dim=0) / (judge[1] - fit[1].mean(dim=0)).square().sum(dim=0)


def judged(backbone: Backbone | None) -> dict[str, float]:
    """Judge frozen features in every world, in colour and in grey."""
    found = {}
    here = torch.eye(SIDE * SIDE)  # the position is free for all
    for world in WORLDS:
        for name, change in (("", lambda x: x), (", grey", grey)):
            sets = []
            for split in ("train", "test"):
                known = views(world, split)
                patches, whole = read(backbone, change(known["images"]))
                patches = torch.cat([patches, here.expand(len(patches), -1, -1)], dim=2)
                sets.append((known, patches.flatten(0, 1), whole))
            (fit, x, a), (judge, y, b) = sets

            def flat(known: dict[str, Tensor], key: str) -> Tensor:
                return known[key].flatten(0, 1)

            depth = explained((x, flat(fit, "depth")), (y, flat(judge, "depth")))
            found[f"depth, {world}{name}"] = float(depth)
            own, truth = ridge(x, flat(fit, "classes")), flat(judge, "classes")
            right = (y @ own.weight + own.bias).argmax(dim=1) == truth.argmax(dim=1)
            found[f"classes, {world}{name}"] = float(right.float().mean())
            told = explained((a, fit["attributes"]), (b, judge["attributes"]))
            found[f"attributes, {world}{name}"] = float(told.mean())
    return found


# --- runs -------------------------------------------------------------------------------------


def done() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []


def add(entry: dict[str, Any]) -> None:
    with LOG.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry), flush=True)


def missing(names: list[str], seeds: list[int]) -> Iterator[tuple[str, int]]:
    known = {(entry["variant"], entry["seed"]) for entry in done()}
    return ((name, seed) for seed in seeds for name in names if (name, seed) not in known)


def pretrain(name: str, seed: int) -> tuple[Path, float]:
    """Pretrain a variant; return its checkpoint and the CPU seconds that it took."""
    out = RUNS / f"{name.replace(' ', '_').replace('%', 'pct')}-{seed}"
    words = ["fit", "-c", "pretrain/demo", "--panels.every_n_steps", "0"]
    words += ["--seed_everything", str(seed), "--data.seed", str(seed), "--model.seed", str(seed)]
    words += ["--trainer.num_sanity_val_steps", "0", "--data.num_workers", "0", *VARIANTS[name]]
    return out / "last.ckpt", child_run.run(words, out)


def opened(weights: str, args: dict[str, Any] | None = None) -> Backbone:
    name = "pixio_vitt16" if args else None
    backbone = Backbone(name, weights=weights, layers="quarters", model_args=args or {})
    backbone.load()
    return backbone.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="variants whose names hold this word")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    for name, seed in missing(["pixels"], [0]):
        add({"variant": name, "seed": seed, "cpu_s": 0, **judged(None)})
    size = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
    size |= {"n_cls_tokens": 4, "pos_init": "sincos"}
    for name, seed in missing(["random-init"], [0, 1, 2]):
        add({"variant": name, "seed": seed, "cpu_s": 0, **judged(opened(f"random:{seed}", size))})
    names = [name for name in VARIANTS if wanted.only in name]
    for name, seed in missing(names, wanted.seeds):
        path, seconds = pretrain(name, seed)
        add({"variant": name, "seed": seed, "cpu_s": round(seconds), **judged(opened(str(path)))})


if __name__ == "__main__":
    main()
