"""Two students of one teacher: killed and started again, and in two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from running import kill_when, pixio, same

from pixio_lightning.training.run_folder import Metrics


@pytest.fixture(scope="module")
def distillation(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with two students, of a teacher that was asked for by its seed."""
    content = yaml.safe_load(recipe.read_text())
    student = content["model"]["init_args"]["backbone"]
    teacher = {"name": student["name"], "weights": "random:0"}
    teacher["model_args"] = student["model_args"] | {"embed_dim": 96}
    students = {
        "masked": {"backbone": student, "mask_ratio": 0.5, "mask_grid": 2},
        "whole": {"backbone": student | {"drop_path": 0.0}, "optim": {"lr": 3e-4, "warmup": 2}},
    }
    arguments = {"backbone": teacher, "students": students, "optim": {"lr": 1e-3, "warmup": 0.1}}
    content["model"] = {"class_path": "Distillation", "init_args": arguments}
    path = tmp_path_factory.mktemp("distillation") / "distill.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_resumes_bit_for_bit(distillation: Path, tmp_path: Path) -> None:
    """Killed inside an epoch and at a step that two workers are ahead of."""
    line = ("fit", "-c", distillation, "--out")
    pixio(*line, tmp_path / "whole")
    again = (*line, tmp_path / "killed", "--data.num_workers", 2)
    for step in ("step 8", "step 12"):
        assert kill_when(f"{step}: saved last.ckpt", *again), "the run ended before it was killed"
    assert "resumed" in pixio(*again)
    assert same(tmp_path / "whole" / "last.ckpt", tmp_path / "killed" / "last.ckpt")
    curves = [(tmp_path / run / "metrics.csv").read_text() for run in ("whole", "killed")]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_two_processes_equal_one(distillation: Path, tmp_path: Path) -> None:
    """In double precision, where steps of Adam do not amplify rounding."""
    line = ("fit", "-c", distillation, "--trainer.precision", "64-true", "--out")
    two = ("--trainer.devices", 2, "--data.batch_size", 4, "--trainer.strategy", "ddp")
    pixio(*line, tmp_path / "one")
    pixio(*line, tmp_path / "two", *two)
    one, other = (Metrics(tmp_path / run / "metrics.csv").rows for run in ("one", "two"))
    assert len(one) == len(other) and "val/position" in one[-1] and "val/masked" in one[-1]
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    weights = []
    for run in ("one", "two"):
        state = torch.load(tmp_path / run / "last.ckpt", weights_only=True)["state_dict"]
        weights.append(torch.cat([tensor.flatten() for tensor in state.values()]))
    assert (weights[0] - weights[1]).abs().max() < 1e-5


@pytest.mark.slow
def test_a_static_graph_goes_through(distillation: Path, tmp_path: Path) -> None:
    strategy = "{class_path: DDPStrategy, init_args: {static_graph: true}}"
    words = ("--trainer.devices", 2, "--data.batch_size", 4, "--trainer.strategy", strategy)
    words += ("--trainer.max_steps", 3, "--trainer.limit_val_batches", 1)
    pixio("fit", "-c", distillation, "--out", tmp_path / "run", *words)
    assert (tmp_path / "run" / "last.ckpt").exists()


def test_students_may_all_have_a_rate_of_their_own(
    distillation: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from pixio_lightning.cli.main import main

    content = yaml.safe_load(distillation.read_text())
    arguments = content["model"]["init_args"]
    del arguments["optim"]
    arguments["students"]["masked"]["optim"] = {"blr": 0.032}
    path = tmp_path / "own_rates.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["check", "-c", str(path), "--out", str(tmp_path / "run")]) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "peak lr" in line]
    assert line.split(None, 2)[2] == "0.001 (0.032 x 8 / 256); 0.0003 (as given)"


def test_sharding_is_refused_in_a_line(
    distillation: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from pixio_lightning.cli.main import main

    words = ["fit", "-c", str(distillation), "-c", "with/fsdp", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "the backbone is frozen: leave it out" in capfd.readouterr().err
