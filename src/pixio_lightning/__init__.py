"""pixio-lightning: masked pixel pretraining, and one encoder shared by every task.

Public names are loaded when they are first used, so importing the package imports no torch.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pkgutil import get_data
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixio_lightning.curation.scoring import Scorer as Scorer
    from pixio_lightning.data.clips.datamodule import Clips as Clips
    from pixio_lightning.data.pixels import Pixels as Pixels
    from pixio_lightning.data.sample_data import SampleData as SampleData
    from pixio_lightning.errors import UserError as UserError
    from pixio_lightning.models.backbone import Backbone as Backbone
    from pixio_lightning.models.features import Features as Features
    from pixio_lightning.pretraining.distillation import Distillation as Distillation
    from pixio_lightning.pretraining.future_frames import FuturePrediction as FuturePrediction
    from pixio_lightning.pretraining.masked_pixels import PixelPretraining as PixelPretraining
    from pixio_lightning.pretraining.student import Student as Student
    from pixio_lightning.training.checkpoints.load import load as load
    from pixio_lightning.training.head import Head as Head
    from pixio_lightning.training.optim import Optim as Optim
    from pixio_lightning.training.strategy import ShardedStrategy as ShardedStrategy

try:
    __version__ = version("pixio-lightning")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"


def facade(package: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a folder whose names are those that it imports for types.

    That block is read and never run, as it imports all of them: a name loads the module that it is
    from, and no other. Each is imported as itself, by which type checkers take it as given on.
    """

    def attribute(name: str) -> Any:
        if name == "__all__":
            return [*_listed(package)]
        # Python asks for names of its own at every import, which need no reading.
        if name.startswith("_") or name not in _listed(package):
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module, own = _listed(package)[name]
        return getattr(__import__(module, fromlist=[own]), own)  # a module as well

    return attribute


@cache
def _listed(package: str) -> dict[str, tuple[str, str]]:
    """Return the module that each name of a folder is imported from, and its name there."""
    tree = ast.parse(get_data(package, "__init__.py") or b"")
    return {
        alias.asname or alias.name: (str(node.module), alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


__getattr__ = facade(__name__)


def __dir__() -> list[str]:
    return sorted([*_listed(__name__), "__version__"])
