"""A run that is killed around validations and saves ends as one that never was.

Its evaluations, its best checkpoint and its last one are those of an uninterrupted run, whenever
it was killed. First in one process, at every moment that matters; then with real kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import equal, kill_when, pixio, same

from pixio_heads.depth import Depth
from pixio_lightning.cli.main import main
from pixio_lightning.training import results
from pixio_lightning.training.callbacks import Checkpoints
from pixio_lightning.training.checkpoints import checkpoint_io
from pixio_lightning.training.head import Head

# Saves at 3, 6, 9, 12 and validations at 4, 8, 12, or together at 4, 8, 12.
_TINY: dict[str, Any] = {
    "model": {
        "backbone": {
            "name": "pixio_vitt16",
            "weights": "random:0",
            "layers": "last",
            "tune": "full",
            "drop_path": 0.2,
            "model_args": {
                **{"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
                "n_cls_tokens": 2,
            },
        },
        "decoder": {"class_path": "LinearDecoder"},
        "cache": False,
        # So high a rate that the best validation is not the last one.
        "optim": {"lr": 0.2, "schedule": "constant", "warmup": 0.0},
    },
    "data": {
        "scenes": {"train": 4, "held_out": 4, "views": 2, "size": 64},
        **{"batch_size": 4, "val_batch_size": 2, "num_workers": 0, "steps_per_epoch": 4},
    },
    "trainer": {"max_steps": 12, "log_every_n_steps": 1, "logger": False},
    "panels": {"every_n_steps": 0},
}


class PowerCut(BaseException):
    """Ends a process without a chance to clean up, as far as Python can."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tiny")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(_TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXIO_CACHE", str(folder / "cache"))
        yield path


def _words(tiny: Path, out: Path, save_every: int) -> list[str]:
    words = ["-c", "depth/demo", "-c", str(tiny), "--out", str(out)]
    return [*words, "--checkpoint.every_n_steps", str(save_every)]


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(["fit", *_words(tiny, folder, 3)]) == 0
    return folder


def _assert_same_outcome(a: Path, b: Path) -> None:
    assert results.read(a) == results.read(b)
    assert same(a / "last.ckpt", b / "last.ckpt")
    first, second = (checkpoint_io.read(run / "best.ckpt") for run in (a, b))
    assert first["global_step"] == second["global_step"]
    assert equal(first["state_dict"], second["state_dict"])
    assert (a / "metrics.csv").read_text() == (b / "metrics.csv").read_text()
    state = json.loads((b / "state.json").read_text())
    assert (state["step"], state["finished"]) == (12, True)


def test_the_run_says_something(uninterrupted: Path) -> None:
    lines = results.read(uninterrupted)
    assert [line["steps"] for line in lines[:-2]] == [4, 8]
    assert [line["checkpoint"] for line in lines] == ["running", "running", "best", "last"]
    best = checkpoint_io.read(uninterrupted / "best.ckpt")["global_step"]
    assert best == lines[2]["steps"] != 12, "the best must not be the last, or nothing is shown"


def _cut(patch: pytest.MonkeyPatch, owner: type, name: str, when: Any, *, after: bool) -> None:
    """Cut the power when `owner.name` is called and `when(self, *arguments)` holds."""
    original = getattr(owner, name)

    def cut(self: Any, *args: Any, **kwargs: Any) -> Any:
        now = when(self, *args)
        if now and not after:
            raise PowerCut
        result = original(self, *args, **kwargs)
        if now:
            raise PowerCut
        return result

    patch.setattr(owner, name, cut)


_MOMENTS = {
    "before the first batch": (Depth, "on_validation_start", lambda s: s.global_step == 8, False),
    "between batches": (Head, "validation_step", lambda s, b, i: s.global_step == 8 and i, False),
    "before the record": (
        *(Head, "on_validation_epoch_end"),
        *(lambda s: s.global_step == 8, False),
    ),
    "after the record": (Head, "on_validation_epoch_end", lambda s: s.global_step == 8, True),
    "after the first best": (
        *(Checkpoints, "on_validation_end"),
        *(lambda s, t, m: t.global_step == 4, True),
    ),
    "after best": (Checkpoints, "on_validation_end", lambda s, t, m: t.global_step == 8, True),
    "in the last": (Head, "validation_step", lambda s, b, i: s.global_step == 12 and i, False),
    "after the last": (
        *(Checkpoints, "on_validation_end"),
        *(lambda s, t, m: t.global_step == 12, True),
    ),
    "after the last save": (
        *(Checkpoints, "save_last"),
        *(lambda s, t: t.global_step == 12, True),
    ),
}

# Within a validation, between its record and the checkpoint of the best, after that, in the one at
# the end, and after all of it with a save at the last step.
_QUICK = {
    *((moment, 3) for moment in ("between batches", "after the record", "after best")),
    *(("in the last", 3), ("after the last", 4)),
}


@pytest.mark.parametrize(
    ("moment", "save_every"),
    [
        pytest.param(moment, every, marks=() if (moment, every) in _QUICK else pytest.mark.slow)
        for every in (3, 4)
        for moment in _MOMENTS
    ],
)
def test_a_power_cut_around_a_validation_changes_nothing(
    moment: str, save_every: int, tiny: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    words = _words(tiny, tmp_path / "run", save_every)
    owner, name, when, after = _MOMENTS[moment]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        _cut(patch, owner, name, when, after=after)
        main(["fit", *words])
    assert main(["fit", *words]) == 0
    if save_every == 3:
        _assert_same_outcome(uninterrupted, tmp_path / "run")
        return
    # Another cadence of saving is another configuration, and nothing else.
    lines = results.read(tmp_path / "run")
    for line in lines:
        line["overrides"] = results.read(uninterrupted)[0]["overrides"]
    assert lines == results.read(uninterrupted)
    assert same(uninterrupted / "last.ckpt", tmp_path / "run" / "last.ckpt")
    tables = [(run / "metrics.csv").read_text() for run in (uninterrupted, tmp_path / "run")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("step", "number", "save_every"),
    [
        (8, signal.SIGTERM, 3),
        pytest.param(8, signal.SIGINT, 4, marks=pytest.mark.slow),
        (10, signal.SIGINT, 3),
    ],
)
def test_a_signal_saves_in_the_middle_of_a_validation_or_an_epoch(
    step: int,
    number: signal.Signals,
    save_every: int,
    tiny: Path,
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    """Nothing is lost, nothing more is evaluated, and the same line ends as if there were none."""
    words = _words(tiny, tmp_path / "run", save_every)
    evaluated = []

    def seen(self: Head, batch: Any, index: int) -> bool:
        evaluated.append((self.global_step, index))
        return self.global_step == step and index == 0 and not self.trainer.training

    with pytest.MonkeyPatch.context() as patch:
        _signal(patch, Head, "validation_step", seen, number)
        _signal(
            patch, Head, "training_step", lambda s, b, i: s.global_step == step - 1 == 9, number
        )
        assert main(["fit", *words]) == 128 + number
    assert evaluated[-1] == (8, 0 if step == 8 else 3)
    assert checkpoint_io.read(tmp_path / "run" / "last.ckpt")["global_step"] == step
    assert main(["fit", *words]) == 0
    if save_every == 3:
        _assert_same_outcome(uninterrupted, tmp_path / "run")
    else:
        assert same(uninterrupted / "last.ckpt", tmp_path / "run" / "last.ckpt")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("moment", ["setup", "on_fit_start"])
def test_a_signal_before_the_first_step_is_one_line(
    moment: str,
    number: signal.Signals,
    tiny: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = _words(tiny, tmp_path / "run", 3)
    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        _signal(patch, Head, moment, lambda self, *_: True, number)
        main(["fit", *words])
    assert ended.value.code == 128 + number
    said = capfd.readouterr().err
    assert f"\n{number.name} before the first step: nothing to save; the same line" in said
    assert "Traceback" not in said and not (tmp_path / "run/last.ckpt").exists()
    signal.signal(number, before)
    assert main(["fit", *words]) == 0


def _signal(
    patch: pytest.MonkeyPatch, owner: type, name: str, when: Any, number: signal.Signals
) -> None:
    """Send this process a signal when `owner.name` is called and `when(self, *arguments)` holds."""
    original = getattr(owner, name)

    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        if when(self, *args):
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    patch.setattr(owner, name, send)


def test_the_best_is_never_replaced_by_a_worse_one(
    tiny: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Cut after the best was saved; the run goes on from before it, and is cut once more."""
    best = checkpoint_io.read(uninterrupted / "best.ckpt")["global_step"]
    words = _words(tiny, tmp_path / "run", 100)
    for step in (best, 12):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
            when = lambda s, t, m, step=step: t.global_step == step  # noqa: E731
            _cut(patch, Checkpoints, "on_validation_end", when, after=True)
            main(["fit", *words])
        stored = checkpoint_io.read(tmp_path / "run" / "best.ckpt")
        assert stored["global_step"] == best


@pytest.mark.slow
def test_thirty_kills_around_validations_and_saves(tiny: Path, tmp_path: Path) -> None:
    """Real processes, killed at any moment from their first step to their end, and started again.

    A run that has come to its end is compared and put aside, and the next one begins.
    """
    whole, run = tmp_path / "whole", tmp_path / "run"
    pixio("fit", *_words(tiny, whole, 3))
    words = ("fit", *_words(tiny, run, 3))
    moments, kills, compared = random.Random(0), 0, 0

    def compare() -> None:
        _assert_same_outcome(whole, run)
        run.rename(tmp_path / f"run-{compared}")

    while kills < 30 or not compared:  # on a busy machine few runs come to their end in between
        kills += bool(kill_when("step ", *words, after=moments.uniform(0, 0.4)))
        state = run / "state.json"
        if state.exists() and json.loads(state.read_text())["finished"]:
            compare()
            compared += 1
    pixio(*words)
    compare()
