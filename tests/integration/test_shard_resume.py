"""Two processes with two workers each, one killed in the middle: the same keys and pixels after."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import batch_log
import pytest
import yaml
from running import TINY, pixio, same, started

from pixio_lightning.cli.main import main
from pixio_lightning.keyed import key_of

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def recipe(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe on shards of the photographs, whose pass is 13 steps of two processes."""
    folder = tmp_path_factory.mktemp("shards")
    line = ["shard", str(photographs), str(folder / "shards"), "--rows", "30", "--group", "5"]
    assert main(line) == 0
    tiny = yaml.safe_load(yaml.safe_dump(TINY))
    tiny["data"]["init_args"] |= {
        **{"source": "shards", "path": str(folder / "shards"), "batch_size": 4, "num_workers": 2},
        **{"val_images": 8, "steps_per_epoch": 7},
    }
    tiny["trainer"] |= {"devices": 2, "strategy": "ddp", "max_steps": 40}
    tiny["trainer"]["callbacks"] = [{"class_path": "batch_log.BatchLog"}]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return path


def log(folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return {"BATCH_LOG": str(folder), "PYTHONPATH": path}


def child_of_rank_one(parent: int) -> int:
    """Return the process of the second rank, which Lightning starts from the first."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "environ").read_bytes().split(b"\0")
            above = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        if b"LOCAL_RANK=1" in words and int(above) == parent:
            return int(entry.name)
    raise AssertionError("there is no second rank")


def kill_rank_one(text: str, *words: object, **env: str) -> str:
    """Start a run, SIGKILL its second rank once `text` was printed; return what is printed then."""
    process = started(text, *words, **env)
    time.sleep(0.1)
    os.kill(child_of_rank_one(process.pid), signal.SIGKILL)
    try:
        rest, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode != 0
    return rest


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    pixio("fit", "-c", recipe, "--out", folder / "run", **log(folder / "log"))
    return folder


@pytest.mark.parametrize(
    ("killed", "words"),
    [
        pytest.param(["step 8"], (), marks=pytest.mark.slow),
        pytest.param(
            *(["step 12", "step 24"], ("--trainer.callbacks+=batch_log.AsksForLength",)),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_killed_rank_changes_nothing(
    recipe: Path, uninterrupted: Path, tmp_path: Path, killed: list[str], words: tuple[str, ...]
) -> None:
    env = log(tmp_path / "log")
    line = ("fit", "-c", recipe, "--out", tmp_path / "run", *words)
    for step in killed:
        kill_rank_one(f"{step}: saved last.ckpt", *line, **env)
    assert "resumed" in pixio(*line, **env)
    for rank in (0, 1):
        whole = batch_log.read(uninterrupted / "log", rank)
        assert len(whole) == 40 and batch_log.read(tmp_path / "log", rank) == whole
    assert same(uninterrupted / "run" / "last.ckpt", tmp_path / "run" / "last.ckpt")


@pytest.mark.slow
def test_the_run_went_over_the_end_of_a_pass(uninterrupted: Path, photographs: Path) -> None:
    """One group of five is held out; of the others 40 steps of 8 are five passes."""
    seen: Counter[int] = Counter()
    for rank in (0, 1):
        for keys, _ in batch_log.read(uninterrupted / "log", rank).values():
            seen.update(keys)
    known = {key_of(path.name) for path in photographs.iterdir()}
    assert set(seen) <= known and len(known) - len(seen) == 5
    assert min(seen.values()) >= 4 and max(seen.values()) <= 6


def test_a_killed_worker_is_one_line_and_the_same_line_goes_on(
    recipe: Path, tmp_path: Path
) -> None:
    env = log(tmp_path / "log")
    line = ("fit", "-c", recipe, "--out", tmp_path / "run", "--trainer.devices", 1)
    forked = {"launcher": (), "FORK_PID": str(tmp_path / "pid")}
    process = started("step 8: saved last.ckpt", *line, stderr=subprocess.PIPE, **forked, **env)
    os.kill(workers_of(int((tmp_path / "pid").read_text()))[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    told = [text for text in errors.splitlines() if "error:" in text]
    assert len(told) == 1 and "a data worker was killed" in told[0]
    assert "Traceback" not in errors
    assert "resumed" in pixio(*line, **env)


def workers_of(parent: int) -> list[int]:
    """Return the forks of a process, which share its command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            above = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(above) == parent and words == Path(f"/proc/{parent}/cmdline").read_bytes():
            found.append(int(entry.name))
    return sorted(found)
