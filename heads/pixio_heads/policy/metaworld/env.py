"""A task of Meta-World as an environment for policies: upright pictures, and seeds that count."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from pixio_heads.policy.metaworld.rendering import Renderer, opengl
from pixio_lightning.errors import UserError, one_of

_PROPRIO = 4  # position of the hand in metres, and how far the gripper is open


class MetaWorld(gymnasium.Env):
    """One task, its object and goal drawn anew at every reset.

    Observations are `{"image": uint8 (size, size, 3), "proprio": float32 (4,)}`, actions float32
    `(4,)` in [-1, 1]: a move of the hand, and the force of the gripper. An episode ends after 500
    steps, never at success.

    Attributes:
        state: What the scripted expert sees: float64 `(39,)`.

    Args:
        task: As `drawer-open-v3`.
        size: Side of the pictures in pixels.
        images: Whether there are any; without, no OpenGL is needed.
        camera: Name of a camera of the scene.
        shadows: See `Renderer`.

    Raises:
        UserError: The package, OpenGL, the task or the camera is missing.
    """

    def __init__(self, task: str, size: int, *, images: bool, camera: str, shadows: bool) -> None:
        if images:  # before mujoco is imported, which chooses then
            opengl()
        tasks = _imported("metaworld.env_dict").ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
        one_of("data.task", task, [name.removesuffix("-goal-observable") for name in tasks])
        self.inner: Any = tasks[f"{task}-goal-observable"](seed=0)
        # Or every reset would be the first again; no public name draws anew.
        setattr(self.inner, "_freeze_rand_vec", False)  # noqa: B010
        self.inner.seeded_rand_vec = True  # or it would draw from numpy's global generator
        self.action_space = self.inner.action_space
        model = self.inner.model
        one_of("data.options.camera", camera, [model.camera(i).name for i in range(model.ncam)])
        shape = (size, size, 3) if images else (0, 0, 3)
        self.observation_space = gymnasium.spaces.Dict(
            image=gymnasium.spaces.Box(0, 255, shape, np.uint8),
            proprio=gymnasium.spaces.Box(-np.inf, np.inf, (_PROPRIO,), np.float32),
        )
        self.state = np.zeros(0)
        self._renderer = None
        if images:
            data = self.inner.data
            self._renderer = Renderer(model, data, size, camera, shadows=shadows)
            self._renderer.check(data)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Begin an episode that is drawn from the seed."""
        super().reset(seed=seed)
        if seed is not None:
            self.inner.seed(seed)  # its `reset` takes a seed, and ignores it
        self.state, _ = self.inner.reset()
        return self._observation(), {"success": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Take a step."""
        self.state, reward, terminated, truncated, info = self.inner.step(action)
        info = {**info, "success": bool(info["success"])}
        return self._observation(), float(reward), terminated, truncated, info

    def _observation(self) -> dict[str, NDArray[Any]]:
        image = np.zeros((0, 0, 3), np.uint8)
        if self._renderer is not None:
            image = self._renderer.draw(self.inner.data)
        return {"image": image, "proprio": self.state[:_PROPRIO].astype(np.float32)}

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.inner.close()


class ScriptedExpert:
    """The controller that Meta-World comes with for a task; it knows where everything is."""

    def __init__(self, controller: Any) -> None:
        self._controller = controller

    def act(self, env: gymnasium.Env) -> NDArray[np.float32]:
        """Return the action `(4,)` to take now, within the bounds."""
        inner: Any = env.unwrapped
        return np.clip(self._controller.get_action(inner.state), -1, 1).astype(np.float32)


def make(
    task: str, size: int, *, images: bool = True, camera: str = "corner2", shadows: bool = False
) -> MetaWorld:
    """Make the environment of a task, see `MetaWorld`."""
    return MetaWorld(task, size, images=images, camera=camera, shadows=shadows)


def expert(task: str) -> ScriptedExpert:
    """Make the scripted expert of a task.

    Raises:
        UserError: It has none.
    """
    controllers = _imported("metaworld.policies").ENV_POLICY_MAP
    one_of("data.task", task, controllers)
    # That steps are clipped, which is meant to be.
    warnings.filterwarnings("ignore", "Constant.* may be too high")
    return ScriptedExpert(controllers[task]())


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the environments of Meta-World need the package {error.name}: "
            "pip install 'pixio-lightning[policy]'"
        ) from error
