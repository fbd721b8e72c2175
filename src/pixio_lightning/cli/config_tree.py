"""Configurations and command lines as leaves under dotted keys, and in which of them two differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pixio_lightning.files import expanded
from pixio_lightning.files.text import parse_yaml, read_text


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts under dotted keys, without `init_args`."""
    if isinstance(config, dict) and config:
        for key, value in config.items():
            below = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
            yield from flatten(value, below)
    else:
        yield prefix, expanded(config)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Return `old -> new` by key for every leaf that differs.

    A recipe says `devices: 2` where the command line says "2", and both mean the same.
    """
    before, after = dict(flatten(old)), dict(flatten(new))
    return {
        key: f"{before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if str(before.get(key)) != str(after.get(key))
    }


def typed(words: Sequence[str]) -> dict[str, Any]:
    """Return what a command line sets, by dotted key, the last value of each.

    `--model.backbone.weights W`, with `=`, with `init_args` between, and as YAML below a shorter
    key, is the same key.
    """
    found: dict[str, Any] = {}
    for word, following in pairwise([*words, ""]):
        if not word.startswith("--"):
            continue
        option, equals, text = word.partition("=")
        if not equals:
            text = "" if following.startswith("--") else following
        value = parsed(text)
        key = option[2:].replace(".init_args", "")
        if value != {}:
            found |= flatten(value if isinstance(value, dict) else text, key)
    return found


def in_files(paths: Iterable[Path]) -> dict[str, Any]:
    """Return what configurations set, by dotted key, the last value of each."""
    found: dict[str, Any] = {}
    for path in paths:
        found |= flatten(parse_yaml(read_text(path)))
    return found


def parsed(text: str) -> Any:
    """Return what a text is as YAML, or where it is none, itself."""
    try:
        return parse_yaml(text)
    except ValueError:
        return text
