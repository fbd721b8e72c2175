"""Where images come from: a folder, or some of any source.

A source is a numbered list of encoded images with stable keys; decoding is done elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import numpy as np

from pixio_lightning.data.decode import read_file
from pixio_lightning.data.listing.names import Names
from pixio_lightning.errors import UserError, nearest, one_of
from pixio_lightning.keyed import key_of

T = TypeVar("T")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp")
# Of pictures that are not read; how many lie beside those that are is said.
_OTHER_PICTURES = (
    *(".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".psd", ".svg", ".ico", ".tga"),
    *(".ppm", ".pgm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raw", ".dcm"),
)


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
    """All pictures below a folder; the parent folder is an image's class.

    Args:
        path: The folder.
        key: What a mistake is blamed on.

    Attributes:
        names: Their paths below the folder, sorted.
        skipped: How many pictures of other formats lie there, by suffix.

    Raises:
        UserError: The folder does not exist, cannot be read or holds no image.
    """

    def __init__(self, path: str | Path, *, key: str = "data.path") -> None:
        self.root = existing_folder(path, key)
        found: list[str] = []
        self.skipped: Counter[str] = Counter()
        for name in files_below(self.root, key=key):
            if is_picture(name):
                found.append(name)
            elif (suffix := PurePosixPath(name).suffix.lower()) in _OTHER_PICTURES:
                self.skipped[suffix] += 1
        self.names = Names(sorted(found))
        if not found:
            others = f", but {listed(self.skipped)}" if self.skipped else ""
            raise UserError(
                f"{key} '{path}' holds no image{others}; expected {', '.join(IMAGE_SUFFIXES)} at "
                "any depth"
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


def check_source(
    source: str, path: str | None, sources: Sequence[str], *, made: Sequence[str] = ("scenes",)
) -> None:
    """Raise a UserError for a source that is none of `sources`, or that goes not with its path.

    Those that are made here have none; others need one.
    """
    one_of("data.source", source, sources)
    if source in made and path is not None:
        files = ", ".join(name for name in sources if name not in made)
        raise UserError(
            f"data.path '{path}' is given, but data.source is {source}, which is made here; "
            f"set data.source to one of {files or 'nothing else'}, or leave data.path out"
        )
    if source not in made and path is None:
        raise UserError(f"data.source is {source}: give data.path")


def refuse_overlap(path: str | None, val_path: str | None) -> None:
    """Raise a UserError where one folder lies inside of the other."""
    if not path or not val_path:
        return
    train, held_out = (Path(folder).expanduser().resolve() for folder in (path, val_path))
    given = (f"data.path '{path}'", f"data.val_path '{val_path}'")
    if held_out.is_relative_to(train):
        outer, inner = given
    elif train.is_relative_to(held_out):
        inner, outer = given
    else:
        return
    raise UserError(
        f"{inner} lies inside {outer}, so held-out samples would be trained on; leave val_path "
        "out, or move them apart"
    )


def image_files(root: Path) -> list[Path]:
    """List the images below a folder.

    Raises:
        UserError: There is none.
    """
    return [root / name for name in FolderSource(root).names]


def is_picture(name: str) -> bool:
    """Whether a file of a folder or an archive is taken for a picture, by its path.

    Hidden files and folders are not, nor what macOS adds to archives.
    """
    return name.lower().endswith(IMAGE_SUFFIXES) and not any(map(is_hidden, name.split("/")))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's: hidden, or added by macOS to archives."""
    return name.startswith(".") or name == "__MACOSX"


def visible_files(root: Path, pattern: str) -> list[Path]:
    """List the files of a pattern below a folder, sorted, without what is hidden."""
    found = root.glob(pattern)
    return sorted(p for p in found if not any(map(is_hidden, p.relative_to(root).parts)))


def listed(counts: Counter[str], *, limit: int = 4) -> str:
    """Write counts as `12 .gif, 3 .heic`, the greatest first, and the rest together."""
    parts = [f"{n:,} {name}" for name, n in counts.most_common(limit)]
    rest = counts.total() - sum(n for _, n in counts.most_common(limit))
    return ", ".join([*parts, *([f"{rest:,} others"] if rest else [])])


def files_below(root: Path, *, key: str = "data.path") -> Iterator[str]:
    """Yield all files below a folder, by their paths there; no hidden ones, and links once.

    A folder that was listed before, and that nothing was added to, taken from or renamed in since,
    is not listed again: a run asks for the same one several times, of which each may take minutes
    on the disks of a cluster.

    Raises:
        UserError: A folder cannot be read.
    """
    seen: set[str] = set()
    ahead = [""]
    while ahead:
        below = ahead.pop()
        real = os.path.realpath(root / below)
        if real in seen:  # a link back to a folder above, or to one that was visited
            continue
        seen.add(real)
        try:
            subfolders, files = _contents_of(real)
        except OSError as error:
            told = f"folder '{root / below}' cannot be read ({error.strerror})"
            raise UserError(f"{key}: {told}") from None
        # In order, so that a folder with two names always goes by the same one.
        ahead += [f"{below}{name}/" for name in reversed(subfolders)]
        for name in files:
            yield f"{below}{name}"


_A_TICK = 2_000_000_000  # ns: twice what any file system counts time in


def _contents_of(folder: str) -> tuple[list[str], list[str]]:
    """Return the folders and files in a folder that are not hidden, sorted."""
    changed = os.stat(folder).st_mtime_ns
    # What changed a moment ago may change again at the same time, as it is counted.
    settled = time.time_ns() - changed > _A_TICK
    subfolders, files = (_joined if settled else _joined.__wrapped__)(folder, changed)
    return [*filter(None, subfolders.split("/"))], [*filter(None, files.split("/"))]


# Names are in one string: millions of their own would take five times as much memory.
@cache
def _joined(folder: str, changed: int) -> tuple[str, str]:
    with os.scandir(folder) as entries:
        visible = sorted((e.name, _is_folder(e)) for e in entries if not is_hidden(e.name))
    return (
        "/".join(name for name, is_folder in visible if is_folder),
        "/".join(name for name, is_folder in visible if not is_folder),
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere, or in a circle
        return False


def digest_of(*facts: Any) -> str:
    """Return 16 hex digits that identify plain data."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def digest_of_files(root: Path, names: Iterable[str]) -> str:
    """Return what changes with the names, the sizes and the times of change of files."""
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        try:
            about = os.stat(root / name)
            state = f"{about.st_size} {about.st_mtime_ns}"
        except OSError as error:
            state = f"{error.errno}"
        digest.update(f"{name}\n{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


class Subset:
    """Some images of a source, under their own names."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        # As an array: workers would copy a list's numbers one by one.
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def read(self, index: int) -> bytes:
        return self.source.read(int(self.indices[index]))

    def label(self, index: int) -> str | None:
        return self.source.label(int(self.indices[index]))


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
