"""The folder of what can be computed again: scenes, features, indices."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path


def cache_home() -> Path:
    """Return the folder of everybody's caches: ``$XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def default_cache() -> Path:
    """Return ``$PIXIO_CACHE``, or ``pixio`` among everybody's caches."""
    return Path(os.environ.get("PIXIO_CACHE") or cache_home() / "pixio").expanduser()


def bytes_by_kind(folder: Path) -> dict[str, int]:
    """Return what a cache takes on disk, the largest kind first; a kind is a name up to its `-`.

    What cannot be read, or goes meanwhile, counts as nothing.
    """
    found: Counter[str] = Counter()
    for parent, _, names in os.walk(folder):
        inside = Path(parent).relative_to(folder).parts
        for name in names:
            with suppress(OSError):
                kind = (*inside, name)[0].split("-")[0]
                found[kind] += os.lstat(os.path.join(parent, name)).st_size
    return dict(found.most_common())
