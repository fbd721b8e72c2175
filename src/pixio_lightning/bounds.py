"""Bounds on what a checkpoint may unfold to: a small file must not become a large object.

Three ways are open to a file that holds nothing but tensors and plain data: compression, tensors
that repeat a small storage (a stride of 0, or many views), and containers that hold one container
many times over. `torch.save` compresses nothing, and training writes neither of the others.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pixio_lightning.errors import UserError

MAX_VALUES = 1_000_000
MAX_NESTING = 64
# Tied weights are stored once and named twice; small files may hold small views.
MAX_UNFOLDING, UNFOLDING_FREE = 4, 1 << 24


def check_archive(path: Path) -> None:
    """Refuse a zip archive that is larger inside than outside; other files pass.

    Raises:
        UserError: An entry is compressed, or several share their bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # of an older form or damaged, in whatever way: torch will tell
        return
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
