"""A run that diverges ends in one line, keeps nothing that is not finite, and can be gone on with.

Through the command line, in pretraining and with a depth head on a frozen backbone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from tiny_run import not_finite, table, write_recipe
from torch import nn

from pixio_lightning.cli.main import main
from pixio_lightning.training.checkpoints import checkpoint_io
from pixio_lightning.training.checkpoints.finite import first_not_finite

_SCENES = "{train: 6, held_out: 4, views: 2, size: 64}"
Words = Callable[[Path], list[str]]


class InfiniteGradient(L.Callback):
    """Make the gradients of one step infinite, as an overflow does.

    Args:
        step: Which, counted from 1.
        only: Text in the names of the parameters it happens to; all by default.
    """

    def __init__(self, step: int, only: str = "") -> None:
        self.step, self.only = step, only

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step + 1 != self.step:
            return
        found = [p for name, p in pl_module.named_parameters() if self.only in name]
        gradients = [p.grad for p in found if p.grad is not None]
        assert gradients
        for gradient in gradients:
            gradient.fill_(torch.inf)


def overflow(step: int, only: str = "") -> list[str]:
    words = ["--trainer.callbacks+=test_finite.InfiniteGradient"]
    return [*words, f"--trainer.callbacks.step={step}", f"--trainer.callbacks.only={only}"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["pretraining", "depth"])
def words(
    request: pytest.FixtureRequest,
    recipe: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Words:
    """The command line of a run of eight steps in a folder, saved after each."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "pixio-cache"))
    line = ["fit", "-c", str(recipe)]
    if request.param == "depth":
        line = ["fit", "-c", "depth/demo", "-c", "with/debug", "--data.scenes", _SCENES]
        line += ["--model.cache", "false", "--trainer.max_steps", "8", "--trainer.logger", "false"]
        line += ["--panels.every_n_steps", "0", "--checkpoint.every_n_steps", "1"]
        line += ["--data.steps_per_epoch", "4"]
    return lambda out: [*line, "--out", str(out)]


def refusal(capsys: pytest.CaptureFixture[str], line: list[str]) -> str:
    """Run a command line that must end with code 2, and return the one line that it ends with."""
    capsys.readouterr()
    assert main(line) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [text for text in lines if text.startswith("pixio: error: ")]
    assert errors == lines[-1:] and "Traceback" not in "".join(lines)
    return errors[0]


def kept(out: Path) -> dict[str, int]:
    """Return the steps of the checkpoints of a run, all of whose tensors must be finite."""
    found = {}
    for name in ("last.ckpt", "best.ckpt"):
        if (out / name).exists():
            assert not_finite(out / name) == []
            found[name] = checkpoint_io.read(out / name)["global_step"]
    return found


@pytest.mark.parametrize(("save_every", "log_every"), [(1, 1), (3, 100)])
def test_a_rate_that_is_far_too_high(
    save_every: int,
    log_every: int,
    words: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is seen where the loss is logged, and at the latest where it would be saved."""
    line = words(tmp_path) + ["--model.optim.lr", "1e9", "--model.optim.schedule", "constant"]
    line += ["--checkpoint.every_n_steps", str(save_every)]
    line += ["--trainer.log_every_n_steps", str(log_every)]
    text = refusal(capsys, line)
    seen = re.search(r"error: (.*) (?:is|is not) (?:nan|inf|finite) at step (\d+); ", text)
    assert seen, text
    assert (seen[1] == "the training loss") == (log_every == 1)
    steps = kept(tmp_path)
    assert all(step < int(seen[2]) for step in steps.values())
    # What it says of last.ckpt is true.
    assert ("is from before and finite" in text) == ("last.ckpt" in steps)
    rows = [row for row in table(tmp_path) if "train/loss" in row] if log_every == 1 else []
    assert len(rows) == (int(seen[2]) - 1 if log_every == 1 else 0)


@pytest.mark.parametrize(("log_every", "only"), [(1, ""), (1, "bias"), (100, "decoder")])
def test_an_infinite_gradient_at_a_step_that_is_saved(
    log_every: int, only: str, words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss of that step was finite: only the weights tell."""
    line = words(tmp_path) + overflow(5, only) + ["--trainer.log_every_n_steps", str(log_every)]
    text = refusal(capsys, line)
    assert kept(tmp_path)["last.ckpt"] == 4
    assert re.search(r"error: \S*" + only + r"\S* is not finite at step 5; nothing of that", text)


def test_a_last_step_that_diverges_unseen(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is logged, nothing was saved: the end of the run is the first to look."""
    line = words(tmp_path) + overflow(8) + ["--trainer.log_every_n_steps", "100"]
    text = refusal(capsys, line + ["--checkpoint.every_n_steps", "100"])
    assert "is not finite at step 8; nothing of that step was saved; start anew (--fresh)" in text
    assert "last.ckpt" not in text and "last.ckpt" not in kept(tmp_path)
    assert '"finished": true' not in (tmp_path / "state.json").read_text()


@pytest.mark.parametrize("folder", ["run", "my run"])
def test_the_advice_is_followed_as_printed(
    folder: str, words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / folder, tmp_path / "other"
    text = refusal(capsys, words(run) + overflow(5))
    advice = re.search(
        r"another folder, (--ckpt_path .* --out DIR --model\.optim\.lr LESS), ", text
    )
    assert advice
    more = advice[1].replace("DIR", str(other)).replace("LESS", "1e-5")
    assert main(words(run) + shlex.split(more)) == 0
    rows = [row for row in table(other) if "train/loss" in row]
    assert [row["step"] for row in rows] == [4, 5, 6, 7]
    # From the first step on it is that of the lower peak, and above nothing.
    assert all(0 < row["train/lr"] < 1e-5 for row in rows)
    assert kept(other)["last.ckpt"] == 8 and kept(run)["last.ckpt"] == 4


def test_a_checkpoint_whose_own_loss_is_not_finite_is_not_promised(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights can be finite and yet so large that no rate helps any more."""
    line = words(tmp_path) + ["--model.optim.lr", "1e30", "--model.optim.warmup", "0"]
    text = refusal(capsys, line)
    assert "the training loss is" in text and "at step 2" in text
    assert kept(tmp_path)["last.ckpt"] == 1
    assert "if its own loss is not finite either, start anew (--fresh) with that rate" in text


# --- what is looked at ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_counts(value: float) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    module[2].requires_grad_(False)
    module[2].register_buffer("mask", torch.tensor([0.0, value]))
    module[2].weight.data[0, 0] = value  # of a frozen part, which no checkpoint holds
    optimizer = torch.optim.AdamW(p for p in module.parameters() if p.requires_grad)
    module[:2](torch.randn(4, 2)).sum().backward()
    optimizer.step()
    assert first_not_finite(module, [optimizer]) is None
    places = {
        "0.weight": module[0].weight.data,
        "1.running_var": module[1].running_var,
        "exp_avg_sq of 1.bias": optimizer.state[module[1].bias]["exp_avg_sq"],
    }
    for name, tensor in places.items():
        whole = tensor.clone()
        tensor.view(-1)[-1] = value
        assert first_not_finite(module, [optimizer]) == name
        tensor.copy_(whole)
    assert first_not_finite(module, [optimizer]) is None
