"""Environments in processes of their own, and the episodes that are played in them.

Nothing here imports torch: every process of a run would pay for it with seconds and memory.
"""

from pixio_lightning.errors import UserError

try:
    import gymnasium  # noqa: F401
except ModuleNotFoundError:
    raise UserError("policies need gymnasium: pip install 'pixio-lightning[policy]'") from None
