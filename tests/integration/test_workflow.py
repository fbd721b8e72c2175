"""What a user does: train on photographs, look at them, go on from the encoder, export it."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from running import pixio, write_recipe

from pixio_lightning.data.workers import available_cores
from pixio_lightning.errors import UserError
from pixio_lightning.training.callbacks import Profile
from pixio_lightning.training.run_folder import Metrics

PYTHON = (sys.executable, "-m")  # of which no fork has set the threads
STEPS = ("--trainer.max_steps", 60, "--data.steps_per_epoch", 30, "--trainer.log_every_n_steps", 30)


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the photographs, long enough to learn something."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    panels = ("--panels.every_n_steps", 60, "--panels.images", 4)
    pixio("fit", "-c", recipe, "--out", folder, *STEPS, *panels)
    return folder


@pytest.mark.slow
def test_a_run_says_how_many_threads_it_has(recipe: Path, tmp_path: Path) -> None:
    """Where the user does not, the cores that its data workers leave, but half of all at least."""
    cores = available_cores()
    line = ("fit", "-c", recipe, "--trainer.max_steps", 1, "--trainer.limit_val_batches", 0)
    line += ("--data.num_workers", cores)
    printed = pixio(*line, "--out", tmp_path / "run", launcher=PYTHON, OMP_NUM_THREADS="")
    found = re.search(r"32-true on 1 x cpu, (\d+) threads? each", printed)
    assert found and 1 <= int(found[1]) <= max(1, cores // 2)  # torch counts physical cores


def test_a_profile_says_where_the_time_goes(recipe: Path, tmp_path: Path) -> None:
    """It is written beside a run that ends as it would without it."""
    line = ("fit", "-c", recipe, "--trainer.max_steps", 8)
    pixio(*line, "--out", tmp_path / "plain")
    (tmp_path / "soon.yaml").write_text(
        "trainer: {callbacks+: [{class_path: Profile, init_args: {first_step: 2, steps: 4}}]}"
    )
    printed = pixio(*line, "-c", tmp_path / "soon.yaml", "--out", tmp_path / "run")
    summary = (tmp_path / "run" / "profile" / "summary.txt").read_text()
    assert summary in printed and "aten::mm" in summary
    parts = re.findall(r"^  (\D+?) +[\d.]+ ms +(\d+)%$", summary, re.MULTILINE)
    names = ["data wait", "encoder", "decoder", "loss and rest", "backward", "optimiser"]
    assert [name for name, _ in parts] == names
    shares = [int(share) for _, share in parts]
    assert abs(sum(shares) - 100) <= 3 and min(shares[1], shares[2], shares[4]) > 0
    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())
    assert any(event["name"] == "aten::mm" for event in trace["traceEvents"])
    assert last_loss(tmp_path / "run") == last_loss(tmp_path / "plain")


def test_steps_that_cannot_be_profiled_are_refused() -> None:
    with pytest.raises(UserError, match="Profile's first_step is -1, but expected at least 0"):
        Profile(first_step=-1)
    with pytest.raises(UserError, match="Profile's steps is 1, but expected at least 2"):
        Profile(steps=1)


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch) -> tuple[Profile, Any]:
    """A profile from the first step on by a clock that stands still, and its module."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    module: Any = SimpleNamespace(
        backbone=torch.nn.Identity(), decoder=None, device=torch.device("cpu"), now=now
    )
    return Profile(first_step=0, steps=4), module


def test_a_validation_is_no_wait_for_data(profile: tuple[Profile, Any]) -> None:
    measured, module = profile
    trainer: Any = SimpleNamespace(is_global_zero=True)
    measured.on_train_start(trainer, module)
    for _ in range(2):
        module.now[0] += 1
        measured.on_train_batch_start(trainer, module)
        module.now[0] += 2
        measured.on_train_batch_end(trainer, module)
        module.now[0] += 100
        measured.on_validation_end(trainer, module)
    assert measured._seconds == {"data wait": 2, "optimiser": 4}


def test_a_run_too_short_for_a_profile_says_so(
    profile: tuple[Profile, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    measured, module = profile
    trainer: Any = SimpleNamespace(is_global_zero=True)
    measured.on_train_start(trainer, module)
    measured.on_train_batch_start(trainer, module)
    measured.on_train_end(trainer, module)
    assert "ended before step 4, so nothing is written" in capsys.readouterr().out


def last_loss(folder: Path) -> float:
    found = Metrics(folder / "metrics.csv").first_and_last("val/loss")
    assert found is not None
    return found[1]


def test_the_held_out_loss_falls_and_a_panel_is_written(trained: Path) -> None:
    found = Metrics(trained / "metrics.csv").first_and_last("val/loss")
    assert found is not None and found[1] < found[0] - 0.1
    panel = Image.open(trained / "panels" / "step-0000060.png")
    # Four columns and four rows of pictures, shown at no less than 192 pixels a side.
    assert panel.width > 4 * 192 and panel.height > 4 * 192


def test_predict_writes_one_picture_per_image(
    trained: Path, recipe: Path, photographs: Path
) -> None:
    printed = pixio("predict", "-c", recipe, "--out", trained)
    assert "best.ckpt" in printed
    written = {p.name for p in (trained / "predictions").glob("*.png")}
    assert written == {f"{p.name}.png" for p in photographs.glob("*.jpg")}


def test_validate_prints_the_loss_of_the_best_checkpoint(trained: Path, recipe: Path) -> None:
    best = min(
        row["val/loss"] for row in Metrics(trained / "metrics.csv").rows if "val/loss" in row
    )
    printed = pixio("validate", "-c", recipe, "--out", trained)
    (shown,) = re.findall(r"val/loss +([\d.]+)", printed)
    assert float(shown) == pytest.approx(best, rel=1e-5)


def test_continuing_is_ahead_of_starting_anew(trained: Path, recipe: Path, tmp_path: Path) -> None:
    """The encoder goes on, the decoder is fresh, in both after equal steps."""
    weights = ("--model.backbone.weights", trained / "last.ckpt")
    pixio("fit", "-c", recipe, "--out", tmp_path / "on", *STEPS, *weights)
    assert last_loss(tmp_path / "on") < last_loss(trained)


def test_an_export_is_read_back(trained: Path, photographs: Path, tmp_path: Path) -> None:
    from pixio_lightning import Backbone

    exported = tmp_path / "encoder.safetensors"
    printed = pixio("export", trained / "last.ckpt", "--to", "safetensors", "--out", exported)
    assert "decoder" in printed and (tmp_path / "encoder.decoder.safetensors").exists()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        a, b = (Backbone(weights=str(p))(images).tokens for p in (trained / "last.ckpt", exported))
    assert torch.equal(a, b)
    recipe = write_recipe(tmp_path, photographs)
    steps = ("--trainer.max_steps", 1, "--model.backbone.weights", exported)
    assert "matched" in pixio("fit", "-c", recipe, "--out", tmp_path / "run", *steps)
