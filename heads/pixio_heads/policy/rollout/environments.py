"""Environments by name: what a process needs to make one, and what every one of them offers.

An environment is a `gymnasium.Env` whose observation is `{"image": uint8 (H, W, 3), "proprio":
float32 (P,)}`, whose `info` has `success` at every step, and whose `reset(seed=...)` draws all of
an episode. Actions are float32 `(A,)`.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from pixio_lightning.errors import one_of

KINDS = ("tabletop", "metaworld", "gym")
# Numbers of proprioception P and of an action A, where all tasks of a kind have as many.
SHAPES = {"tabletop": (4, 4), "metaworld": (4, 4)}
# Packages whose version decides what an episode is and what it looks like.
_PACKAGES = {"metaworld": ("metaworld", "mujoco"), "gym": ("gymnasium", "mujoco")}


class Expert(Protocol):
    """A controller that knows the true state of its environment."""

    def act(self, env: gymnasium.Env) -> NDArray[np.float32]:
        """Return the action to take now."""
        ...


@dataclass(frozen=True)
class Environment:
    """A task of a simulator, as plain data: it travels to processes, checkpoints and records.

    Attributes:
        kind: `tabletop` (built in), `metaworld` or `gym`.
        task: Name of the task, or id of a gym environment.
        size: Side of the pictures in pixels.
        horizon: Steps after which an episode ends, counted by whoever plays it.
        stop_at_success: Whether it ends when the task is done.
        options: What else its constructor takes.
        versions: Of the simulator's packages, see `versions_of`.
    """

    kind: str
    task: str
    size: int
    horizon: int
    stop_at_success: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def make(self, *, images: bool = True) -> gymnasium.Env:
        """Make the environment; without images its observations hold empty ones.

        Raises:
            UserError: A package or library is missing, or the task is unknown.
        """
        return _module(self.kind).make(self.task, self.size, images=images, **self.options)

    def expert(self) -> Expert:
        """Make the scripted expert.

        Raises:
            UserError: The task has none.
        """
        return _module(self.kind).expert(self.task)

    def plain(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for records: whatever decides what an episode is."""
        options = "".join(f", {name} {value}" for name, value in sorted(self.options.items()))
        stop = "until success" if self.stop_at_success else "to the end"
        steps = f"at most {self.horizon} steps, {stop}"
        versions = "".join(f", {name} {number}" for name, number in sorted(self.versions.items()))
        return f"{self.kind} {self.task}, {self.size} px{options}{versions}; {steps}"


def versions_of(kind: str, task: str) -> dict[str, str]:
    """Return the versions of the packages that a task is from, of those that are installed."""
    found = {}
    own = _distributions(task) if kind == "gym" else []
    for name in dict.fromkeys([*_PACKAGES.get(kind, ()), *own]):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _distributions(task: str) -> list[str]:
    """Return the packages that an environment of gymnasium is from; nothing is imported."""
    module = task.partition(":")[0] if ":" in task else ""
    spec = gymnasium.registry.get(task)
    if spec is not None and isinstance(spec.entry_point, str):
        module = spec.entry_point
    return metadata.packages_distributions().get(module.partition(".")[0], [])


def _module(kind: str) -> Any:
    """Return the module of a kind: it has `make` and `expert`."""
    one_of("environment", kind, KINDS)
    return importlib.import_module(f"pixio_heads.policy.{kind}")
