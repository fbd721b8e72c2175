"""Bounds on what a checkpoint may unfold to: a small file must not become a large object.

Three ways are open to a file that holds nothing but tensors and plain data: compression, tensors
that repeat a small storage (a stride of 0, or many views), and containers that hold one container
many times over. `torch.save` compresses nothing, and training writes neither of the others.
"""

from __future__ import annotations

import mmap
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixio_lightning.errors import UserError

# Functions that torch's restricted unpickler calls with whatever the file says, and that allocate
# what they are told to before anything can be looked at. It finds them by lines of their names.
_CALLS = (
    *(b"bytearray", b"_rebuild_device_tensor_from_cpu_tensor", b"_rebuild_wrapper_subclass"),
    *(b"_rebuild_device_tensor_from_numpy", b"_rebuild_qtensor", b"UntypedStorage"),
)
# By which Lightning finds classes to make.
_NAMES_CODE = {"_instantiator", "_class_path"}
MAX_VALUES = 1_000_000
MAX_NESTING = 64
# Tied weights are stored once and named twice; small files may hold small views.
MAX_UNFOLDING, UNFOLDING_FREE = 4, 1 << 24


def load_bounded(
    file: Path,
    path: str | os.PathLike,
    *,
    map_location: Any = "cpu",
    mapped: bool = False,
    plain: Sequence[type] = (),
) -> dict[str, Any]:
    """Load a file of a checkpoint that holds tensors and plain data only.

    Args:
        file: It, or one of a folder.
        path: The checkpoint that a mistake is told of.
        map_location: As in `torch.load`.
        mapped: Tensors are mapped, not read, where the file is an archive.
        plain: Classes that hold nothing but attributes, which the file may name.

    Raises:
        UserError: The file is missing, damaged, holds code, names code to be run, holds no dict, or
            unfolds to far more than its size.
    """
    check_archive(file)
    try:
        mapped = mapped and zipfile.is_zipfile(file)
        with torch.serialization.safe_globals(list(plain)):
            checkpoint = torch.load(file, map_location=map_location, mmap=mapped, weights_only=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead it to
        # Its own text advises to load the file all the same, and run what is in it.
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise UserError(
                f"checkpoint '{path}' holds more than tensors and plain data ({found[1]}): "
                "refused, and nothing of it was executed; save what model.state_dict() returns"
            ) from None
        raise _damaged(file, path) from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"checkpoint '{path}' holds a {type(checkpoint).__name__}, not a dict")
    said = checkpoint.get("hyper_parameters")
    if named := _NAMES_CODE & (said.keys() if isinstance(said, Mapping) else set()):
        raise UserError(
            f"checkpoint '{path}' names code to run ({', '.join(sorted(named))} in its "
            "hyper_parameters): refused; save what model.state_dict() returns"
        )
    check_unfolded(checkpoint, file)
    return checkpoint


def check_archive(path: Path) -> None:
    """Refuse a file that allocates more than its size while it is read.

    Raises:
        UserError: It is no file; an entry of the archive is compressed, or several share their
            bytes; the archive is damaged; or something is called that allocates.
    """
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"checkpoint '{path}' is no regular file")
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # what torch goes by
    if not is_zip:
        _check_calls(path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_sizes(path, entries)
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    _check_names(path, archive.read(entry))
    except UserError:
        raise
    except Exception:  # torch's own reader may still take it, and unpack it without a limit
        raise _damaged(path, path) from None


def _damaged(file: Path, path: str | os.PathLike) -> UserError:
    return UserError(
        f"cannot read checkpoint '{path}' ({file.stat().st_size:,} bytes): truncated, damaged or "
        "none at all; fetch or save it anew"
    )


def _check_calls(path: Path) -> None:
    """Look at a file of the older form: pickles one after the other, then the tensors' bytes."""
    if path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_names(path, data)


def _check_names(path: Path, pickled: bytes | mmap.mmap) -> None:
    for name in _CALLS:
        if pickled.find(b"\n" + name + b"\n") >= 0:
            raise UserError(
                f"checkpoint '{path}' has {name.decode()} called when it is read, which training "
                "never writes: refused, and nothing of it was read"
            )


def _check_sizes(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    inside = sum(entry.file_size for entry in entries)
    if packed or inside > path.stat().st_size:
        raise UserError(
            f"checkpoint '{path}' is compressed: {inside:,} bytes in {path.stat().st_size:,}; "
            "refused, torch.save does not compress"
        )


def check_unfolded(data: Any, path: Path) -> None:
    """Refuse data that is far larger, or nested deeper, than the file it came from accounts for.

    Raises:
        UserError: Too many values, too deep, or tensors that repeat their storage.
    """
    size = path.stat().st_size
    values, tensor_bytes = 0, 0
    waiting: list[tuple[Any, int]] = [(data, 0)]
    while waiting:
        value, depth = waiting.pop()
        values += 1
        if isinstance(value, Tensor):
            tensor_bytes += value.numel() * value.element_size()
        elif isinstance(value, Mapping):
            waiting += ((v, depth + 1) for pair in value.items() for v in pair)
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += ((v, depth + 1) for v in value)
        if depth > MAX_NESTING or values + len(waiting) > MAX_VALUES:
            raise UserError(
                f"checkpoint '{path}' holds more than {MAX_VALUES:,} values or nests them deeper "
                f"than {MAX_NESTING}: refused"
            )
    if tensor_bytes > MAX_UNFOLDING * size + UNFOLDING_FREE:
        raise UserError(
            f"checkpoint '{path}' has {size:,} bytes, but its tensors unfold to {tensor_bytes:,}: "
            "refused; save them with .contiguous()"
        )
