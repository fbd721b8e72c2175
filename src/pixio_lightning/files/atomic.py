"""Files and folders that are whole or absent: written aside, then renamed. Only this renames.

Nothing here imports torch.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pixio_lightning.errors import causes

_ASIDE = re.compile(r"(\.\d+-[0-9a-f]{8}|\.ckpt)\.tmp\Z")  # or a sharded checkpoint's folder
_NAME_BYTES = 100  # of a name that its temporary one repeats; file systems take 255


def aside_of(target: Path) -> Path:
    """Return a temporary path beside `target`, of this process alone; see `put_in_place`."""
    return target.with_name(f"{_stem_aside(target)}{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def _stem_aside(target: Path) -> str:
    return f".{os.fsdecode(os.fsencode(target.name)[:_NAME_BYTES])}."


def put_in_place(aside: Path, target: Path, *, durable: bool = False) -> None:
    """Rename a file or folder to `target`, in place of what is there.

    Args:
        aside: What `aside_of` named.
        target: Where it belongs.
        durable: Write all of it to disk first, so that it survives a power cut.
    """
    if aside.is_dir():
        replace_folder(aside, target)
        return
    if durable:
        sync(aside)
    _exchange(aside, target)
    if durable:
        sync(target.parent)


@contextmanager
def written_aside(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path; once the block has made a file or folder of it, it becomes `target`.

    Folders above are made. If the block fails, nothing of it stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(target)
    try:
        yield aside
        put_in_place(aside, target, durable=durable)
    except OSError as error:
        if error.errno and error.filename is None:  # of a full disk the system does not say which
            error.filename = str(target)
        raise
    except Exception as error:
        if (number := _full(error)) is not None:
            raise OSError(number, os.strerror(number), str(target)) from error
        raise
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


def _full(error: BaseException) -> int | None:
    """Return the number of a full disk's error, of which a library made one of its own."""
    for seen in causes(error):  # torch fails once more as it closes the file
        found = re.search(r"\(os error (\d+)\)", str(seen))  # as Rust says it, safetensors too
        number = seen.errno if isinstance(seen, OSError) else int(found[1]) if found else None
        if number in (errno.ENOSPC, errno.EDQUOT):
            return number
    return None


def write_text(target: Path, text: str) -> None:
    """Write a small text file, whole or not at all, also where the power is cut."""
    with written_aside(target, durable=True) as aside:
        aside.write_text(text)


def write_bytes(target: Path, data: bytes) -> None:
    """Write a small file, whole or not at all."""
    with written_aside(target) as aside:
        aside.write_bytes(data)


def remove_leftovers(target: Path) -> None:
    """Remove temporary files beside `target`, of processes that were killed while they wrote."""
    _remove_asides(target.parent, _stem_aside(target))


def sweep(folder: Path) -> None:
    """Remove all that killed processes left half written in a folder that nobody else writes to."""
    _remove_asides(folder, "")


def _remove_asides(folder: Path, start: str) -> None:
    for path in folder.iterdir():
        if not path.name.startswith(start) or not _ASIDE.search(path.name) or path.is_symlink():
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Write a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(aside: Path, target: Path) -> None:
    """Put a folder in place of what is there, durably; `recover_folder` mends a kill between."""
    for part in (*aside.rglob("*"), aside):
        sync(part)
    _exchange(aside, target)
    sync(target.parent)


def _exchange(aside: Path, target: Path) -> None:
    """Rename a file or folder to `target`; `recover_folder` mends a kill between two renames."""
    old = previous_folder(target)
    # Only a file can be renamed over a file: otherwise what is there is kept until the new stands.
    kept = target.exists() and (target.is_dir() or aside.is_dir())
    if kept:
        _remove(old)
        os.rename(target, old)
    os.replace(aside, target)
    if kept:
        _remove(old)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as the system lets it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def previous_folder(target: Path) -> Path:
    """Return where a folder is while it is replaced, or a file while a folder takes its place."""
    return target.with_name(f".{target.name}.old")


def recover_folder(target: Path) -> None:
    """Put back what a process that was killed between the renames of a replacement left aside.

    Where the new one stands, the old one is removed.
    """
    old = previous_folder(target)
    if target.exists():
        _remove(old)
    elif old.exists():
        os.rename(old, target)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder.

    Raises:
        OSError: The system refuses it; nothing is changed then.
    """
    os.rename(source, target)
