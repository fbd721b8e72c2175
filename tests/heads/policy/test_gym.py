"""Any environment of gymnasium as a policy sees it."""

from __future__ import annotations

import os
import subprocess
from importlib import metadata
from pathlib import Path

import fork_server
import numpy as np
import point_worlds
import pytest
import yaml

from pixio_heads.policy import gym, lerobot
from pixio_heads.policy.data import PolicyData
from pixio_heads.policy.demonstrations import Demonstration
from pixio_heads.policy.rollout.environments import Environment, versions_of
from pixio_heads.policy.rollout.pool import Pool
from pixio_lightning.errors import UserError


def test_of_what_render_draws_the_middle_square_is_scaled() -> None:
    env = gym.make("point_worlds:Drawn-v0", 20)
    seen, info = env.reset(seed=3)
    assert seen["image"].shape == (20, 20, 3) and seen["image"].dtype == np.uint8
    assert seen["proprio"].dtype == np.float32 and not info["success"]
    assert env.observation_space.contains(seen)
    env.unwrapped.at = np.array([0.4, -0.25])  # in the middle half, which 40 of 80 columns show
    seen = env.step(np.zeros(2, np.float32))[0]
    rows, columns = np.nonzero(seen["image"][..., 0] > 127)
    at = np.array([rows.mean(), columns.mean()]) / 19 * 2 - 1
    np.testing.assert_allclose(at, seen["proprio"] * [1, 2], atol=0.1)
    env.close()


def test_without_images_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_worlds.Drawn, "render", None)
    env = gym.make("point_worlds:Drawn-v0", 20, images=False)
    assert env.reset(seed=0)[0]["image"].shape == (0, 0, 3)
    assert env.step(np.zeros(2, np.float32))[0]["image"].shape == (0, 0, 3)


def test_observations_are_found_in_dictionaries_in_the_order_of_their_keys() -> None:
    env = gym.make("point_worlds:Seen-v0", 40, image="top")
    seen, _ = env.reset(seed=3)
    at = env.unwrapped.at  # type: ignore[attr-defined]
    np.testing.assert_allclose(seen["proprio"], [*at, 0.5], rtol=1e-6)
    assert seen["image"].max() == 255 and seen["image"].shape == (40, 40, 3)
    few = gym.make("point_worlds:Seen-v0", 8, image="wrist", proprio=["time"])
    seen, _ = few.reset(seed=3)
    assert seen["proprio"].tolist() == [0.5] and seen["image"].max() == 0


def test_a_seed_draws_the_episode() -> None:
    env = gym.make("point_worlds:Drawn-v0", 20)
    (first, _), (other, _), (again, _) = (env.reset(seed=seed) for seed in (1, 2, 1))
    for name in ("image", "proprio"):
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


@pytest.mark.parametrize(("world", "ends"), [("Drawn", True), ("Seen", False)])
def test_success_is_what_info_says_or_an_end_with_a_reward(world: str, ends: bool) -> None:
    env = gym.make(f"point_worlds:{world}-v0", 20, images=False)
    seen, _ = env.reset(seed=3)
    successes = []
    while not (successes and successes[-1]) and len(successes) < 10:
        action = np.clip(-seen["proprio"][:2], -0.5, 0.5)
        seen, _, terminated, _, info = env.step(action)
        successes.append(info["success"])
    assert successes[-1] is True and successes[0] is False and terminated == ends


def test_an_end_after_steps_that_were_paid_is_no_success() -> None:
    env = gym.make("point_worlds:Paid-v0", 20, images=False)
    for seed in range(5):
        env.reset(seed=seed)
        ended, successes = False, []
        while not ended:
            _, _, ended, _, info = env.step(np.array([0.05, 0.05], np.float32))
            successes.append(info["success"])
        assert len(successes) > 1 and not any(successes)


def test_episodes_are_played_in_processes() -> None:
    environment = Environment("gym", "point_worlds:Drawn-v0", 20, horizon=50)
    with Pool(environment, 2) as pool:
        toward = lambda images, proprio, fresh: np.clip(-proprio, -0.5, 0.5)  # noqa: E731
        runs = pool.run([1, 2, 3], toward)
        assert [run.outcome.success for run in runs] == [True] * 3
        (_, played), *_ = pool.play([5], "random")
    assert not played.outcome.error and 0 < played.outcome.steps <= 20  # the environment's own end


@pytest.mark.parametrize(
    ("task", "options", "line"),
    [
        ("Nowhere-v0", {}, "gymnasium cannot make data.task Nowhere-v0"),
        ("point_worlds:Drawm-v0", {}, "gymnasium cannot make data.task point_worlds:Drawm-v0"),
        ("no_such_package:Any-v0", {}, "package no_such_package, which is missing"),
        ("point_worlds:Drawn-v0", {"wind": 1}, "unexpected keyword argument 'wind'"),
        ("point_worlds:Steered-v0", {}, "takes actions of Discrete"),
        ("point_worlds:Unseen-v0", {}, "has no picture"),
        ("point_worlds:Seen-v0", {}, "set data.options.image to top or wrist"),
        ("point_worlds:Seen-v0", {"image": "tops"}, "did you mean 'top'?"),
        ("point_worlds:Seen-v0", {"image": "top", "proprio": ["tim"]}, "did you mean 'time'?"),
    ],
)
def test_mistakes_are_one_line(task: str, options: dict, line: str) -> None:
    with pytest.raises(UserError) as told:
        gym.make(task, 20, **options)
    assert line in str(told.value) and "\n" not in str(told.value)


def recorded(folder: Path, proprio: int, actions: int) -> str:
    """Write a demonstration with so many numbers of each kind."""
    blank = np.zeros((20, 20, 3), np.uint8)
    rows = [np.zeros((3, width), np.float32) for width in (proprio, actions)]
    lerobot.write(folder, [Demonstration("0", *rows, lambda i: blank)], fps=10, task="x")
    return str(folder)


@pytest.mark.parametrize(
    ("proprio", "actions", "line"),
    [
        (3, 2, "has 3 numbers of proprioception, but point_worlds:Drawn-v0 has 2"),
        (2, 4, "has 4 parts of an action, but point_worlds:Drawn-v0 has 2"),
    ],
)
def test_demonstrations_of_another_environment_are_refused_before_training(
    tmp_path: Path, proprio: int, actions: int, line: str
) -> None:
    path = recorded(tmp_path / "set", proprio, actions)
    data = PolicyData("gym", path, task="point_worlds:Drawn-v0", image_size=20, episodes=1)
    with pytest.raises(UserError, match=line):
        data.prepare_data()


def test_an_environment_has_its_own_end_and_the_versions_of_its_packages(tmp_path: Path) -> None:
    path = recorded(tmp_path / "set", 2, 2)
    own = PolicyData("gym", path, task="point_worlds:Drawn-v0").environment
    assert own["horizon"] == 20 and own["versions"].keys() >= {"gymnasium"}
    shorter = PolicyData("gym", path, task="point_worlds:Drawn-v0", horizon=7)
    assert shorter.environment["horizon"] == 7
    longer = {"max_episode_steps": 50}
    for horizon in (None, 50):  # what is recorded is what is played
        data = PolicyData(
            "gym", path, task="point_worlds:Drawn-v0", options=longer, horizon=horizon
        )
        assert data.environment["horizon"] == 50
        with Pool(Environment(**data.environment), 1, images=False) as pool:
            still = lambda images, proprio, fresh: 0 * proprio  # noqa: E731
            assert [run.outcome.steps for run in pool.run([1], still)] == [50]
    endless = {"max_episode_steps": -1}
    data = PolicyData("gym", path, task="point_worlds:Drawn-v0", options=endless)
    assert data.environment["horizon"] == 1000
    with pytest.raises(UserError, match="v0 ends after 20 steps: set data.options.max_episode_st"):
        PolicyData("gym", path, task="point_worlds:Drawn-v0", horizon=21)
    with pytest.raises(UserError, match="cannot make data.task Drawm-v0"):
        PolicyData("gym", path, task="Drawm-v0").prepare_data()
    assert versions_of("gym", "torch:Any-v0")["torch"] == metadata.version("torch")


def test_what_the_environment_is_not_told_is_refused() -> None:
    for source, keys in {
        "gym": {"noise": 0.2, "demonstration_starts": 1},
        "lerobot": {"task": "push", "horizon": 3, "episodes": 7, "after_success": 1},
        "cortexbench": {"camera": "top"},
        "metaworld": {"camera": "corner"},
    }.items():
        for key, value in keys.items():
            task = {"metaworld": "hammer-v3", "gym": "point_worlds:Drawn-v0"}.get(source)
            more = {"task": task} if task else {}
            path = None if source == "metaworld" else "somewhere"
            with pytest.raises(UserError, match=f"data.{key} is {value}, but data.source is"):
                PolicyData(source, path, **more | {key: value})


@pytest.mark.parametrize("name", ["gym", "lerobot"])
def test_actions_in_units_of_others_are_normalised(name: str) -> None:
    """Beside a part of hundreds, one between -1 and 1 would hardly count."""
    recipe = Path(__file__).parents[3] / "recipes" / "policy" / f"{name}.yaml"
    assert yaml.safe_load(recipe.read_text())["model"]["init_args"]["normalize_actions"] is True


def test_there_is_no_expert() -> None:
    with pytest.raises(UserError, match="no scripted expert: give demonstrations"):
        gym.expert("Drawn-v0")


@pytest.mark.slow
def test_a_process_of_an_environment_has_one_thread() -> None:
    """Whatever the parent has, which is a process of its own here: the first pool decides."""
    code = """
import sys
from pixio_heads.policy.rollout.environments import Environment
from pixio_heads.policy.rollout.pool import Pool
sys.path.insert(0, sys.argv[1])
seen = []
def act(images, proprio, fresh):
    seen.append(proprio.tolist())
    return proprio[:, :2] * 0
with Pool(Environment("gym", "point_worlds:Threads-v0", 20, horizon=1), 1, images=False) as pool:
    pool.run([0], act)
assert seen == [[[1, 1, 1]]], seen
"""
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "LP_NUM_THREADS"), "2")
    command = [fork_server.python(), "-c", code, str(Path(__file__).parent)]
    subprocess.run(command, env=env, check=True, timeout=120)
