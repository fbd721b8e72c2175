"""The built-in world: a table, a gripper and coloured bodies, drawn by our own ray caster."""

from typing import Any

from pixio_heads.policy.tabletop.env import Tabletop
from pixio_heads.policy.tabletop.expert import Expert

__all__ = ["Expert", "Tabletop", "expert", "make"]


def make(task: Any, size: int, *, images: bool = True, **options: Any) -> Tabletop:
    """Make the environment of a task, see `Tabletop`."""
    return Tabletop(task, size=size, images=images, **options)


def expert(task: str) -> Expert:
    """Make the expert, which knows all three tasks."""
    return Expert()
