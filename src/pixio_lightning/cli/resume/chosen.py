"""Which checkpoint is evaluated, and on which backbone: the one it was trained with.

A recipe names the weights that a training began with unless others are typed. Whoever typed others
need not type them again: the checkpoint knows them, and holds a backbone that was trained.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from pixio_lightning.cli import recipes
from pixio_lightning.cli.config_errors import class_of
from pixio_lightning.cli.config_tree import in_files, typed
from pixio_lightning.cli.options import Options
from pixio_lightning.errors import UserError, printable
from pixio_lightning.models.build import is_generated
from pixio_lightning.models.settings import check_description
from pixio_lightning.models.weights.read import PICKLES
from pixio_lightning.models.weights.students import absolute, split_student
from pixio_lightning.training import run_folder
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.checkpoints.checkpoint_io import local_path, read_plain
from pixio_lightning.training.checkpoints.load import WeightsNeeded, may_be_fetched, weights_now
from pixio_lightning.training.head import Head


def checkpoint_of(options: Options, cls: type[BackboneModule]) -> Path | None:
    """Return the checkpoint that is evaluated: the one that is named, or the run folder's best."""
    if options.ckpt_path:
        return local_path(options.ckpt_path)
    if options.untrained or not cls.resumes:
        return None
    return run_folder.chosen_checkpoint(options.out)


def take_backbones(model: Any, options: Options) -> str:
    """Let a parsed model have the backbones of the checkpoint, where nobody asks for others.

    Asked for is what is typed, or in a configuration that the run was not begun with; of those the
    recipe itself does not count, unless it is given by its path.

    Args:
        model: Its parsed configuration, which is changed.
        options: The command line of an evaluation.

    Returns:
        A line that says what is changed, if anything is.

    Raises:
        UserError: The weights of a frozen backbone are not there, or may have to be fetched though
            neither the recipe nor the run in this folder names them; or the checkpoint is damaged.
    """
    cls = class_of(model["class_path"])
    if cls is None or not issubclass(cls, BackboneModule):
        return ""
    path = checkpoint_of(options, cls)
    if path is None or not path.exists():
        return ""
    about = read_plain(path).get("pixio", {})
    if about.get("class") not in (c.__name__ for c in cls.__mro__):
        return ""  # another model's is told when it is loaded
    stored, asked = dict(run_folder.backbones(about.get("config"))), _asked(options, path)
    said = []
    for key, now in run_folder.backbones(model):
        then = stored.get(key)
        if then is None or _is_asked(f"model.{key}", asked):
            continue
        student = key.removeprefix("students.").partition(".")[0] * key.startswith("students.")
        if student or "backbone_digest" not in about:
            taken = _trained(now, then, path, student)
        else:
            taken = _frozen(now, then, path, key=f"model.{key}", out=options.out)
        for part, value in taken.items():
            now[part] = value
        if taken:
            weights = printable(str(taken["weights"]))
            said.append(f"model.{key}.weights {weights}: of the checkpoint, as none are typed")
    return "\n".join(said)


def _asked(options: Options, checkpoint: Path) -> dict[str, Any]:
    """Return what is asked for by dotted keys, with the last value of each."""
    folder, begun = checkpoint.parent, ""
    with suppress(UserError):  # damaged, which is told where it is needed
        begun = f" {run_folder.read_state(folder).get('recipe')} "
    own = (folder / "config.yaml").resolve()
    new = [
        recipes.find(name)
        for name in options.configs
        if f" {name} " not in begun
        and Path(name).resolve() != own
        and (name.startswith(recipes.OVERLAYS) or recipes.find(name) == Path(name))
    ]
    return in_files(new) | typed(options.rest)


def _is_asked(key: str, asked: dict[str, Any]) -> bool:
    """Whether a backbone is asked for, by its own keys or as a file for a part that holds it."""
    parts = tuple(f"{key}.{part}." for part in run_folder.OF_BACKBONE)
    return any(
        f"{word}.".startswith(parts)
        or (f"{key}.".startswith(f"{word}.") and str(value).endswith(recipes.SUFFIXES))
        for word, value in asked.items()
    )


def _trained(now: Any, then: Any, path: Path, student: str) -> dict[str, Any]:
    """Return what to change of a backbone that the checkpoint holds: it is read from there."""
    given, before = str(now["weights"]), str(then["weights"])
    random = all(weights.partition(":")[0] == "random" for weights in (given, before))
    same = before in (given, absolute(given)) and not may_be_fetched(given) and _is_there(given)
    if random or same or not (path.is_dir() or path.suffix in PICKLES):
        return {}  # nothing is fetched, or it cannot be read as weights
    weights = f"{path}:{student}" if student else str(path)
    return {"name": None, "weights": weights, "model_args": None}


def _frozen(now: Any, then: Any, path: Path, *, key: str, out: Path) -> dict[str, Any]:
    """Return what to change of a frozen backbone; its digest is compared when it is loaded."""
    given, before = str(now["weights"]), str(then["weights"])
    if before in (given, absolute(given)) and (may_be_fetched(given) or _is_there(given)):
        return {}
    try:
        weights = weights_now(before, path, named=_is_named(before, path.parent, key, out))
    except WeightsNeeded as needed:
        if not is_generated(given) and absolute(given) != given:
            return {}  # a recipe of one's own may say where they are now
        raise needed.typed(f"--{key}.weights") from None
    source = f"checkpoint '{path}'"
    said = check_description({part: then[part] for part in ("name", "model_args")}, source=source)
    return {"name": said["name"], "weights": weights, "model_args": said["model_args"] or None}


def _is_there(weights: str) -> bool:
    return is_generated(weights) or Path(split_student(weights)[0]).expanduser().exists()


def _is_named(weights: str, folder: Path, key: str, out: Path) -> bool:
    """Whether the run folder that is evaluated says itself that it was trained on some weights."""
    if folder.resolve() != out.resolve():
        return False
    with suppress(UserError):  # damaged, and not what is asked for
        config = run_folder.stored_config(folder) or {}
        stated = dict(run_folder.backbones({"model": config.get("model")})).get(key, {})
        return stated.get("weights") == weights
    return False


def without_checkpoint(model: BackboneModule) -> str:
    """Return what is evaluated where there is no checkpoint."""
    weights = model.backbone.weights
    return "none, " + (
        "the model as it is initialised" if is_generated(weights) else f"the weights '{weights}'"
    )


def refuse_untrained(model: BackboneModule, data: Any, *, folder: Path, verb: str) -> None:
    """Refuse to evaluate or predict with weights that nothing has trained yet.

    Args:
        model: What has no checkpoint.
        data: Its data module.
        folder: The run folder.
        verb: What is to be done.

    Raises:
        UserError: The model would be trained, and there is no checkpoint of it; or nothing of it
            is, and its data cannot be used.
    """
    reason = ""
    try:
        if isinstance(model, Head):
            model.require_of(data)  # what it would build depends on it
        # A pretraining that begins with a trained encoder and decoder has something to show.
        trains = model.trains and not getattr(model, "pretrained_decoder", False)
    except UserError as error:
        if not _may_train(model):
            raise
        trains, reason = True, f"; without one, {error}"  # which a checkpoint would know
    if trains:
        raise UserError(
            f"{type(model).__name__} is not trained: {folder} holds no checkpoint; "
            f"train it (pixio fit), name one (--ckpt_path), or {verb} it as it is initialised "
            f"(--ckpt_path none){reason}"
        )


def _may_train(model: BackboneModule) -> bool:
    """Whether there is something to train, as far as that is known without its data."""
    try:
        return model.trains
    except UserError:  # a mistake of its own
        return False
    except Exception:  # whatever a `build` raises that is not told what it is sized by
        return True
