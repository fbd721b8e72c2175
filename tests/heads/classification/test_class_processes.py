"""Two processes find and learn what one does."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

import fork_server
import numpy as np
import pytest
import torch
from class_runs import words
from PIL import Image
from processes import in_processes, metric_of_one

from pixio_heads.classification.metrics import MeanAveragePrecision
from pixio_lightning.cli.main import main
from pixio_lightning.training import results
from pixio_lightning.training.checkpoints import checkpoint_io

DDP = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def alone(*line: str) -> None:
    assert main([*line]) == 0


def in_two_processes(*line: str) -> None:
    done = subprocess.run(
        [fork_server.python(), "-m", "pixio_lightning.cli.main", *line, *DDP],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_find_the_neighbours_that_one_does(colours: Path, tmp_path: Path) -> None:
    """Banks of 11 and of 45 images, one of them broken, and 5 queries; in the order of the data."""
    for name in ("blue/3.png", "red/7.png"):
        (colours / name).write_bytes(b"")
    rng = np.random.default_rng(3)
    for path in sorted(colours.rglob("*.png")):  # any colours, so that neighbours get it wrong
        if path.stat().st_size:
            patches = rng.integers(0, 255, (2, 2, 3), dtype=np.uint8)
            Image.fromarray(patches.repeat(32, axis=0).repeat(32, axis=1)).save(path)
    found = []
    for name, run in (("one", alone), ("two", in_two_processes)):
        line = words("classification/folder_knn", colours, tmp_path / name, "--model.k=[1,3,9]")
        run("fit", *line, "--data.val_images=5", "--data.batch_size=4")
        found.append(results.read(tmp_path / name))
    assert [len(lines) for lines in found] == [1, 1]
    (one,), (two,) = found
    assert one["metrics"] == two["metrics"] and one["n"] == two["n"]
    assert one["baselines"] == two["baselines"]
    assert any(0 < value < 1 for value in one["metrics"].values())


def test_two_processes_learn_what_one_does(colours: Path, tmp_path: Path) -> None:
    """The statistics of a batch norm without scale are those of both processes."""
    more = ["--trainer.max_steps=4", "--data.steps_per_epoch=4", "--panels.every_n_steps=0"]
    more += ["--model.optim.lr=1e-3"]
    for name, batch, run in (("one", 8, alone), ("two", 4, in_two_processes)):
        line = words("classification/folder_linear", colours, tmp_path / name, *more)
        run("fit", *line, f"--data.batch_size={batch}")
    first, second = (
        checkpoint_io.read(tmp_path / n / "last.ckpt")["state_dict"] for n in ("one", "two")
    )
    assert {"decoder.norm.running_mean", "decoder.linear.weight"} <= first.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], atol=1e-4), name
    one, two = (results.read(tmp_path / n)[-1] for n in ("one", "two"))
    assert one["metrics"] == two["metrics"] and one["loss"] == pytest.approx(two["loss"], rel=1e-4)


def test_a_process_without_a_usable_sample_has_the_average_precision_of_all(
    tmp_path: Path,
) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(30, 4, generator=generator)
    given = (scores, (torch.randn(30, 4, generator=generator) > 0).long())
    alone = MeanAveragePrecision(4)
    alone.update(*given)
    in_processes(metric_of_one, str(tmp_path), partial(MeanAveragePrecision, 4), given)
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone.compute())
    assert MeanAveragePrecision(4).compute().isnan()  # and without a sample anywhere
