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
    is 1 while it is. An episode never ends by itself.

    Args:
        task: What is to be done.
        size: Pixels along a side of the image.
        difficulty: 0 to 1: how many distractors there are, how much starts, goals, camera and
            light vary, and how exact the goal is.
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
        seed = int(self.np_random.integers(2**62)) if seed is None else seed
        self.episode = draw_episode(self.task, seed, self.difficulty)
        self.bench = self.episode.bench()
        self._picture = Picture(self.episode, mark=self.task == "push", size=self.size)
        return self.observe(), {"success": self.success}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the gripper.

        Raises:
            UserError: The action is not four finite numbers.
        """
        self.move(action)
        return self.observe(), float(self.success), False, False, {"success": self.success}

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
