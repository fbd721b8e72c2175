"""Training: what every run shares. The base module, the contract of heads, checkpoints, records.

Names of `public` are loaded when they are first used, so importing this imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixio_lightning import facade

if TYPE_CHECKING:
    from pixio_lightning.training.public import *  # noqa: F403

__getattr__ = facade(__name__)
