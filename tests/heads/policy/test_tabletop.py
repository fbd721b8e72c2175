"""The built-in table-top world: its kinematics, its pictures, its experts and who must fail."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import fork_server
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pixio_heads.policy.data import TABLETOP
from pixio_heads.policy.tabletop import Expert, Tabletop
from pixio_heads.policy.tabletop.draw import Picture
from pixio_heads.policy.tabletop.episode import TASKS, draw_episode
from pixio_heads.policy.tabletop.physics import SPEED, Bench, Block, on_table, overlap

each_task = pytest.mark.parametrize("task", TASKS)


def started(task: str, seed: int, **keys: Any) -> Tabletop:
    env = Tabletop(task, size=32, **keys)  # type: ignore[arg-type]
    env.reset(seed=seed)
    return env


def succeeds(
    env: Tabletop, policy: Callable[[Tabletop, int], np.ndarray], *, steps: int | None = None
) -> tuple[bool, bool]:
    """Run an episode without pictures; return whether it succeeded ever, and at its end."""
    ever = False
    for step in range(TABLETOP[env.task] if steps is None else steps):
        env.move(policy(env, step))
        ever |= env.success
    return ever, env.success


@each_task
def test_it_is_an_environment_as_gymnasium_defines_it(task: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(Tabletop(task, size=32))  # type: ignore[arg-type]


@each_task
def test_a_seed_gives_one_episode_and_others_give_others(task: str) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 4)).astype(np.float32)

    def seen(seed: int) -> list[np.ndarray]:
        env = Tabletop(task, size=32)  # type: ignore[arg-type]
        first, _ = env.reset(seed=seed)
        steps = [env.step(action)[0] for action in actions]
        return [obs[name] for obs in (first, *steps) for name in ("image", "proprio")]

    first, again, other = seen(7), seen(7), seen(8)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_without_a_seed_episodes_follow_from_the_last_seed() -> None:
    def starts() -> list[tuple[float, ...]]:
        env = started("push", 3)
        found = [env.episode.tip]
        for _ in range(3):
            env.reset()
            found.append(env.episode.tip)
        return found

    assert starts() == starts() and len({*starts()}) == 4


@each_task
def test_the_picture_shows_the_goal_and_proprio_does_not(task: str) -> None:
    env = started(task, 1)
    before = env.observe()
    things = env.episode.things
    if task == "reach":  # the same bodies where they were, another is asked for
        episode = env.episode._replace(things=(things[1], things[0], *things[2:]))
    elif task == "push":
        episode = env.episode._replace(goal=(0.0, -0.08))
    else:
        moved = things[-1]._replace(x=0.0, y=-0.08)
        episode = env.episode._replace(things=(*things[:-1], moved))
    env.episode, env.bench = episode, episode.bench()
    env._picture = Picture(episode, mark=task == "push", size=32)
    after = env.observe()
    differs = np.abs(after["image"].astype(int) - before["image"]).max(axis=2) > 20
    assert differs.sum() >= 8
    assert np.array_equal(before["proprio"], after["proprio"])


def test_only_what_belongs_to_the_goal_has_its_colour() -> None:
    for task in TASKS:
        things = draw_episode(task, 5, 1.0).things  # type: ignore[arg-type]
        same = [np.array_equal(thing.colour, things[0].colour) for thing in things]
        assert sum(same) == 1 + (task == "pick_place")
        assert len(things) >= 4


@each_task
@pytest.mark.parametrize("difficulty", [0.5, 1.0])
def test_the_expert_succeeds(task: str, difficulty: float) -> None:
    expert, env = Expert(), Tabletop(task, size=16, difficulty=difficulty)  # type: ignore[arg-type]
    for seed in range(20):
        env.reset(seed=seed)
        assert succeeds(env, lambda env, _: expert.act(env)) == (True, True), seed


@each_task
def test_the_expert_takes_over_from_disturbed_states(task: str) -> None:
    expert, rng = Expert(), np.random.default_rng(0)
    env = Tabletop(task, size=16)  # type: ignore[arg-type]

    def disturbed(env: Tabletop, step: int) -> np.ndarray:
        action = expert.act(env)
        return action + (rng.normal(0, 0.3, 4) if step < 40 else 0)

    found = []
    for seed in range(20):
        env.reset(seed=seed)
        found.append(succeeds(env, disturbed, steps=120)[0])
    assert sum(found) >= 18, found


@pytest.mark.parametrize(
    "task", [n if n == "reach" else pytest.param(n, marks=pytest.mark.slow) for n in TASKS]
)
def test_who_does_not_look_fails(task: str) -> None:
    """Random actions, the experts' mean actions, and an expert that knows the mean goal only."""
    expert, rng, n = Expert(), np.random.default_rng(0), 30
    env = Tabletop(task, size=16)  # type: ignore[arg-type]
    actions, goals = np.zeros((TABLETOP[task], 4)), []
    for seed in range(n):
        env.reset(seed=seed)
        goals.append(env.episode.goal)
        for step in range(TABLETOP[task]):
            action = expert.act(env)
            actions[step] += action / n
            env.move(action)
    goal = tuple(np.mean(goals, axis=0))

    def misled(env: Tabletop, step: int) -> np.ndarray:
        bodies = list(env.bench.bodies)
        if task == "reach":
            bodies[0] = replace(bodies[0], x=goal[0], y=goal[1])
        bench, episode = replace(env.bench, bodies=bodies), env.episode._replace(goal=goal)
        return expert.act(SimpleNamespace(task=task, bench=bench, episode=episode))  # type: ignore[arg-type]

    policies = {
        "random": lambda env, step: rng.uniform(-1, 1, 4),
        "mean action": lambda env, step: actions[step],
        "mean goal": misled,
    }
    for name, policy in policies.items():
        count = 0
        for seed in range(100, 100 + n):
            env.reset(seed=seed)
            count += succeeds(env, policy)[0]
        assert count <= 0.2 * n, (name, count)


@pytest.mark.parametrize(
    "action", [np.full(4, np.nan), [0, 0, 0, np.inf], np.zeros(3), np.zeros((1, 4))]
)
def test_an_action_that_is_none_is_refused(action: Any) -> None:
    env = started("reach", 0)
    before = deepcopy(env.bench)
    with pytest.raises(ValueError, match="an action is 4 finite numbers"):
        env.step(action)
    assert env.bench == before


@pytest.mark.parametrize("keys", [{"task": "stack"}, {"size": 8}, {"difficulty": 1.5}])
def test_a_world_that_there_is_not_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected|is none of"):
        Tabletop(**keys)


@pytest.mark.parametrize("name", ["Policy", "PolicyData"])
def test_without_gymnasium_one_line_says_what_to_install(name: str) -> None:
    code = f"""
import sys
for loaded in [name for name in sys.modules if name.startswith("pixio_heads.policy")]:
    del sys.modules[loaded]
sys.modules["gymnasium"] = None
from pixio_heads.policy import {name}
"""
    run = subprocess.run([fork_server.python(), "-c", code], capture_output=True, text=True)
    assert "policies need gymnasium: pip install 'pixio-lightning[policy]'" in run.stderr


def test_actions_are_clipped() -> None:
    fast, full = started("reach", 2), started("reach", 2)
    fast.move(np.array([9, -9, 9, 9]))
    full.move(np.array([1, -1, 1, 1]))
    assert fast.bench.tip == full.bench.tip


def test_the_picture_is_upright() -> None:
    """Raising the gripper moves its dark fingers up, and going right moves them right."""
    env = Tabletop("reach", size=64, difficulty=0.0)
    env.reset(seed=0)

    def fingers(x: float, z: float) -> np.ndarray:
        env.bench.tip[:] = [x, -0.1, z]
        dark = env.render().max(axis=2) < 70
        return np.argwhere(dark).mean(axis=0)  # row, column

    low, high, right = fingers(-0.05, 0.06), fingers(-0.05, 0.1), fingers(0.05, 0.06)
    assert high[0] < low[0] - 3 and abs(high[1] - low[1]) < 2
    assert right[1] > low[1] + 6 and abs(right[0] - low[0]) < 2


@each_task
@pytest.mark.parametrize("seed", range(4))
def test_nothing_overlaps_or_leaves_the_table(task: str, seed: int) -> None:
    """The gripper ploughs through the table's things for 200 steps, grasping and dropping some."""
    env, rng = started(task, seed, difficulty=1.0), np.random.default_rng(seed)
    start = deepcopy(env.bench.bodies)
    for step in range(200):
        phase, tip = step % 30, env.bench.tip
        if phase == 0:  # go beside or over some body, down, and through it or away with it
            number, beside = rng.integers(len(env.bench.bodies)), rng.uniform(-0.06, 0.06, 2)
            beside *= rng.choice([0, 1])
            sweep, closing = rng.uniform(-1, 1, 2), rng.choice([-1, 0, 1])
        aim = env.bench.bodies[number]
        over = np.array([aim.x + beside[0] - tip[0], aim.y + beside[1] - tip[1]]) / SPEED
        if phase < 18:
            env.move(np.array([*over, 1 if phase < 6 else -1, 1]))
        else:
            env.move(np.array([*sweep - np.sign(beside), 0.2 * (phase > 24), closing]))
        bodies, held = env.bench.bodies, env.bench.held
        assert all(on_table(body) and body.z >= 0 for body in bodies)
        pairs = [(a, b) for i, a in enumerate(bodies) for b in bodies[:i]]
        free = [body for i, body in enumerate(bodies) if i != held]
        pairs += [(part, body) for part in env.bench.gripper() for body in free]
        assert not any(overlap(a, b) for a, b in pairs), step
    moved = zip(env.bench.bodies, start, strict=True)
    assert max(abs(now.x - then.x) + abs(now.y - then.y) for now, then in moved) > 0.02


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_what_is_pushed_moves_along_and_stops_at_the_edge(axis: int, sign: int) -> None:
    body = Block(0.0, 0.0, 0.0, (0.0, 0.0), 0.02, 0.05)
    bench = Bench([body], [0.0, 0.0, 0.01], 0.0)
    bench.tip[axis] = -0.1 * sign
    move = [0.0, 0.0, 0.0]
    move[axis] = sign * SPEED
    for _ in range(40):
        bench.advance(move, 0.0)
        at = (bench.bodies[0].x, bench.bodies[0].y)
        assert sign * (at[axis] - bench.tip[axis]) > 0.03  # never jumped over
        assert at[1 - axis] == pytest.approx(0, abs=1e-9)
    edge = (0.20, 0.155)[axis] - 0.02
    assert edge - SPEED < sign * at[axis] <= edge + 1e-9


def test_a_held_body_is_lifted_and_falls_on_what_is_below() -> None:
    low = Block(0.1, 0.0, 0.0, (0.025, 0.025), 0.0, 0.04)
    body = Block(0.003, 0.0, 0.0, (0.02, 0.02), 0.0, 0.05)
    bench = Bench([body, low], [0.0, 0.0, 0.01], 0.09)
    for move, opening, steps in (
        ([0, 0, 0], -0.015, 6),
        ([0, 0, 0.015], 0, 6),
        ([0.01, 0, 0], 0, 10),
    ):
        for _ in range(steps):
            bench.advance(move, opening)
    assert bench.held == 0 and bench.bodies[0].z > 0.05
    assert bench.opening == pytest.approx(0.04)
    bench.advance([0, 0, 0], 0.015)
    assert bench.held == -1 and bench.bodies[0].z == pytest.approx(0.04)
    bench.tip[:] = [0.1, 0.1, 0.01]
    for _ in range(12):  # push what is below away
        bench.advance([0, -0.015, 0], 0.0)
    assert bench.bodies[0].z == 0


def test_two_worlds_share_nothing() -> None:
    one, two = started("pick_place", 4), started("pick_place", 4)
    before, image = deepcopy(two.bench), two.render()
    for _ in range(25):
        one.move(Expert().act(one))
    assert two.bench == before
    assert np.array_equal(image, two.render()) and not np.array_equal(image, one.render())
