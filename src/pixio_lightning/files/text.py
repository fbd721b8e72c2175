"""Small files of text that others may have written: their size, nesting and kind are bounded.

Nothing here imports torch.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from pixio_lightning.errors import UserError

MAX_BYTES = 64 << 20
MAX_YAML = 4 << 20  # the parser takes a second for every fifth of a megabyte
MAX_VALUES = 100_000
_MOST_DIGITS = 20  # of a whole number of 64 bits


def is_regular(path: Path) -> bool:
    """Whether something is a file of its own: no link, pipe, device or folder."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def open_regular(path: str | os.PathLike) -> tuple[BinaryIO, int | None]:
    """Open a file to read, without waiting for whoever writes into a pipe.

    Returns:
        The file, and its bytes; None for a pipe or a device, which would be read for ever.

    Raises:
        OSError: It is not there, or cannot be read.
    """
    name = os.fsdecode(path)
    try:  # for what no file is called Python has other kinds of exception
        known = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        known = False
    if not known:
        raise FileNotFoundError(errno.ENOENT, "no file has such a name", name)
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
    about = os.fstat(file.fileno())
    return file, about.st_size if stat.S_ISREG(about.st_mode) else None


def read_text(path: Path, *, limit: int = MAX_BYTES) -> str:
    """Return the content of a file.

    Args:
        path: The file, or a link to it.
        limit: Its bytes, at most.

    Raises:
        UserError: It is a pipe or a device, which would be read for ever; it is larger; or it is
            no text.
        OSError: It is not there, or cannot be read.
    """
    file, size = open_regular(path)
    with file:
        if size is None:
            raise UserError(f"'{path}' is no regular file; remove it")
        if size > limit:
            raise UserError(f"'{path}' has {size:,} bytes; expected at most {limit:,}: not read")
        try:
            return file.read(limit).decode()
        except UnicodeDecodeError:
            raise UserError(f"'{path}' is no text in UTF-8, so it is damaged") from None


def parse_json(text: str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: It is none, nested without end, or has a whole number beyond 64 bits, for which
            arrays and floats have no place.
    """
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole_number(digits: str) -> int:
    if len(digits) <= _MOST_DIGITS and -(1 << 63) <= (number := int(digits)) < 1 << 64:
        return number
    raise ValueError("a whole number beyond 64 bits")


def parse_yaml(text: str) -> Any:
    """Return what YAML says.

    Raises:
        ValueError: It is none, too long, nested without end, or unfolds to far more than it is; or
            a key stands twice in one table, of which YAML would silently take the last.
    """
    import yaml  # here: light verbs need none

    if len(text) > MAX_YAML:
        raise ValueError("too long")
    try:
        content = yaml.load(text, _loader())  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    for number, value in enumerate(unfolded(content)):
        if number > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
        if isinstance(value, int) and abs(value) >> 64:
            raise ValueError("a whole number beyond 64 bits")
    return content


@cache
def _loader() -> type:
    """Return yaml's SafeLoader, but without two equal keys in a table."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                name = (key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key))
                if name in seen and not key.tag.endswith(":merge"):
                    problem = f"the key {key.value} stands there twice"
                    raise yaml.MarkedYAMLError(
                        "in a table", node.start_mark, problem, key.start_mark
                    )
                seen.add(name)
            return node

    return Loader


def unfolded(content: Any, *, inside: Callable[[Any], list[Any]] | None = None) -> Iterator[Any]:
    """Yield all values of plain data; what stands in several places comes as many times.

    Args:
        content: The data.
        inside: Returns what is to be looked at besides, for any value.
    """
    waiting = [content]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        if inside is not None:
            waiting += inside(value)
