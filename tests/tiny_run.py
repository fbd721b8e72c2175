"""A tiny pretraining run through the command line, on a few painted pictures."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from pixio_lightning.cli import main as cli

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 1}


def write_recipe(folder: Path) -> Path:
    """Paint twenty pictures, of which two are held out, and write a recipe that trains on them."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for i in range(20):
        noise = np.random.default_rng(i).integers(-20, 20, (40, 40, 3))
        pixels = (np.array((9 * i, 128, 255 - 9 * i)) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.png")
    backbone = {"name": "pixio_vitt16", "weights": "random", "tune": "full", "model_args": VIT}
    model = {
        "backbone": backbone,
        "mask_grid": 2,
        "decoder": {"dim": 16, "depth": 1, "heads": 1},
        "optim": {"lr": 1e-3, "warmup": 1},
    }
    data = {"source": "folder", "path": str(photos), "image_size": 32, "batch_size": 4}
    recipe = {
        "model": {"class_path": "PixelPretraining", "init_args": model},
        "data": {
            "class_path": "Pixels",
            "init_args": data | {"num_workers": 0, "steps_per_epoch": 4},
        },
        "trainer": {
            "max_steps": 8,
            "precision": "32-true",  # the same on every processor
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "logger": False,
            "num_sanity_val_steps": 0,
        },
        "checkpoint": {"every_n_steps": 1},
        "panels": {"every_n_steps": 0},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def fit(recipe: Path, out: Path, *words: object) -> int:
    """Train and return the exit code."""
    return cli.main(["fit", "-c", str(recipe), "--out", str(out), *map(str, words)])


def table(out: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.csv."""
    with (out / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def not_finite(path: Path) -> list[str]:
    """Return the names of all tensors of a checkpoint that hold NaN or infinity."""
    found = []

    def look(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if not value.isfinite().all():
                found.append(name)
        elif isinstance(value, (dict, list, tuple)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in items:
                look(f"{name}.{key}", inner)

    stored = torch.load(path, weights_only=True)
    for part in ("state_dict", "optimizer_states"):
        look(part, stored[part])
    return found
