"""Files that may lie on this machine, on a hub or in an object store, opened by their address."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pixio_lightning.errors import UserError
from pixio_lightning.files import open_parquet

# Those that only read bytes; others of fsspec start programs or unpack.
PROTOCOLS = ("file", "hf", "s3", "gs", "gcs", "az", "abfs", "http", "https")
_PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before a failed read is tried again
_AT_ONCE = 16  # files that are looked at side by side
_GIVEN_UP = 300.0  # seconds in which a file that used up its tries is tried once only
# What readers raise of bytes that make no sense.
_DAMAGE = (pa.ArrowException, tarfile.TarError, EOFError, ValueError)
# What another try does not change; clients of object stores have errors of their own.
_LASTING = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
    *(ArithmeticError, AttributeError, LookupError, MemoryError, TypeError),
)

# By address, until when. Few: before each its process or thread has waited for all pauses.
_given_up: dict[str, float] = {}

Thing = TypeVar("Thing")
Found = TypeVar("Found")


def check_address(path: str, key: str) -> tuple[Any, str]:
    """Return the file system and the protocol of a folder or an address.

    Raises:
        UserError: The protocol is none that only reads, or its package is missing.
    """
    protocol = path.split("://")[0] if "://" in path else "file"
    if protocol not in PROTOCOLS or "::" in path or path.startswith("pipe:"):
        raise UserError(
            f"{key} '{path}' has no known protocol: expected a folder, or "
            f"{', '.join(f'{name}://' for name in PROTOCOLS[1:])}"
        )
    try:
        return file_system(path), protocol
    except ImportError as error:
        raise UserError(f"{key} '{path}' needs a package: {error}") from None


def file_system(root: str) -> Any:
    """Return the file system of an address."""
    return _opened_file_system(root, os.getpid())


def parquet_file(root: str, path: str) -> pq.ParquetFile:
    """Return an opened parquet file, of which nothing is read but what is asked for."""
    return _opened_parquet(root, path, os.getpid())


def open_for_groups(root: str, path: str) -> Any:
    """Open a file that groups are read of in any order, which is no use of reading ahead.

    Blocks of fsspec are 5 to 50 MB: each group would be followed by one that is not needed, and
    each opened file would keep it.
    """
    return file_system(root).open(join(root, path), "rb", cache_type="none")


def retried(read: Callable[[], Found], place: str) -> Found:
    """Return what a function reads; where the network or a disk fails it, it is called again.

    It is called up to five times, with pauses of 7.5 seconds in all. What was kept open is opened
    anew for that: a handle that has become stale stays so. A file that failed each time is read
    once only in the next five minutes: of a bad disk, every group would wait for all pauses.

    Args:
        read: Reads some of a file.
        place: Address of the file.

    Raises:
        Exception: What the last call raised; at once, what another would raise as well.
    """
    once = time.monotonic() < _given_up.get(place, 0.0)
    for pause in (None,) if once else (*_PAUSES, None):
        try:
            return read()
        except Exception as error:
            if is_damage(error) or isinstance(error, _LASTING):
                raise
            _opened_parquet.cache_clear()
            if pause is None:
                if not once:
                    _give_up(place)
                raise
        time.sleep(pause)
    raise AssertionError("the last call returns or raises")


def _give_up(place: str) -> None:
    """Note a file that used up its tries, and forget those that may be tried again."""
    now = time.monotonic()
    for other, until in list(_given_up.items()):
        if until <= now:
            _given_up.pop(other, None)
    _given_up[place] = now + _GIVEN_UP


def in_order(look: Callable[[Thing], Found], things: Sequence[Thing]) -> Iterator[Found]:
    """Yield what a function finds of each of very many files, of which few are looked at at once.

    A file system that many share answers slowly, but many at a time.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(things), 8 * _AT_ONCE):  # nobody need hold what all of them gave
            yield from pool.map(look, things[start : start + 8 * _AT_ONCE])


def is_damage(error: Exception) -> bool:
    """Whether an error is of bytes that were read and make no sense."""
    # Of damaged pages pyarrow raises an OSError of no kind and without a number.
    plain = type(error) is OSError and error.errno is None
    return plain or isinstance(error, _DAMAGE)


def local_path(address: str) -> str | None:
    """Return the absolute path of a file or folder on this machine; None of other addresses."""
    if "://" in address and not address.startswith("file://"):
        return None
    return os.path.realpath(fsspec.core.strip_protocol(address))


def place_of(root: str, path: str) -> Any:
    """Return what is equal for two files only if they are one, whatever names and links it has."""
    place = join(root, path)
    local = local_path(place)
    if local is None:
        return fsspec.core.strip_protocol(place)
    try:
        about = os.stat(local)
    except OSError:
        return local
    return about.st_dev, about.st_ino


def forget_opened() -> None:
    """Close what is kept open, and forget what failed, as after files have been replaced."""
    _opened_parquet.cache_clear()
    _given_up.clear()


def join(root: str, name: str) -> str:
    """Return the address of a file below another."""
    return f"{root.rstrip('/')}/{name}"


# By process: a worker is forked, and would share positions and connections with its parent.
@lru_cache(maxsize=64)
def _opened_file_system(root: str, process: int) -> Any:
    return fsspec.core.url_to_fs(root)[0]


# Opened files keep their footers, which a shuffled order of groups comes back to.
@lru_cache(maxsize=32)
def _opened_parquet(root: str, path: str, process: int) -> pq.ParquetFile:
    if "://" in root:
        return open_parquet(open_for_groups(root, path))
    # In half the time of a file of Python.
    return open_parquet(pa.OSFile(os.path.expanduser(join(root, path))))
