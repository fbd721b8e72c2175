"""What a kind of files consists of: how valid ones are made, and what reads them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Make = Callable[[Path], list[str]]  # writes files into a folder; returns those that are damaged


class Form(NamedTuple):
    """A valid input: a folder, and the files in it that are damaged, one at a time."""

    folder: Path
    files: list[Path]


def as_it_is(rng: random.Random, data: bytes) -> bytes:
    return data


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
        forms: What makes the valid ones.
        read: What a run reads of a folder. It raises nothing but UserError and BadImage.
        repaired: Makes checksums right, so that damage comes past them.
    """

    forms: list[Make]
    read: Callable[[Path], Any]
    repaired: Callable[[random.Random, bytes], bytes] = as_it_is
