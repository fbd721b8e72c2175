"""Filling a module from a checkpoint outside of a trainer, and what must agree between the two."""

from __future__ import annotations

import os
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any

from pixio_lightning.errors import UserError, out_of_memory
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.settings import shown
from pixio_lightning.models.weights.fill import refuse_non_finite


def fill(module: Any, stored: dict[str, Any], path: str | os.PathLike) -> None:
    """Build a module for what a checkpoint says of its data, and give it the weights.

    Args:
        module: A `BackboneModule` that is not built.
        stored: The checkpoint.
        path: Of the checkpoint, for messages.

    Raises:
        UserError: The two do not fit: a tensor is missing, unexpected or not finite, the frozen
            backbone is another, or the module reads its features otherwise.
    """
    with misfit_told(type(module), path):
        module.remember(stored["pixio"])
        module.configure_model()
    parameters = dict(module.named_parameters())
    trained = {name: t for name, t in stored["state_dict"].items() if name in parameters}
    refuse_non_finite(trained, f"checkpoint '{path}'")
    try:
        module.on_load_checkpoint(stored)
        module.load_state_dict(stored["state_dict"])
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"checkpoint '{path}': {' '.join(str(error).split())}") from None


@contextmanager
def misfit_told(cls: type, path: str | os.PathLike) -> Iterator[None]:
    """Turn whatever is raised while a class is made for a checkpoint into one line.

    Args:
        cls: The class.
        path: Of the checkpoint.

    Raises:
        UserError: In place of anything but memory that ran out.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # values of other kinds lead a head anywhere
        if out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        kind = "" if isinstance(error, ArgumentError) else f"{type(error).__name__}: "
        raise UserError(f"checkpoint '{path}' does not fit {cls.__name__}: {kind}{text}") from error


def plain_values(thing: object, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return attributes of something by keys as `backbone.dense_cls`; those that are plain data.

    What a key is set to may be held as something else, as a decoder is: it is left out.
    """
    found = {}
    for key in keys:
        value: Any = thing
        for name in key.split("."):
            value = getattr(value, name, None)
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, (str, int, float, list, dict)):
            found[key] = value
    return found


def refuse_other_model(
    now: dict[str, Any], then: dict[str, Any], *, ways: str = "give the same"
) -> None:
    """Refuse a model that reads its features, or means its outputs, otherwise than in training.

    Args:
        now: Values of the model by their keys.
        then: Those that a checkpoint holds.
        ways: What is to be done.

    Raises:
        UserError: A value differs that both know.
    """
    here, there = dict(_leaves(now)), dict(_leaves(then))
    for key in sorted(here.keys() & there.keys()):
        if here[key] != there[key]:
            raise UserError(
                f"model.{key} is {shown(here[key])}, but the checkpoint was trained with "
                f"{shown(there[key])}, by which alone its weights mean something: {ways}"
            )


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def refuse_thawed(backbone: Backbone) -> None:
    """Refuse to train a frozen backbone, which no checkpoint would hold.

    Raises:
        UserError: One of its parameters gets a gradient.
    """
    if backbone.frozen and any(p.requires_grad for p in backbone.parameters()):
        raise UserError(
            "the backbone is frozen, so that no checkpoint holds it, but gradients are on for it, "
            "as after unfreeze(): make it with Backbone(..., tune='full'), or switch them off with "
            "backbone.requires_grad_(False)"
        )
