"""Locks on files, which not every file system has: Lustre has none unless it is mounted with them.

The kernel drops a lock when its holder ends, however that happens. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def lock(file: IO[Any], *, wait: bool = True, by_process: bool = False) -> str:
    """Lock an open file until it is closed.

    Args:
        file: What is locked; one that may be written to.
        wait: Whether to wait for another that holds it.
        by_process: A POSIX record lock, which forks do not inherit and threads of a process do not
            wait for.

    Returns:
        Why there is no lock, where the file system has none; else nothing.

    Raises:
        BlockingIOError: Another holds it, and is not waited for.
    """
    call = fcntl.lockf if by_process else fcntl.flock
    try:
        call(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # as systems say it of record locks
            raise BlockingIOError(*error.args) from None
        return error.strerror or str(error)
    return ""


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock on a file; others wait. Yields whether nobody else can be at it.

    That is false where the file system has no locks: files that others may be writing then have
    to be left alone.
    """
    with path.open("w") as file:
        if reason := lock(file):
            print(
                f"pixio: note: no lock on {path} ({reason}): processes that want the same do the "
                "same work",
                file=sys.stderr,
            )
        yield not reason
