"""The folder of what can be computed again: scenes, features, indices."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def default_cache() -> Path:
    """Return ``$PIXIO_CACHE``, or ``~/.cache/pixio``."""
    return Path(os.environ.get("PIXIO_CACHE") or Path.home() / ".cache" / "pixio").expanduser()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file; others wait. The kernel drops it when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
