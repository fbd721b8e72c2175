"""One episode in one environment: the loop of a process that serves it, and its checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from pixio_heads.policy.rollout.environments import Environment
from pixio_heads.policy.rollout.pictures import encode_png

Controller = Literal["expert", "random"]

_DISTURBED = 5  # steps that a disturbance lasts, at most


class BrokenEpisode(Exception):
    """The environment did what none should; the message says what, and at which step."""


@dataclass
class Outcome:
    """What came of an episode.

    Attributes:
        success: Whether the task was done at the last step.
        success_any: Whether it was at any step.
        total: Sum of the rewards.
        steps: Steps that were taken.
        error: What ended the episode before its time; empty for nothing.
    """

    success: bool = False
    success_any: bool = False
    total: float = 0.0
    steps: int = 0
    error: str = ""


@dataclass
class Trajectory:
    """An episode that a controller played, step by step.

    Attributes:
        outcome: What came of it.
        images: PNG files, one for each step; what was seen before the action.
        proprio: float32 `(T, P)`.
        actions: float32 `(T, A)`, what the controller wanted, without the noise.
        rewards: float32 `(T,)`.
        successes: bool `(T,)`, after the action.
    """

    outcome: Outcome
    images: list[bytes] = field(default_factory=list)
    proprio: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    actions: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    rewards: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    successes: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


class Episode:
    """An episode that is under way.

    Attributes:
        over: Whether the environment goes no further.
        ended: Whether an evaluation goes no further: over, or done where it stops at success.

    Args:
        env: The environment.
        about: What it is; decides when an episode ends.
        seed: What the environment draws the episode from.
    """

    def __init__(self, env: gymnasium.Env, about: Environment, seed: int) -> None:
        self.env, self.about = env, about
        self.outcome = Outcome()
        self.observation = self._checked(env.reset(seed=seed)[0])
        self.over = self.ended = False

    def step(self, action: NDArray[np.floating]) -> tuple[float, bool]:
        """Take a step; returns the reward, and whether the task is done now.

        Raises:
            BrokenEpisode: The environment returned something that is not finite.
        """
        outcome = self.outcome
        outcome.steps += 1
        space: Any = self.env.action_space
        if action.shape != space.shape:
            raise BrokenEpisode(
                f"step {outcome.steps}: an action has {action.size} parts, but the environment "
                f"takes {space.shape[0]}: demonstrations of another robot?"
            )
        clipped = np.clip(action, space.low, space.high).astype(space.dtype)
        observation, reward, terminated, truncated, info = self.env.step(clipped)
        self.observation = self._checked(observation)
        if not np.isfinite(float(reward)):
            raise BrokenEpisode(f"step {outcome.steps}: the reward is {reward}")
        done = bool(info.get("success", terminated))
        outcome.total += float(reward)
        outcome.success, outcome.success_any = done, outcome.success_any or done
        self.over = terminated or truncated or outcome.steps >= self.about.horizon
        self.ended = self.over or (done and self.about.stop_at_success)
        return float(reward), done

    def _checked(self, observation: Any) -> dict[str, NDArray[Any]]:
        for name, values in observation.items():
            if not np.isfinite(values).all():
                raise BrokenEpisode(f"step {self.outcome.steps}: {name} is not finite")
        return observation


def play(
    env: gymnasium.Env,
    about: Environment,
    seed: int,
    controller: Controller,
    *,
    noise: float = 0.0,
    disturbance: float = 0.0,
    after_success: int | None = None,
    before_step: Callable[[], Any] = lambda: None,
) -> Trajectory:
    """Play a whole episode with a controller.

    Args:
        env: The environment.
        about: What it is.
        seed: Of the episode, the noise and random actions.
        controller: `expert`, or `random` actions, uniform over all.
        noise: Standard deviation of what is added to the actions that are executed.
        disturbance: Probability, at every step, that random actions are executed from here on, 1 to
            `_DISTURBED` of them; so the expert is seen to come back from where it never goes.
        after_success: Steps played on after success; None ends where `about` says.
        before_step: Called before every step.
    """
    rng = np.random.Generator(np.random.Philox(key=(seed, 0x9E3779B9)))
    space: Any = env.action_space
    episode = Episode(env, about, seed)
    expert = about.expert() if controller == "expert" else None
    rows: list[tuple[Any, ...]] = []
    disturbed, push = 0, np.zeros(space.shape)
    left = after_success
    if left is None:
        left = 0 if about.stop_at_success else about.horizon
    while not episode.over and not (episode.outcome.success_any and left == 0):
        before_step()
        left -= episode.outcome.success_any
        seen = episode.observation
        wanted = expert.act(env) if expert else rng.uniform(space.low, space.high)
        wanted = np.asarray(wanted, np.float32)
        executed = wanted + noise * rng.standard_normal(wanted.shape)
        if disturbed == 0 and disturbance and rng.random() < disturbance:
            disturbed = int(rng.integers(1, _DISTURBED + 1))
            push = rng.uniform(space.low, space.high)
        if disturbed:
            disturbed, executed = disturbed - 1, push
        reward, done = episode.step(executed)
        rows.append((encode_png(seen["image"]), seen["proprio"], wanted, reward, done))
    images, proprio, actions, rewards, successes = zip(*rows, strict=True)
    return Trajectory(
        episode.outcome,
        list(images),
        np.array(proprio, np.float32).reshape(len(rows), -1),
        np.array(actions, np.float32),
        np.array(rewards, np.float32),
        np.array(successes),
    )
