"""Checkpoints that are whole or absent, and that run nothing when loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from pixio_lightning.errors import UserError
from pixio_lightning.files.atomic import remove_leftovers, written_aside
from pixio_lightning.models.weights import sharded
from pixio_lightning.models.weights.bounds import load_bounded
from pixio_lightning.training.checkpoints.form import check_form


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
        remove_leftovers(target)  # of a process that was killed while it saved
        with written_aside(target, durable=True) as aside, aside.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: str | os.PathLike,
        map_location: Callable | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read tensors and plain data; anything else in the file is refused.

        Raises:
            UserError: The file is missing, damaged, or holds code; or it is a sharded run's folder,
                whose optimiser this strategy cannot take up.
        """
        if local_path(path).is_dir():
            raise UserError(
                f"checkpoint '{path}' is a folder, as a sharded run writes: "
                "give the trainer.strategy of that run"
            )
        return read(path, map_location=map_location)


def read(path: str | os.PathLike, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Load a checkpoint that holds nothing but tensors and plain data.

    Of a sharded one, a folder, without the state of its optimiser.

    Raises:
        UserError: The file is missing, damaged, holds code, names code to be run, or unfolds to
            far more than its size.
    """
    target = local_path(path)
    if not target.exists():
        raise UserError(f"checkpoint '{path}' does not exist")
    if target.is_dir():
        checkpoint = sharded.read_whole(target)
    else:
        checkpoint = load_bounded(target, path, map_location=map_location)
    check_form(checkpoint, path)
    return checkpoint


def read_plain(path: Path) -> dict[str, Any]:
    """Return what a checkpoint of ours holds beside weights, of a sharded folder as of a file.

    Tensors of a file are mapped, not read.

    Raises:
        UserError: It is damaged or holds code.
    """
    file = path / "meta.pt" if path.is_dir() else path
    stored = load_bounded(file, path, mapped=not path.is_dir())
    check_form(stored, path)
    return stored
