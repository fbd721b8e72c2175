"""Find a recipe by name and read the header it opens with; no YAML is parsed here.

A recipe is a YAML file below one of the roots, named by its path without the suffix, such as
`pretrain/demo`. The roots are this package's own folder and those that installed plug-ins declare
as entry points, such as `mine = "my_package.recipes"`. A recipe opens with a comment block:

    # Pixio ViT-H/16 on ImageNet-1k: the setting of the paper's ablations.
    # reproduces: arXiv 2512.15715, table 7
    # run: pixio fit -c pretrain/vith16_imagenet --data.path DIR
    # hardware: 128 GPUs, batch 64 each
    # expect: k-NN 77.2 on ImageNet-1k
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from pixio_lightning.errors import MissingWeights, UserError, causes, nearest
from pixio_lightning.files import plugins

SUFFIXES = (".yaml", ".yml")
# Folders of recipes that only change others.
OVERLAYS = ("with/", "backbone/")
BUILT_IN = "pixio-lightning"

# Keys are one lower-case word right after "# ", so a sentence with a colon in it stays a sentence.
KEY = re.compile(r"# ?([a-z]+): +(.+)")


class Root(NamedTuple):
    """A folder of recipes and who brings it."""

    path: Path
    origin: str


class Recipe(NamedTuple):
    """A recipe: its name, its file and the distribution it comes from."""

    name: str
    path: Path
    origin: str


class Header(NamedTuple):
    """What a recipe says of itself: a summary, and fields such as `run` and `expect`."""

    summary: str
    fields: dict[str, str]


def roots() -> list[Root]:
    """Return the folders that hold recipes: this package's own, then those of plug-ins.

    A folder that a plug-in declares and does not bring is listed too, so that it can be reported.
    """
    here = Path(__file__).resolve()
    shipped = here.parents[1] / "_recipes"  # in a wheel; a checkout keeps them beside src/
    found = [Root(shipped if shipped.is_dir() else here.parents[3] / "recipes", BUILT_IN)]
    for plugin in plugins.installed(plugins.RECIPES):
        places = plugins.locate(plugin.module) or [Path(*plugin.module.split("."))]
        folder = next((place for place in places if place.is_dir()), places[0])
        found.append(Root(folder, plugin.origin))
    return found


def all_recipes() -> list[Recipe]:
    """Return every recipe below every root, sorted by name; a name claimed twice is there twice."""
    return sorted(
        Recipe(path.relative_to(root.path).with_suffix("").as_posix(), path, root.origin)
        for root in roots()
        for path in root.path.rglob("*")
        if path.suffix in SUFFIXES
    )


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file of a recipe given by name or by path; an existing file wins.

    Raises:
        UserError: there is no such file or recipe, or two roots claim the name.
    """
    name = os.fspath(name_or_path)
    path = Path(name)
    if (path.suffix in SUFFIXES or path.name != name) and path.is_file():
        return path
    recipes = all_recipes()
    claims = [recipe for recipe in recipes if recipe.name == name]
    if not claims:
        names = [recipe.name for recipe in recipes]
        same_end = [other for other in names if other.endswith(f"/{path.stem}")]
        same_end.sort(key=lambda other: not other.startswith("pretrain/"))
        same = "".join(f", did you mean '{other}'?" for other in same_end[:1])
        near = nearest(name, names)
        hint = (same or near) if path.name == name else (near or same)
        raise UserError(f"no recipe or file '{name}' (`pixio recipes` lists the recipes){hint}")
    if len(claims) > 1:
        both = " and ".join(f"{claim.path} of {claim.origin}" for claim in claims)
        raise UserError(f"recipe '{name}' is claimed by {both}; give the path of the one you mean")
    return claims[0].path


def made_by(path: str) -> str:
    """Return the end of a message that `path` is not there: the line that makes it, if it is known.

    A run folder is named after its recipe, as `runs/pretrain/demo`.
    """
    made = [r.name for r in all_recipes() if f"/runs/{r.name}/" in f"/{path}/"]
    return f"; `pixio fit -c {max(made, key=len)}` makes it, in the current folder" if made else ""


def way_out(error: BaseException | None) -> str:
    """Return how to come by weights, as the end of a message; nothing of any other mistake."""
    missing = next((e for e in causes(error) if isinstance(e, MissingWeights)), None)
    if missing is None:
        return ""
    if missing.asked.startswith("hf:"):
        return (
            "; or take others: -c backbone/dinov2_b needs no account, --model.backbone.weights "
            "tiny no network"
        )
    if missing.asked == "timm":
        return "; or take others: --model.backbone.weights tiny needs no network"
    if made := made_by(missing.asked):
        return f"{made}; --model.backbone.weights tiny needs no training"
    names = [r.name for r in all_recipes() if r.name == f"backbone/{missing.asked}"]
    return f", did you mean `-c {names[0]}`?" if names else ""


def header(path: Path) -> Header:
    """Return the summary and the fields of the comment block that opens the file at `path`.

    Lines before the first `key:` are the summary; a later line without a key continues the field
    above it, until an empty comment line: text after that is for readers of the file.
    """
    summary: list[str] = []
    fields: dict[str, list[str]] = {}
    lines = summary
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith("#"):
                break
            if not line.strip("# \n"):
                lines = []
            elif match := KEY.match(line):
                lines = fields.setdefault(match[1], [])
                lines.append(match[2].strip())
            else:
                lines.append(line.lstrip("#").strip())
    return Header(_join(summary), {key: _join(texts) for key, texts in fields.items()})


def _join(lines: list[str]) -> str:
    return " ".join(line for line in lines if line)
