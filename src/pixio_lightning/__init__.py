"""pixio-lightning: masked pixel pretraining, and one encoder shared by every task.

Public names are loaded when they are first used, so importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixio_lightning.data.pixels import Pixels
    from pixio_lightning.data.sample_data import SampleData
    from pixio_lightning.errors import UserError
    from pixio_lightning.models.backbone import Backbone
    from pixio_lightning.models.features import Features
    from pixio_lightning.pretraining.masked_pixels import PixelPretraining
    from pixio_lightning.training.checkpoints.load import load
    from pixio_lightning.training.head import Head
    from pixio_lightning.training.optim import Optim

try:
    __version__ = version("pixio-lightning")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

_PUBLIC = {
    "Backbone": "pixio_lightning.models.backbone",
    "Features": "pixio_lightning.models.features",
    "Head": "pixio_lightning.training.head",
    "Optim": "pixio_lightning.training.optim",
    "PixelPretraining": "pixio_lightning.pretraining.masked_pixels",
    "Pixels": "pixio_lightning.data.pixels",
    "SampleData": "pixio_lightning.data.sample_data",
    "UserError": "pixio_lightning.errors",
    "load": "pixio_lightning.training.checkpoints.load",
}

__all__ = [
    "Backbone",
    "Features",
    "Head",
    "Optim",
    "PixelPretraining",
    "Pixels",
    "SampleData",
    "UserError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pixio_lightning' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
