"""Any environment that gymnasium knows by its id."""

from pixio_heads.policy.gym.env import expert, longest, make

__all__ = ["expert", "longest", "make"]
