"""A run gives back the handler of a dead child's signal, for which torch installs its own.

Whoever calls `main` may have set one, as event loops do, and may go on afterwards.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fork_server
import lightning as L
import pytest
import tiny_run
from running import environment

from pixio_lightning.cli.main import main
from pixio_lightning.training.checkpoints.checkpoint_io import read

_ONE_WORKER = ("--data.num_workers", "1")
_seen: list[int] = []


def note(number: int, frame: Any) -> None:
    _seen.append(number)


class KillsWorkers(L.Callback):
    """Kill the data workers in the middle of training.

    Args:
        wrapped: Make another error of what torch's handler then raises, as `inspect` does.
    """

    def __init__(self, wrapped: bool = False) -> None:
        self.wrapped = wrapped

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: object
    ) -> None:
        if trainer.global_step != 2:
            return
        try:
            for child in multiprocessing.active_children():
                child.kill()
            for child in multiprocessing.active_children():
                child.join()
        except RuntimeError as error:
            if self.wrapped:
                raise TypeError("unsupported callable") from error
            raise


class LosesWorkersWhileSaving(L.Callback):
    """Be told to stop in the middle of training, and lose the workers while that is saved."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: object
    ) -> None:
        if trainer.global_step == 2:
            signal.raise_signal(signal.SIGTERM)

    def on_save_checkpoint(self, *state: object) -> None:
        for child in multiprocessing.active_children():
            assert child.pid
            child.kill()
            # Its end is seen, and left for torch's handler to see.
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


class Fails(L.Callback):
    """Raise what nobody expects."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: object
    ) -> None:
        if trainer.global_step == 2:
            raise ArithmeticError("unexpected")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(
    params=[
        pytest.param(signal.SIG_IGN, marks=pytest.mark.slow, id="ignored"),
        pytest.param(note, id="own"),
    ]
)
def before(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What handles the signal before a run."""
    earlier = signal.signal(signal.SIGCHLD, request.param)
    yield request.param
    signal.signal(signal.SIGCHLD, earlier)


def line(verb: str, recipe: Path, out: Path, *words: str) -> list[str]:
    return [verb, "-c", str(recipe), "--out", str(out), *_ONE_WORKER, *words]


def test_after_a_run_and_after_predicting(before: Any, recipe: Path, tmp_path: Path) -> None:
    for verb in ("fit", "predict"):
        assert main(line(verb, recipe, tmp_path, "--trainer.max_steps", "2")) == 0
        assert signal.getsignal(signal.SIGCHLD) is before, verb


def test_after_a_failure(
    before: Any, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later run is told of a dead worker all the same."""
    for wrapped in ("false", "true"):
        kills = ["--trainer.callbacks+=test_child_signal.KillsWorkers"]
        kills += ["--trainer.callbacks.wrapped", wrapped]
        assert main(line("fit", recipe, tmp_path / wrapped, *kills)) == 2
        assert "a data worker was killed" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGCHLD) is before
    with pytest.raises(ArithmeticError, match="unexpected"):
        fails = "--trainer.callbacks+=test_child_signal.Fails"
        main(line("fit", recipe, tmp_path / "last", fails))
    assert signal.getsignal(signal.SIGCHLD) is before
    # A child of others that fails now is none of its business.
    subprocess.run([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_worker_that_ends_does_not_interrupt_the_last_save(recipe: Path, tmp_path: Path) -> None:
    words = ["--checkpoint.every_n_steps", "0"]  # but the one that the signal asks for
    words += ["--trainer.callbacks+=test_child_signal.LosesWorkersWhileSaving"]
    assert main(line("fit", recipe, tmp_path, *words)) == 128 + signal.SIGTERM
    assert read(tmp_path / "last.ckpt")["global_step"] == 3


def test_a_handler_of_one_s_own_is_called_again(recipe: Path, tmp_path: Path) -> None:
    earlier = signal.signal(signal.SIGCHLD, note)
    try:
        assert main(line("fit", recipe, tmp_path, "--trainer.max_steps", "2")) == 0
        _seen.clear()
        subprocess.run([sys.executable, "-c", ""], check=True)
        assert _seen == [signal.SIGCHLD]
    finally:
        signal.signal(signal.SIGCHLD, earlier)


_AFTER_TORCH = """
import signal, subprocess, sys
from torch.utils.data import DataLoader
from pixio_lightning.cli.main import main

list(DataLoader([0, 1], num_workers=1))
torchs = signal.getsignal(signal.SIGCHLD)
assert callable(torchs)
for out in ("a", "b"):
    assert main([*sys.argv[1:], "--out", out]) == 2
    assert signal.getsignal(signal.SIGCHLD) is torchs
    subprocess.run([sys.executable, "-c", ""], check=True)  # no worker of the run is missed now
list(DataLoader([0, 1], num_workers=1))
"""


def test_torch_s_own_may_have_been_there(recipe: Path, tmp_path: Path) -> None:
    kills = "--trainer.callbacks+=test_child_signal.KillsWorkers"
    words = ["fit", "-c", str(recipe), *_ONE_WORKER, kills]
    done = subprocess.run(
        [fork_server.python(), "-c", _AFTER_TORCH, *words],
        cwd=tmp_path,
        env=environment(PYTHONPATH=os.pathsep.join([*sys.path, str(Path(__file__).parent)])),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a data worker was killed") == 2
