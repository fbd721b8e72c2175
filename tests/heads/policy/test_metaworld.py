"""Meta-World as a policy sees it: episodes that a seed draws, and pictures that are right."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import fork_server
import numpy as np
import pytest

from pixio_heads.policy import PolicyData, metaworld
from pixio_heads.policy.metaworld.env import MetaWorld
from pixio_heads.policy.metaworld.rendering import is_noise, opengl
from pixio_heads.policy.rollout.environments import Environment
from pixio_heads.policy.rollout.pool import Pool
from pixio_lightning.errors import UserError

pytest.importorskip("metaworld")


@pytest.fixture(scope="module", autouse=True)
def drawing() -> None:
    """Skip where nothing can be drawn, and say why."""
    try:
        opengl()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def env() -> Iterator[MetaWorld]:
    made = metaworld.make("drawer-open-v3", 64)
    yield made
    made.close()


def played(env: MetaWorld, seed: int, *, steps: int = 3) -> list[Any]:
    """Return what is seen of the first steps of an episode, always with the same actions."""
    seen = [env.reset(seed=seed)[0]]
    rng = np.random.default_rng(0)
    seen += [env.step(rng.uniform(-1, 1, 4).astype(np.float32))[0] for _ in range(steps)]
    return [env.state, *(row[name] for row in seen for name in ("proprio", "image"))]


def same(a: list[Any], b: list[Any]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_seed_draws_the_whole_episode(env: MetaWorld) -> None:
    first = played(env, 1)
    np.random.seed(0)  # which Meta-World draws from by itself
    assert not same(first, played(env, 2))
    assert same(first, played(env, 1))  # after another episode
    env.close()
    fresh = metaworld.make("drawer-open-v3", 64)
    assert same(first, played(fresh, 1))
    fresh.close()


def test_what_is_seen(env: MetaWorld) -> None:
    seen, info = env.reset(seed=0)
    assert env.observation_space.contains(seen) and info == {"success": False}
    assert seen["image"].shape == (64, 64, 3)
    np.testing.assert_allclose(seen["proprio"][:3], env.inner.get_endeff_pos(), atol=0.06)
    blind = metaworld.make("drawer-open-v3", 64, images=False)
    assert blind.reset(seed=0)[0]["image"].shape == (0, 0, 3)
    np.testing.assert_array_equal(blind.reset(seed=0)[0]["proprio"], seen["proprio"])


def fingers(env: MetaWorld, toward: np.ndarray) -> np.ndarray:
    """Return the row and column of the gripper's cyan finger after a move of the hand."""
    env.reset(seed=0)
    for _ in range(20):
        seen, *_ = env.step(np.array([*toward, 0], np.float32))
    red, green, blue = np.moveaxis(seen["image"].astype(int), -1, 0)
    cyan = np.nonzero((blue > 150) & (green > 150) & (red < 100))
    assert len(cyan[0]), "no finger in the picture"
    return np.array([cyan[0].mean(), cyan[1].mean()])


@pytest.mark.parametrize(
    "camera",
    [
        "corner2",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("corner", "corner3", "corner4")),
    ],
)
def test_pictures_are_upright_and_no_mirror_images(camera: str) -> None:
    env = metaworld.make("reach-v3", 256, camera=camera)
    up = np.array([0, 0, 1])
    raised = fingers(env, up) - fingers(env, -up)
    assert raised[0] < -5
    back = env.inner.data.camera(camera).xmat.reshape(3, 3)[:, 2]
    right = np.cross(up, back)  # of someone who stands upright and looks along the camera
    aside = fingers(env, right) - fingers(env, -right)
    assert aside[1] > 5
    env.close()


def test_environments_may_follow_each_other_and_live_side_by_side(env: MetaWorld) -> None:
    first = played(env, 1)
    beside = metaworld.make("drawer-open-v3", 64)
    assert same(played(beside, 1), first)
    env.close()
    assert same(played(beside, 1), first)  # what the other freed was its own
    after = metaworld.make("hammer-v3", 64)
    beside.close()
    assert not is_noise(after.reset(seed=0)[0]["image"])
    after.close()


def test_pictures_without_sense_are_refused(env: MetaWorld, monkeypatch: Any) -> None:
    rng = np.random.default_rng(0)
    assert is_noise(rng.integers(0, 256, (64, 64, 3), np.uint8))
    assert is_noise(rng.choice(np.array([0, 255], np.uint8), (64, 64, 3)))
    assert is_noise(np.full((64, 64, 3), 7, np.uint8))
    renderer = env._renderer
    assert renderer is not None
    renderer.check(env.inner.data)
    # A read that leaves the memory as it was.
    monkeypatch.setattr(renderer._mujoco, "mjr_readPixels", lambda *_: None)
    with pytest.raises(RuntimeError, match="memory noise or empty"):
        renderer.check(env.inner.data)


def test_shadows_are_part_of_the_protocol(env: MetaWorld) -> None:
    dark = metaworld.make("drawer-open-v3", 64, shadows=True)
    with_shadows, without = (e.reset(seed=0)[0]["image"].astype(int) for e in (dark, env))
    assert np.abs(with_shadows - without).mean() > 1
    dark.close()


def test_records_say_versions_and_what_is_seen() -> None:
    data = PolicyData("metaworld", task="hammer-v3", options={"shadows": True})
    found = [f"metaworld {version('metaworld')}", f"mujoco {version('mujoco')}", "camera corner2"]
    assert all(f", {part}" in data.dataset for part in [*found, "shadows True"])


@pytest.mark.parametrize(
    "task", [pytest.param("drawer-open-v3", marks=pytest.mark.slow), "hammer-v3"]
)
def test_the_expert_succeeds_and_stays_so_to_the_end(task: str) -> None:
    """In two processes; an episode is never ended by success."""
    environment = Environment("metaworld", task, 32, horizon=110, stop_at_success=False)
    with Pool(environment, 2) as pool:
        episodes = dict(pool.play([0, 1, 2], "expert"))
    for seed, episode in episodes.items():
        outcome = episode.outcome
        assert not outcome.error and outcome.success and outcome.steps == 110, (seed, outcome)
        assert len(episode.images) == 110 and episode.proprio.shape == (110, 4)
        assert np.abs(episode.actions).max() <= 1
        assert not episode.successes[:50].any()


def test_meta_world_ends_after_500_steps() -> None:
    env = metaworld.make("drawer-open-v3", 64, images=False)
    env.reset(seed=0)
    ends = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(500)]
    assert ends == [(False, False)] * 499 + [(False, True)]


@pytest.mark.parametrize(
    ("task", "options", "line"),
    [
        ("drawer-opens-v3", {}, "did you mean 'drawer-open-v3'?"),
        ("drawer-open-v3", {"camera": "corner22"}, "did you mean 'corner2'?"),
    ],
)
def test_mistakes_are_one_line(task: str, options: dict, line: str) -> None:
    with pytest.raises(UserError) as told:
        metaworld.make(task, 64, **options)
    assert line in str(told.value) and "\n" not in str(told.value)


def test_its_demonstrations_have_no_path() -> None:
    assert PolicyData("metaworld", task="hammer-v3").environment["task"] == "hammer-v3"
    line = "source is metaworld, which is made here; set data.source to one of gym, lerobot"
    with pytest.raises(UserError, match=line):
        PolicyData("metaworld", "DIR", task="hammer-v3")
    with pytest.raises(UserError, match=r"data.source is gym: give data.path"):
        PolicyData("gym", task="Pendulum-v1")


def in_a_process(code: str, **env: str) -> str:
    command = [fork_server.python(), "-c", code]
    done = subprocess.run(
        command, env=os.environ | env, capture_output=True, text=True, timeout=120
    )
    assert not done.returncode, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


MAKE = """
import sys
from pixio_heads.policy import PolicyData, metaworld
assert not {"mujoco", "metaworld"} & set(sys.modules)
try:
    env = metaworld.make("drawer-open-v3", 64)
    print(env.reset(seed=0)[0]["image"].std() > 20)
    env.close()
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_drawing_takes_what_works() -> None:
    """Nothing is told at the interpreter's end."""
    assert in_a_process(MAKE, MUJOCO_GL="") == "True\n"
    unset = in_a_process(MAKE, MUJOCO_GL="nonsense")
    assert unset.startswith("MuJoCo draws nothing with MUJOCO_GL=nonsense: unset it, or apt-get")
    assert unset.count("\n") == 1


def test_without_opengl_the_packages_are_named() -> None:
    """PyOpenGL finds no library of a platform that is not the one it was told."""
    told = in_a_process(MAKE, MUJOCO_GL="", PYOPENGL_PLATFORM="nonsense")
    assert told.startswith("MuJoCo finds no OpenGL to draw with (osmesa, egl): apt-get install")
    assert told.count("\n") == 1


def test_a_missing_package_is_named() -> None:
    code = "import sys; sys.modules['metaworld.env_dict'] = sys.modules['metaworld'] = None\n"
    told = in_a_process(code + MAKE.replace('{"mujoco", "metaworld"}', "set()"))
    assert told.endswith("pip install 'pixio-lightning[policy]'\n") and "package metaworld" in told
