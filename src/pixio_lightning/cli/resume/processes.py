"""What all processes of a run must agree on: where it starts, and on which samples."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch

from pixio_lightning.data.datamodule import StreamData
from pixio_lightning.errors import UserError
from pixio_lightning.training import run_folder

_MOST_NAMES = 10_000  # of held-out samples that a run folder keeps


class SameStart(L.Callback):
    """Stop where the processes of a run would start from different checkpoints.

    Each decides by the files it sees before any of them can ask the others.

    Args:
        ckpt_path: What this process starts from.
    """

    def __init__(self, ckpt_path: str | None) -> None:
        self.ckpt_path = ckpt_path

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare with the first process.

        Raises:
            UserError: In all processes, when one of them differs.
        """
        first = trainer.strategy.broadcast(self.ckpt_path)
        if not trainer.strategy.reduce_boolean_decision(first == self.ckpt_path, all=True):
            raise UserError(
                f"process {trainer.global_rank} starts from {self.ckpt_path or 'nothing'}, the "
                f"first from {first or 'nothing'}, and all must agree: the run folder has to be on "
                "a file system that all nodes share"
            )


def _names(data: Any, start: dict[str, Any]) -> dict[str, list[str] | None]:
    """Return what is held out of a run's data, and trained on; None of what is unknown, or many.

    What is trained on is kept by its names in its folder, and by those that it has anywhere; with
    it what the checkpoint that the run was begun from had been trained on.
    """
    if not isinstance(data, StreamData):
        return {"held_out": None, "trained_on": None}
    before, anywhere = start.get("trained_on") if start else [], start.get("trained_anywhere") or []
    held_out = data.names_of("val")
    trained_on = data.names_of("train") if data.training_size() <= _MOST_NAMES else None
    if trained_on is None or before is None or len(trained_on) > _MOST_NAMES:
        trained_on = None
    else:
        trained_on = [*dict.fromkeys((*trained_on, *before))]
    own = data.names_anywhere("train")[:_MOST_NAMES]
    return {
        "held_out": held_out if len(held_out or ()) <= _MOST_NAMES else None,
        "trained_on": trained_on,
        "trained_anywhere": [*dict.fromkeys((*own, *anywhere))],
    }


def _held_out(data: StreamData) -> str:
    """Return a hash of which samples are held out; nothing where none need be there, or is."""
    with suppress(UserError):
        return data.listing("val")
    return ""


class SameSamples(L.Callback):
    """Stop where a run would train on other samples in one process than in another, or than before.

    Their order follows from how many there are: some would come twice in a pass, others never, and
    what one process holds out another would train on.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare what the processes have listed, each by itself, before any batch is read.

        Raises:
            UserError: In all processes, when one of them has listed others than the first.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.world_size == 1 or not isinstance(data, StreamData):
            return
        lists = {"to train on": data.training_order(), "held out": _held_out(data)}
        # As numbers, which any backend gathers: 15 hex digits fit in 64 bits.
        own = [int(text[:15] or "0", 16) for text in lists.values()]
        device = trainer.strategy.root_device
        of_all = trainer.strategy.all_gather(torch.tensor(own, device=device)).cpu()
        for what, column in zip(lists, of_all.T, strict=True):
            others = (column != column[0]).nonzero().flatten().tolist()
            if others:
                which = f"process{'es' if len(others) > 1 else ''} {', '.join(map(str, others))}"
                raise UserError(
                    f"{which} of {trainer.world_size} found other samples {what} than process 0, "
                    "and all must find the same: see that the data holds the same files on all "
                    "nodes, also those that one could not read, and start again"
                )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with what the run folder says; note it in a new one.

        Raises:
            UserError: In all processes, when the samples are others.
        """
        folder, data, text = Path(trainer.default_root_dir), trainer.datamodule, ""
        if trainer.is_global_zero and (now := getattr(data, "listing", str)()):
            state = run_folder.read_state(folder)
            before = state.get("samples") or now
            if trainer.global_step and before != now:
                text = (
                    f"{folder} holds a run on other training samples than there are now: put them "
                    "back as they were, or go on with these in another folder, "
                    f"--ckpt_path {folder / 'last.ckpt'} --out DIR"
                )
            else:
                names = _names(data, state.get("start") or {})
                run_folder.write_state(folder, samples=now, **names)
        if text := trainer.strategy.broadcast(text):
            raise UserError(text)
