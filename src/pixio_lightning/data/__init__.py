"""Data: pictures and samples from files, hubs, shards and rendered scenes, as a stream of batches.

Names of `public` are loaded when they are first used, so importing this imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixio_lightning import facade

if TYPE_CHECKING:
    from pixio_lightning.data.public import *  # noqa: F403

__getattr__ = facade(__name__)
