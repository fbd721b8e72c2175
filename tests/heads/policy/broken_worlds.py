"""Environments that break in every way, each only in the episodes of odd seeds."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Sound(gymnasium.Env):
    """Counts its steps, and is done at the third."""

    observation_space = spaces.Dict(
        image=spaces.Box(0, 255, (16, 16, 3), np.uint8), proprio=spaces.Box(-9, 9, (2,), np.float32)
    )
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.odd, self.steps = bool(seed and seed % 2), 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.odd and self.steps == 2:
            self.fail()
        return self.seen(), self.reward(), False, False, {"success": self.steps >= 3}

    def seen(self) -> Any:
        image = np.full((16, 16, 3), 10 * self.steps, np.uint8)
        return {"image": image, "proprio": np.float32([self.steps, self.odd])}

    def reward(self) -> float:
        return 1.0

    def fail(self) -> None:
        """Do what breaks the episode."""


class Raises(Sound):
    def fail(self) -> None:
        raise RuntimeError("the arm fell off")


class Hangs(Sound):
    def fail(self) -> None:
        time.sleep(600)


class Stuck(Sound):
    """An episode never begins."""

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        begun = super().reset(**how)
        if self.odd:
            time.sleep(600)
        return begun


class Dies(Sound):
    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Unseen(Sound):
    """What is seen is not a number."""

    def seen(self) -> Any:
        seen = super().seen()
        if self.odd and self.steps == 2:
            seen["proprio"][0] = np.nan
        return seen


class Unpaid(Sound):
    """The reward is infinite."""

    def reward(self) -> float:
        return float("inf") if self.odd and self.steps == 2 else 1.0


for world in (Sound, Raises, Hangs, Stuck, Dies, Unseen, Unpaid):
    gymnasium.register(f"{world.__name__}-v0", world)
