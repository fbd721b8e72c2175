"""What a checkpoint may name: classes that are there already, and nothing to import.

jsonargparse imports whatever a string names where its type asks for a class or a function: under
`class_path`, but also as a plain string (`decoder: module.function`), and inside a string that is
YAML itself. Which strings those are depends on the types of a class that is not known here, so
every string is looked at, and none is imported to do so.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Set
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import yaml
from torch import nn

from pixio_lightning.errors import UserError
from pixio_lightning.files import unfolded
from pixio_lightning.files.text import MAX_VALUES


def refuse_foreign(config: Any, *, ours: Set[str], path: str | os.PathLike) -> None:
    """Refuse a configuration that names code other than a checkpoint may.

    It may name what is defined in the packages `ours`, and modules of torch's kind (`nn.Module`)
    that are imported already. A string that nothing could be imported by is not looked at.

    Args:
        config: Plain data.
        ours: Top-level packages: this one and the head's.
        path: Of the checkpoint, for messages.

    Raises:
        UserError: It names other code, or holds more values than a configuration does.
    """
    for number, value in enumerate(unfolded(config, inside=_structure)):
        # Whatever it is counts, or lists of lists without a string would go on for ever.
        if number > MAX_VALUES:
            raise UserError(f"checkpoint '{path}' holds no configuration: it unfolds without end")
        if isinstance(value, str) and not _is_harmless(value, ours):
            raise UserError(
                f"checkpoint '{path}' names {value}, which its head does not use: refused"
            )


def _structure(value: Any) -> list[Any]:
    """Return what a string holds as YAML, if that is a list or a mapping."""
    if not isinstance(value, str) or not any(mark in value for mark in ":[{-"):
        return []
    try:
        inside = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    return [inside] if isinstance(inside, dict | list) else []


def _is_harmless(name: str, ours: Set[str]) -> bool:
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        return True
    found = _loaded(name, ours)
    if found is None:
        return not _is_importable(name)
    if not callable(found):
        return True
    if str(getattr(found, "__module__", "")).partition(".")[0] in ours:
        return True
    return isinstance(found, type) and issubclass(found, nn.Module)


def _loaded(name: str, ours: Set[str]) -> Any:
    """Return what a dotted name stands for among what is imported, or None."""
    parts = name.split(".")
    known = (i for i in range(len(parts), 0, -1) if ".".join(parts[:i]) in sys.modules)
    start = next(known, 0)
    found: Any = sys.modules.get(".".join(parts[:start]))
    for part in parts[start:]:
        # A module of another's may import on being asked for a name; ours do so harmlessly.
        if isinstance(found, ModuleType) and found.__name__.partition(".")[0] not in ours:
            found = vars(found).get(part)
        else:
            found = getattr(found, part, None)
    return found


def _is_importable(name: str) -> bool:
    """Whether importing a dotted name would run any module that has not run yet."""
    parts = name.split(".")
    folders = None
    for i in range(len(parts)):
        module = sys.modules.get(".".join(parts[: i + 1]))
        spec: ModuleSpec | None
        if module is not None:
            # One that answers for names it does not hold may import to do so.
            if "__getattr__" in vars(module) or type(module) is not ModuleType:
                return True
            folders = list(vars(module).get("__path__", ()))
        else:
            dotted = ".".join(parts[: i + 1])
            # At the top every finder is asked, none of which imports; below, the folders.
            spec = PathFinder.find_spec(dotted, folders) if i else importlib.util.find_spec(dotted)
            if spec is None:
                return False
            if spec.origin is not None:
                return True
            folders = list(spec.submodule_search_locations or ())  # a namespace: a bare folder
        if not folders:
            return False
    return False
