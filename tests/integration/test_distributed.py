"""Several processes equal one, whatever starts and shards them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import process_log
import pytest
import torch
from PIL import Image
from running import TINY, kill_when, pixio
from safetensors.torch import save_file

from pixio_lightning.models.vit import PixioViT
from pixio_lightning.training.run_folder import Metrics

TWO = ("--trainer.devices", 2, "--data.batch_size", 4)
DDP = (*TWO, "--trainer.strategy", "ddp")

# Where the callbacks are that these tests add.
PATH = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


def curve(folder: Path) -> torch.Tensor:
    rows = Metrics(folder / "metrics.csv").rows
    return torch.tensor([row["train/loss"] for row in rows if "train/loss" in row])


def weights(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([tensor.flatten() for tensor in state.values()])


def test_two_processes_equal_one(recipe: Path, tmp_path: Path) -> None:
    """In double precision, where 16 steps of Adam do not amplify rounding; with drop path."""
    double = ("--trainer.precision", "64-true")
    pixio("fit", "-c", recipe, "--out", tmp_path / "one", *double)
    pixio("fit", "-c", recipe, "--out", tmp_path / "two", *double, *DDP)
    one, two = (Metrics(tmp_path / run / "metrics.csv") for run in ("one", "two"))
    assert len(one.rows) == len(two.rows)
    for a, b in zip(one.rows, two.rows, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert (weights(tmp_path / "one") - weights(tmp_path / "two")).abs().max() < 1e-5


@pytest.mark.slow  # as on the two hosts of tests/cluster
def test_torchrun_equals_our_own_launch(recipe: Path, tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m")
    pixio("fit", "-c", recipe, "--out", tmp_path / "own", *DDP)
    pixio("fit", "-c", recipe, "--out", tmp_path / "torchrun", *DDP, launcher=torchrun)
    assert torch.equal(weights(tmp_path / "own"), weights(tmp_path / "torchrun"))


def test_sharded_equals_ddp_and_resumes(recipe: Path, tmp_path: Path) -> None:
    steps = ("--trainer.max_steps", 6)
    pixio("fit", "-c", recipe, "--out", tmp_path / "ddp", *DDP, *steps)
    sharded = ("fit", "-c", recipe, "-c", "with/fsdp", *TWO, *steps)
    pixio(*sharded, "--out", tmp_path / "fsdp")
    assert (curve(tmp_path / "ddp") - curve(tmp_path / "fsdp")).abs().max() < 1e-6
    assert (tmp_path / "fsdp" / "last.ckpt").is_dir()

    kill_when("step 4: saved last.ckpt", *sharded, "--out", tmp_path / "resumed")
    assert "resumed" in pixio(*sharded, "--out", tmp_path / "resumed")
    assert torch.equal(curve(tmp_path / "fsdp"), curve(tmp_path / "resumed"))


@pytest.mark.parametrize("weights", ["random", pytest.param("file", marks=pytest.mark.slow)])
def test_sharded_starts_as_one_process_and_never_holds_the_whole(
    recipe: Path, tmp_path: Path, weights: str
) -> None:
    """One process of two builds the model; the other holds its part and a tensor on the way."""
    words = ["fit", "-c", recipe, "--trainer.max_steps", 3, "--trainer.gradient_clip_val", 0.3]
    words += ["--trainer.accumulate_grad_batches", 2, "--model.decoder.depth", 6]
    if weights == "file":
        backbone = TINY["model"]["init_args"]["backbone"]
        meta = {"name": backbone["name"], "model_args": backbone["model_args"]}
        path = tmp_path / "encoder.safetensors"
        state = PixioViT(**backbone["model_args"]).state_dict()
        save_file(state, path, {"pixio": json.dumps(meta)})
        words += ["--model.backbone.weights", path]
    pixio(*words, "--out", tmp_path / "one")
    log = ("--trainer.callbacks+=process_log.MemoryLog",)
    env = {"PROCESS_LOG": str(tmp_path / "log"), "PYTHONPATH": PATH}
    pixio(*words, "-c", "with/fsdp", *TWO, *log, "--out", tmp_path / "two", **env)
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == 3 and (one - two).abs().max() < 1e-5
    second = process_log.read(tmp_path / "log", rank=1)
    assert 0.5 * second["whole"] < second["peak"] < 0.7 * second["whole"]


def test_a_probe_is_shared_by_the_processes(recipe: Path, tmp_path: Path) -> None:
    """Each encodes half of 15 and 9 images, with the help of workers, and finds the same."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 5)):
        for label, red, less in (("red", 150, 0), ("blue", 100, 1)):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count - less):
                pixels = rng.integers(0, 256, (64, 64, 3)) // 2 + np.array([red, 0, 250 - red]) // 2
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / part / label / f"{i}.png")
    words = ["fit", "-c", recipe, "--trainer.max_steps", 4, "--data.num_workers", 1]
    words += ["--trainer.limit_val_batches", 0, "--trainer.callbacks+=OnlineProbe"]
    words += [f"--trainer.callbacks.{name}={tmp_path / name}" for name in ("train", "val")]
    words += ["--trainer.callbacks.every_n_steps=2", "--trainer.callbacks.k=3"]
    words += ["--trainer.callbacks+=process_log.ProbeLog"]
    for run, more in (("one", ()), ("two", DDP)):
        env = {"PROCESS_LOG": str(tmp_path / f"log-{run}"), "PYTHONPATH": PATH}
        pixio(*words, *more, "--out", tmp_path / run, **env)
    found = [
        [row for row in Metrics(tmp_path / run / "metrics.csv").rows if "probe/knn" in row]
        for run in ("one", "two")
    ]
    assert len(found[0]) == 2
    for one, two in zip(*found, strict=True):
        assert all(one[name] == two[name] for name in ("probe/knn", "probe/majority"))
    assert [row["probe/majority"] for row in found[0]] == pytest.approx([5 / 9] * 2)
    assert process_log.read(tmp_path / "log-one", rank=0) == {"encoded": 2 * 24, "workers": 2}
    for rank in (0, 1):
        # Padded to even shares: 8 of 15 and 5 of 9.
        seen = process_log.read(tmp_path / "log-two", rank=rank)
        assert seen == {"encoded": 2 * 13, "workers": 2}
