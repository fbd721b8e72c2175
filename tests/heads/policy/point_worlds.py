"""Small environments of gymnasium: a point that should reach the middle of a line of numbers."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
import threadpoolctl
from gymnasium import spaces


class Drawn(gymnasium.Env):
    """The point is drawn, white on black, by `render` only; the episode ends at the goal."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = spaces.Box(-1, 1, (2,), np.float64)
    action_space = spaces.Box(-0.5, 0.5, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = self.np_random.uniform(-1, 1, 2)
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at = np.clip(self.at + action, -1, 1)
        done = bool(np.abs(self.at).max() < 0.1)
        return self.seen(), float(done), done, False, {}

    def seen(self) -> Any:
        return self.at

    def render(self) -> Any:
        picture = np.zeros((40, 80, 3), np.uint8)
        y, x = ((self.at + 1) / 2 * (39, 79)).astype(int)
        picture[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = 255
        return picture


class Seen(Drawn):
    """The point is drawn in the observation, among others; `info` says whether it is there."""

    metadata = {"render_modes": []}
    observation_space = spaces.Dict(
        {
            "wrist": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "agent": spaces.Dict({"b.pos": Drawn.observation_space, "id": spaces.Discrete(3)}),
            "top": spaces.Box(0, 255, (40, 80, 3), np.uint8),
            "time": spaces.Box(0, 1, (), np.float32),
        }
    )

    def seen(self) -> Any:
        blank = np.zeros((8, 8, 3), np.uint8)
        agent = {"b.pos": self.at, "id": 0}
        return {"wrist": blank, "agent": agent, "top": self.render(), "time": np.float32(0.5)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        seen, reward, done, _, _ = super().step(action)
        return seen, reward, False, False, {"is_success": done}


class Paid(Drawn):
    """Every step is paid, and the episode ends at the rim, as where a robot falls."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        seen, *_ = super().step(action)
        return seen, 1.0, bool(np.abs(self.at).max() == 1), False, {}


class Steered(Drawn):
    """Of four directions, one is chosen."""

    action_space = spaces.Discrete(4)  # type: ignore[assignment]


class Unseen(Drawn):
    """Nothing is drawn."""

    metadata = {"render_modes": []}


class Threads(Drawn):
    """What is seen is how many threads the process may use: of OpenMP, of Mesa, and of BLAS."""

    observation_space = spaces.Box(0, 1000, (3,), np.float64)

    def seen(self) -> Any:
        allowed = [int(os.environ[name]) for name in ("OMP_NUM_THREADS", "LP_NUM_THREADS")]
        pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
        return np.array([*allowed, max(pools)], np.float64)


for world in (Paid, Drawn, Seen, Steered, Threads, Unseen):
    gymnasium.register(f"{world.__name__}-v0", world, max_episode_steps=20)
