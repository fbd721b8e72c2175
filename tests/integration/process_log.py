"""Callbacks that write down, for each process, what it held and what it did."""

from __future__ import annotations

import json
import multiprocessing
import os
import weakref
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pixio_lightning.curation import scoring
from pixio_lightning.models.weights import read as weights


def _write(rank: int, values: dict[str, int]) -> None:
    path = Path(os.environ["PROCESS_LOG"])
    path.mkdir(exist_ok=True)
    (path / f"rank{rank}.json").write_text(json.dumps(values))


def read(folder: Path, rank: int) -> dict[str, int]:
    """Return what a process wrote down."""
    return json.loads((folder / f"rank{rank}.json").read_text())


class _Memory(TorchDispatchMode):
    """Count the bytes of floating-point tensors while they live, those of the meta device not."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self.add(tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self.known or not tensor.is_floating_point():
            return
        self.known.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.drop, address, size)

    def drop(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


class MemoryLog(L.Callback):
    """Write down the most memory that building a model took, and what the model takes whole."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.memory = _Memory()
        self.memory.__enter__()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.memory.__exit__(None, None, None)
        sizes = [p.numel() * p.element_size() for p in pl_module.parameters()]
        _write(trainer.global_rank, {"peak": self.memory.peak, "whole": sum(sizes)})


class ProbeLog(L.Callback):
    """Write down how many images were encoded outside of training, and beside how many workers."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.encoded = self.workers = 0
        pl_module.backbone.register_forward_pre_hook(self._note)

    def _note(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if not module.training and inputs[0].dtype == torch.uint8:
            self.encoded += len(inputs[0])
            self.workers = max(self.workers, len(multiprocessing.active_children()))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        _write(trainer.global_rank, {"encoded": self.encoded, "workers": self.workers})


class ScoresLog(L.Callback):
    """Write down how many score files were asked how they were made."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.opened, self.settings_of = 0, scoring.settings_of
        scoring.settings_of = self._count

    def _count(self, path: Path) -> dict[str, Any]:
        self.opened += 1
        return self.settings_of(path)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        scoring.settings_of = self.settings_of
        _write(trainer.global_rank, {"opened": self.opened})


class DigestLog(L.Callback):
    """Write down how often the weights were hashed while a model trained."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.hashed, self.digest = 0, weights.digest
        weights.digest = self._count

    def _count(self, *args: Any) -> str:
        self.hashed += 1
        return self.digest(*args)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        weights.digest = self.digest
        _write(trainer.global_rank, {"hashed": self.hashed})
