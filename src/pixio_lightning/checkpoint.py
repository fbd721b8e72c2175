"""Checkpoints that are whole or absent, and that run nothing when loaded."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pixio_lightning import sharded_parts
from pixio_lightning.bounds import check_archive, check_unfolded
from pixio_lightning.checkpoint_form import check_form
from pixio_lightning.errors import UserError


def local_path(path: str | os.PathLike) -> Path:
    """Return the path of a checkpoint on this machine.

    Raises:
        UserError: It is a URL: what others can write is not loaded.
    """
    if "://" in str(path):
        raise UserError(
            f"checkpoint '{path}' is a URL; download it, check it and give its local path"
        )
    return Path(path)


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to disk, so that a rename inside survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class AtomicIO(TorchCheckpointIO):
    """Write beside the target, fsync, rename; read with `weights_only=True`, whatever is asked.

    Lightning stages in $TMPDIR and moves, which copies when that is another file system: a kill
    during the copy leaves half a file in place of the last good one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write the checkpoint, whole or not at all."""
        target = local_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        for left in target.parent.glob(f".{target.name}.*.tmp"):
            left.unlink(missing_ok=True)  # of a process killed while it saved
        with aside.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(aside, target)
        sync_folder(target.parent)

    def load_checkpoint(
        self,
        path: str | os.PathLike,
        map_location: Callable | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read tensors and plain data; anything else in the file is refused.

        Raises:
            UserError: The file is missing, damaged, or holds code.
        """
        return read(path, map_location=map_location)


def read(path: str | os.PathLike, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Load a checkpoint file that holds nothing but tensors and plain data.

    Raises:
        UserError: The file is missing, damaged, holds code, names code to be run, or unfolds to
            far more than its size.
    """
    target = local_path(path)
    if target.is_dir():
        raise UserError(
            f"checkpoint '{path}' is a folder, as a sharded run writes: "
            "give the trainer.strategy of that run"
        )
    if not target.exists():
        raise UserError(f"checkpoint '{path}' does not exist")
    checkpoint = _load(target, path, map_location=map_location)
    stored = checkpoint.get("hyper_parameters")
    hostile = {"_instantiator", "_class_path"} & set(stored if isinstance(stored, dict) else ())
    if hostile:
        raise UserError(
            f"checkpoint '{path}' names code to run ({', '.join(sorted(hostile))}); "
            "it was not written by pixio and is not loaded"
        )
    check_form(checkpoint, path)
    return checkpoint


def _load(
    file: Path, path: str | os.PathLike, *, map_location: Any, mmap: bool = False
) -> dict[str, Any]:
    """Load tensors and plain data of a file; a mistake is told of the checkpoint at `path`."""
    check_archive(file)
    try:
        checkpoint = torch.load(file, map_location=map_location, mmap=mmap, weights_only=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead it to
        # Its own text advises to load the file all the same, and run what is in it.
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise UserError(
                f"checkpoint '{path}' holds more than tensors and plain data ({found[1]}): "
                "refused, and nothing of it was executed"
            ) from None
        raise UserError(f"checkpoint '{path}' is damaged, or is none") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"checkpoint '{path}' holds a {type(checkpoint).__name__}, not a dict")
    check_unfolded(checkpoint, file)
    return checkpoint


def read_plain(path: Path) -> dict[str, Any]:
    """Return what a checkpoint of ours holds beside weights, of a sharded folder as of a file.

    Tensors of a file are mapped, not read.

    Raises:
        UserError: It is damaged or holds code.
    """
    file = path / "meta.pt" if path.is_dir() else path
    if file.is_file():
        check_archive(file)
    stored = _load(file, path, map_location="cpu", mmap=not path.is_dir())
    check_form(stored, path)
    return stored


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2: parameters, gradients and optimiser state sharded over all processes.

    A checkpoint is a folder, to which every process writes its part; it is written aside and
    renamed when all have finished.
    """

    def __init__(self) -> None:
        # Lightning's own "auto" means tensor parallelism inside a node; `device_mesh` says what
        # is meant here, and needs no count of processes in the recipe.
        super().__init__(data_parallel_size="auto", tensor_parallel_size="auto")
        self._mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        """Open the process group and lay the mesh over it."""
        super().setup_environment()
        names = ("data_parallel", "tensor_parallel")
        self._mesh = init_device_mesh(
            self.root_device.type, (self.world_size, 1), mesh_dim_names=names
        )

    @property
    def device_mesh(self) -> DeviceMesh:
        """All processes along `data_parallel`."""
        assert self._mesh is not None, "setup_environment lays the mesh"
        return self._mesh

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write the folder of all parts, whole or not at all."""
        target = local_path(self.broadcast(str(filepath)))
        aside = target.with_name(f".{target.name}.tmp")
        if self.is_global_zero:
            shutil.rmtree(aside, ignore_errors=True)
        self.barrier("aside")
        super().save_checkpoint(checkpoint, aside, storage_options)
        self.barrier("written")
        if self.is_global_zero:
            _replace(aside, target)
        self.barrier("renamed")

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the folder, tensors and plain data only.

        Raises:
            UserError: It is damaged, or holds code.
        """
        path = local_path(checkpoint_path)
        with sharded_parts.checked(path):
            checkpoint = super().load_checkpoint(path, weights_only=True)
        check_form(checkpoint, path)
        return checkpoint


def _replace(aside: Path, target: Path) -> None:
    for part in aside.rglob("*"):
        if part.is_file():
            with part.open("rb") as file:
                os.fsync(file.fileno())
    if not target.exists():
        os.rename(aside, target)
    else:
        # A folder cannot be renamed over another: keep the old one until the new one stands.
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
        os.rename(aside, target)
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(target.parent)


def recover(target: Path) -> None:
    """Put the previous folder back if a run was killed between the two renames of a save."""
    old = target.with_name(f".{target.name}.old")
    if old.is_dir() and not target.exists():
        os.rename(old, target)
