"""The built-in world: a table, a gripper and coloured bodies, drawn by our own ray caster."""

from pixio_heads.policy.tabletop.env import Tabletop
from pixio_heads.policy.tabletop.expert import Expert

__all__ = ["Expert", "Tabletop"]
