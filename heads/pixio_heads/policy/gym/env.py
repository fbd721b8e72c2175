"""An environment of gymnasium as policies see one: a square picture, and numbers beside it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pixio_heads.policy.rollout.pictures import square
from pixio_lightning.errors import UserError, nearest


class GymEnvironment(gymnasium.Wrapper):
    """An environment with other observations: `{"image": uint8 (size, size, 3), "proprio"}`.

    The picture is the observation that is one, or else what `render` draws; its middle
    square is scaled, as that of demonstrations is. Proprioception is all other
    observations of floating point, flattened, in the order of their keys.

    An episode is a success where `info` has `success` or `is_success` and it is true; where it has
    neither, at a step that ends the episode with its first positive reward. Where steps before are
    paid too, an end may be a fall, and none is called a success.

    Args:
        env: The environment.
        size: Side of the pictures in pixels.
        image: Key of the observation that is the picture; None for what `render` draws, or no
            pictures.
        proprio: Keys of the observations that are proprioception.
        images: Whether there are pictures.
    """

    def __init__(
        self, env: gymnasium.Env, size: int, *, image: str | None, proprio: list[str], images: bool
    ) -> None:
        super().__init__(env)
        self._paid = False  # whether the episode has had a positive reward
        self._size, self._image, self._keys, self._images = size, image, proprio, images
        leaves = dict(_leaves(env.observation_space))
        width = sum(int(np.prod(leaves[key].shape)) for key in proprio)
        shape = (size, size, 3) if images else (0, 0, 3)
        self.observation_space = spaces.Dict(
            image=spaces.Box(0, 255, shape, np.uint8),
            proprio=spaces.Box(-np.inf, np.inf, (width,), np.float32),
        )

    def reset(self, **how: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**how)
        self._paid = False
        return self._observed(observation), {**info, "success": False}

    def step(
        self, action: NDArray[np.floating]
    ) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        first = float(reward) > 0 and not self._paid
        self._paid |= first
        success = info.get("success", info.get("is_success", terminated and first))
        info = {**info, "success": bool(success)}
        return self._observed(observation), float(reward), terminated, truncated, info

    def _observed(self, observation: Any) -> dict[str, NDArray[Any]]:
        leaves = dict(_leaves(observation))
        picture = np.zeros((0, 0, 3), np.uint8)
        if self._images:
            drawn: Any = self.env.render() if self._image is None else leaves[self._image]
            picture = square(np.asarray(drawn), self._size)
        parts = [np.asarray(leaves[key], np.float32).ravel() for key in self._keys]
        return {"image": picture, "proprio": np.concatenate([np.zeros(0, np.float32), *parts])}


def make(
    task: str,
    size: int,
    *,
    images: bool = True,
    image: str | None = None,
    proprio: list[str] | None = None,
    **options: Any,
) -> GymEnvironment:
    """Make an environment by its id.

    Args:
        task: The id; `package:Name-v0` imports a package first.
        size: Side of the pictures in pixels.
        images: Whether there are any.
        image: Key of the observation that is the picture, `a.b` within `a`; needed where several
            are.
        proprio: Keys of the observations that are proprioception; None for all of floating point.
            Those that know more than a robot would make a policy's work too easy.
        options: What else `gymnasium.make` takes.

    Raises:
        UserError: There is no such environment or key, its actions are no bounded vector, or it
            has no picture.
    """
    env = _made(task, options)
    space: Any = env.action_space
    if not (_is_floating(space) and len(space.shape) == 1 and space.is_bounded()):
        _refuse(env, f"{task} takes actions of {space}, but expected a bounded Box of one axis")
    leaves = dict(_leaves(env.observation_space))
    pictures = [key for key, leaf in leaves.items() if _is_picture(leaf)]
    numbers = [key for key, leaf in leaves.items() if _is_floating(leaf)]
    for option, key, known in [
        *([("image", image, pictures)] if image is not None else []),
        *(("proprio", key, numbers) for key in proprio or []),
    ]:
        if key not in known:
            names = ", ".join(known) or "none"
            _refuse(env, f"data.options.{option} {key} is none of {names}{nearest(key, known)}")
    if images and image is None and len(pictures) > 1:
        _refuse(
            env, f"{task} has several pictures: set data.options.image to {' or '.join(pictures)}"
        )
    chosen = image if image is not None else next(iter(pictures), None)
    if images and chosen is None:  # drawn, then
        modes = env.metadata.get("render_modes", [])
        if "rgb_array" not in modes:
            _refuse(env, f"{task} has no picture: neither an observation nor render as rgb_array")
        env.close()
        env = _made(task, {**options, "render_mode": "rgb_array"})
    kept = numbers if proprio is None else proprio
    return GymEnvironment(env, size, image=chosen, proprio=kept, images=images)


def longest(task: str, options: dict[str, Any]) -> int | None:
    """Return the steps after which the environment itself ends an episode; None if it never does.

    Args:
        task: The id.
        options: What `gymnasium.make` takes; `max_episode_steps` counts, of which -1 is no end.

    Raises:
        UserError: There is no such environment.
    """
    package, _, name = task.rpartition(":")
    with _told(task):
        if package:
            importlib.import_module(package)
        own = gymnasium.spec(name).max_episode_steps
    given = options.get("max_episode_steps")
    steps = own if given is None else given
    return None if steps == -1 else steps


def expert(task: str) -> NoReturn:
    """Raise: environments of gymnasium have no expert."""
    raise UserError(
        f"{task} has no scripted expert: give demonstrations, data.path as a LeRobot folder"
    )


def _made(task: str, options: dict[str, Any]) -> gymnasium.Env:
    with _told(task):
        return gymnasium.make(task, **options)


@contextmanager
def _told(task: str) -> Iterator[None]:
    """Make a UserError of what gymnasium raises about a task."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = error.name or task.partition(":")[0]
        raise UserError(
            f"data.task {task} needs the package {package}, which is missing"
        ) from error
    except (gymnasium.error.Error, TypeError) as error:
        known = nearest(task, gymnasium.registry)
        reason = re.sub(r"\s+", " ", str(error)).rstrip(".")
        raise UserError(f"gymnasium cannot make data.task {task}: {reason}{known}") from error


def _refuse(env: gymnasium.Env, why: str) -> NoReturn:
    env.close()
    raise UserError(why)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what nested dictionaries hold by their keys, as `a.b`; what is none has the key ``."""
    if isinstance(tree, Mapping):  # a space of dictionaries is one too
        for key, inner in tree.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, tree


def _is_picture(space: Any) -> bool:
    return space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] == 3


def _is_floating(space: Any) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
