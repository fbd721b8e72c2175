"""Options: what an environment takes beside its task, checked before one is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pixio_lightning.errors import UserError, one_of


class Option(NamedTuple):
    """A value that an environment takes by name.

    Attributes:
        default: What it is where nothing is given; None where the environment decides.
        expected: What it may be, in words.
        allows: Whether a value is that.
    """

    default: Any
    expected: str
    allows: Callable[[Any], bool]


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_limit(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value is None or whole and (value > 0 or value == -1)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_keys(value: Any) -> bool:
    return value is None or isinstance(value, list) and all(map(_is_text, value))


OPTIONS = {
    "tabletop": {"difficulty": Option(0.5, "a number from 0 to 1", _is_share)},
    "metaworld": {
        "camera": Option("corner2", "the name of a camera", _is_text),
        "shadows": Option(False, "true or false", lambda value: isinstance(value, bool)),
    },
    # And whatever the environment's own constructor takes, which nobody knows before it is made.
    "gym": {
        "image": Option(None, "a key or null", lambda value: value is None or _is_text(value)),
        "proprio": Option(None, "a list of keys or null", _are_keys),
        "max_episode_steps": Option(None, "steps above 0, or -1 for no end", _is_limit),
    },
}
# Every environment is told these in another way.
_TOLD = {
    "task": "data.task",
    "size": "data.image_size",
    "horizon": "data.horizon",
    "images": "what the episode is for",
}


def options_of(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return what an environment of a kind is made with, defaults among it, so records say them.

    Args:
        kind: One of `environments.KINDS`.
        given: `data.options`.

    Raises:
        UserError: There is no such option, or a value is none that it may have.
    """
    known = OPTIONS[kind]
    for name, value in given.items():
        if kind != "gym":
            one_of("data.options", name, known)
        elif name in _TOLD:
            raise UserError(
                f"data.options.{name} is {value}, but {_TOLD[name]} decides it: leave it out"
            )
        option = known.get(name)
        if option is not None and not option.allows(value):
            raise UserError(f"data.options.{name} is {value}, but expected {option.expected}")
    defaults = {name: option.default for name, option in known.items()}
    return {name: value for name, value in defaults.items() if value is not None} | given
