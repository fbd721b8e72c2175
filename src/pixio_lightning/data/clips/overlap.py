"""Whether held-out videos are trained on: the same files at two paths, as copies or by links."""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from pixio_lightning.data.workers import available_cores
from pixio_lightning.errors import UserError
from pixio_lightning.files import open_regular

_HEAD = 1 << 16  # bytes of a file that decide which are compared as a whole


class Videos(Protocol):
    """Videos that can be compared with others of their kind."""

    def facts(self) -> Iterator[tuple[str, Any]]:
        """Yield the name of each, and what it shares with its copies: hashable, and cheap."""
        ...

    def files_of(self, video: int) -> list[Path]:
        """Return the files that copies are equal in; none where the facts decide."""
        ...


def refuse_copies(train: Videos, held_out: Videos, *, path: str, val_path: str) -> None:
    """Refuse a video that is both trained on and held out.

    Files are read only of those that share their facts.

    Raises:
        UserError: One is.
    """
    of_held_out = {facts for _, facts in held_out.facts()}
    shared = {facts for _, facts in train.facts() if facts in of_held_out}
    alike: defaultdict[tuple[Any, str], list[int]] = defaultdict(list)
    names = [name for name, _ in held_out.facts()]
    for number, _, begin in _candidates(held_out, shared):
        alike[begin].append(number)
    for number, name, begin in _candidates(train, shared):
        for other in alike.get(begin, ()):
            if all(map(_equal, train.files_of(number), held_out.files_of(other))):
                raise UserError(
                    f"data.val_path '{val_path}' holds '{names[other]}', which is '{name}' of "
                    f"data.path '{path}', so held-out clips would be trained on: take it out of "
                    "one of them, or leave val_path out"
                )


def _candidates(videos: Videos, shared: set[Any]) -> Iterator[tuple[int, str, tuple[Any, str]]]:
    """Yield number, name, and facts with the beginning, of those with facts that others have."""
    found = [(i, *video) for i, video in enumerate(videos.facts()) if video[1] in shared]
    with ThreadPoolExecutor(available_cores()) as pool:
        heads = pool.map(lambda video: _head(videos.files_of(video[0])), found)
        for (number, name, facts), head in zip(found, heads, strict=True):
            yield number, name, (facts, head)


def _head(files: list[Path]) -> str:
    """Return a digest of how a video begins; nothing where that cannot be read."""
    try:
        file, _ = open_regular(files[0])
        with file:
            return hashlib.blake2b(file.read(_HEAD), digest_size=8).hexdigest()
    except (OSError, IndexError):
        return ""


def _equal(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False
