"""Where images come from: a folder, or some of any source.

A source is a numbered list of encoded images with stable keys; decoding is done elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from pixio_lightning.data.decode import read_file
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.keyed import key_of

T = TypeVar("T")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Source(Protocol):
    """A numbered list of encoded images."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the image's name: unique, stable, and a relative path where there are files."""
        ...

    def read(self, index: int) -> bytes:
        """Return the encoded image."""
        ...

    def label(self, index: int) -> str | None:
        """Return the image's class, where the source knows one."""
        ...


class FolderSource:
    """All JPEG, PNG and WebP files below a folder; the parent folder is an image's class.

    Args:
        path: The folder.
        key: What a mistake is blamed on.

    Raises:
        UserError: The folder does not exist, cannot be read or holds no image.
    """

    def __init__(self, path: str | Path, *, key: str = "data.path") -> None:
        self.root = existing_folder(path, key)
        # Plain strings: a million Path objects would cost most of a gigabyte in every worker.
        self.names = sorted(_walk(self.root, key))
        if not self.names:
            raise UserError(
                f"{key} '{path}' holds no image; expected {', '.join(SUFFIXES)} at any depth"
            )

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> bytes:
        return read_file(self.root / self.names[index])

    def label(self, index: int) -> str | None:
        return Path(self.names[index]).parent.name or None


def existing_folder(path: str | Path, key: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.glob("*/")]
        raise UserError(f"{key} '{path}' is not a folder{nearest(folder.name, siblings)}")
    return folder


def image_files(root: Path) -> list[Path]:
    """List the images below a folder.

    Raises:
        UserError: There is none.
    """
    found = sorted(root / name for name in _walk(root, "data.path"))
    if not found:
        raise UserError(f"'{root}' holds no image; expected {', '.join(SUFFIXES)} at any depth")
    return found


def _walk(root: Path, key: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{key}: folder '{error.filename}' cannot be read ({error.strerror})")

    found: list[str] = []
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above, or to one that was visited
            subfolders.clear()
            continue
        seen.add(real)
        # In order, so that a folder with two names always goes by the same one.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for file in files:
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                found.append(os.path.relpath(os.path.join(folder, file), root).replace(os.sep, "/"))
    return found


class Subset:
    """Some images of a source, under their own names."""

    def __init__(self, source: Source, indices: list[int]) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def read(self, index: int) -> bytes:
        return self.source.read(self.indices[index])

    def label(self, index: int) -> str | None:
        return self.source.label(self.indices[index])


def held_out(
    items: Sequence[T], name: Callable[[T], str], *, share: float = 0.1, limit: int | None = None
) -> tuple[list[T], list[T]]:
    """Split samples by the hash of their names, the same ones every time.

    Args:
        items: The samples.
        name: Returns a sample's name, stable wherever its folder lies.
        share: Of them that are held out, at least one.
        limit: Held out at most.

    Returns:
        Those to train on and those held out, each in the order of `items`.

    Raises:
        UserError: There are fewer than two.
    """
    if len(items) < 2:
        raise UserError(f"{len(items)} image is too few to train on one and hold one out")
    order = sorted(range(len(items)), key=lambda i: key_of(f"hold out {name(items[i])}"))
    count = int(len(items) * share)
    count = max(1, count if limit is None else min(limit, count))
    return [items[i] for i in sorted(order[count:])], [items[i] for i in sorted(order[:count])]


def hold_out(
    source: Source, *, share: float = 0.1, limit: int | None = None
) -> tuple[Source, Source]:
    """Split a source as `held_out` does."""
    train, val = held_out(range(len(source)), source.name, share=share, limit=limit)
    return Subset(source, train), Subset(source, val)
