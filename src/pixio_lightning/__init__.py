"""pixio-lightning: masked pixel pretraining, and one encoder shared by every task.

Public names are loaded when they are first used, so importing the package imports no torch.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pkgutil import get_data
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixio_lightning.curation.scoring import Scorer
    from pixio_lightning.data.clips.datamodule import Clips
    from pixio_lightning.data.pixels import Pixels
    from pixio_lightning.data.sample_data import SampleData
    from pixio_lightning.errors import UserError
    from pixio_lightning.models.backbone import Backbone
    from pixio_lightning.models.features import Features
    from pixio_lightning.pretraining.distillation import Distillation
    from pixio_lightning.pretraining.future_frames import FuturePrediction
    from pixio_lightning.pretraining.masked_pixels import PixelPretraining
    from pixio_lightning.pretraining.student import Student
    from pixio_lightning.training.checkpoints.load import load
    from pixio_lightning.training.head import Head
    from pixio_lightning.training.optim import Optim
    from pixio_lightning.training.strategy import ShardedStrategy

try:
    __version__ = version("pixio-lightning")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

_PUBLIC = {
    "Backbone": "pixio_lightning.models.backbone",
    "Clips": "pixio_lightning.data.clips.datamodule",
    "Distillation": "pixio_lightning.pretraining.distillation",
    "Features": "pixio_lightning.models.features",
    "FuturePrediction": "pixio_lightning.pretraining.future_frames",
    "Head": "pixio_lightning.training.head",
    "Optim": "pixio_lightning.training.optim",
    "PixelPretraining": "pixio_lightning.pretraining.masked_pixels",
    "Pixels": "pixio_lightning.data.pixels",
    "SampleData": "pixio_lightning.data.sample_data",
    "Scorer": "pixio_lightning.curation.scoring",
    "ShardedStrategy": "pixio_lightning.training.strategy",
    "Student": "pixio_lightning.pretraining.student",
    "UserError": "pixio_lightning.errors",
    "load": "pixio_lightning.training.checkpoints.load",
}

__all__ = [
    "Backbone",
    "Clips",
    "Distillation",
    "Features",
    "FuturePrediction",
    "Head",
    "Optim",
    "PixelPretraining",
    "Pixels",
    "SampleData",
    "Scorer",
    "ShardedStrategy",
    "Student",
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


def facade(package: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a folder whose names are listed by its module `public`.

    `public` is read and never run, as it imports all of them: a name loads the module that it is
    from, and no other.
    """

    def attribute(name: str) -> Any:
        # A module of the folder is not a name of it: whoever asks for one imports it.
        if name.startswith("_") or find_spec(f"{package}.{name}") or name not in _listed(package):
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module, own = _listed(package)[name]
        return getattr(__import__(module, fromlist=[own]), own)  # a module as well

    return attribute


@cache
def _listed(package: str) -> dict[str, tuple[str, str]]:
    """Return the module that each name of `public` is imported from, and its name there."""
    public = ast.parse(get_data(package, "public.py") or b"")
    return {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in public.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
