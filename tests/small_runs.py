"""A small run of every head and every pretraining: two steps, on whatever device it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pixio_lightning.cli.main import main
from pixio_lightning.training import results
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.run_folder import Metrics

SCENES = ("--data.scenes", "{train: 4, held_out: 4, views: 2, size: 64}")
BACKBONE = (
    "--model.backbone",
    "{name: pixio_vitt16, weights: random, model_args: "
    "{img_size: 64, patch_size: 8, embed_dim: 32, depth: 4, num_heads: 2, n_cls_tokens: 2}}",
)
_TEACHER = (BACKBONE[0], BACKBONE[1].replace("random", "'random:0'"))
_STUDIO = "{train: 12, held_out: 4, views: 1, size: 64, places: [studio]}"
_SMALL_DPT = ("--model.decoder.features", "8", "--model.decoder.stages", "[8, 8, 8, 8]")
_DEN = "{train: 4, held_out: 5, views: 2, size: 48, places: [den]}"

# A recipe for each head, and what makes it small.
HEADS: dict[str, tuple[str, ...]] = {
    "depth": ("-c", "depth/demo", *BACKBONE, *SCENES),
    "depth, DPT through windows": (
        *("-c", "depth/nyuv2_dpt", *BACKBONE, *SCENES, *_SMALL_DPT),
        *("--model.window", "32"),
    ),
    "relative depth": ("-c", "depth/relative_scenes", *BACKBONE, *SCENES, *_SMALL_DPT),
    "ordinal depth": (
        *("-c", "depth/zeroshot_da2k", *BACKBONE, *SCENES, *_SMALL_DPT),
        *("--model.image_size", "64", "--model.optim.lr", "1e-4"),
    ),
    "segmentation": ("-c", "segmentation/demo", *BACKBONE, *SCENES),
    "segmentation, tuned": (
        *("-c", "segmentation/demo", *BACKBONE, *SCENES),
        *("--model.backbone.tune", "2", "--model.backbone.drop_path", "0.2"),
        *("--model.cache", "false"),
    ),
    "classification": ("-c", "classification/demo", *BACKBONE, *SCENES),
    "classification, several": (
        *("-c", "classification/demo", *BACKBONE, *SCENES, "--data.target", "objects"),
        *("--model.pool", "attentive"),
    ),
    "knn": ("-c", "classification/folder_knn", *BACKBONE, *SCENES),
    "attributes": (
        *("-c", "attributes/demo", *BACKBONE),
        *("--data.scenes", "{train: 12, held_out: 4, views: 1, size: 64}"),
    ),
    "propagation": (
        *("-c", "propagation/demo", *BACKBONE),
        *("--data.scenes", "{held_out: 2, views: 3, size: 64}"),
    ),
    "policy": (
        *("-c", "policy/demo", *BACKBONE, "--data.demonstrations", "2", "--data.episodes", "2"),
        *("--data.horizon", "8", "--data.processes", "1"),
    ),
    "reconstruction": (
        *("-c", "reconstruction/demo", "--data.scenes", _DEN),
        *("--model.sizes.pose_pool", "mean", "--model.weights.normal", "1.0"),
        *("--model.sizes.depth", "2", "--model.sizes.taps", "[0, 1]"),
    ),
    "pretraining": (
        *("-c", "pretrain/demo", *BACKBONE, "--model.backbone.drop_path", "0.2"),
        *(
            "--data.scenes",
            "{train: 12, held_out: 4, views: 1, size: 64, places: [studio, street]}",
        ),
        *("--model.decoder", "{dim: 16, depth: 1, heads: 2}"),
        *("--trainer.callbacks+=OnlineProbe", "--trainer.callbacks.every_n_steps=1"),
    ),
    "future prediction": (
        *("-c", "video/demo", *BACKBONE, "--model.backbone.drop_path", "0.2"),
        *("--data.scenes", "{train: 4, held_out: 4, views: 5, size: 64, places: [studio]}"),
        *("--model.decoder", "{dim: 16, depth: 1, heads: 2}", "--data.past_frames", "2"),
    ),
    "distillation": (
        *("-c", "distill/demo", *_TEACHER, "--model.students.small.backbone.drop_path", "0.2"),
        *("--model.students.small.mask_ratio", "0.5", "--data.scenes", _STUDIO),
    ),
}

# Those whose training steps differ, of which none may wait for a GPU.
ON_A_GPU = (
    *("pretraining", "future prediction", "distillation"),
    *("depth", "relative depth", "segmentation", "classification", "reconstruction", "policy"),
)
# Those that train nothing.
UNTRAINED = ("knn", "propagation", "attributes")


def words_of(name: str, folder: Path) -> list[str]:
    recipe, *rest = HEADS[name][1:]
    words = ["-c", recipe, "-c", "with/debug", *rest, "--out", str(folder)]
    words += ["--trainer.precision", "32-true"]  # on both devices
    return [*words, "--checkpoint.every_n_steps", "1", "--panels.every_n_steps", "1"]


def logged_run(name: str, folder: Path, *, steps: int, every: int) -> list[str]:
    """Return the words of steps of which every so many are logged, and nothing else happens."""
    if name == "pretraining":
        words = ["-c", "pretrain/demo", *BACKBONE, "--model.backbone.tune", "full"]
        words += ["--data.scenes", "{train: 8, held_out: 4, views: 2, size: 64}"]
    else:
        words = list(HEADS[name])
    words += ["--out", str(folder), "--data.num_workers", "0", "--panels.every_n_steps", "0"]
    words += ["--data.batch_size", "2", "--data.steps_per_epoch", "50"]
    words += ["--trainer.max_steps", str(steps), "--trainer.log_every_n_steps", str(every)]
    words += ["--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0"]
    return [*words, "--checkpoint.every_n_steps", "100"]


def last_metrics(folder: Path) -> dict[str, float]:
    return results.read(folder)[-1]["metrics"] if (folder / results.FILE).exists() else {}


def losses(folder: Path) -> list[float]:
    rows = Metrics(folder / "metrics.csv").rows
    return [row["train/loss"] for row in rows if "train/loss" in row]


def interrupted_after(step: int, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train and press Ctrl-C in the middle of the step after `step`."""
    log = BackboneModule.log_training

    def stop(module: BackboneModule, loss: torch.Tensor) -> None:
        if module.global_step == step:
            raise KeyboardInterrupt
        log(module, loss)

    with monkeypatch.context() as patch:
        patch.setattr(BackboneModule, "log_training", stop)
        assert main(["fit", *words]) == 130
