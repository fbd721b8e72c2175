"""Which runs the page shows, and what is loaded of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from pixio_lightning.cli import recipes, runs
from pixio_lightning.errors import UserError, nearest, visible
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.mae_decoder import DecoderSize
from pixio_lightning.models.weights.shipped import RECIPE
from pixio_lightning.pretraining.masked_pixels import PixelPretraining
from pixio_lightning.training import run_folder
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.checkpoints.load import WeightsNeeded, load, may_be_fetched

_MOST_RUNS = 8  # each has a tab, and its weights in memory


class Loaded(NamedTuple):
    """What is shown.

    Attributes:
        name: Of the run, as its recipe or its file is called.
        folder: Of the run; None for a file alone.
        module: What the run trained; None for an exported encoder.
        backbone: Its encoder.
    """

    name: str
    folder: Path | None
    module: BackboneModule | None
    backbone: Backbone


def newest(root: Path) -> list[Path]:
    """Return the newest run of every recipe below a folder, at most eight, the newest first."""
    found = [runs.look_at(folder) for folder in runs.find(root)]
    found = [run for run in found if run_folder.chosen_checkpoint(run.folder) is not None]
    chosen: dict[str, Path] = {}
    for run in sorted(found, key=lambda run: -run.changed):
        chosen.setdefault(run.recipe or str(run.folder), run.folder)
    return list(chosen.values())[:_MOST_RUNS]


def open_run(path: Path, weights: Sequence[str] = ()) -> Loaded:
    """Load a run folder, a checkpoint, or the encoder of an exported file or folder.

    Args:
        path: It.
        weights: Of frozen backbones, for a run whose own are not at hand.

    Raises:
        UserError: It is none of these, or cannot be loaded.
    """
    if not path.exists():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"'{path}' does not exist{nearest(path.name, names)}")
    checkpoint = run_folder.chosen_checkpoint(path) if path.is_dir() else path
    if checkpoint is None or checkpoint.suffix != ".ckpt":
        backbone = Backbone(weights=str(path.absolute())).load().eval()
        return Loaded(path.name, None, None, backbone.to(_device()))
    folder = checkpoint.parent if (checkpoint.parent / "config.yaml").exists() else None
    module = _load(checkpoint, weights).to(_device())
    recipe = run_folder.read_state(folder).get("recipe") if folder else None
    name = recipe if isinstance(recipe, str) and recipe else path.resolve().name
    return Loaded(visible(name), folder, module, module.probed_backbone.eval())


def _load(checkpoint: Path, weights: Sequence[str]) -> BackboneModule:
    """Load a checkpoint, on one of `weights` where those of its frozen backbone are not at hand.

    What may have to be fetched is only for runs that name it; of files, the first whose digest is
    that of the run.
    """
    problem: UserError
    try:
        return load(checkpoint)
    except WeightsNeeded as needed:
        problem, named = needed.typed(), needed.source
    files = [source for source in weights if not may_be_fetched(source)]
    for source in [named] if named in weights else files:
        try:
            return load(checkpoint, weights=source)
        except UserError as error:
            problem = error
    raise problem


def open_shipped(name: str) -> Loaded:
    """Load the encoder and the decoder that lie in this package, as their recipe shapes them."""
    recipe = yaml.safe_load(recipes.find(RECIPE).read_text())["model"]["init_args"]
    size = DecoderSize(**recipe["decoder"])
    backbone = Backbone(weights=name, tune="full")
    kept = {key: recipe[key] for key in recipe if key not in ("backbone", "decoder", "optim")}
    module = PixelPretraining(backbone, decoder=size, pretrained_decoder=True, **kept)
    module.configure_model()
    return Loaded(name, None, module.eval().to(_device()), backbone)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def data_config(loaded: Loaded) -> dict[str, Any] | None:
    """Return the `data` part of a run's configuration: class_path and init_args."""
    config = run_folder.stored_config(loaded.folder) if loaded.folder else None
    data = (config or {}).get("data")
    return data if isinstance(data, dict) and isinstance(data.get("init_args"), dict) else None
