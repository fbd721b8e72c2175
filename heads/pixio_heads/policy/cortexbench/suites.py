"""Demonstrations of CortexBench's Adroit, Meta-World and DMControl: a pickle for each task.

It is a list of dicts, one for each demonstration: `images` uint8 `(T, H, W, 3)`, `actions`
`(T, A)` and `env_infos`, where the robot's state is `gripper_proprio` (Meta-World, 4 numbers) or
`proprio` (Adroit, 24 for the pen and 30 for relocate). DMControl has none: its `internal_state` is
the simulator's.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_heads.policy.cortexbench.arrays import Array, unpickled
from pixio_heads.policy.demonstrations import Demonstration
from pixio_lightning.data import digest_of
from pixio_lightning.errors import UserError, nearest

_PROPRIO = ("gripper_proprio", "proprio")


def read(file: Path, *, limit: int | None, trusted: bool) -> tuple[list[Demonstration], str]:
    """Read the first demonstrations of a pickle. All of it is held in memory while it is read.

    Args:
        file: The pickle of a task.
        limit: Demonstrations, at most; None for all.
        trusted: Whether it may be read at all; nothing in it is run even so.

    Returns:
        The demonstrations in their order, and a digest of them.

    Raises:
        UserError: It is not trusted, no such file, damaged, or holds anything else than arrays.
    """
    file = file.expanduser()
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.pickle")]
        raise UserError(
            f"data.path '{file}' is no file; expected the pickle of a task, as "
            f"reacher_easy.pickle{nearest(file.name, siblings)}"
        )
    if not trusted:
        raise UserError(
            f"'{file}' is a pickle, a kind of file that can run code when it is read: if you know "
            "where it is from, set data.trust_pickle to true; then its arrays are read, and names "
            "of anything else in it are refused"
        )
    content = unpickled(file)
    if not isinstance(content, list) or not all(isinstance(demo, dict) for demo in content):
        raise UserError(f"'{file}' holds no list of dicts, so it is no pickle of CortexBench")
    found = [_demonstration(demo, i, file) for i, demo in enumerate(content[:limit])]
    if len({(demo.proprio.shape[1], demo.actions.shape[1]) for demo in found}) != 1:
        raise UserError(f"'{file}': expected demonstrations, all with as many states and actions")
    hashed = hashlib.sha256()
    for demo in found:
        hashed.update(demo.actions.tobytes() + demo.proprio.tobytes() + demo.frame(0).tobytes())
    return found, digest_of("cortexbench", file.stat().st_size, len(found), hashed.hexdigest())


def _demonstration(demo: dict[Any, Any], number: int, file: Path) -> Demonstration:
    what = f"'{file}': demonstration {number}"
    actions = numbers(demo, "actions", what)
    images = pictures(demo, "images", what)
    infos = demo.get("env_infos")
    infos = infos if isinstance(infos, dict) else {}
    key = next((key for key in _PROPRIO if key in infos), None)
    proprio = numbers(infos, key, what) if key else np.empty((len(actions), 0), np.float32)
    return assembled(f"demonstration_{number:04d}", proprio, actions, images, what)


def assembled(
    name: str,
    proprio: NDArray[np.float32],
    actions: NDArray[np.float32],
    images: NDArray[np.uint8],
    what: str,
) -> Demonstration:
    """Return a demonstration of arrays.

    Raises:
        UserError: Their lengths differ, or there are no steps.
    """
    lengths = {"actions": len(actions), "images": len(images), "proprio": len(proprio)}
    if len(set(lengths.values())) > 1 or not len(actions):
        shown = ", ".join(f"{length} {key}" for key, length in lengths.items())
        raise UserError(f"{what} has {shown}; expected as many of each, and at least one")
    return Demonstration(name, proprio, actions, partial(_frame, images))


def _frame(images: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    return np.array(images[step])  # a copy: what was read is not to be written to


def numbers(of: dict[Any, Any], key: str, what: str) -> NDArray[np.float32]:
    """Return an array of numbers `(T, n)`; raises UserError where there is none."""
    found = _array(of, key)
    if found is None or found.ndim != 2 or found.dtype.kind not in "biuf" or not found.shape[1]:
        raise _unexpected(of, key, "numbers (T, n)", what)
    with np.errstate(over="ignore"):  # infinite numbers are bad samples, found when they are read
        return found.astype(np.float32)


def pictures(of: dict[Any, Any], key: str, what: str) -> NDArray[np.uint8]:
    """Return an array of pictures `(T, H, W, 3)`; raises UserError where there is none."""
    found = _array(of, key)
    if found is None or found.dtype != np.uint8 or found.ndim != 4 or found.shape[3] != 3:
        raise _unexpected(of, key, "uint8 (T, H, W, 3)", what)
    return found


def _array(of: dict[Any, Any], key: str) -> NDArray[Any] | None:
    value = of.get(key)
    found = value.values if isinstance(value, Array) else value
    return found if isinstance(found, np.ndarray) else None


def _unexpected(of: dict[Any, Any], key: str, expected: str, what: str) -> UserError:
    found = _array(of, key)
    if key not in of:
        return UserError(f"{what} has no {key}{nearest(key, map(str, of))}")
    shown = type(of[key]).__name__ if found is None else f"{found.dtype} {found.shape}"
    return UserError(f"{what}: {key} is {shown}, but expected {expected}")
