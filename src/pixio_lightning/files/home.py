"""Paths as a user writes them."""

from __future__ import annotations

import argparse
import os
from typing import Any

from pixio_lightning.errors import UserError


class _NoHome(UserError, argparse.ArgumentTypeError):
    """Of the second kind too, or argparse would put a text of its own in place of this one."""


def expanded(value: Any) -> Any:
    """Return a path with a leading `~` as the home folder it means; anything else as it is.

    A shell does so only where the `~` begins a word: not in `--out=~/x`, and no launcher or YAML
    file does it. Every path a user gives passes here once, when the command line is parsed.

    Raises:
        UserError: There is no such user.
    """
    if not isinstance(value, str) or not (value == "~" or value[:1] == "~" and "/" in value):
        return value
    path = os.path.expanduser(value)
    if path[:1] == "~":
        user = value.partition("/")[0]
        raise _NoHome(f"path '{value}': there is no home folder of '{user}' on this machine")
    return path
