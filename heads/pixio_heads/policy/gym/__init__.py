"""Any environment that gymnasium knows by its id."""

from pixio_heads.policy.gym.env import expert, make

__all__ = ["expert", "make"]
