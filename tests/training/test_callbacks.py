"""Lightning callbacks: lines and bars, the summary, the table, checkpoints, signals, the probe."""

import csv
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from pathlib import Path

import fork_server
import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from pixio_lightning.cli import main as cli
from pixio_lightning.errors import UserError
from pixio_lightning.pretraining.masked_pixels import PixelPretraining
from pixio_lightning.training.callbacks import OnlineProbe, Preemption, progress
from pixio_lightning.training.callbacks.online_probe import knn_accuracy, ridge_accuracy
from pixio_lightning.training.checkpoints.checkpoint_io import read

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1}


def paint(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 20, (40, 40, 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos to train on, and two classes of them for the probe: most of them red."""
    folder = tmp_path_factory.mktemp("callbacks")
    for i in range(20):
        paint(folder / "photos" / f"{i}.png", (9 * i, 128, 255 - 9 * i), i)
    for part, red, blue in (("train", 5, 3), ("val", 1, 3)):
        for i in range(red):
            paint(folder / part / "red" / f"{i}.png", (220, 30, 30), i)
        for i in range(blue):
            paint(folder / part / "blue" / f"{i}.png", (30, 30, 220), i)
    (folder / "val" / "red" / "damaged.png").write_bytes(b"damaged")
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    backbone = {"name": "pixio_vitt16", "weights": "random", "tune": "full", "model_args": TINY}
    decoder = {"dim": 16, "depth": 1, "heads": 1}
    model = {"backbone": backbone, "mask_grid": 2, "decoder": decoder, "optim": {"lr": 1e-3}}
    data = {"source": "folder", "path": str(folder / "photos"), "image_size": 32, "batch_size": 4}
    trainer = {"max_steps": 12, "accelerator": "cpu", "log_every_n_steps": 5, "logger": False}
    path = folder / "tiny.yaml"
    content = {
        "model": {"class_path": "PixelPretraining", "init_args": model},
        "data": {
            "class_path": "Pixels",
            "init_args": data | {"num_workers": 0, "steps_per_epoch": 4},
        },
        "trainer": trainer,
        "checkpoint": {"every_n_steps": 3},
        "panels": {"every_n_steps": 8, "images": 2},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def probe(folder: Path) -> list[str]:
    words = "OnlineProbe", f"train={folder}/train", f"val={folder}/val", "every_n_steps=3"
    return [f"--trainer.callbacks+={words[0]}", *(f"--trainer.callbacks.{w}" for w in words[1:])]


def fit(recipe: Path, out: Path, *words: str) -> int:
    return cli.main(["fit", "-c", str(recipe), "--out", str(out), *words])


def table(out: Path) -> list[dict[str, float]]:
    with (out / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


# --- a run in a log file ----------------------------------------------------------------------


def test_a_run_prints_plain_lines(recipe: Path, tmp_path: Path, capfd) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)]
    assert fit(recipe, tmp_path) == 0
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)]
    output = capfd.readouterr()
    assert "\r" not in output.out + output.err and "fit:" not in output.err
    progress = lines_of(output.out, "step 5/12") + lines_of(output.out, "step 10/12")
    assert len(progress) == 2
    # A loss is logged under the step that it was computed in, and shown when that is done.
    logged = {row["step"]: row for row in table(tmp_path)}
    for line, step in zip(progress, (4, 9), strict=True):
        fields = re.match(
            r"step \d+/12  img/s (\d+)  wait \d+%  loss (\S+)  lr (\S+)  eta (\d+):(\d\d)$", line
        )
        assert fields
        # What is left at the speed that is shown, whatever it is; both are rounded.
        images, left = int(fields[1]), 60 * int(fields[4]) + int(fields[5])
        assert 4 * (11 - step) / (images + 0.5) - 1 < left
        assert left <= 4 * (11 - step) / max(images - 0.5, 1e-9)
        assert float(fields[2]) == pytest.approx(logged[step]["train/loss"], rel=1e-3)
        assert float(fields[3]) == pytest.approx(logged[step]["train/lr"], rel=1e-3)
    saved = [line.split(":")[0] for line in lines_of(output.out, "step ") if "saved" in line]
    assert saved == ["step 3", "step 6", "step 9", "step 12"]
    # One block before the first step, one after the last.
    assert (
        len(lines_of(output.out, "pixio")) == len(lines_of(output.out, "step 12\n"[:-1])) - 1 == 1
    )
    for fact in ("recipe", "global batch  4 = 4 x 1", "peak lr       0.001", "run folder"):
        assert output.out.count(f"\n  {fact}") == 1
    assert [path.name for path in sorted((tmp_path / "panels").iterdir())] == [
        "step-0000008.png",
        "step-0000012.png",
    ]


def test_accumulated_batches_are_no_steps(recipe: Path, tmp_path: Path, capfd) -> None:
    words = "--trainer.accumulate_grad_batches=3", "--trainer.log_every_n_steps=1"
    assert fit(recipe, tmp_path, *words, "--trainer.max_steps=4") == 0
    shown = re.findall(r"^step (\d+)/4", capfd.readouterr().out, re.M)
    assert shown == ["1", "2", "3", "4"]


def test_an_epoch_ends_with_a_whole_step(recipe: Path, tmp_path: Path, capfd) -> None:
    words = "--trainer.accumulate_grad_batches=3", "--trainer.log_every_n_steps=1"
    assert fit(recipe, tmp_path / "a", *words, "--trainer.limit_train_batches=4") == 2
    said = "trainer.limit_train_batches 4 ends an epoch after 4 batches, which"
    assert said in capfd.readouterr().err
    words += "--trainer.limit_train_batches=6", "--trainer.max_steps=4"
    assert fit(recipe, tmp_path / "b", *words) == 0
    assert re.findall(r"^step (\d+)/4", capfd.readouterr().out, re.M) == ["1", "2", "3", "4"]


def test_the_best_checkpoint_is_that_of_the_lowest_loss(recipe: Path, tmp_path: Path) -> None:
    # So high a rate that the loss rises again.
    assert fit(recipe, tmp_path, "--model.optim.lr=0.1", "--model.optim.schedule=constant") == 0
    losses = {row["step"]: row["val/loss"] for row in table(tmp_path) if "val/loss" in row}
    assert len(losses) == 3
    best = min(losses, key=losses.__getitem__)
    # Validation after a step is logged under the number of the last batch.
    assert read(tmp_path / "best.ckpt")["global_step"] == best + 1
    assert read(tmp_path / "last.ckpt")["global_step"] == 12


class BrokenValidation(L.Callback):
    """Make the loss of the first validations NaN, as half precision may while a model is raw."""

    def __init__(self, before: int) -> None:
        self.before, self._spoilt = before, False

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._spoilt = trainer.global_step < self.before
        if self._spoilt:
            self._bias = pl_module.decoder.pred.bias.detach().clone()
            pl_module.decoder.pred.bias.data.fill_(torch.nan)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._spoilt:
            pl_module.decoder.pred.bias.data.copy_(self._bias)


def test_a_first_validation_without_a_number_is_no_best(recipe: Path, tmp_path: Path) -> None:
    broken = "--trainer.callbacks+=test_callbacks.BrokenValidation"
    words = broken, "--trainer.callbacks.before=8"
    assert fit(recipe, tmp_path, *words) == 0
    losses = {row["step"]: row["val/loss"] for row in table(tmp_path) if "val/loss" in row}
    assert list(losses) == [3, 7, 11] and losses[3] != losses[3]
    best = min((7, 11), key=losses.__getitem__)
    assert read(tmp_path / "best.ckpt")["global_step"] == best + 1


def test_the_last_step_is_evaluated_whatever_the_epochs(recipe: Path, tmp_path: Path) -> None:
    """Ten steps of epochs of four: what is called the last is of step 10, not of 8, nor of 0."""
    assert fit(recipe, tmp_path, "--trainer.max_steps=10") == 0
    rows = [row for row in table(tmp_path) if "val/loss" in row]
    assert [row["step"] for row in rows] == [3, 7, 9]
    value = read(tmp_path / "last.ckpt")["callbacks"]["Checkpoints"]["best_value"]
    assert value == pytest.approx(min(row["val/loss"] for row in rows), rel=1e-6)


def test_saving_every_0_steps_saves_at_the_end(recipe: Path, tmp_path: Path, capsys) -> None:
    assert fit(recipe, tmp_path / "run", "--checkpoint.every_n_steps=0") == 0
    saved = [line for line in capsys.readouterr().out.splitlines() if "saved last.ckpt" in line]
    assert len(saved) == 1 and saved[0].startswith("step 12: ")
    assert fit(recipe, tmp_path / "other", "--checkpoint.every_n_steps=-1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoint.every_n_steps is -1, but expected at least 0" in line


@pytest.mark.parametrize(
    "stopped_at", [10, *(pytest.param(n, marks=pytest.mark.slow) for n in (7, 9))]
)
def test_the_table_reads_as_if_never_interrupted(
    recipe: Path, folder: Path, tmp_path: Path, monkeypatch, stopped_at: int
) -> None:
    """Probed every 3 steps, saved every 3, validated every 4; stopped after steps 7, 9 and 10."""
    words = [*probe(folder), "--trainer.log_every_n_steps=1"]
    assert fit(recipe, tmp_path / "whole", *words) == 0
    training_step = PixelPretraining.training_step

    def stop(self: PixelPretraining, *arguments: object) -> torch.Tensor:
        if self.global_step == stopped_at:
            raise RuntimeError("power cut")
        return training_step(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(PixelPretraining, "training_step", stop)
        fit(recipe, tmp_path / "cut", *words)
    assert fit(recipe, tmp_path / "cut", *words) == 0
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    assert [row["step"] for row in table(tmp_path / "cut")] == list(range(12))


def test_a_fresh_run_starts_a_table_of_its_own(recipe: Path, tmp_path: Path) -> None:
    words = "--trainer.max_steps=4", "--checkpoint.every_n_steps=50"
    assert fit(recipe, tmp_path / "run", *words, "--trainer.log_every_n_steps=1") == 0
    assert len(table(tmp_path / "run")) == 4
    assert fit(recipe, tmp_path / "run", *words, "--trainer.log_every_n_steps=4", "--fresh") == 0
    assert [row["step"] for row in table(tmp_path / "run")] == [3]


# --- terminals and signals --------------------------------------------------------------------


def command(recipe: Path, out: Path, *words: str) -> list[str]:
    start = [sys.executable, "-m", "pixio_lightning.cli.main", "fit", "-c", str(recipe)]
    return [*start, "--out", str(out), *words]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_terminal_shows_a_bar_until_it_is_interrupted(recipe: Path, tmp_path: Path) -> None:
    words = "--trainer.max_steps=1000000", "--data.num_workers=1"
    child, terminal = pty.fork()
    if child == 0:
        # Tests that a shell started in the background would hand on that it is ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execve(sys.executable, command(recipe, tmp_path, *words), environment())
    termios.tcsetwinsize(terminal, (40, 150))
    shown, interrupted = b"", False
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
        if not interrupted and b"img/s=" in shown and b"step 9: saved" in shown:
            os.write(terminal, b"\x03")  # Ctrl-C
            interrupted = True
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    text = shown.decode()
    bars = [part for part in re.split(r"[\r\n]", text) if part.startswith("fit:")]
    assert any("img/s=" in bar and "loss=" in bar and "/1000000 [" in bar for bar in bars)
    assert "step 5/" not in text and "Traceback" not in text
    assert os.waitstatus_to_exitcode(status) == 130
    (step,) = re.findall(r"interrupted at step (\d+): saved; the same line goes on", text)
    assert read(tmp_path / "last.ckpt")["global_step"] == int(step) >= 9


def test_a_terminal_without_rows_has_no_bar() -> None:
    _, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        termios.tcsetwinsize(terminal, (40, 150))
        assert progress._shows_a_bar(stream)
        termios.tcsetwinsize(terminal, (0, 0))
        assert not progress._shows_a_bar(stream)


@pytest.mark.parametrize(
    ("number", "workers", "accumulate", "code"),
    [
        (signal.SIGTERM, 1, 1, 143),
        pytest.param(signal.SIGUSR1, 0, 16, 138, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_stops(
    recipe: Path, tmp_path: Path, number: signal.Signals, workers: int, accumulate: int, code: int
) -> None:
    """As schedulers do, the signal is sent to the whole job: to the data workers, too.

    Among the many batches of a step it waits for the last.
    """
    words = "--trainer.max_steps=1000000", "--checkpoint.every_n_steps=1000000"
    words += (f"--trainer.accumulate_grad_batches={accumulate}",)
    line = command(recipe, tmp_path / "run", *words, f"--data.num_workers={workers}")
    process = subprocess.Popen(
        [fork_server.python(), *line[1:]],
        env=environment() | {"FORK_PID": str(tmp_path / "pid")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 10/"):
            break
    assert not (tmp_path / "run" / "last.ckpt").exists()
    os.killpg(int((tmp_path / "pid").read_text()), number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    saved = read(tmp_path / "run" / "last.ckpt")
    step = saved["global_step"]
    progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["total"]["ready"] == step * accumulate
    assert f"{number.name} at step {step}: saved last.ckpt, stopping" in out
    assert step >= 10 and "Traceback" not in err
    state = yaml.safe_load((tmp_path / "run" / "state.json").read_text())
    assert (state["step"], state["finished"]) == (step, False)


def test_a_second_interrupt_stops_at_once() -> None:
    callback = Preemption()
    callback._received(signal.SIGINT, None)
    assert callback.signal == signal.SIGINT and not callback.stopping
    with pytest.raises(KeyboardInterrupt):
        callback._received(signal.SIGINT, None)


def test_only_the_notice_of_a_time_limit_asks_for_the_job_again() -> None:
    """SIGTERM is of `scancel`, too; after a notice it is the limit itself."""
    asked = {}
    for numbers in [(signal.SIGTERM,), (signal.SIGUSR1,), (signal.SIGUSR1, signal.SIGTERM)]:
        callback = Preemption(requeue=True)
        callback._step = 3  # training
        for number in numbers:
            callback._received(number, None)
        assert callback.signal == numbers[-1]
        asked[numbers] = callback.noticed
    assert list(asked.values()) == [False, True, True]


# --- runs without a step ----------------------------------------------------------------------


def test_a_checkpoint_at_the_last_step_leaves_nothing_to_train(
    recipe: Path, tmp_path: Path, capsys
) -> None:
    assert fit(recipe, tmp_path / "a", "--trainer.max_steps=1") == 0
    last = tmp_path / "a" / "last.ckpt"
    assert fit(recipe, tmp_path / "b", "--trainer.max_steps=1", f"--ckpt_path={last}") == 2
    assert "is at step 1 and trainer.max_steps is 1: there is nothing" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "b").iterdir()] == [".lock"]


def test_a_run_whose_time_has_passed_says_so(recipe: Path, tmp_path: Path, capsys) -> None:
    assert fit(recipe, tmp_path, "--trainer.max_time=00:00:00:00") == 0
    text = capsys.readouterr().out
    assert "step 0: no step was taken, as trainer.max_time has passed" in text
    assert "last.ckpt" not in text and "img/s" not in text


# --- the probe --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 20, 1000])
def test_knn_votes_as_in_scikit_learn(k: int) -> None:
    rng = np.random.default_rng(k)
    centres = rng.normal(size=(4, 8))
    labels = rng.integers(0, 4, 300)
    points = (centres[labels] + 1.5 * rng.normal(size=(300, 8))).astype(np.float32)
    reference = KNeighborsClassifier(
        min(k, 200), metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(points[:200], labels[:200])
    expected = reference.score(points[200:], labels[200:])
    x, y = torch.from_numpy(points), torch.from_numpy(labels)
    assert knn_accuracy(x[:200], y[:200], x[200:], y[200:], k=k) == pytest.approx(expected)
    assert 0.3 < expected < 0.95


def test_ridge_fits_as_in_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    points = rng.normal(size=(3, 6))[labels] + 1.2 * rng.normal(size=(200, 6))
    points = (points * [1, 10, 100, 1, 1, 1] + 50).astype(np.float32)
    bank, queries = points[:120], points[120:]
    mean, std = bank.mean(axis=0), bank.std(axis=0, ddof=1)
    reference = Ridge(alpha=1e-2 * 120).fit((bank - mean) / std, np.eye(3)[labels[:120]])
    expected = (reference.predict((queries - mean) / std).argmax(axis=1) == labels[120:]).mean()
    x, y = torch.from_numpy(points), torch.from_numpy(labels)
    assert ridge_accuracy(x[:120], y[:120], x[120:], y[120:]) == pytest.approx(expected)
    assert 0.4 < expected < 0.95


@pytest.mark.parametrize("accuracy", [lambda *a: knn_accuracy(*a, k=1), ridge_accuracy])
def test_a_set_made_by_hand(accuracy) -> None:
    bank = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-0.1, 1.0], [0.1, 1.0]])
    queries = torch.tensor([[2.0, 0.0], [0.0, 3.0], [5.0, 1.0], [1.0, 5.0]])
    classes = torch.tensor([0, 0, 1, 1])
    assert accuracy(bank, classes, queries, torch.tensor([0, 1, 0, 0])) == 0.75
    assert accuracy(bank, classes, queries, torch.tensor([0, 1, 0, 2])) == 0.75


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_a_probe_is_logged_beside_the_majority(
    recipe: Path, folder: Path, tmp_path: Path, kind: str
) -> None:
    words = [*probe(folder), f"--trainer.callbacks.kind={kind}", "--trainer.callbacks.k=3"]
    assert fit(recipe, tmp_path / "probed", *words, "--trainer.max_steps=7") == 0
    rows = [row for row in table(tmp_path / "probed") if f"probe/{kind}" in row]
    assert [row["step"] for row in rows] == [2, 5, 6]
    # Red is most common where it learns, and one in four where it is judged, the damaged one
    # not counted; colours are told apart by any encoder.
    assert [row["probe/majority"] for row in rows] == [0.25] * 3
    assert [row[f"probe/{kind}"] for row in rows] == [1.0] * 3
    assert fit(recipe, tmp_path / "plain", "--trainer.max_steps=7") == 0
    plain, probed = (read(tmp_path / out / "last.ckpt") for out in ("plain", "probed"))
    for name, tensor in plain["state_dict"].items():
        assert torch.equal(tensor, probed["state_dict"][name]), name


def test_a_probe_every_0_steps_is_made_at_the_end(
    recipe: Path, folder: Path, tmp_path: Path, capsys
) -> None:
    words = [*probe(folder), "--trainer.max_steps=4"]
    assert fit(recipe, tmp_path / "run", *words, "--trainer.callbacks.every_n_steps=0") == 0
    assert [row["step"] for row in table(tmp_path / "run") if "probe/knn" in row] == [3]
    assert fit(recipe, tmp_path / "other", *words, "--trainer.callbacks.every_n_steps=-1") == 2
    assert "every_n_steps is -1" in capsys.readouterr().err.splitlines()[-1]


def test_accumulated_batches_are_probed_and_drawn_as_steps(
    recipe: Path, folder: Path, tmp_path: Path
) -> None:
    """The batches before the first step are not step 0."""
    words = [*probe(folder), "--trainer.accumulate_grad_batches=2", "--trainer.max_steps=4"]
    assert fit(recipe, tmp_path, *words, "--panels.every_n_steps=2") == 0
    assert [row["step"] for row in table(tmp_path) if "probe/knn" in row] == [2, 3]
    drawn = [path.name for path in sorted((tmp_path / "panels").iterdir())]
    assert drawn == ["step-0000002.png", "step-0000004.png"]


class Preempted(L.Callback):
    """Get a signal in the middle of a step, once."""

    def __init__(self, step: int, once: str) -> None:
        self.step, self.once = step, Path(once)

    def on_before_zero_grad(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: object
    ) -> None:
        if trainer.global_step + 1 == self.step and not self.once.exists():
            self.once.touch()
            os.kill(os.getpid(), signal.SIGTERM)


# Where a probe, a save and a validation all have their turn; the others are of two of these.
@pytest.mark.parametrize("step", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 6))])
def test_a_preempted_run_saves_instead_of_probing(
    recipe: Path, folder: Path, tmp_path: Path, capsys, step: int
) -> None:
    """What its turn had come for at that step is made up for: the table has no gap."""
    preempted = "--trainer.callbacks+=test_callbacks.Preempted"
    mark = tmp_path / "mark"
    every = "--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=2"
    words = [preempted, f"--trainer.callbacks.step={step}", f"--trainer.callbacks.once={mark}"]
    words += [*probe(folder), *every, "--trainer.callbacks.every_n_steps=2"]
    mark.touch()
    assert fit(recipe, tmp_path / "whole", *words) == 0
    mark.unlink()
    assert fit(recipe, tmp_path / "cut", *words) == 128 + signal.SIGTERM
    assert read(tmp_path / "cut" / "last.ckpt")["global_step"] == step
    rows = table(tmp_path / "cut")
    assert not [row for row in rows if row["step"] >= step]
    assert fit(recipe, tmp_path / "cut", *words) == 0
    assert table(tmp_path / "cut") == table(tmp_path / "whole")


def test_a_probe_outlives_a_kill_in_the_validation_after_it(
    recipe: Path, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    """Probed, saved and validated at one step: the validation is logged under the one before."""
    every = "--trainer.callbacks.every_n_steps=4", "--checkpoint.every_n_steps=4"
    words = [*probe(folder), *every, "--trainer.log_every_n_steps=1"]
    assert fit(recipe, tmp_path / "whole", *words) == 0
    validation_step = PixelPretraining.validation_step

    def stop(self: PixelPretraining, *arguments: object) -> None:
        if self.global_step == 4:
            raise RuntimeError("power cut")
        validation_step(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(PixelPretraining, "validation_step", stop)
        fit(recipe, tmp_path / "cut", *words)
    assert fit(recipe, tmp_path / "cut", *words) == 0
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    assert len([row for row in table(tmp_path / "cut") if "probe/knn" in row]) == 3


def test_two_probes_beside_each_other(recipe: Path, folder: Path, tmp_path: Path) -> None:
    both = [*probe(folder), *probe(folder), "--trainer.callbacks.kind=linear"]
    assert fit(recipe, tmp_path, *both, "--trainer.max_steps=4") == 0
    rows = [row for row in table(tmp_path) if "probe/knn" in row and "probe/linear" in row]
    assert [row["step"] for row in rows] == [2, 3]


def test_mistakes_of_a_probe(recipe: Path, folder: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(UserError, match="needs both train and val"):
        OnlineProbe(train=str(folder))
    for name, value in (("images", -1), ("images", 0), ("k", 0)):
        with pytest.raises(UserError, match=f"OnlineProbe's {name} is {value}, but expected at le"):
            OnlineProbe(**{name: value})  # type: ignore[arg-type]
    assert fit(recipe, tmp_path, "--trainer.callbacks+=OnlineProbe") == 2
    assert "OnlineProbe found 1 class of images; it needs two" in capsys.readouterr().err


def test_a_probe_is_judged_on_classes_that_it_has_learned(
    recipe: Path, folder: Path, tmp_path: Path, capsys
) -> None:
    """Told before the first step: of classes that it never saw, it can name none."""
    for part in ("train", "val"):
        shutil.copytree(folder / part, tmp_path / part)
    paint(tmp_path / "val" / "green" / "0.png", (30, 220, 30), 0)
    assert fit(recipe, tmp_path / "run", *probe(tmp_path), "--trainer.max_steps=4") == 2
    shown = capsys.readouterr()
    expected = "judged on images of 'green', of which those to learn from, of 'blue', 'red', have"
    assert expected in shown.err
    assert "step 1" not in shown.out and not (tmp_path / "run" / "last.ckpt").exists()


def test_a_monitor_that_no_validation_logs_is_named(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(PixelPretraining, "monitor", ("val/los", "min"))
    words = ["fit", "-c", str(recipe), "--trainer.max_steps", "4", "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert "no best.ckpt, which is chosen by val/los, the monitor of PixelPretraining" in told
    assert "did you mean 'val/loss'" in told
    assert not (tmp_path / "run" / "best.ckpt").exists()
    assert cli.main([*words, "--checkpoint.best", "false", "--fresh"]) == 0
    assert "no best.ckpt" not in capsys.readouterr().out
