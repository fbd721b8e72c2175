"""What a user is told: one line that says what is wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator

# What torch, the libraries of CUDA, MPS and the system say where memory runs out.
_OUT_OF_MEMORY = (
    *("out of memory", "DefaultCPUAllocator:", "Unable to allocate", "Cannot allocate memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)


class UserError(ValueError):
    """A mistake in the user's input; the command line prints its text and exits with code 2.

    Messages quote names of tensors, classes and files, which whoever wrote a file has chosen: they
    reach the terminal through `printable`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message), limit=4000))


class MissingWeights(UserError):
    """Weights that are not there, or not open to whoever asks.

    Args:
        message: As of any mistake.
        asked: What was asked for, by which the command line says how to come by weights.
    """

    def __init__(self, message: object = "", asked: str = "") -> None:
        super().__init__(message)
        self.asked = asked


class UnsuitedBackbone(UserError):
    """A backbone without what a head reads; a suite over several leaves out the row of this one."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from or on top of, each once, the last one first.

    Libraries make errors of their own of what they were given, and an error may have been raised
    from one that was raised from it.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def out_of_memory(error: BaseException) -> str:
    """Return what says that memory ran out, and whose, as one line; empty of any other error.

    Nothing of torch is imported for it: its own class goes by its name.
    """
    if not isinstance(error, (RuntimeError, MemoryError)):
        return ""
    lines = str(error).splitlines()  # of a data worker, with its trace
    said = [line for line in lines if any(known in line for known in _OUT_OF_MEMORY)]
    if not said and type(error).__name__ not in ("OutOfMemoryError", "MemoryError"):
        return ""
    # What follows is the allocator's own advice.
    text = printable((said or lines or [""])[0].partition(" Including non-PyTorch")[0]).strip(". ")
    return f"out of memory ({text})" if text else "out of memory"


def nearest(word: object, choices: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the closest of `choices`, or an empty string."""
    # The comparison takes the square of the length; names of files may be no text.
    found = difflib.get_close_matches(str(word)[:200], sorted(choices), n=1, cutoff=0.6)
    return f", did you mean '{found[0]}'?" if found else ""


def one_of(key: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is none of some.

    Args:
        key: What the value is called.
        value: It.
        choices: What it may be.

    Raises:
        UserError: It is none of them; they are listed, with the nearest.
    """
    choices = list(choices)
    if value not in choices:
        words = ["null" if choice is None else str(choice) for choice in choices]
        known = ", ".join(words) or "none"
        raise UserError(f"{key} '{value}' is none of {known}{nearest(value, words)}")


def some_of(names: Iterable[str], *, limit: int = 3) -> str:
    """Return ``'a', 'b', 'c' and 4 more``."""
    quoted = [f"'{name}'" for name in names]
    more = f" and {len(quoted) - limit:,} more" if len(quoted) > limit else ""
    return ", ".join(quoted[:limit]) + more


def at_least_1(**given: float | None) -> None:
    """Refuse numbers and sizes below 1, see `at_least`."""
    at_least(1, **given)


def at_least(least: float, /, **given: float | None) -> None:
    """Refuse numbers that are too small; None is none.

    Args:
        least: The smallest that is taken.
        given: The values by what they are called.

    Raises:
        UserError: One is less.
    """
    for key, value in given.items():
        if value is not None and value < least:
            raise UserError(f"{key} is {value}, but expected at least {least}")


def above_0(key: str, value: float | None, unit: str) -> None:
    """Refuse a number that is not positive, or not finite; None is none.

    Args:
        key: What the value is called.
        value: It.
        unit: What it counts.

    Raises:
        UserError: It is such a number.
    """
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"{key} is {value:g}, but expected {unit} above 0")


def whole_tokens(key: str, side: int, pixels: int, model: str) -> None:
    """Refuse a side of images that is not made up of whole tokens.

    Args:
        key: What the side is called.
        side: It, in pixels.
        pixels: Those of a token.
        model: What the model is called.

    Raises:
        UserError: It is less than a token, or no multiple of it.
    """
    if side < pixels or side % pixels:
        raise UserError(
            f"{key} is {side}, but expected a multiple of {pixels}, the pixels of a token of "
            f"{model}"
        )


def refuse_unread(key: str, value: object, default: object, because: str) -> None:
    """Refuse a value that would do nothing.

    Args:
        key: What the value is called.
        value: It.
        default: What it is where nothing is given, and may be.
        because: Why nothing reads it.

    Raises:
        UserError: It is not the default.
    """
    value, default = (list(v) if isinstance(v, tuple) else v for v in (value, default))
    if value != default:
        usual = "null" if default is None else default
        raise UserError(f"{key} is {value}, but {because}: leave it out, or set it to {usual}")


def visible(text: str) -> str:
    """Return text as one line that a terminal only shows, and otherwise as it is.

    For what is printed of names and results: a line break in a name would begin a line of ours.
    """
    return "".join(c if c.isprintable() else "?" for c in text)


def visible_lines(text: str) -> str:
    """Return `visible` text with its line breaks."""
    return "\n".join(map(visible, text.split("\n")))


def printable(text: str, *, limit: int = 200) -> str:
    """Return text of a file as one line that a terminal only shows, cut to `limit` characters.

    Characters that would move the cursor, change colours or hide what follows become `?`.
    """
    line = " ".join(text[: 4 * limit].split())
    shown = "".join(c if c.isprintable() else "?" for c in line)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
