"""Several processes equal one, whatever starts and shards them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from running import kill_when, pixio

from pixio_lightning.run_folder import Metrics

TWO = ("--trainer.devices", 2, "--data.batch_size", 4)
DDP = (*TWO, "--trainer.strategy", "ddp")


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
