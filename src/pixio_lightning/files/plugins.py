"""Plug-ins by entry point: a name, what it points at and who installed it, with nothing imported.

A head is a line of a distribution's metadata, `depth = "pixio_heads.depth.head:Depth"` in the group
`pixio_lightning.heads`; a folder of recipes is `mine = "my_package.recipes"` in the group
`pixio_lightning.recipes`. Names are read from metadata and sentences from source text, so that a
plug-in that is slow or fails to import costs nothing until a run names it. Only `load` imports.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import operator
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pixio_lightning.errors import UserError

HEADS = "pixio_lightning.heads"
RECIPES = "pixio_lightning.recipes"

# A class is often re-exported by its package's `__init__.py`, now and then by two of them; the
# limit ends a circle of imports.
MAX_REEXPORTS = 3


@dataclass(frozen=True, order=True)
class Plugin:
    """One entry point of an installed distribution."""

    name: str
    target: str
    distribution: str
    version: str

    @property
    def module(self) -> str:
        """The dotted module of the target: `pkg.mod` of `pkg.mod:Class`."""
        return self.target.partition(":")[0]

    @property
    def attribute(self) -> str:
        """The name within the module: `Class` of `pkg.mod:Class`."""
        return self.target.partition(":")[2]

    @property
    def origin(self) -> str:
        """The distribution and its version, as users name them: `my-heads 1.0`."""
        return f"{self.distribution} {self.version}"

    @property
    def summary(self) -> str:
        """The first line of the class's docstring, read from the source file."""
        try:
            return docstring(self).partition("\n")[0] or "(no docstring)"
        except UserError as error:
            return f"({error})"


def installed(group: str = HEADS) -> list[Plugin]:
    """Return every entry point of `group`, sorted by name, importing none.

    A distribution that is found twice on the path counts once. Two distributions that claim one
    name are both listed.
    """
    return list(_installed(group, tuple(sys.path)))


@lru_cache(maxsize=8)
def _installed(group: str, path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Read the metadata of all that is installed, once for each search path: it takes a while."""
    found = set()
    for entry in importlib.metadata.entry_points(group=group):
        assert entry.dist is not None  # always set on entry points that are read from metadata
        target = entry.value.partition("[")[0].replace(" ", "")
        found.add(Plugin(entry.name, target, entry.dist.name, entry.dist.version))
    return tuple(sorted(found))


def load(plugin: Plugin) -> type:
    """Import the class that `plugin` points at.

    Raises:
        UserError: the module fails to import, for whatever reason, or lacks the class.
    """
    try:
        return operator.attrgetter(plugin.attribute)(importlib.import_module(plugin.module))
    except Exception as error:  # a plug-in's module is free to raise anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"head '{plugin.name}' of {plugin.origin} fails to import: {reason}"
        ) from error


def locate(dotted: str) -> list[Path]:
    """Return where the package or folder `dotted` should lie, one path per root of its top package.

    Only the top-level package is looked up: to find `a.b`, importlib would import `a`.
    """
    top, *rest = dotted.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # an empty name
        spec = None
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [] if rest else [Path(spec.origin or top).with_suffix("")]
    return [Path(root, *rest) for root in spec.submodule_search_locations]


def module_file(dotted: str) -> Path | None:
    """Return the source file of the module `dotted`, or None when there is none."""
    for base in locate(dotted):
        for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if path.is_file():
                return path
    return None


def docstring(plugin: Plugin) -> str:
    """Return the docstring of the plug-in's class, read from its source and never by import.

    It is empty for a class without one, and for a name that no `class` statement defines.

    Raises:
        UserError: the source file is missing or is not valid Python.
    """
    try:
        return _docstring(plugin.module, plugin.attribute)
    except (OSError, SyntaxError, ValueError, ImportError) as error:
        raise UserError(f"cannot be read: {error}") from error


def _docstring(module: str, attribute: str, *, hops: int = 0) -> str:
    path = module_file(module)
    if path is None:
        raise FileNotFoundError(f"no source file of module {module}")
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.parse(path.read_bytes(), filename=path.name).body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return ast.get_docstring(node) or ""
        if isinstance(node, ast.ImportFrom) and hops < MAX_REEXPORTS:
            for alias in node.names:
                if (alias.asname or alias.name) == attribute:
                    dotted = "." * node.level + (node.module or "")
                    source = importlib.util.resolve_name(dotted, package)
                    return _docstring(source, alias.name, hops=hops + 1)
    return ""
