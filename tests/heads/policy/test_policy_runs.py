"""Policies through the command line: what evaluations write, and what they do not depend on."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import fork_server
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from pixio_heads.policy import Policy, lerobot
from pixio_heads.policy.data import PolicyData
from pixio_heads.policy.demonstrations import Demonstration, DemonstrationSamples
from pixio_lightning import Backbone, load
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError
from pixio_lightning.training import results
from pixio_lightning.training.checkpoints.checkpoint_io import read_plain

TINY = "{img_size: 32, patch_size: 16, embed_dim: 24, depth: 1, num_heads: 2, n_cls_tokens: 2}"
BACKBONE = (
    *("--model.backbone.weights", "random:0", "--model.backbone.model_args", TINY),
    *("--trainer.max_steps", "2", "--data.steps_per_epoch", "2", "--data.batch_size", "4"),
    *("--data.num_workers", "0", "--trainer.log_every_n_steps", "1"),
)
EPISODES = (
    *("--data.demonstrations", "2", "--data.episodes", "5", "--data.horizon", "12"),
    *("--data.demonstration_starts", "1", "--data.processes", "2", "--data.image_size", "32"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "policy-cache"))


def rows(folder: Path, stage: str) -> list[dict[str, str]]:
    with (folder / "episodes.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["stage"] == stage]


@pytest.mark.slow
def test_episodes_are_the_same_again_and_in_two_processes(tmp_path: Path) -> None:
    line = ["-c", "policy/demo", *BACKBONE, *EPISODES, "--out", str(tmp_path)]
    assert main(["fit", *line]) == 0
    trained = rows(tmp_path, "val")
    names = [f"fresh/{20_000_000 + i:08d}" for i in range(5)]
    assert sorted(row["episode"] for row in trained) == ["demonstration/10000000", *names]
    folder = tmp_path / "episodes" / "val-0000002"
    assert (folder / "episodes.png").is_file() and len(list(folder.glob("*/*.mp4"))) == 4
    record = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert record["loss"] is None and record["baselines"]["expert"]["success"] == 1
    for devices in (1, 2):
        words = ["validate", *line, "--trainer.devices", str(devices)]
        words += ["--trainer.strategy", "ddp"] if devices > 1 else []
        done = subprocess.run(
            [fork_server.python(), "-m", "pixio_lightning.cli.main", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        again = rows(tmp_path, "val")
        key = "episode"
        assert sorted(again, key=lambda r: r[key]) == sorted(trained, key=lambda r: r[key])


def test_a_checkpoint_is_tested_on_episodes_alone_and_says_what_it_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of demonstrations the line that tests it gives; none is collected."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    line = ["-c", "policy/demo", *BACKBONE, *EPISODES, "--data.demonstration_starts", "0"]
    line += ["--data.episodes", "2", "--data.processes", "1", "--model.videos", "0"]
    assert main(["fit", *line, "--out", str(tmp_path / "run")]) == 0

    def kept(of: str) -> set[str]:
        """Return the names of episodes, which begin with their split."""
        folders = (tmp_path / "cache" / "demonstrations").glob(f"reach{of}-" + 16 * "[0-9a-f]")
        return {file.stem for folder in folders for file in folder.glob("*.parquet")}

    collected = kept("")
    tested = ["test", *line, "--data.demonstrations", "5", "--out", str(tmp_path / "test")]
    assert main([*tested, "--ckpt_path", str(tmp_path / "run" / "last.ckpt")]) == 0
    assert kept("") == collected and {name[0] for name in collected} == {"1"}
    # Of validation and test.
    assert {name[0] for of in ("-expert", "-random") for name in kept(of)} == {"2", "3"}
    fit, test = (results.read(tmp_path / name)[-1] for name in ("run", "test"))
    world = "tabletop reach, 32 px, difficulty 0.0; at most 12 steps, until success"
    how = "(noise 0.1, disturbance 0.15, 0 steps after success)"
    learned = f"learned from 2 demonstrations of {world} {how}"
    assert fit["protocol"].endswith(learned) and test["protocol"].endswith(learned)
    assert "at most 12 steps, until success; 2 episodes" in fit["dataset"] == test["dataset"]
    # What goes on with others learned from both, and does not pass for comparable.
    further = ["fit", *line, "--data.demonstrations", "3", "--trainer.max_steps", "3"]
    further += ["--out", str(tmp_path / "more"), "--ckpt_path", str(tmp_path / "run" / "last.ckpt")]
    assert main(further) == 0
    more = results.read(tmp_path / "more")[-1]
    both = f"{learned}, then {learned.removeprefix('learned from ').replace('2', '3', 1)}"
    assert more["protocol"].endswith(both)
    assert [why.split()[0] for why in results.differences([fit, more])] == ["protocol"]
    # Nor does what learned of one task and acts in another.
    other = ["test", *line, "--data.task", "push", "--out", str(tmp_path / "other")]
    assert main([*other, "--ckpt_path", str(tmp_path / "run" / "last.ckpt")]) == 0
    pushed = results.read(tmp_path / "other")[-1]["protocol"]
    assert "; tabletop push, 32 px" in pushed and pushed.endswith(learned)


@pytest.mark.parametrize(
    ("stage", "trained", "opened"),
    [
        ("fit", False, ["train", "val"]),
        ("validate", True, ["val"]),
        ("test", True, ["test"]),
        ("test", False, ["test", "train"]),  # statistics are taken of demonstrations
        ("predict", True, ["predict"]),
    ],
)
def test_one_process_prepares_what_the_stage_reads(
    stage: str, trained: bool, opened: list[str]
) -> None:
    data = PolicyData(demonstrations=1, episodes=1, horizon=12, image_size=16, processes=1)
    head = Policy(Backbone("pixio_vits16", weights="random:0"))
    if trained:
        head.remember({"facts": {"history": 3}})
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(head)
    trainer.state.fn = TrainerFn(stage)
    data.trainer = trainer
    data.prepare_data()
    found = [part.split()[1] for part in data.contents()["samples"].split(", ")]
    assert sorted(found) == sorted(opened)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"noise": -1.0}, "data.noise is -1, but expected a deviation, 0 or more"),
        ({"noise": float("nan")}, "data.noise is nan"),
        ({"disturbance": 2.0}, "data.disturbance is 2, but expected a probability, 0 to 1"),
        ({"image_size": 8}, "data.image_size is 8, but expected at least 16"),
        ({"options": {"dificulty": 0.5}}, "did you mean 'difficulty'?"),
        ({"options": {"image_size": 8}}, "data.options 'image_size' is none of difficulty"),
        ({"options": {"difficulty": "a"}}, "difficulty is a, but expected a number from 0 to 1"),
        ({"options": {"difficulty": 2}}, "difficulty is 2, but expected a number from 0 to 1"),
        ({"source": "metaworld", "options": {"camra": 1}}, "did you mean 'camera'?"),
        ({"source": "metaworld", "options": {"camera": 3}}, "expected the name of a camera"),
        ({"source": "metaworld", "options": {"shadows": "no"}}, "expected true or false"),
        ({"source": "metaworld", "options": {"horizon": 900}}, "'horizon' is none of camera, sha"),
        ({"source": "metaworld", "horizon": 900}, "Meta-World ends after 500 steps"),
        ({"source": "gym", "options": {"horizon": 9}}, "data.horizon decides it: leave it out"),
        ({"source": "gym", "options": {"proprio": "arm"}}, "expected a list of keys or null"),
        ({"source": "gym", "options": {"max_episode_steps": 0}}, "expected steps above 0, or -1"),
    ],
)
def test_what_no_environment_takes_is_one_line(given: dict[str, Any], line: str) -> None:
    task = {"metaworld": "hammer-v3", "gym": "Pendulum-v1"}.get(given.get("source", ""), "reach")
    path = "somewhere" if given.get("source") == "gym" else None
    with pytest.raises(UserError) as told:
        PolicyData(path=path, task=task, **given)
    assert line in str(told.value) and "\n" not in str(told.value)


def test_what_acts_is_not_sharded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["-c", "policy/demo", "-c", "with/fsdp", *BACKBONE, *EPISODES, "--model.cache", "false"]
    line += ["--model.backbone.tune", "full", "--trainer.devices", "1"]
    assert main(["fit", *line, "--out", str(tmp_path / "run")]) == 2
    assert "judged in a simulator cannot be sharded" in capsys.readouterr().err


def test_what_is_judged_by_actions_alone_is_sharded(tmp_path: Path) -> None:
    lerobot.write(tmp_path / "set", [demonstration(str(i)) for i in range(2)], fps=10, task="x")
    line = ["-c", "policy/lerobot", "-c", "with/fsdp", *BACKBONE, "--data.image_size", "64"]
    line += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--model.cache", "false"]
    line += ["--model.backbone.tune", "full", "--data.path", str(tmp_path / "set")]
    assert main(["fit", *line, "--out", str(tmp_path / "run")]) == 0
    first = results.read(tmp_path / "run")[-1]
    assert np.isfinite(first["metrics"]["action_error"])
    # What goes on with others learned from both, though its checkpoint is taken up late.
    lerobot.write(tmp_path / "other", [demonstration(str(i)) for i in range(3)], fps=10, task="x")
    line[line.index("--data.path") + 1] = str(tmp_path / "other")
    line += ["--trainer.max_steps", "3", "--ckpt_path", str(tmp_path / "run" / "last.ckpt")]
    assert main(["fit", *line, "--out", str(tmp_path / "more")]) == 0
    protocol = results.read(tmp_path / "more")[-1]["protocol"]
    assert protocol.startswith(first["protocol"]) and ", then 2 demonstrations" in protocol
    stored = read_plain(tmp_path / "more" / "last.ckpt")["pixio"]["statistics"]
    learned_from = np.concatenate([demonstration(name).actions for name in "01"])
    np.testing.assert_allclose(stored["mean"], learned_from.mean(axis=0), rtol=1e-5)


def demonstration(name: str, steps: int = 6) -> Demonstration:
    rng = np.random.default_rng(int(name))
    frames = rng.integers(0, 256, (steps, 64, 64, 3), dtype=np.uint8)
    proprio, actions = rng.normal(size=(steps, 3)), 100 + 5 * rng.normal(size=(steps, 2))
    kinds: Any = (proprio.astype(np.float32), actions.astype(np.float32))
    return Demonstration(name, *kinds, lambda step: frames[step])


def test_actions_of_a_robot_s_own_demonstrations(tmp_path: Path) -> None:
    """Predicted twice: the table is written anew, of all demonstrations, in the robot's units."""
    lerobot.write(tmp_path / "set", [demonstration(str(i)) for i in range(3)], fps=10, task="x")
    line = ["-c", "policy/lerobot", *BACKBONE, "--data.image_size", "64", "--trainer.accelerator"]
    line += ["cpu", "--data.path", str(tmp_path / "set"), "--out", str(tmp_path / "run")]
    assert main(["fit", *line]) == 0
    record = json.loads((tmp_path / "run" / "results.jsonl").read_text().splitlines()[0])
    assert record["baselines"].keys() == {"mean_action", "from_proprio"}
    for values in record["baselines"].values():
        assert record["metrics"].keys() == values.keys() and np.isfinite(values["action_error"])
    for _ in range(2):
        assert main(["predict", *line]) == 0
    with (tmp_path / "run" / "predictions" / "actions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 18
    for name in ("action_0", "action_1", "demonstrated_0", "demonstrated_1"):
        assert 80 < np.mean([float(row[name]) for row in table]) < 120
    # As the robot is controlled by the loop that a page shows.
    page = (Path(__file__).parents[3] / "docs" / "policy_data.md").read_text()
    (loop,) = re.findall(r"```python\n(from collections.*?)```", page, re.DOTALL)
    loop = loop.replace("runs/policy/lerobot", str(tmp_path / "run")).replace("224", "64")
    seen = demonstration("1")
    known: dict[str, Any] = {"load": load, "torch": torch}
    known |= {"picture": seen.frame(0), "state": seen.proprio[0]}
    exec(compile(loop, "policy_data.md", "exec"), known)
    acted = [known["action"]]
    acted += [known["act"](seen.frame(step), seen.proprio[step]) for step in range(1, 6)]
    rows = [row for row in table if row["name"].startswith("episode_000001/")]
    told = [[float(row[name]) for name in ("action_0", "action_1")] for row in rows]
    np.testing.assert_allclose(torch.stack(acted).numpy(), told, rtol=1e-4)


@pytest.mark.parametrize("observe", ["blind", "backbone"])
def test_a_blind_policy_reads_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observe: str
) -> None:
    lerobot.write(tmp_path / "set", [demonstration(str(i)) for i in range(2)], fps=10, task="x")
    asked: list[str] = []
    frame = DemonstrationSamples.frame
    monkeypatch.setattr(
        DemonstrationSamples, "frame", lambda of, name: asked.append(name) or frame(of, name)
    )
    line = [
        "-c",
        "policy/lerobot",
        *BACKBONE,
        "--data.image_size",
        "64",
        "--model.observe",
        observe,
    ]
    line += ["--trainer.accelerator", "cpu", "--data.path", str(tmp_path / "set")]
    for verb in ("fit", "predict"):
        assert main([verb, *line, "--out", str(tmp_path / "run")]) == 0
    assert bool(asked) == (observe == "backbone")
    assert np.isfinite(results.read(tmp_path / "run")[-1]["metrics"]["action_error"])


def test_of_a_single_demonstration_actions_are_predicted_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("set", 2), ("new", 1)):
        some = [demonstration(str(i)) for i in range(count)]
        lerobot.write(tmp_path / name, some, fps=10, task="x")
    line = ["-c", "policy/lerobot", *BACKBONE, "--data.image_size", "64"]
    line += ["--trainer.accelerator", "cpu", "--data.path"]
    assert main(["fit", *line, str(tmp_path / "set"), "--out", str(tmp_path / "run")]) == 0
    line += [str(tmp_path / "new"), "--ckpt_path", str(tmp_path / "run" / "last.ckpt")]
    assert main(["predict", *line, "--out", str(tmp_path / "new-run")]) == 0
    with (tmp_path / "new-run" / "predictions" / "actions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    capsys.readouterr()
    for verb in ("fit", "test"):
        alone = line[:-2] if verb == "fit" else line
        assert main([verb, *alone, "--out", str(tmp_path / verb)]) == 2
        assert "has one demonstration: expected two at least" in capsys.readouterr().err


def test_the_same_demonstrations_are_held_out_however_many_are_learned_from(tmp_path: Path) -> None:
    """Another number at an evaluation would otherwise judge by what was learned from."""
    demos = [demonstration(str(i), 3) for i in range(12)]
    lerobot.write(tmp_path / "set", demos, fps=10, task="x")
    held_out = set()
    for count in (3, 11, 100):
        data = PolicyData("lerobot", str(tmp_path / "set"), demonstrations=count, image_size=32)
        learned, judged = data.samples_of("train"), data.samples_of("val")
        names = [{s.name(i) for i in range(len(s))} for s in (learned, judged)]
        held_out.add(frozenset(names[1]))
        assert len(learned) == 3 * min(count, 11) and not names[0] & names[1]
        assert data.learned_from.startswith(f"{min(count, 11)} demonstrations of lerobot ")
        assert data.learned_from.endswith("set, observation.image, 32 px")
        assert "set, 1 demonstrations held out; " in data.dataset
        assert data.names_of("val") == ["episode_000011"]
    assert len(held_out) == 1
