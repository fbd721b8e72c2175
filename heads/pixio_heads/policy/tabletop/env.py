"""A small table-top world with a gripper, as a Gymnasium environment: no engine, no GL library."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pixio_heads.policy.tabletop.draw import Picture
from pixio_heads.policy.tabletop.episode import PLATFORM, TASKS, Task, draw_episode
from pixio_heads.policy.tabletop.physics import OPENING, RATE, REACH, SPEED
from pixio_lightning.errors import UserError, one_of

Observation = dict[str, NDArray]
_MAX_STEPS = {"reach": 30, "push": 60, "pick_place": 60}
_LOW, _HIGH = np.array([*REACH, (0.0, OPENING)]).T


class Tabletop(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A gripper over a table with coloured bodies, seen by one camera that stands still.

    The rail along the table's back edge shows the colour of the body that is asked for. Where it
    is and where it goes is seen in the picture only.

    - `reach`: touch the top of the body with the closed fingertips, near its middle.
    - `push`: push it onto the mark on the table that has its colour.
    - `pick_place`: put it onto the platform that has its colour, and let go.

    An observation holds `image`, uint8 RGB `(size, size, 3)`, its top first, and `proprio`,
    float32 `(4,)`: the gripper's x, y, z and opening, each from -1 to 1 over its range. An action
    is float32 `(4,)` in [-1, 1]: how far the gripper moves along x (right), y (away from the
    camera) and z (up), in units of `SPEED`, and how much its fingers open, in units of `RATE`;
    what is beyond is clipped. `info["success"]` says whether the goal is met now, and the reward
    is 1 while it is. An episode is truncated after `max_steps`, and never terminated.

    Args:
        task: What is to be done.
        size: Pixels along a side of the image.
        difficulty: 0 to 1: how many distractors there are, how much starts, goals, camera and
            light vary, and how exact the goal is.
        max_steps: Steps of an episode; None is 30 for `reach` and 60 for the others.
        images: Whether pictures are drawn; without, `image` is `(0, 0, 3)`.

    Raises:
        UserError: There is no such task, or a number is out of its range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        task: Task = "reach",
        *,
        size: int = 64,
        difficulty: float = 0.5,
        max_steps: int | None = None,
        images: bool = True,
    ) -> None:
        one_of("task", task, TASKS)
        if size < 16 or not 0 <= difficulty <= 1:
            raise UserError(
                f"a picture of {size} px at difficulty {difficulty}: expected a size of 16 or "
                "more and a difficulty from 0 to 1"
            )
        self.task, self.size, self.difficulty = task, size, difficulty
        self.images, side = images, size if images else 0
        self.max_steps = _MAX_STEPS[task] if max_steps is None else max_steps
        self.render_mode = "rgb_array"
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            {
                "image": spaces.Box(0, 255, (side, side, 3), np.uint8),
                "proprio": spaces.Box(-1, 1, (4,), np.float32),
            }
        )
        self.action_space = spaces.Box(-1, 1, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the episode of a seed; without one, the next that the last seed leads to."""
        super().reset(seed=seed)
        self._start(int(self.np_random.integers(2**62)) if seed is None else seed)
        return self.observe(), {"success": self.success}

    def _start(self, seed: int) -> None:
        self.episode_seed, self.steps = seed, 0
        self.episode = draw_episode(self.task, seed, self.difficulty)
        self.bench = self.episode.bench()
        self._picture = Picture(self.episode, mark=self.task == "push", size=self.size)

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the gripper.

        Raises:
            UserError: The action is not four finite numbers.
        """
        self.move(action)
        truncated = self.steps >= self.max_steps
        return self.observe(), float(self.success), False, truncated, {"success": self.success}

    def move(self, action: NDArray[np.float32]) -> None:
        """Do what `step` does without drawing a picture, which is most of its time."""
        given = np.asarray(action, dtype=np.float64)
        if given.shape != (4,) or not np.isfinite(given).all():
            raise UserError(
                "an action is 4 finite numbers (x, y, z, opening), each from -1 to 1: "
                f"got {np.array2string(given, threshold=8)} of shape {given.shape}"
            )
        *move, opening = np.clip(given, -1, 1).tolist()
        self.bench.advance([SPEED * by for by in move], RATE * opening)
        self.steps += 1

    @property
    def success(self) -> bool:
        """Whether the goal is met now."""
        body, episode = self.bench.bodies[0], self.episode
        x, y, z = self.bench.tip
        if self.task == "reach":
            near = np.hypot(body.x - x, body.y - y) <= episode.tolerance
            return bool(near and z - body.top <= 0.012)
        near = np.hypot(body.x - episode.goal[0], body.y - episode.goal[1]) <= episode.tolerance
        if self.task == "push":
            return bool(near and body.z == 0 and self.bench.held != 0)
        return bool(near and abs(body.z - PLATFORM) < 1e-6 and self.bench.held != 0)

    def observe(self) -> Observation:
        """Return what is seen now."""
        at = np.array([*self.bench.tip, self.bench.opening])
        proprio = np.clip(2 * (at - _LOW) / (_HIGH - _LOW) - 1, -1, 1).astype(np.float32)
        image = self.render() if self.images else np.empty((0, 0, 3), np.uint8)
        return {"image": image, "proprio": proprio}

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """Return the picture, uint8 RGB `(size, size, 3)`."""
        return self._picture.draw(self.bench)

    def get_state(self) -> dict[str, NDArray]:
        """Return all that `set_state` needs to go on from here, as plain arrays."""
        bodies = [[body.x, body.y, body.z] for body in self.bench.bodies]
        return {
            "task": np.array(self.task),
            "difficulty": np.array(self.difficulty),
            "seed": np.array(self.episode_seed, np.int64),
            "steps": np.array(self.steps),
            "gripper": np.array([*self.bench.tip, self.bench.opening]),
            "held": np.array(self.bench.held),
            "bodies": np.array(bodies),
        }

    def set_state(self, state: dict[str, NDArray]) -> Observation:
        """Go back to a state of an environment with the same task and difficulty.

        Raises:
            UserError: The state is of another task or difficulty.
        """
        task, difficulty = str(state["task"]), float(state["difficulty"])
        if (task, difficulty) != (self.task, self.difficulty):
            raise UserError(
                f"a state of {task} at difficulty {difficulty} does not fit {self.task} at "
                f"difficulty {self.difficulty}: restore it where both are the same"
            )
        self._start(int(state["seed"]))
        for body, (x, y, z) in zip(self.bench.bodies, state["bodies"].tolist(), strict=True):
            body.x, body.y, body.z = x, y, z
        *self.bench.tip, self.bench.opening = state["gripper"].tolist()
        self.bench.held, self.steps = int(state["held"]), int(state["steps"])
        return self.observe()
