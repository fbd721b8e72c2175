"""What a run logs of its training: the mean loss of an interval, and the peak of the schedule."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from tiny_run import fit, table, write_recipe

_losses: list[float] = []


class LossLog(L.Callback):
    """Write down the loss of every batch, as training returns it."""

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: dict[str, torch.Tensor],
        *rest: object,
    ) -> None:
        # Lightning divides it by the number of accumulated batches.
        _losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def losses() -> list[float]:
    """The loss of every batch of the runs of a test."""
    _losses.clear()
    return _losses


def training(out: Path) -> list[dict[str, float]]:
    return [row for row in table(out) if "train/loss" in row]


@pytest.mark.parametrize("every", [1, 2])
def test_the_logged_loss_is_the_mean_of_all_accumulated_batches(
    every: int, recipe: Path, losses: list[float], tmp_path: Path
) -> None:
    words = ("--trainer.accumulate_grad_batches", 4, "--trainer.log_every_n_steps", every)
    log = ("--trainer.callbacks+=test_train_log.LossLog",)
    assert fit(recipe, tmp_path / "run", *words, *log, "--trainer.max_steps", 4) == 0
    assert len(losses) == 16 and len(set(losses)) == 16
    rows = training(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(every - 1, 4, every))
    for row in rows:
        seen = losses[4 * int(row["step"] - every + 1) : 4 * int(row["step"] + 1)]
        assert len(seen) == 4 * every
        assert row["train/loss"] == pytest.approx(sum(seen) / len(seen), rel=1e-6)


def test_accumulated_batches_log_what_one_large_one_does(recipe: Path, tmp_path: Path) -> None:
    """Masks are drawn by sample and step, however a step is divided."""
    steps = ("--trainer.max_steps", 4)
    one = ("--data.batch_size", 16, *steps)
    assert fit(recipe, tmp_path / "one", *one) == 0
    parts = ("--data.batch_size", 4, "--trainer.accumulate_grad_batches", 4, *steps)
    assert fit(recipe, tmp_path / "parts", *parts) == 0
    whole, divided = training(tmp_path / "one"), training(tmp_path / "parts")
    assert len({row["train/loss"] for row in whole}) == 4
    assert len(divided) == len(whole) == 4
    for a, b in zip(whole, divided, strict=True):
        assert a["step"] == b["step"] and a["train/lr"] == b["train/lr"]
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-5)


def test_the_logged_rate_is_that_of_the_head(recipe: Path, tmp_path: Path) -> None:
    """Layer decay halves it from block to block, first of all for the first group."""
    words = ("--model.optim.lr", 1e-3, "--model.optim.layer_decay", 0.5)
    words += ("--model.optim.warmup", 2, "--model.optim.schedule", "poly")
    assert fit(recipe, tmp_path / "run", *words, "--trainer.max_steps", 6) == 0
    rates = [row["train/lr"] for row in training(tmp_path / "run")]
    expected = [0.0, 0.5e-3, 1e-3, *(1e-3 * (1 - step / 4) ** 0.9 for step in (1, 2, 3))]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_nothing_is_logged_every_0_steps(recipe: Path, tmp_path: Path) -> None:
    """As Lightning has it; the validations are."""
    words = ("--trainer.log_every_n_steps", 0, "--trainer.max_steps", 4)
    assert fit(recipe, tmp_path / "run", *words) == 0
    (row,) = table(tmp_path / "run")
    assert "val/loss" in row and "train/loss" not in row
