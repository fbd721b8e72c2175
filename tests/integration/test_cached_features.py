"""Features that several processes encode once, whoever comes first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from latecomer import names_in
from running import command, environment, pixio

from pixio_lightning.training import results

SMALL = ("--data.scenes", "{train: 6, held_out: 3, views: 2, size: 64}", "--data.num_workers", 0)
DEPTH = ("-c", "depth/demo", *SMALL, "--panels.every_n_steps", 0)
STEPS = ("--trainer.max_steps", 2, "--data.steps_per_epoch", 2, "--data.batch_size", 2)
TWO = ("--trainer.devices", 2, "--trainer.strategy", "ddp")


@pytest.mark.parametrize("late", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_late_process_encodes_its_share_and_nothing_twice(late: int, tmp_path: Path) -> None:
    """It comes when the other one has written, or could have written, its half of 12 views."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {"PIXIO_CACHE": str(tmp_path / "cache"), "PYTHONPATH": path}
    env |= {"LATE_RANK": str(late), "SHARE": "6"}
    words = (
        *DEPTH,
        *STEPS,
        *TWO,
        "--model.backbone.weights",
        "random:0",
        "--out",
        tmp_path / "run",
    )
    said = pixio("fit", *words, "--trainer.callbacks+=latecomer.Latecomer", **env)
    assert said.count("encoding 12 train views") == said.count("encoding 6 val views") == 1
    encoded = Counter(json.loads(line)["name"] for line in names_in(tmp_path / "cache"))
    train = {f"train/{scene:06d}/{view}#0" for scene in range(6) for view in range(2)}
    val = {f"val/{scene:06d}/{view}" for scene in range(3) for view in range(2)}
    assert encoded == dict.fromkeys(train | val, 1)
    parts = sorted((tmp_path / "cache").glob("features/*/*.jsonl"))
    assert sorted(len(part.read_text().splitlines()) for part in parts) == [3, 3, 6, 6]
    assert results.read(tmp_path / "run")[-1]["n"] == 6


def test_damaged_statistics_are_computed_anew(tmp_path: Path) -> None:
    env = {"PIXIO_CACHE": str(tmp_path / "cache")}
    words = (*DEPTH, *STEPS, "--model.backbone.weights", "random:0")
    pixio("fit", *words, "--out", tmp_path / "first", **env)
    (file,) = (tmp_path / "cache/features").glob("statistics-*.pt")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    pixio("fit", *words, "--out", tmp_path / "second", **env)
    first, second = (results.read(tmp_path / name)[-1] for name in ("first", "second"))
    assert first["baselines"] == second["baselines"] and len(file.read_bytes()) == len(whole)


def test_features_that_another_process_does_not_see_are_one_line(tmp_path: Path) -> None:
    """The first process has all of them: nothing is left to encode."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {"PIXIO_CACHE": str(tmp_path / "cache"), "OTHER_CACHE": str(tmp_path / "other")}
    words = (*DEPTH, *STEPS, "--model.backbone.weights", "random:0")
    pixio("fit", *words, "--out", tmp_path / "first", **env)
    shutil.copytree(tmp_path / "cache", tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "features")
    other = ("--trainer.callbacks+=latecomer.OtherCache", "--out", tmp_path / "second")
    done = subprocess.run(
        command("fit", *words, *TWO, *other),
        capture_output=True,
        text=True,
        env=environment(**env, PYTHONPATH=path),
        timeout=300,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    told = [text for text in done.stderr.splitlines() if "set PIXIO_CACHE to a folder" in text]
    assert any(f"12 of 12 encoded views are not in {tmp_path / 'other'}" in text for text in told)
    assert not (tmp_path / "other" / "features").exists()
