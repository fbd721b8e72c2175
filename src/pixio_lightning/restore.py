"""`load`: from a checkpoint to the module that wrote it, ready to use."""

from __future__ import annotations

import importlib
import operator
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentParser

from pixio_lightning import checkpoint as checkpoints
from pixio_lightning import plugins
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.module import BackboneModule


def load(path: str | os.PathLike, *, weights: str | None = None) -> BackboneModule:
    """Rebuild the module of a checkpoint of `pixio fit`, in evaluation mode, on the CPU.

    Nothing the file names is imported but installed heads and what they import themselves.

    Args:
        path: A checkpoint file.
        weights: Where the weights of a frozen backbone are now; None takes where they were.

    Raises:
        UserError: The file is missing, damaged or of something else; its head is not installed;
            the backbone is another; or a tensor is missing or unexpected.
    """
    stored = checkpoints.read(path)
    about = stored.get("pixio")
    if not isinstance(about, dict) or not about.get("config"):
        raise UserError(
            f"checkpoint '{path}' does not say what wrote it: it is none of `pixio fit`"
        )
    cls = _installed_class(str(about["class"]), path)
    config = {"class_path": f"{cls.__module__}.{cls.__qualname__}"}
    config["init_args"] = arguments = about["config"]["init_args"]
    _refuse_foreign(arguments, path)
    backbone = arguments["backbone"].get("init_args", arguments["backbone"])
    if "backbone_digest" not in about:  # it was trained, so the checkpoint holds all of it
        identity = about["backbone"]
        backbone |= {"name": identity["name"], "model_args": identity["model_args"]}
        backbone["weights"] = str(path)
    elif weights is not None:
        backbone["weights"] = weights
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BackboneModule, "model")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*was deprecated in v4.49.0.*")
        module: Any = parser.instantiate_classes(parser.parse_object({"model": config})).model
    module.config = about["config"]
    module.remember(about)
    module.configure_model()
    module.on_load_checkpoint(stored)
    try:
        module.load_state_dict(stored["state_dict"])
    except RuntimeError as error:
        raise UserError(f"checkpoint '{path}': {' '.join(str(error).split())}") from None
    return module.eval()


def _installed_class(target: str, path: str | os.PathLike) -> type[BackboneModule]:
    """Find a class among those that are imported, and the installed heads."""
    heads = {plugin.target: plugin for plugin in plugins.installed()}
    if target in heads:
        return plugins.load(heads[target])
    module, _, name = target.partition(":")
    if module == "pixio_lightning.pretrain":
        importlib.import_module(module)
    found = None
    if module in sys.modules:
        found = operator.attrgetter(name)(sys.modules[module])
    if not (isinstance(found, type) and issubclass(found, BackboneModule)):
        raise UserError(
            f"checkpoint '{path}' was written by {target}, which is no installed head"
            f"{nearest(target, heads)}; install the distribution that brings it, or import it first"
        )
    return found


def _refuse_foreign(value: Any, path: str | os.PathLike) -> None:
    """Refuse a configuration that would import what is not imported yet."""
    for name in _class_paths(value):
        if name.rpartition(".")[0] not in sys.modules:
            raise UserError(
                f"checkpoint '{path}' names {name}, which its head does not use: refused"
            )


def _class_paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "class_path" in value:
            yield str(value["class_path"])
        for inner in value.values():
            yield from _class_paths(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _class_paths(inner)
