"""Which classes a recipe means by its short names, and the import of those of plug-ins."""

from __future__ import annotations

from contextlib import suppress

from pixio_lightning.cli import config_errors, recipes
from pixio_lightning.cli.config_tree import typed
from pixio_lightning.curation.scores import ImagesToScore
from pixio_lightning.curation.scoring import Scoring
from pixio_lightning.data.clips.datamodule import Clips
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files import parse_yaml, plugins, read_text
from pixio_lightning.pretraining.distillation import Distillation
from pixio_lightning.pretraining.future_frames import FuturePrediction
from pixio_lightning.pretraining.masked_pixels import PixelPretraining

CORE_CLASSES: dict[str, list[type]] = {
    "model": [PixelPretraining, Distillation, FuturePrediction, Scoring],
    "data": [Pixels, Clips, ImagesToScore],
}
TOP_KEYS = ("model", "data", "trainer", "checkpoint", "panels", "preemption", "seed_everything")


def import_named(configs: list[str], words: list[str]) -> dict[str, str]:
    """Import the plug-ins that the recipes or the command line name, and no others.

    Returns:
        The class of `model` and of `data`, as it is named; empty where only help is asked for.

    Args:
        configs: Recipes by name or path.
        words: The rest of the command line.

    Raises:
        UserError: A short class name is neither ours nor an installed head's.
    """
    asked = {"model": "", "data": ""}
    replaced: list[tuple[str, str]] = []  # the parser meets these, too
    early: dict[str, str] = {}  # recipes that change a part before its class is chosen
    for name in configs:
        path = recipes.find(name)
        text = read_text(path)
        try:
            content = parse_yaml(text)
        except ValueError as error:
            raise UserError(f"recipe '{path}' is not valid YAML: {error}") from None
        content = config_errors.check_recipe(content, path, TOP_KEYS)
        for key in asked:
            section = content.get(key, {})
            chosen = section if isinstance(section, str) else section.get("class_path")
            if chosen and key in early:
                raise UserError(
                    f"-c {early[key]} changes keys of {key}, but stands before -c {name}, which "
                    f"chooses its class: put it behind, -c {name} -c {early[key]}"
                )
            if section and not chosen and not asked[key]:
                early[key] = name
            if chosen and asked[key]:
                replaced.append((key, asked[key]))
            asked[key] = str(chosen or asked[key])
    for option, value in typed(words).items():
        for key in asked:
            if option in (key, f"{key}.class_path", f"{key}.help"):
                replaced.append((key, asked[key]))
                asked[key] = str(value)
    for key, name in asked.items():
        if not name and not {"--help", "--model.help", "--data.help"} & {*map(_option, words)}:
            hint = ""
            if all(given.startswith(recipes.OVERLAYS) for given in configs):
                hint = (
                    ": give a recipe first, as in `-c pretrain/demo` (`pixio recipes` lists them)"
                )
            raise UserError(f"{key}.class_path is missing{hint}; there {_are(key)}")
        if _is_short(name):
            _import_short(key, name, model=asked["model"])
    for key, name in replaced:
        if _is_short(name):
            with suppress(UserError):  # it need not be there
                _import_short(key, name, model=asked["model"])
    return asked


def _is_short(name: str) -> bool:
    return bool(name) and "." not in name and "/" not in name


def _option(word: str) -> str:
    return word.partition("=")[0]


def _are(key: str) -> str:
    return f"are {', '.join(_known(key))}; others by import path, package.module.Class"


def _known(key: str) -> list[str]:
    # A head's data module lives in the head's own package, which is imported with the head.
    heads = plugins.installed(plugins.HEADS) if key == "model" else []
    return [cls.__name__ for cls in CORE_CLASSES[key]] + [head.attribute for head in heads]


def _import_short(key: str, name: str, *, model: str) -> None:
    if name in (cls.__name__ for cls in CORE_CLASSES[key]):
        return
    heads = plugins.installed(plugins.HEADS)
    claims = [head for head in heads if head.attribute == name]
    if len({head.target for head in claims}) > 1:
        both = " and ".join(f"{head.origin} ({head.target})" for head in claims)
        raise UserError(
            f"{key}.class_path '{name}' is claimed by {both}; uninstall one of them, or give the "
            "import path, package.module.Class"
        )
    if claims:
        plugins.load(claims[0])
        return
    if key == "data" and model not in (cls.__name__ for cls in CORE_CLASSES["model"]):
        return  # it comes with the head
    hint = nearest(name, _known(key))
    for head in heads:
        if head.name == name:  # the name that `pixio heads` lists
            hint = f", did you mean '{head.attribute}'?"
    begin = f"{hint} There" if hint else "; there"
    raise UserError(f"{key}.class_path '{name}' is not known{begin} {_are(key)}")
