"""Episodes in processes of their own: what they give, and what breaks one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pixio_heads.policy import collect as collecting
from pixio_heads.policy.collect import collect, references
from pixio_heads.policy.rollout.environments import Environment
from pixio_heads.policy.rollout.play import Outcome, Trajectory
from pixio_heads.policy.rollout.pool import Pool
from pixio_lightning.errors import UserError

SEEDS = [2, 3, 4, 6, 8]


def environment(name: str, horizon: int = 10) -> Environment:
    return Environment("gym", f"broken_worlds:{name}-v0", 16, horizon)


def still(images: Any, proprio: Any, fresh: Any) -> Any:
    return np.zeros((len(images), 2), np.float32)


@pytest.fixture(scope="module")
def sound() -> Iterator[Pool]:
    with Pool(environment("Sound"), 2) as pool:
        yield pool


def test_every_episode_has_its_outcome_in_the_order_of_seeds(sound: Pool) -> None:
    runs = sound.run(SEEDS, still, keep_frames=1)
    assert [run.outcome for run in runs] == [Outcome(True, True, 3.0, 3)] * len(SEEDS)
    assert [len(run.frames) for run in runs] == [4, 0, 0, 0, 0]
    assert [int(frame.mean()) for frame in runs[0].frames] == [0, 10, 20, 30]


def test_a_batch_has_a_row_for_each_environment_whatever_is_left_to_play(sound: Pool) -> None:
    calls: list[tuple[int, list[float], list[bool]]] = []

    def act(images: Any, proprio: Any, fresh: Any) -> Any:
        calls.append((len(images), proprio[:, 0].tolist(), fresh.tolist()))
        return still(images, proprio, fresh)

    sound.run([2, 4, 6], act)
    assert {rows for rows, _, _ in calls} == {2}
    steps = [0.0, 1.0, 2.0]
    # Two at once, then the third, beside what was seen last of the one that ended.
    assert [seen for _, seen, _ in calls[:3]] == [[step, step] for step in steps]
    assert [seen[0] for _, seen, _ in calls[3:]] == steps
    assert [fresh for _, _, fresh in calls] == [
        *[[True, True], [False, False], [False, False]],
        *[[True, False], [False, False], [False, False]],
    ]


@pytest.mark.parametrize(
    ("name", "why", "step"),
    [
        ("Raises", "RuntimeError: the arm fell off", 2),
        ("Dies", "its process ended with code -9", 2),
        ("Hangs", "no answer in 3 s", 2),
        pytest.param("Stuck", "no answer in 3 s", 0, marks=pytest.mark.slow),
        ("Unseen", "proprio is not finite", 2),
        ("Unpaid", "the reward is inf", 2),
    ],
)
def test_a_broken_episode_is_named_and_the_others_stand(name: str, why: str, step: int) -> None:
    with Pool(environment(name), 2, timeout=3.0 if why.endswith(" 3 s") else 60.0) as pool:
        runs = pool.run(SEEDS, still)
        outcomes = [run.outcome for run in runs]
        assert outcomes[1].error == f"broken_worlds:{name}-v0, seed 3, step {step}: {why}"
        assert not outcomes[1].success
        sound = Outcome(True, True, 3.0, 3)
        assert outcomes[:1] + outcomes[2:] == [sound] * (len(SEEDS) - 1)
        # And so it is where the whole episode is played over there.
        played = dict(pool.play(SEEDS, "random"))
        assert why in played[3].outcome.error
        assert [played[seed].outcome for seed in (2, 4, 6, 8)] == [sound] * 4


def test_an_environment_that_cannot_be_made_is_one_line() -> None:
    with (
        Pool(environment("Sounds"), 1) as pool,
        pytest.raises(UserError, match="Did you mean: `Sound`"),
    ):
        pool.run([1], still)


def test_a_process_of_an_environment_imports_no_torch() -> None:
    """It would take seconds and most of a gigabyte in every run."""
    code = (
        "import sys, pixio_heads.policy.rollout.serving, pixio_heads.policy.tabletop\n"
        "import pixio_heads.policy.gym\n"
        "raise SystemExit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_closing_ends_the_processes() -> None:
    pool = Pool(environment("Sound"), 2)
    pool.run([2], still)
    processes = [process for process, _ in pool._slots]
    pool.close()
    assert [process.is_alive() for process in processes] == [False, False]
    assert pool.run([4], still)[0].outcome.success  # and it starts again when it is asked to
    pool.close()


def test_actions_of_another_robot_are_refused(sound: Pool) -> None:
    runs = sound.run([2], lambda images, proprio, fresh: np.zeros((2, 1), np.float32))
    assert "an action has 1 parts, but the environment takes 2" in runs[0].outcome.error


def test_a_policy_that_raises_leaves_no_answers_behind(sound: Pool) -> None:
    def fail(images: Any, proprio: Any, fresh: Any) -> Any:
        raise MemoryError("no room")

    with pytest.raises(MemoryError):
        sound.run(SEEDS, fail)
    assert [run.outcome for run in sound.run(SEEDS, still)] == [Outcome(True, True, 3.0, 3)] * 5


def test_nothing_to_play_starts_nothing() -> None:
    with Pool(environment("Sounds"), 2) as pool:  # which there is not
        assert list(pool.play([], "random")) == []


def test_what_broke_is_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    seeds = [2, 3]
    first = references(environment("Raises"), seeds, "random", processes=1, timeout=60.0)
    assert [bool(outcome.error) for outcome in first] == [False, True]
    assert [file.stem for file in (tmp_path / "demonstrations").rglob("*.parquet")] == ["00000002"]


def test_episodes_of_references_outlive_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of three never ends; what is kept of the others is read again, not played."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    world = environment("Hangs")

    def interrupt() -> None:
        for _ in range(600):
            if len(list(tmp_path.rglob("[0-9]*.parquet"))) == 2:
                break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        references(world, [2, 4, 3], "random", processes=1, timeout=600.0)
    thread.join()
    files = sorted(tmp_path.rglob("[0-9]*.parquet"))
    assert [file.stem for file in files] == ["00000002", "00000004"]
    table = pq.read_table(files[0])
    marked = json.loads(table.schema.metadata[b"outcome"]) | {"total": 7.5}
    pq.write_table(table.replace_schema_metadata({"outcome": json.dumps(marked)}), files[0])
    again = references(world, [2, 4], "random", processes=1, timeout=600.0)
    assert [outcome.total for outcome in again] == [7.5, 3.0]


def test_a_demonstration_that_breaks_is_tried_again_and_then_left_out_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or else each process, and each run, would learn from others."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    breaks = {6: 1, 7: 2}  # how often
    played: list[int] = []

    class Faulty(Pool):
        def play(self, *what: Any, **how: Any) -> Iterator[tuple[int, Trajectory]]:
            for seed, trajectory in super().play(*what, **how):
                played.append(seed)
                if breaks.get(seed):
                    breaks[seed] -= 1
                    trajectory = Trajectory(Outcome(error=f"reach, seed {seed}, no answer"))
                yield seed, trajectory

    monkeypatch.setattr(collecting, "Pool", Faulty)
    world = Environment("tabletop", "reach", 16, 40, True, {"difficulty": 0.0})
    how: dict[str, Any] = {"first_seed": 5, "noise": 0.0, "disturbance": 0.0, "after_success": 0}
    how |= {"processes": 1, "timeout": 60.0}
    found, digest = collect(world, 3, **how)
    assert [demo.seed for demo in found] == [5, 6, 8] and played.count(7) == 2
    said = capsys.readouterr().out
    assert said.startswith("demonstration left out, broken twice: reach, seed 7, no answer (remove")
    assert said.count("\n") == 1 and "seed 6" not in said
    played.clear()
    again, same = collect(world, 3, **how)
    assert [demo.seed for demo in again] == [5, 6, 8] and same == digest and not played


def test_only_the_episodes_that_are_missing_are_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    hurried = Environment("tabletop", "reach", 16, 8, True, {"difficulty": 0.0})
    how: dict[str, Any] = {"first_seed": 5, "noise": 0.0, "disturbance": 0.0, "after_success": 0}
    how |= {"processes": 2, "timeout": 60.0}
    found, digest = collect(hurried, 20, **how)
    (folder,) = (tmp_path / "demonstrations").iterdir()
    played = sorted(int(path.stem) for path in folder.glob("*.parquet"))
    # Some experts were too slow, so a few more were played, in the order of seeds.
    assert played == list(range(5, 5 + len(played))) and 21 < len(played) < 40
    assert [demo.seed for demo in found] == sorted(demo.seed for demo in found)
    assert collect(hurried, 20, **how)[1] == digest
    assert len(list(folder.glob("*.parquet"))) == len(played)
    # Files of the cache that were damaged are made again.
    whole = folder / f"{found[0].seed:08d}.parquet"
    whole.write_bytes(whole.read_bytes()[:-100])
    again, same = collect(hurried, 20, **how)
    assert same == digest and np.array_equal(again[0].actions, found[0].actions)
    outcomes = references(hurried, [1, 2], "expert", processes=1, timeout=60.0)
    kept, _ = (tmp_path / "demonstrations").glob("*-expert-*/*")
    kept.write_bytes(kept.read_bytes()[:-5])
    assert references(hurried, [1, 2], "expert", processes=1, timeout=60.0) == outcomes
