"""`pixio runs`: how far each run got, and what differs between two, without torch."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pixio_lightning.cli.main import main
from pixio_lightning.cli.runs import look_at
from pixio_lightning.training import run_folder

_CONFIG = {"model": {"class_path": "Depth"}, "data": {"seed": 0}, "trainer": {"max_steps": 9}}


def make(folder: Path, *, metrics: str = "", config: dict | None = None, **state: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "config.yaml").write_text(yaml.safe_dump(config or _CONFIG))
    if metrics:
        (folder / "metrics.csv").write_text(metrics)
    return folder


def rows(text: str) -> list[list[str]]:
    return [[cell for cell in line.split("  ") if cell] for line in text.splitlines()]


def test_runs_are_listed_with_their_last_and_best_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = "step,val/abs_rel\n1,0.5\n2,0.25\n3,\n4,0.3\n"
    about = {"recipe": "depth/demo with/debug", "monitor": ["val/abs_rel", "min"], "steps": 9}
    make(tmp_path / "a", metrics=table, step=9, finished=True, **about)
    make(tmp_path / "deep" / "b", step=4, finished=False)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "state.json").write_text("{")
    assert main(["runs", str(tmp_path)]) == 0
    _, *found = rows(capsys.readouterr().out)
    told = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in found}
    assert told[str(tmp_path / "a")][:4] == [
        *("depth/demo with/debug", "finished", "9/9", "abs_rel 0.3 (best 0.25)"),
    ]
    assert told[str(tmp_path / "deep" / "b")][:2] == ["stopped", "4"]
    assert told[str(tmp_path / "c")][0] == "damaged"


def test_a_file_that_is_renamed_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "a", step=1, finished=False)
    walk = os.walk

    def walked(*args: object) -> Iterator[tuple[str, list[str], list[str]]]:
        (folder / ".last.ckpt.1").touch()
        for found in walk(*args):
            (folder / ".last.ckpt.1").unlink(missing_ok=True)  # as the run does that writes it
            yield found

    monkeypatch.setattr("os.walk", walked)
    assert main(["runs", str(folder)]) == 0 and " stopped " in capsys.readouterr().out


def test_a_run_that_is_on_is_seen_from_another_process(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", step=1, finished=False)
    code = "import sys; from pixio_lightning.cli.main import main; main(['runs', sys.argv[1]])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with run_folder.held(folder):
        during = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert " running " in during and " stopped " in after


def test_where_the_system_does_not_say_it_is_unknown_whether_a_run_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, finished in (("on", False), ("done", True)):
        make(tmp_path / name, step=1, finished=finished)
        (tmp_path / name / run_folder.LOCK).touch()
    never = make(tmp_path / "never", step=0)
    monkeypatch.setattr("sys.platform", "darwin")
    assert look_at(tmp_path / "on").state == "unknown"
    assert look_at(tmp_path / "done").state == "finished" and look_at(never).state == "not begun"


def test_what_trains_nothing_is_finished_and_a_mistyped_start_not_begun(tmp_path: Path) -> None:
    line = ["fit", "-c", "classification/folder_knn", "--model.backbone.weights", "tiny"]
    line += ["--data.num_workers=0", "--data.image_size=64", "--trainer.accelerator=cpu"]
    for number in range(8):
        path = tmp_path / "classes" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (30 * number, 90, 255)).save(path)
    path = ["--data.path", str(tmp_path / "classes"), "--model.k=[1]"]
    assert main([*line, *path, "--out", str(tmp_path / "run")]) == 0
    found = look_at(tmp_path / "run")
    assert (found.state, found.step) == ("finished", "") and found.metric.startswith("top1_k1 ")
    mistyped = ["--data.path", str(tmp_path / "clases"), "--out", str(tmp_path / "mistyped")]
    assert main([*line, *mistyped]) == 2
    assert look_at(tmp_path / "mistyped").state == "not begun"


def test_two_hundred_runs_are_listed_without_torch(tmp_path: Path) -> None:
    for number in range(200):
        make(tmp_path / f"{number}", metrics="step,val/loss\n1,2\n", step=number)
    code = (
        "import sys; from pixio_lightning.cli.main import main; main(['runs', sys.argv[1]]); "
        "print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 202 and lines[-1] == "[]"


def test_what_differs_between_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b", config=_CONFIG | {"data": {"seed": 1}})
    assert main(["runs", "--diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out == "data.seed: 0 -> 1\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bhere"], "is no folder, did you mean 'there'"),
        (["empty"], "no run below"),
        (["--diff", "there", "empty"], "holds no config.yaml"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "there")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["runs", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
