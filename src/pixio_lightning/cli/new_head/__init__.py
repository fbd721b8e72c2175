"""`pixio new-head`: a plug-in project of its own, made from the template beside this file."""

from __future__ import annotations

import importlib.metadata
import keyword
import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from pixio_lightning.cli import recipes
from pixio_lightning.errors import UserError
from pixio_lightning.files import plugins

TEMPLATE = Path(__file__).parent / "template"
# The words of the template and what becomes of them: dashes, underscores, class name.
_WORD = re.compile("pixio-example|example|Example")
# What its modules import and define under names of classes.
_IN_TEMPLATE = (
    "Image",
    "MeanAbsoluteError",
    "MetricCollection",
    "R2Score",
    "TableSamples",
    "Tensor",
)
_IN_RECIPES = ("ImagesToScore", "Scoring")  # ours by their names alone, which no folder gives


def spellings(name: str) -> dict[str, str]:
    """Return what the template's words become: `my_task` gives pixio-my-task and MyTask.

    Raises:
        UserError: The name is no Python name in lower case, or is taken: by an installed head, a
            distribution, a package, a folder of recipes, or a class.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(
            f"'{name}' cannot name a head; expected lower-case letters, digits and underscores, "
            "as in surface_normals"
        )
    for head in plugins.installed():
        if head.name == name:
            raise UserError(f"head '{name}' is taken by {head.origin}; choose another name")
    project = f"pixio-{name.replace('_', '-')}"
    _refuse_installed(name, project, f"pixio_{name}")
    words = {
        "pixio-example": project,
        "example": name,
        "Example": "".join(part.capitalize() for part in name.split("_")),
    }
    taken = dict.fromkeys(_IN_TEMPLATE, "its own code")
    for package in ("", ".data", ".models", ".training"):
        public = import_module(f"pixio_lightning{package}").__all__
        taken |= dict.fromkeys(public, "pixio-lightning")
    taken |= dict.fromkeys(_IN_RECIPES, "pixio-lightning")
    taken |= {head.attribute: head.origin for head in plugins.installed()}
    taken |= dict.fromkeys(keyword.kwlist, "Python")
    for cls in (words["Example"], f"{words['Example']}Data"):
        if cls in taken:
            raise UserError(
                f"head '{name}' would need a class called {cls}, a name that {taken[cls]} has "
                "already: choose another name"
            )
    return words


def _refuse_installed(name: str, distribution: str, package: str) -> None:
    """Refuse a name whose project would replace what is installed, or hide recipes."""
    advice = "choose another name, or uninstall it if it is an earlier one of yours"
    with suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(distribution)
        raise UserError(
            f"head '{name}' would be the distribution {distribution}, of which {version} is "
            f"installed and would be replaced: {advice}"
        )
    if places := plugins.locate(package):
        raise UserError(
            f"head '{name}' would be the package {package}, which is there already "
            f"('{places[0]}'): {advice}"
        )
    for root in recipes.roots():
        if (root.path / name).is_dir():
            raise UserError(
                f"head '{name}' would bring recipes called {name}/..., as {root.origin} does: "
                "choose another name"
            )


def create(name: str, directory: Path) -> Path:
    """Write the project and return its folder.

    Args:
        name: Name of the head.
        directory: Where the folder `pixio-NAME` is made.

    Raises:
        UserError: The name cannot be used, or the folder exists.
    """
    words = spellings(name)
    project = directory / words["pixio-example"]
    if project.exists():
        raise UserError(f"'{project}' exists and is not overwritten; choose another --dir or name")
    for source in sorted(TEMPLATE.rglob("*")):
        if source.is_dir() or "__pycache__" in source.parts:
            continue
        relative = source.relative_to(TEMPLATE).as_posix()
        target = project / _renamed(relative, words)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_renamed(source.read_text(encoding="utf-8"), words), encoding="utf-8")
    return project


def _renamed(text: str, words: dict[str, str]) -> str:
    return _WORD.sub(lambda match: words[match[0]], text)
