"""Lines of results.jsonl: the best beside the last, what a resumed run forgets, what compares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pixio_lightning.cli.main import main
from pixio_lightning.training import results


def line(step: int, value: float, **more: Any) -> dict[str, Any]:
    """Return an evaluation of a run."""
    about = {"task": "depth", "dataset": "scenes", "split": "val", "n": 8, "protocol": "plain"}
    found = {"metrics": {"abs_rel": value}, "loss": -value, "baselines": {}, "steps": step}
    return about | found | {"checkpoint": "running", "verb": "fit", "files": {}} | more


def write(folder: Path, *values: float) -> dict[str, Any]:
    """Record evaluations every ten steps, the last of them with the best before it."""
    *before, end = values
    for i, value in enumerate(before):
        results.append(folder, line(10 * i + 10, value))
    last = line(10 * len(values), end, checkpoint="last")
    results.append_best(folder, last, ("val/abs_rel", "min"))
    results.append(folder, last)
    return last


def labels(folder: Path) -> list[tuple[str, int]]:
    return [(entry["checkpoint"], entry["steps"]) for entry in results.read(folder)]


def test_the_best_stands_before_the_last_and_says_how_it_was_chosen(tmp_path: Path) -> None:
    write(tmp_path, 0.4, 0.2, 0.3)
    assert labels(tmp_path) == [("running", 10), ("running", 20), ("best", 20), ("last", 30)]
    best, last = results.read(tmp_path)[-2:]
    assert best["metrics"] == {"abs_rel": 0.2} and last["metrics"] == {"abs_rel": 0.3}
    assert best["chosen_by"] == "abs_rel"
    assert best["chosen"] == "of 3 evaluations, on the split it is reported on"
    assert "chosen" not in last
    said = results.best_of(results.read(tmp_path))
    assert said == {"best, step 20": f"abs_rel 0.2  ({best['chosen']})"}


@pytest.mark.parametrize(
    ("monitor", "step"),
    [(("val/abs_rel", "max"), 10), (("val/loss", "min"), 10), (("val/loss", "max"), 20)],
)
def test_it_follows_the_monitor(monitor: tuple[str, str], step: int, tmp_path: Path) -> None:
    results.append(tmp_path, line(10, 0.4))
    last = line(20, 0.1, checkpoint="last")
    results.append_best(tmp_path, last, monitor)
    assert labels(tmp_path)[-1] == ("best", step)


def test_the_first_of_equals_is_the_best_and_nan_never_is(tmp_path: Path) -> None:
    write(tmp_path, math.nan, 0.2, 0.2, math.nan)
    assert labels(tmp_path)[-2:] == [("best", 20), ("last", 40)]
    write(tmp_path / "nothing", math.nan)
    assert labels(tmp_path / "nothing") == [("last", 10)]
    assert results.best_of(results.read(tmp_path / "nothing")) == {}


def test_a_run_that_goes_on_chooses_its_best_anew(tmp_path: Path) -> None:
    write(tmp_path, 0.1, 0.2, 0.3)
    results.append(tmp_path, line(30, 0.1, verb="validate", checkpoint="best"))
    results.rewind(tmp_path, 20)
    assert labels(tmp_path) == [("running", 10), ("running", 20), ("best", 30)]
    assert results.read(tmp_path)[-1]["verb"] == "validate"


def test_lines_compare_if_only_the_model_and_what_it_scored_differ() -> None:
    other = line(99, 0.7, backbone={"name": "another"}, checkpoint="last")
    assert results.differences([line(10, 0.4), other]) == []
    for name, value in (("dataset", "nyuv2"), ("split", "test"), ("n", 9), ("protocol", "cropped")):
        (why,) = results.differences([line(10, 0.4), line(10, 0.4) | {name: value}, other])
        assert why.startswith(f"{name} is ") and repr(value) in why
    one, same, others = (line(10, 0.4, samples=digest) for digest in ("a", "a", "b"))
    assert results.differences([one, same]) == results.differences([one, other]) == []
    assert results.differences([one, others]) == [
        "the samples have other names, though they are as many"
    ]
    assert results.differences([results.compared(x) for x in (one, others)]) != []


def test_a_line_that_was_cut_short_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is shown of an evaluation is its own, not that of an earlier one."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    results.append(tmp_path / "run", line(10, 9.0))
    path = tmp_path / "run" / results.FILE
    with path.open("a") as file:
        file.write(path.read_text()[:200])
    words = ["-c", "depth/demo", "--model.backbone.weights", "random", "--data.num_workers=0"]
    words += ["--data.scenes={train: 2, held_out: 2, views: 2, size: 64}", "--ckpt_path", "none"]
    assert main(["validate", *words, "--out", str(tmp_path / "run")]) == 0
    earlier, new = results.read(tmp_path / "run")
    assert earlier["metrics"] == {"abs_rel": 9.0} and new["verb"] == "validate"
    said = capsys.readouterr().out
    assert f"{new['metrics']['abs_rel']:.4g}" in said and "4 samples, step 0" in said
    assert len(path.read_text().splitlines()) == 3
    nothing = ["--trainer.limit_val_batches", "0"]
    assert main(["validate", *words, "--out", str(tmp_path / "run"), *nothing]) == 0
    assert "nothing was evaluated" in (said := capsys.readouterr().out) and "abs_rel" not in said
