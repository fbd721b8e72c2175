"""Images of a folder that a task pairs with something: listing them, and holding some out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pixio_lightning.data.sources import SUFFIXES
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import key_of

T = TypeVar("T")


def image_files(root: Path) -> list[Path]:
    """List the images below a folder.

    Raises:
        UserError: There is none.
    """
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise UserError(f"'{root}' holds no image; expected {', '.join(SUFFIXES)} at any depth")
    return found


def held_out(
    items: Sequence[T], name: Callable[[T], str], *, share: float = 0.1
) -> tuple[list[T], list[T]]:
    """Split samples by the hash of their names, the same ones every time.

    Args:
        items: The samples.
        name: Returns a sample's name, stable wherever its folder lies.
        share: Of them that are held out, at least one.

    Returns:
        Those to train on and those held out, each in the order of `items`.

    Raises:
        UserError: There are fewer than two.
    """
    if len(items) < 2:
        raise UserError(f"{len(items)} image is too few to train on one and hold one out")
    order = sorted(range(len(items)), key=lambda i: key_of(f"hold out {name(items[i])}"))
    count = max(1, int(len(items) * share))
    return [items[i] for i in sorted(order[count:])], [items[i] for i in sorted(order[:count])]
