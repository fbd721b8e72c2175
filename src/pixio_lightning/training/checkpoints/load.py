"""`load`: from a checkpoint to the module that wrote it, ready to use."""

from __future__ import annotations

import os
import shlex
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

import pixio_lightning
from pixio_lightning.errors import UserError, nearest, printable
from pixio_lightning.files import expanded, plugins
from pixio_lightning.models.build import is_generated
from pixio_lightning.models.settings import shown
from pixio_lightning.models.weights.students import split_student
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.checkpoints import checkpoint_io
from pixio_lightning.training.checkpoints.fill import fill, misfit_told
from pixio_lightning.training.checkpoints.named_code import refuse_foreign
from pixio_lightning.training.run_folder import backbones, chosen_checkpoint, nested, stored_config


class WeightsNeeded(UserError):
    """The weights of a frozen backbone are not at hand, or may have to be fetched.

    Args:
        problem: What is wrong, and what to do about it.
        source: Where the checkpoint says that they are.
        given: What to give, in Python.
    """

    def __init__(self, problem: str, source: str, given: str) -> None:
        super().__init__(f"{problem}, load(..., weights={given})")
        self.problem, self.source = problem, source

    def typed(self, option: str = "--weights") -> UserError:
        """Return what to say of it on the command line, where an option gives them."""
        given = shlex.quote(self.source) if may_be_fetched(self.source) else "PATH"
        return UserError(f"{self.problem}, {option} {given}")


def may_be_fetched(source: str) -> bool:
    """Whether weights may come from a hub: `hf:ORG/NAME`, `timm`."""
    return source.startswith("hf:") or source == "timm"


def load(path: str | os.PathLike, *, weights: str | None = None) -> Any:
    """Rebuild the module of a checkpoint of `pixio fit`, in evaluation mode, on the CPU.

    The file says of which class it is: `head: Head = load(...)` tells it to a type checker. What a
    trainer of your own has trained, the `load_from_checkpoint` of its class brings back.

    Nothing the file names is imported but installed heads and what they import themselves. It is
    not compiled, and recomputes nothing in a backward pass, though it was trained so.

    Args:
        path: A checkpoint, or a run folder, of which the best one is taken, else the last.
        weights: Where the weights of a frozen backbone are now; None takes the file they were
            read from, or where it is gone, the one that the run named by a relative path, from
            a folder above the run's. Those of a hub have to be named, as nothing is fetched that
            you did not name.

    Raises:
        WeightsNeeded: The weights of a frozen backbone have to be given.
        UserError: The file is missing, damaged or of something else; its head is not installed;
            the backbone is another; or a tensor is missing or unexpected.
    """
    path = expanded(os.fspath(path))
    path = chosen_checkpoint(Path(path)) or path
    stored = checkpoint_io.read(path)
    about = stored.get("pixio")
    config = about.get("config") if isinstance(about, dict) else None
    arguments = config.get("init_args") if isinstance(config, dict) else None
    around = arguments.get("backbone") if isinstance(arguments, dict) else None
    backbone = around.get("init_args", around) if isinstance(around, dict) else None
    if not (
        isinstance(around, dict) and isinstance(backbone, dict) and about and arguments
    ) or not isinstance(stored.get("state_dict"), dict):
        _refuse_without_arguments(path, about)
    cls = class_of(str(about.get("class")), path)
    frozen = "backbone_digest" in about
    if not frozen and weights is None:  # it was trained, so the checkpoint holds all of it
        # Which model that is it says once, and `weights.read` checks how it says it.
        backbone |= {"name": None, "model_args": None, "weights": str(path)}
    elif not frozen:
        raise UserError(
            f"checkpoint '{path}' holds its backbone, which was trained, so that weights "
            f"'{weights}' would not be read: leave them out"
        )
    # Of distillation, whose checkpoint holds them: all that could name weights of elsewhere.
    students = dict(nested(arguments.get("students"), having=("weights",)))
    for key, student in students.items():
        weights_of = f"{path}:{key.removesuffix('.backbone')}"
        student |= {"name": None, "model_args": None, "weights": weights_of}
    for settings in (backbone, *students.values()):
        for of_training in ("compile", "checkpointing"):
            settings.pop(of_training, None)
    config = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}
    # After the last change, and all but the path, which is only ever opened as a file.
    named = arguments | {"backbone": [around | {"init_args": None}, backbone | {"weights": None}]}
    ours = {name.partition(".")[0] for name in (__name__, cls.__module__)}
    refuse_foreign(named, ours=ours, path=path)
    if frozen:
        backbone["weights"] = _at_hand(str(backbone.get("weights")), weights, Path(path))
    parser = ArgumentParser(exit_on_error=False)
    # As an argument of its own, no string in it is taken for the path of a further configuration.
    parser.add_argument("--model", type=BackboneModule)
    with misfit_told(cls, path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*was deprecated in v4.49.0.*")
        module: Any = parser.instantiate_classes(parser.parse_object({"model": config})).model
        module.config = about["config"]
    fill(module, stored, path)
    return module.eval()


def _refuse_without_arguments(path: str | os.PathLike, about: Any) -> NoReturn:
    """Say of a checkpoint that does not name its module's arguments how to read it, if at all."""
    if isinstance(about, dict) and about.get("config") == {} and "class" in about:
        name = printable(str(about["class"]))
        raise UserError(
            f"checkpoint '{path}' is of a {name} that was trained without the command line, so "
            f"that it does not say how to make one: give {name}.load_from_checkpoint(path, "
            "backbone=..., ...) the arguments that it was made with"
        )
    raise UserError(f"checkpoint '{path}' does not say what wrote it: it is none of `pixio fit`")


def weights_now(stored: str, checkpoint: Path, *, named: bool) -> str:
    """Return where the weights of a frozen backbone are now, as `load` finds them.

    Args:
        stored: Where they were.
        checkpoint: Of the head.
        named: Whether the user named them, so that they may be fetched.

    Raises:
        WeightsNeeded: It has to be said.
    """
    return stored if named and may_be_fetched(stored) else _at_hand(stored, None, checkpoint)


def _at_hand(stored: str, given: str | None, checkpoint: Path) -> str:
    """Return where the weights of a frozen backbone are now; their digest is compared later.

    Args:
        stored: Where they were.
        given: Where they are said to be; None where nothing is said.
        checkpoint: Of the head.

    Raises:
        WeightsNeeded: It has to be said.
    """
    if given is None and may_be_fetched(stored):
        raise WeightsNeeded(
            f"checkpoint '{checkpoint}' names weights that may have to be fetched: if you trust "
            "them",
            stored,
            shown(stored),
        )
    where = stored if given is None else os.fspath(given)
    file, _ = split_student(where)
    if is_generated(file) or may_be_fetched(file) or Path(file).exists():
        return where
    if given is not None:
        raise UserError(f"weights {shown(given)} of checkpoint '{checkpoint}' do not exist")
    if (found := _beside(checkpoint.parent)) is not None:
        return found
    raise WeightsNeeded(
        f"checkpoint '{checkpoint}' was trained on the frozen weights {shown(file)}, which are not "
        "there from here: say where they are now",
        stored,
        "PATH",
    )


def _beside(folder: Path) -> str | None:
    """Return the weights that a run folder's config.yaml names from a folder above it, if any.

    A recipe names them from where it is run, as runs/pretrain/demo/last.ckpt, and folders of runs
    are moved and copied together.
    """
    config = None
    with suppress(UserError):  # damaged, and not what is asked for
        config = stored_config(folder)
    stated = dict(backbones((config or {}).get("model"))).get("backbone", {}).get("weights")
    file, student = split_student(stated) if isinstance(stated, str) else ("", "")
    if not file or Path(file).is_absolute():
        return None
    above = (parent / file for parent in folder.resolve().parents)
    found = next((str(path) for path in above if path.exists()), None)
    return f"{found}:{student}" if found and student else found


def class_of(name: str, path: str | os.PathLike) -> type[BackboneModule]:
    """Find a class by its name among what is imported, the core's and the installed heads.

    Args:
        name: As a checkpoint says it.
        path: Of the checkpoint, for messages.

    Raises:
        UserError: No such class is installed, or several are.
    """
    heads = [plugin for plugin in plugins.installed() if plugin.attribute == name]
    if len({plugin.target for plugin in heads}) > 1:
        both = " and ".join(f"{plugin.origin} ({plugin.target})" for plugin in heads)
        raise UserError(f"checkpoint '{path}' holds a {name}, which {both} claim: uninstall one")
    if heads:
        return plugins.load(heads[0])
    if name in pixio_lightning.__all__:
        getattr(pixio_lightning, name)  # imports what trains a backbone as such
    found = [cls for cls in subclasses(BackboneModule) if cls.__qualname__ == name]
    if not found:
        known = [plugin.attribute for plugin in plugins.installed()]
        raise UserError(
            f"checkpoint '{path}' was written by {printable(name)}, which is no installed head"
            f"{nearest(name, known)}; install the distribution that brings it, or import "
            "it first"
        )
    return found[-1]


def subclasses(cls: type) -> list[type]:
    """Return those of a class, and theirs."""
    found: list[type] = []
    sub: type
    for sub in type.__subclasses__(cls):
        found += [sub, *subclasses(sub)]
    return found
