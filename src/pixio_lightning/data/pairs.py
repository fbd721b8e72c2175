"""Images with files that belong to them, a depth map or labels: found by name, in any task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

from pixio_lightning.errors import UserError


class PairedFiles:
    """Numbered pairs of files; a subclass loads them.

    Args:
        root: What names are relative to.
        pairs: Tuples of files with an `image`; None stands for one that is not there.
    """

    def __init__(self, root: Path, pairs: Sequence[Any]) -> None:
        self.root, self.pairs = root, list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Return the path of the image below the root."""
        return self.pairs[index].image.relative_to(self.root).as_posix()

    def file_facts(self) -> list[tuple[str, int, int]]:
        """Return path, size and time of every file that is there: a digest goes by them."""
        files = [path for pair in self.pairs for path in pair if path is not None]
        stats = [(str(file), file.stat()) for file in files if file.exists()]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def folders_of_pairs(root: Path, folder: str, *, expected: str) -> tuple[Path, Path]:
    """Return `images/` and another folder below `root`.

    Args:
        root: Of a split, or of all data.
        folder: Name of the other one.
        expected: What it should hold, for the message.

    Raises:
        UserError: One of them is not there.
    """
    images, others = root / "images", root / folder
    if not images.is_dir() or not others.is_dir():
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise UserError(
            f"data.path '{root}' holds {', '.join(found) or 'no folder'}; expected images/ and "
            f"{folder}/ ({expected}), in it or in train/ and val/"
        )
    return images, others


def beside(image: Path, images: Path, folder: Path, suffixes: Iterable[str]) -> Path | None:
    """Return the file in `folder` that belongs to an image in `images`, or None.

    Its name is the image's, without the suffix or, as predictions are written, with it.
    """
    relative = image.relative_to(images)
    for name in (relative.as_posix(), str(relative.with_suffix(""))):
        for suffix in suffixes:
            # Of `os.path`, to which a name that became too long is no file, and no error.
            if isfile(path := folder / f"{name}{suffix}"):
                return path
    return None
