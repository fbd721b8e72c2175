"""Turn jsonargparse's nested messages into one line with the nearest valid name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from pixio_lightning.errors import UserError, causes, nearest
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.training.callbacks import Checkpoints, Pictures, Preemption
from pixio_lightning.training.checkpoints.load import subclasses

# The parts of a recipe whose class is not chosen.
GROUPS: dict[str, type] = {
    "trainer": L.Trainer,
    "checkpoint": Checkpoints,
    "panels": Pictures,
    "preemption": Preemption,
}

# Least and most of numbers that their types let pass, and that would fail later or train on
# nonsense without a word: a negative clip turns gradients around. None: no bound.
_ABOVE_0, _BELOW_1 = math.ulp(0.0), math.nextafter(1.0, 0.0)
_LONGEST = 2_000_000  # seconds: systems wait for less than 2^31 milliseconds
BOUNDS: dict[str, tuple[float, float | None]] = {
    "seed_everything": (0, 2**32 - 1),
    "data.num_workers": (0, None),
    "data.timeout": (0, _LONGEST),
    "data.max_bad": (0, 1),
    "data.max_megapixels": (_ABOVE_0, None),
    "data.depth_scale": (_ABOVE_0, None),
    "data.image_size": (1, None),
    "data.crop_scale": (_ABOVE_0, 1),
    "data.crop_ratio": (_ABOVE_0, None),
    "model.optim.lr": (0, None),
    "model.optim.blr": (0, None),
    "model.optim.weight_decay": (0, None),
    "model.optim.betas": (0, _BELOW_1),
    "model.optim.warmup": (0, None),
    "model.optim.min_lr": (0, 1),
    "model.optim.layer_decay": (_ABOVE_0, None),
    "model.optim.backbone_lr_scale": (0, None),
    "model.timeout": (_ABOVE_0, _LONGEST),
    "panels.every_n_steps": (0, None),
    "panels.images": (1, None),
    "trainer.accumulate_grad_batches": (1, None),
    "trainer.check_val_every_n_epoch": (1, None),
    "trainer.gradient_clip_val": (0, None),
    "trainer.log_every_n_steps": (0, None),
    "trainer.num_nodes": (1, None),
    "trainer.val_check_interval": (_ABOVE_0, None),
}

# The begin of a line of a message, and lines that frame it or say what the innermost says better.
_LINE = r"(?m)^ *+(?:- )?+(?:Parser key \"[^\"]+\":? *)?+"
_FRAME = r"(?!Problem with|Does not validate|Subtypes:|Errors:|Given value|Expected a <class 'None)"
# What is said of a class that is made later with further arguments, as a decoder with its channels.
_MADE_LATER = re.compile(
    r"(?s)( *)Type collections\.abc\.Callable\[\[(?P<given>[^]]*)\], [^\n]*?\] expects a "
    r"function or a callable class: (?P<said>.*?)\. Got value: "
    r"Namespace\(class_path='(?P<path>[^']+)'[^\n]*"
)
# Parts of the trainer that are classes, found by short names.
_BASES: dict[str, type] = {"trainer.callbacks": L.Callback, "trainer.logger": Logger}
_CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}


def explain(message: str, top: Iterable[str], chosen: Mapping[str, type] | None = None) -> str:
    """Return one line: the key, what was given, what was expected, the nearest valid name.

    Args:
        message: What jsonargparse says.
        top: The top-level keys of a recipe.
        chosen: The classes of model and data, among whose keys one is looked for that is given
            by its last part alone.
    """
    # Where several types were tried, the first class fits best.
    first = re.match(r"(?s).*?\n( *)- Problem with given class_path.*?(?=\n\1- |\Z)", message)
    text = first[0] if first else message
    given_later = len(later["given"].split(",")) if (later := _MADE_LATER.search(text)) else 0
    text = _MADE_LATER.sub(r"\1Problem with given class_path '\g<path>':\n\1\g<said>", text)
    prefix = ".".join(re.findall(r'(?m)^[ -]*Parser key "([^"]+)"', text))
    classes = re.findall(r"(?m)Problem with given class_path '([^']+)':?$", text)
    context = class_of(classes[-1]) if classes else None
    if match := re.search(
        rf"{_LINE}(?:(?:Group '(?P<group>[^']+)' does not accept o|O)ption '(?P<option>[^']+)'"
        r"|unrecognized arguments: -*(?P<word>[^\s=]+))",
        text,
    ):
        *groups, name = (match["option"] or match["word"]).split(".")
        groups = [part for part in (prefix, match["group"], *groups) if part]
        if not groups and (key := _only_one_ending(name, chosen or {})):
            return f"there is no key {name}, did you mean '{key}'?"
        return _no_key(".".join(groups), name, context, top, given_later)
    if match := re.search(rf"{_LINE}the following arguments are required: (.+)", text):
        names = [f"{prefix}.{name}".strip(".") for name in match[1].split(", ")]
        return f"{', '.join(names)} {'are' if len(names) > 1 else 'is'} missing"
    if match := re.search(rf"{_LINE}Expected a dot import path string: (\S+)", text):
        return _no_class(prefix, match[1])
    if expected := re.findall(rf"{_LINE}{_FRAME}Expected an? (.+?)(?:\. Got value: (.*))?$", text):
        value = next((value for _, value in expected if value), None)
        value = value or _given(text) or _given(message)
        types = ", or ".join(dict.fromkeys(_readable(kind) for kind, _ in expected))
        if value == "None" and "NoneType" in message:  # as jsonargparse reads a null below a group
            group = prefix.rpartition(".")[0]
            return (
                f"{prefix} cannot be null on the command line: set it in a file, or give all keys "
                f"together, --{group} '{{...}}'"
            )
        options = re.findall(r"'([^']+)'", types)
        return f"{prefix} is {value!r}, but expected {types}{nearest(str(value), options)}"
    line = re.search(rf"{_LINE}{_FRAME}(\S.*)", text)
    reason = " ".join((line[1] if line else message).split())
    return f"{prefix}: {reason}" if prefix else reason


def check_values(values: Mapping[str, Any], cls: type, prefix: str) -> None:
    """Refuse what jsonargparse lets pass: null for any key, and a value for a group of keys.

    Args:
        values: Plain data by the names of the class's parameters.
        cls: The class that they are for.
        prefix: The key that leads to them.

    Raises:
        UserError: A value does not fit.
    """
    hints = _hints(cls)
    for name, value in values.items():
        hint, key = hints.get(name), f"{prefix}.{name}"
        if _is_group(hint):
            if not isinstance(value, Mapping):
                names = ", ".join(sorted(_parameters(hint)))
                raise UserError(f"{key} is {value!r}, but expected keys below it: {names}")
            check_values(value.get("init_args", value), hint, key)
        elif typing.get_origin(hint) is dict and dataclasses.is_dataclass(
            kind := typing.get_args(hint)[1]
        ):
            for below, inner in (value or {}).items():
                check_values(inner, typing.cast(type, kind), f"{key}.{below}")
        elif value is None and hint not in (None, Any) and type(None) not in typing.get_args(hint):
            raise UserError(f"{key} is null, but expected {_readable(str(hint))}")


def check_leaf(key: str, value: Any) -> None:
    """Refuse what nothing can be done with: numbers out of bounds, and variables of a shell.

    Args:
        key: The dotted key, without `init_args`.
        value: A value without keys below it.

    Raises:
        UserError: It is such a value.
    """
    of_student = re.sub(r"^model\.students\.[^.]+\.", "model.", key)
    least, most = BOUNDS.get(of_student, (None, None))
    for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, str) and (found := re.search(r"\$\{\w+\}", part)):
            raise UserError(
                f"{key} is '{part}', but {found[0]} is expanded by a shell only: give the key on "
                "the command line, or write the path out"
            )
        if isinstance(part, bool) or not isinstance(part, int | float):
            continue
        if not math.isfinite(part):
            raise UserError(f"{key} is {value}, but expected a finite number")
        if (least is not None and part < least) or (most is not None and part > most):
            raise UserError(f"{key} is {value}, but expected {_interval(least or 0, most)}")


def _interval(least: float, most: float | None) -> str:
    low = "more than 0" if least == _ABOVE_0 else f"at least {least}"
    if most is None:
        return low
    return f"{low} and " + ("less than 1" if most == _BELOW_1 else f"at most {most}")


def check_recipe(content: Any, path: Path, top: Iterable[str]) -> dict[str, Any]:
    """Refuse a recipe whose shape is wrong, which jsonargparse tells badly or not at all.

    Raises:
        UserError: It holds no keys, an unknown part, or a part that is none.
    """
    if not isinstance(content, dict):
        raise UserError(f"recipe '{path}' holds no keys; expected {', '.join(sorted(top))}")
    for key, section in content.items():
        part, dot, _ = str(key).partition(".")
        if part not in top:
            raise UserError(f"recipe '{path}': {_no_key('', part, None, top)}")
        chosen = part not in GROUPS  # model and data, whose class may stand alone
        if part == "seed_everything" or dot or (chosen and isinstance(section, str)):
            continue
        if not isinstance(section, dict):
            raise UserError(f"recipe '{path}': {key} is {section!r}, but expected keys below it")
        if chosen and section.keys() & _CLASS_KEYS and (rest := section.keys() - _CLASS_KEYS):
            raise UserError(
                f"recipe '{path}': there is no key {key}.{min(rest)} beside {key}.class_path; "
                f"arguments of the class go below {key}.init_args"
            )
    return content


def cause(error: BaseException) -> UserError | None:
    """Find the user's mistake behind an exception that a library raised on top of it."""
    for seen in causes(error):
        if isinstance(seen, UserError):
            return seen
        if isinstance(seen, ModuleNotFoundError):
            # Lightning's loggers and strategies name the package they lack in their message.
            text = " ".join(str(seen).split())
            return UserError(f"the recipe needs a package that is not installed: {text}")
    return None


def _no_key(
    prefix: str, name: str, context: type | None, top: Iterable[str], given_later: int = 0
) -> str:
    key = f"{prefix}.{name}" if prefix else name
    choices = sorted(_keys(prefix, context, top, given_later))
    if not choices:  # the mistake is further up
        name, choices = key.partition(".")[0], sorted(top)
    hint = nearest(name, choices)
    begin = " There" if hint else "; there"
    shown = f"{begin} are {', '.join(choices)}" if len(choices) <= 20 else ""
    return f"there is no key {key}{hint}{shown}"


def _no_class(prefix: str, name: str) -> str:
    if prefix.endswith(".backbone"):
        names = ", ".join(sorted(_parameters(Backbone)))
        return f"{prefix} is '{name}', but expected keys below it, as {prefix}.name: {names}"
    base = _BASES.get(prefix)
    known = {cls.__name__ for cls in subclasses(base)} if base else set()
    return (
        f"{prefix}: class '{name}' is not known{nearest(name, known)} "
        "(a short name of ours or of lightning, or an import path package.module.Class)"
    )


def _keys(prefix: str, context: type | None, top: Iterable[str], given_later: int) -> set[str]:
    """List the keys that exist below a prefix, given the class it leads into.

    The first ones of a class that is made later are not for the user to give.
    """
    last = prefix.rpartition(".")[2]
    if not prefix:
        return set(top)
    if prefix in GROUPS:
        return set(_parameters(GROUPS[prefix]))
    if context is None:
        return set()
    inner = _parameters(context).get(last)
    if inner is not None and dataclasses.is_dataclass(inner.default):
        return {field.name for field in dataclasses.fields(inner.default)}
    return {*list(_parameters(context))[given_later:]}


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """List what a class takes, and what its bases do of what it passes on."""
    found: dict[str, inspect.Parameter] = {}
    for base in _passed_on(cls):
        found = {**inspect.signature(base.__init__).parameters} | found
    return {name: p for name, p in found.items() if name != "self" and p.kind != p.VAR_KEYWORD}


def _hints(cls: type) -> dict[str, Any]:
    """Return the types of what a class takes."""
    hints: dict[str, Any] = {}
    for base in _passed_on(cls):
        with suppress(NameError):  # of a plug-in, meant for type checkers alone
            hints = typing.get_type_hints(base.__init__) | hints
    return hints


def _is_group(hint: Any) -> typing.TypeGuard[type]:
    """Whether a value of a type is given by keys below its own."""
    return isinstance(hint, type) and (dataclasses.is_dataclass(hint) or hint is Backbone)


def _only_one_ending(name: str, chosen: Mapping[str, type]) -> str:
    """Return the key of a recipe that ends with `name`, if there is one and no other."""
    every = [key for prefix, cls in {**GROUPS, **chosen}.items() for key in _all_keys(cls, prefix)]
    found = [key for key in every if key.rpartition(".")[2] == name]
    return found[0] if len(found) == 1 else ""


def _all_keys(cls: type, prefix: str) -> Iterator[str]:
    """Yield every key of a class, and those of the groups among them."""
    hints = _hints(cls)
    for name in _parameters(cls):
        yield f"{prefix}.{name}"
        if _is_group(hints.get(name)):
            yield from _all_keys(hints[name], f"{prefix}.{name}")


def _passed_on(cls: type) -> Iterator[Any]:
    """Yield a class and its bases, as far as keyword arguments are passed on."""
    for base in cls.__mro__:
        if "__init__" in vars(base):
            yield base
            if all(p.kind != p.VAR_KEYWORD for p in inspect.signature(base).parameters.values()):
                return


def class_of(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None) if module else None
    except ImportError:  # the mistake itself
        return None


def chosen_class(name: str, base: type) -> type | None:
    """Return the class that a recipe names by its import path, or by its own name alone."""
    known = {cls.__name__: cls for cls in subclasses(base)}
    found = class_of(name) or known.get(name)
    return found if isinstance(found, type) else None


def _given(message: str) -> str:
    match = re.search(r"Given value: (NestedArg\(key='[^']*', val=)?(?P<value>[^\n]*)", message)
    return match["value"].rstrip(")").strip("'") if match else ""


def _readable(type_name: str) -> str:
    """Write `<class 'int'>` as `int` and a Literal as its choices."""
    literal = re.match(r"typing\.Literal\[(.*)\]$", type_name)
    if literal:
        return f"one of {literal[1]}"
    return re.sub(r"<class '([^']+)'>", r"\1", type_name)
