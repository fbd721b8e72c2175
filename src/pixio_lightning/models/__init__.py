"""Models: tensors in, tensors out. The backbone, its features, decoders and weights.

Names of `public` are loaded when they are first used, so importing this imports no torch.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixio_lightning.models.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # A module of this folder is not a name of it: whoever asks for one imports it.
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is not None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.public"), name)
