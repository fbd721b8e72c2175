"""A device that runs out of memory ends a run in one line, and what that advises is a way on."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny_run
import torch
from running import command, environment

from pixio_lightning.cli.main import main
from pixio_lightning.training import run_folder

_SMALL = "--trainer.callbacks+=test_out_of_memory.SmallDevice"


class SmallDevice(L.Callback):
    """Run out of memory, as a GPU does, at too many images, of training after two steps.

    Args:
        most: Images that it has room for.
    """

    def __init__(self, most: int = 2) -> None:
        self.most = most

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        rank = int(os.environ.get("SMALL_RANK", trainer.global_rank))

        def look(backbone: torch.nn.Module, images: tuple[Any, ...]) -> None:
            now = trainer.global_step >= 2 or not trainer.training
            if now and trainer.global_rank == rank and len(images[0]) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        pl_module.backbone.register_forward_pre_hook(look)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_recipe(tmp_path_factory.mktemp("recipe"))


def test_the_line_that_is_advised_goes_on(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["fit", "-c", str(recipe), "--out", str(tmp_path / "run"), _SMALL]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "out of memory (CUDA out of memory. Tried" in error
    assert "--model.backbone.checkpointing true" in error and "--data.val_batch_size" in error
    advised = re.findall(r"with (--data.batch_size .*?) \(the same global batch\)", error)
    assert main([*line, *shlex.split(advised[0])]) == 0
    assert "resumed" in capsys.readouterr().out
    assert run_folder.read_state(tmp_path / "run")["finished"]
    line = ["validate", "-c", str(recipe), "--out", str(tmp_path / "run"), _SMALL]
    line += ["--trainer.callbacks.most=1"]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert "again with a lower --data.val_batch_size, or" in error and "--data.batch" not in error


def test_what_is_predicted_one_by_one_cannot_be_fewer_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    line = ["predict", "-c", "depth/demo", "-c", "with/debug", "--ckpt_path", "none"]
    line += ["--out", str(tmp_path / "run"), _SMALL, "--trainer.callbacks.most=0"]
    assert main(line) == 2
    assert "again with a device that nothing else uses" in capsys.readouterr().err


def test_the_other_processes_do_not_wait_for_the_one_that_ran_out(
    recipe: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        command("fit", "-c", recipe, "--out", tmp_path / "run", _SMALL, "--trainer.devices", 2)
        + ["--trainer.strategy", "ddp"],
        env=environment(PYTHONPATH=os.pathsep.join(sys.path), SMALL_RANK="1"),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "out of memory (CUDA out of memory" in done.stderr
    assert "another process of this run was lost" in done.stderr
