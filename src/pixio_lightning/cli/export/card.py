"""The README of an export: what is inside, how it was trained, its licence, how to load it.

It opens with the YAML that the Hugging Face Hub reads of a model card.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from pixio_lightning.errors import UserError, visible
from pixio_lightning.models.weights.licences import is_open
from pixio_lightning.models.weights.students import split_student
from pixio_lightning.training import results, run_folder
from pixio_lightning.training.checkpoints.checkpoint_io import read_plain
from pixio_lightning.training.run_folder import Metrics

_LIBRARY = {"safetensors": "pixio-lightning", "transformers": "transformers", "timm": "timm"}
_FILES = ("safetensors", "onnx")  # the others are folders, whatever their name
_KNOWN = ("apache-2.0", "cc-by-nc-4.0", "mit")  # licences by the names that the Hub has for them
_LOAD = {
    "safetensors": """\
import torch

from pixio_lightning import Backbone

backbone = Backbone(weights="{name}")
features = backbone(torch.zeros(1, {channels}, {size}, dtype=torch.uint8))
features.layers[-1].patches  # (B, C, h, w)
features.layers[-1].cls  # (B, K, C)
""",
    "transformers": """\
import torch
from transformers import PixioModel

model = PixioModel.from_pretrained("{name}").eval()
images = torch.zeros(1, {channels}, {size})  # from 0 to 1, less the mean, by the deviation
tokens = model(images).last_hidden_state  # (B, K + h*w, C): class tokens first
""",
    "timm": """\
import timm
import torch

# For this size of images: timm resizes positions otherwise than they were trained.
model = timm.create_model("local-dir:{name}", pretrained=True).eval()
images = torch.zeros(1, {channels}, {size})  # from 0 to 1, less the mean, by the deviation
tokens = model.forward_features(images)  # (B, K + h*w, C): class tokens first
""",
    "onnx": """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{name}")
images = np.zeros((1, {channels}, {size}), np.uint8)  # bytes of RGB, any number of images
outputs = session.run(None, {{"images": images}})
names = [output.name for output in session.get_outputs()]
""",
}


def beside(out: Path, form: str) -> Path:
    """Return where the README of an export lies: in its folder, or beside its file."""
    return out.with_name(f"{out.stem}.README.md") if form in _FILES else out / "README.md"


def card(
    source: str,
    form: str,
    out: Path,
    *,
    inside: Mapping[str, str],
    output: Mapping[str, Any] = MappingProxyType({}),
    size: tuple[int, int],
    channels: int = 3,
) -> str:
    """Return the text.

    Args:
        source: What was exported, as the user named it.
        form: One of the formats of `pixio export`.
        out: The file or folder that is written.
        inside: What it holds, by name; `licence` among it.
        output: What the numbers of a prediction are, see `Head.output_config`.
        size: Height and width of images that it takes, in pixels.
        channels: Of images.
    """
    trained, tables = _training(source)
    licence = inside["licence"]
    front: dict[str, Any] = _licence_fields(licence)
    front["library_name"] = _LIBRARY.get(form, form)
    front["tags"] = ["pixio", "vision-transformer", "image-feature-extraction"]
    if "recipe" in trained:
        front["base_recipe"] = trained["recipe"]
    rows = {"form": form} | {key: text for key, text in inside.items() if key != "licence"}
    snippet = _LOAD[form].format(name=out.name, size=f"{size[0]}, {size[1]}", channels=channels)
    if "head" in inside:
        snippet = snippet.replace("(B, K + h*w, C)", "a prediction")
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {out.stem if form in _FILES else out.name}",
        f"Written by `pixio export` from `{visible(source)}`.",
        "## What is inside",
        _table(rows),
        *(["## What it predicts", _table(output_lines(output))] if output else []),
        "## How it was trained",
        _table(trained) if trained else "Not known: the file says nothing of it.",
        *tables,
        "## Licence",
        f"Of the weights: {licence}.",
        "## How to load it",
        f"In the folder that holds `{out.name}`:",
        f"```python\n{snippet}```",
    ]
    if form == "safetensors" and "decoder" in inside:
        line = f"--model.backbone.weights {out.name} --model.pretrained_decoder true"
        parts.append(f"To go on with encoder and decoder: `pixio fit -c RECIPE {line}`")
    return "\n\n".join(parts) + "\n"


def output_lines(output: Mapping[str, Any], *, limit: int | None = None) -> dict[str, str]:
    """Write what the numbers of a prediction are; names along an axis by their index.

    Args:
        output: See `Head.output_config`.
        limit: Of names that are shown; None for all.
    """
    return {key.replace("_", " "): _written(value, limit) for key, value in output.items()}


def _written(value: Any, limit: int | None) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {text}" for key, text in value.items())
    if not isinstance(value, (list, tuple)):
        return str(value)
    shown = [f"{index} {name}" for index, name in enumerate(value[:limit])]
    return ", ".join([*shown, *(["..."] if len(shown) < len(value) else [])])


def _licence_fields(licence: str) -> dict[str, str]:
    """Return the fields by which the Hub knows a licence, or that it does not."""
    name = re.sub("[^a-z0-9.]+", "-", licence.lower()).strip("-")
    if name in _KNOWN:
        return {"license": name}
    if is_open(licence):
        return {"license": "unknown"}
    return {"license": "other", "license_name": name}


def _table(facts: Mapping[str, object]) -> str:
    lines = [f"| {key} | {visible(str(value)).replace('|', '/')} |" for key, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _training(source: str) -> tuple[dict[str, str], list[str]]:
    """Return what is known of a run from its folder, and its figures as tables."""
    file = Path(split_student(source)[0])
    with suppress(UserError):  # another program's files lie beside it, or damaged ones
        if file.suffix == ".ckpt" and file.exists():
            return _of_run(file)
    return {}, []


def _of_run(file: Path) -> tuple[dict[str, str], list[str]]:
    """Return the same of a checkpoint in its run folder; nothing where it lies elsewhere."""
    folder = file.parent
    config = run_folder.stored_config(folder)
    stored = read_plain(file) if config else {}
    if config is None or "pixio" not in stored:
        return {}, []
    state, step = run_folder.read_state(folder), stored.get("global_step", 0)
    data = config["data"].get("init_args") or {}
    now = results.files_read((), None, str(file))
    lines = [
        line
        for line in results.read(folder)
        if line["steps"] == step and (line["verb"] == "fit" or _has_read(line, now))
    ]
    facts = {
        "recipe": state.get("recipe"),
        "class": str(config["model"].get("class_path", "")).rpartition(".")[2],
        "data": lines[-1]["dataset"] if lines else f"source {data.get('source')}",
        "steps": step,
        "images of a step": _global_batch(state.get("batch")),
        "seed": config.get("seed_everything"),
        "precision": state.get("precision"),
        "commit": state.get("commit") or (lines[-1].get("commit") if lines else None),
    }
    known = {key: str(value) for key, value in facts.items() if value is not None}
    found = [_table(results.summary(line)) for line in lines[-1:]]
    if not found and (rows := Metrics(folder / "metrics.csv").rows):
        held_out = [row for row in rows if "val/loss" in row and row["step"] < step]
        found = [_held_out(row) for row in held_out[-1:]]
    return known, found


def _has_read(line: dict[str, Any], checkpoint: dict[str, str]) -> bool:
    """Whether an evaluation is known to be of a checkpoint.

    One of another run's may stand in a run folder, too: it is where the recipe writes to.

    Args:
        line: The evaluation.
        checkpoint: What `results.files_read` returns of it.
    """
    known = isinstance(line.get("files"), dict)
    return known and results.changed_file(line, checkpoint) is None


def _global_batch(batch: Any) -> int | None:
    if not isinstance(batch, dict) or not all(isinstance(n, int) for n in batch.values()):
        return None
    return math.prod(batch.values())


def _held_out(row: Mapping[str, float]) -> str:
    """Lay out what a pretraining logged of held-out images, its baselines among it."""
    found = {k.removeprefix("val/"): f"{v:.4g}" for k, v in row.items() if k[:4] == "val/"}
    return f"On held-out images, after {int(row['step']) + 1} steps:\n\n{_table(found)}"
