"""Sharded checkpoints, folders that torch writes: read whole, and nothing in them that runs.

torch reads the table of its parts, `.metadata`, with the unpickler that runs whatever a file says,
and so it does with values that are no tensors. Here the table is read first, by one that knows
the classes such a table is made of and no others, and torch is told to be careful with the values.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from pixio_lightning.errors import UserError
from pixio_lightning.models.weights.bounds import check_archive

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
    """Refuse a sharded checkpoint whose table names code, or parts elsewhere.

    Raises:
        UserError: It does, or it is damaged.
    """
    for table in {folder / TABLE, *folder.glob(f"*{TABLE}")}:  # each rank may have one of its own
        for name in _parts_of(table, folder):
            if Path(name).name != name or not (folder / name).is_file():
                raise UserError(
                    f"checkpoint '{folder}' names the part '{name}', which is no file in it"
                )


def read_whole(folder: Path) -> dict[str, Any]:
    """Return a sharded checkpoint in one process, on the CPU: its weights and plain data.

    The state of the optimiser is neither read nor returned.

    Raises:
        UserError: It is damaged, or holds code.
    """
    with checked(folder):
        stored = torch.load(folder / "meta.pt", map_location="cpu", weights_only=True)
        reader = dcp.FileSystemReader(folder)
        parts = reader.read_metadata().state_dict_metadata  # looked at by `checked`
        state = {
            name: torch.empty(part.size, dtype=part.properties.dtype)
            for name, part in parts.items()
            if name.startswith(_STATE) and isinstance(part, TensorStorageMetadata)
        }
        dcp.load(state, storage_reader=reader, no_dist=True)
    if not isinstance(stored, dict):
        raise UserError(f"checkpoint '{folder}' is damaged: meta.pt holds no dict")
    weights: dict[str, Tensor] = {name.removeprefix(_STATE): t for name, t in state.items()}
    return stored | {_STATE.rstrip("."): weights}


def _parts_of(table: Path, folder: Path) -> set[str]:
    if not table.is_file():  # a pipe would be waited for
        raise UserError(f"checkpoint '{folder}' is damaged: it holds no file {table.name}")
    try:
        with table.open("rb") as file:
            stored = _Reader(file).load()
        return {str(info.relative_path) for info in stored.storage_data.values()}
    except UserError as error:
        raise UserError(
            f"checkpoint '{folder}' holds more than tensors and plain data ({error}): refused, "
            "and nothing of it was executed"
        ) from None
    except Exception:  # damaged bytes lead the reader anywhere
        raise UserError(f"checkpoint '{folder}' is damaged: {table.name} cannot be read") from None


@contextmanager
def checked(path: Path) -> Iterator[None]:
    """Let torch read a checkpoint, a folder or a file, as tensors and plain data only.

    Raises:
        UserError: It holds code, or is damaged.
    """
    if path.is_dir():
        check_parts(path)
        check_archive(path / "meta.pt")
    else:
        check_archive(path)
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        yield
    except dcp.CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        if any(isinstance(cause, pickle.UnpicklingError) for cause in causes):
            raise UserError(
                f"checkpoint '{path}' holds more than tensors and plain data: refused, and nothing "
                "of it was executed"
            ) from None
        raise UserError(
            f"checkpoint '{path}' is damaged or of another model "
            f"({type(causes[0]).__name__}: {str(causes[0])[:200]})"
        ) from error
    finally:
        os.environ.pop(_FORCED)
        if before is not None:
            os.environ[_FORCED] = before
