"""Sharded checkpoints, folders that torch writes: read whole, and nothing in them that runs.

torch reads the table of its parts, `.metadata`, with the unpickler that runs whatever a file says,
and so it does with values that are no tensors. Here the table is read first, by one that knows
the classes such a table is made of and no others, and torch is told to be careful with the values.
"""

from __future__ import annotations

import math
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from pixio_lightning.errors import UserError
from pixio_lightning.models.weights.bounds import check_archive, load_bounded

TABLE = ".metadata"
_OF_TABLES = "torch.distributed.checkpoint.metadata"
_CLASSES = {
    *((_OF_TABLES, name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *((_OF_TABLES, name) for name in ("TensorStorageMetadata", "BytesStorageMetadata")),
    *((_OF_TABLES, name) for name in ("ChunkStorageMetadata", "TensorProperties")),
    (_OF_TABLES, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    *(("pathlib", name) for name in ("Path", "PosixPath", "PurePosixPath")),
    *(("pathlib._local", name) for name in ("Path", "PosixPath", "PurePosixPath")),
}
_STATE = "state_dict."  # before the names of a module's tensors
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what a table is made of.

        Raises:
            UserError: It is something else; the table's folder is named by whoever asked.
        """
        if (module, name) not in _CLASSES:
            plain = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
            if not plain:
                raise UserError(f"{module}.{name}")
        return super().find_class(module, name)


def check_parts(folder: Path) -> None:
    """Refuse a sharded checkpoint whose table names code, parts elsewhere, or tensors with gaps.

    Raises:
        UserError: It does, or it is damaged.
    """
    for table in {folder / TABLE, *folder.glob(f"*{TABLE}")}:  # each rank may have one of its own
        stored, parts = _read_table(table, folder)
        for name in parts:
            if Path(name).name != name or not (folder / name).is_file():
                raise UserError(
                    f"checkpoint '{folder}' names the part '{name}', which is no file in it"
                )
        if table.name == TABLE:
            _check_tensors(stored, folder, sum((folder / name).stat().st_size for name in parts))


def read_whole(folder: Path) -> dict[str, Any]:
    """Return a sharded checkpoint in one process, on the CPU: its weights and plain data.

    The state of the optimiser is neither read nor returned.

    Raises:
        UserError: It is damaged, or holds code.
    """
    with checked(folder) as stored:
        try:
            weights = _read_weights(folder)
        except Exception:  # damaged bytes lead torch anywhere
            raise UserError(f"checkpoint '{folder}' is damaged: its parts cannot be read") from None
    return stored | {_STATE.rstrip("."): weights}


def _read_weights(folder: Path) -> dict[str, Tensor]:
    reader = dcp.FileSystemReader(folder)
    parts = reader.read_metadata().state_dict_metadata  # looked at by `checked`
    state = {
        name: torch.empty(part.size, dtype=part.properties.dtype)
        for name, part in parts.items()
        if name.startswith(_STATE) and isinstance(part, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is meant
        dcp.load(state, storage_reader=reader, no_dist=True)
    return {name.removeprefix(_STATE): tensor for name, tensor in state.items()}


def _read_table(table: Path, folder: Path) -> tuple[Metadata, set[str]]:
    """Return a table, and the names of the parts in it."""
    if not table.is_file():  # a pipe would be waited for
        raise UserError(f"checkpoint '{folder}' is damaged: it holds no file {table.name}")
    try:
        with table.open("rb") as file:
            stored = _Reader(file).load()
        return stored, {str(info.relative_path) for info in stored.storage_data.values()}
    except UserError as error:
        raise UserError(
            f"checkpoint '{folder}' holds more than tensors and plain data ({error}): refused, "
            "and nothing of it was executed"
        ) from None
    except Exception:  # damaged bytes lead the reader anywhere
        raise UserError(f"checkpoint '{folder}' is damaged: {table.name} cannot be read") from None


def _check_tensors(stored: Metadata, folder: Path, stored_bytes: int) -> None:
    """Refuse tensors that the parts do not fill, since torch leaves as it was what they skip."""
    try:
        items = stored.state_dict_metadata.items()
        tensors = {n: part for n, part in items if isinstance(part, TensorStorageMetadata)}
        gaps = [name for name, part in tensors.items() if not _is_tiled(part)]
        tensor_bytes = sum(
            math.prod(part.size) * part.properties.dtype.itemsize for part in tensors.values()
        )
    except Exception:  # a table may give any value to any field
        raise UserError(f"checkpoint '{folder}' is damaged: {TABLE} cannot be read") from None
    if gaps:
        raise UserError(
            f"checkpoint '{folder}' is damaged: the pieces of the tensor '{gaps[0]}' do not make "
            "it up"
        )
    if tensor_bytes > stored_bytes:
        raise UserError(
            f"checkpoint '{folder}' is damaged: its tensors have {tensor_bytes:,} bytes, its parts "
            f"{stored_bytes:,}"
        )


def _is_tiled(part: TensorStorageMetadata) -> bool:
    """Return whether the pieces are the cells of a grid over the tensor, each one once.

    Ranks without a share store empty pieces, which count for nothing.
    """
    pieces = {
        tuple(zip(chunk.offsets, chunk.sizes, strict=True))
        for chunk in part.chunks
        if math.prod(chunk.sizes)
    }
    if not math.prod(part.size):
        return min(part.size) == 0 and not pieces
    cells = 1
    for axis, length in enumerate(part.size):
        spans = sorted({piece[axis] for piece in pieces})
        end = 0
        for start, extent in spans:
            if start != end or extent <= 0:
                return False
            end += extent
        if end != length:
            return False
        cells *= len(spans)
    return len(pieces) == cells


@contextmanager
def checked(path: Path) -> Iterator[dict[str, Any]]:
    """Let torch read a checkpoint, a folder or a file, as tensors and plain data only.

    Yields:
        What a folder holds beside its parts; of a file, nothing.

    Raises:
        UserError: It holds code, or is damaged.
    """
    plain: dict[str, Any] = {}
    if path.is_dir():
        check_parts(path)
        plain = load_bounded(path / "meta.pt", path)
    else:
        check_archive(path)
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        yield plain
    except dcp.CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        unread = [str(cause) for cause in causes if isinstance(cause, pickle.UnpicklingError)]
        if any("GLOBAL " in text for text in unread):
            raise UserError(
                f"checkpoint '{path}' holds more than tensors and plain data: refused, and nothing "
                "of it was executed"
            ) from None
        if unread:  # torch's own text advises to run what is in it
            raise UserError(f"checkpoint '{path}' is damaged: its parts cannot be read") from None
        raise UserError(
            f"checkpoint '{path}' is damaged or of another model "
            f"({type(causes[0]).__name__}: {str(causes[0])[:200]})"
        ) from error
    finally:
        os.environ.pop(_FORCED)
        if before is not None:
            os.environ[_FORCED] = before
