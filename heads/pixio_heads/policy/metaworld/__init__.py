"""Meta-World: a robot arm at a table, simulated by MuJoCo, with a scripted expert for each task."""

from pixio_heads.policy.metaworld.env import expert, make
from pixio_heads.policy.metaworld.rendering import opengl

__all__ = ["expert", "make", "opengl"]
