"""Turn jsonargparse's nested messages into one line with the nearest valid name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterable

import lightning as L

from pixio_lightning.errors import UserError, nearest

# Lines that frame a message, or state a value that the innermost line states better.
_FRAME = re.compile(
    r"^(Does not validate|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|$)"
)
_KEY = re.compile(r"^Parser key \"(?P<key>[^\"]+)\":?\s*(?P<rest>.*)")
_CLASS = re.compile(r"^Problem with given class_path '(?P<path>[^']+)':?$")
_OPTION = re.compile(r"^(Group '(?P<group>[^']+)' does not accept o|O)ption '(?P<name>[^']+)'")
_UNKNOWN = re.compile(r"^unrecognized arguments: (?P<words>.+)")
_IMPORT = re.compile(r"^Expected a dot import path string: (?P<name>\S+)")
_EXPECTED = re.compile(r"^Expected an? (?P<type>.+?)(\. Got value: (?P<value>.*))?$")


def explain(message: str, top: Iterable[str]) -> str:
    """Return one line: the key, what was given, what was expected, the nearest valid name.

    Args:
        message: What jsonargparse says.
        top: The top-level keys of a recipe.
    """
    keys: list[str] = []
    context: type | None = None
    found: list[str] = []
    for line in message.splitlines():
        line = line.strip().removeprefix("- ")
        if match := _KEY.match(line):
            keys.append(match["key"])
            line = match["rest"]
        if match := _CLASS.match(line):
            context = _class(match["path"])
        elif not _FRAME.match(line):
            found.append(line)
    prefix = ".".join(keys)
    for line in found:
        if match := _OPTION.match(line):
            group = match["group"] or ""
            return _no_key(f"{prefix}.{group}".strip("."), match["name"], context, top)
        if match := _UNKNOWN.match(line):
            word = match["words"].split()[0].lstrip("-").partition("=")[0]
            *groups, name = word.split(".")
            return _no_key(".".join([*keys, *groups]), name, context, top)
        if match := _IMPORT.match(line):
            return _no_class(prefix, match["name"])
    expected = [m for m in map(_EXPECTED.match, found) if m]
    if expected:
        value = next((m["value"] for m in expected if m["value"]), None) or _given(message)
        types = ", or ".join(dict.fromkeys(_readable(m["type"]) for m in expected))
        options = re.findall(r"'([^']+)'", types)
        return f"{prefix} is {value!r}, but expected {types}{nearest(str(value), options)}"
    text = " ".join((found or [message])[0].split())
    return f"{prefix}: {text}" if prefix else text


def cause(error: BaseException) -> UserError | None:
    """Find the user's mistake behind an exception that a library raised on top of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        if isinstance(seen, ModuleNotFoundError):
            # Lightning's loggers and strategies name the package they lack in their message.
            text = " ".join(str(seen).split())
            return UserError(f"the recipe needs a package that is not installed: {text}")
        seen = seen.__cause__ or seen.__context__
    return None


def _no_key(prefix: str, name: str, context: type | None, top: Iterable[str]) -> str:
    key = f"{prefix}.{name}" if prefix else name
    choices = sorted(_keys(prefix, context, top))
    if not choices:  # the mistake is further up
        name, choices = key.partition(".")[0], sorted(top)
    hint = nearest(name, choices)
    shown = f"{' ' if hint else '; '}There are {', '.join(choices)}" if len(choices) <= 20 else ""
    return f"there is no key {key}{hint}{shown}"


def _no_class(prefix: str, name: str) -> str:
    known = {cls.__name__ for cls in _subclasses(L.Callback)} if "callbacks" in prefix else set()
    return (
        f"{prefix}: class '{name}' is not known{nearest(name, known)} "
        "(a short name of ours or of lightning, or an import path package.module.Class)"
    )


def _keys(prefix: str, context: type | None, top: Iterable[str]) -> set[str]:
    """List the keys that exist below a prefix, given the class it leads into."""
    last = prefix.rpartition(".")[2]
    if not prefix:
        return set(top)
    if last == "trainer":
        return set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    if context is None:
        return set()
    parameters = inspect.signature(context.__init__).parameters  # type: ignore[misc]
    inner = parameters.get(last)
    if inner is not None and dataclasses.is_dataclass(inner.default):
        return {field.name for field in dataclasses.fields(inner.default)}
    return set(parameters) - {"self"}


def _class(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name, None) if module else None


def _subclasses(cls: type) -> set[type]:
    return {cls}.union(*map(_subclasses, cls.__subclasses__()))


def _given(message: str) -> str:
    match = re.search(r"Given value: (NestedArg\(key='[^']*', val=)?(?P<value>[^\n]*)", message)
    return match["value"].rstrip(")").strip("'") if match else ""


def _readable(type_name: str) -> str:
    """Write `<class 'int'>` as `int` and a Literal as its choices."""
    literal = re.match(r"typing\.Literal\[(.*)\]$", type_name)
    if literal:
        return f"one of {literal[1]}"
    return re.sub(r"<class '([^']+)'>", r"\1", type_name)
