"""A line in results.jsonl for every evaluation of a head."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from pixio_lightning.data.sample_data import SampleData
from pixio_lightning.files import plugins
from pixio_lightning.training import results
from pixio_lightning.training.evaluation_metrics import Outcome
from pixio_lightning.training.head import Head
from pixio_lightning.training.strategy import of_first


class EvaluationLog(L.Callback):
    """Record each validation and test beside what it must be compared with.

    Attributes:
        recorded: The last line; None before the first, and in all processes but the first one.
    """

    def __init__(self) -> None:
        self.recorded: dict[str, Any] | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._record(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._record(trainer, pl_module, "test")

    def _record(self, trainer: L.Trainer, module: L.LightningModule, split: str) -> None:
        if not isinstance(module, Head) or module.outcome is None:
            return
        digest = _digest_to_record(module)
        # Until the first has written it, as others may read it next: a suite does.
        of_first(partial(self._append, trainer, module, split, digest), trainer)

    def _append(self, trainer: L.Trainer, module: Head, split: str, digest: str | None) -> None:
        assert module.outcome is not None
        folder = Path(trainer.default_root_dir)
        data = trainer.datamodule
        split = data.part_of(split) if isinstance(data, SampleData) else split
        line = _describe(module, module.outcome, split=split, digest=digest)
        if line["verb"] == "fit" and line["checkpoint"] == "last":
            # Before the last one, which stays what a reader of the last line finds.
            results.append_best(folder, line, module.monitor)
        results.append(folder, line)
        self.recorded = line


def _describe(head: Head, outcome: Outcome, *, split: str, digest: str | None) -> dict[str, Any]:
    """Return the line of an evaluation: all that one needs to compare it or to run it again.

    Args:
        head: What was evaluated.
        outcome: Its metrics.
        split: Of the data, as it was read.
        digest: Of the backbone; None while it is being trained.
    """
    trainer, backbone = head.trainer, head.backbone
    data, checkpoint = trainer.datamodule, trainer.ckpt_path
    verb = trainer.state.fn.value
    if verb == "fit":
        which = "last" if results.at_last_step(trainer) else "running"
    else:
        which = Path(checkpoint).stem if checkpoint else "untrained"
    return {
        "task": _task_of(head),
        "dataset": getattr(data, "dataset", type(data).__name__),
        "split": split,
        "samples": data.listing(split) if isinstance(data, SampleData) else None,
        "n": outcome.n,
        "protocol": head.protocol,
        "metrics": outcome.metrics,
        "loss": outcome.loss,
        "baselines": outcome.baselines,
        "seed": {
            "everything": head.provenance.get("seed"),
            "data": getattr(data, "seed", None),
            "model": head.seed,
        },
        "backbone": {
            "name": backbone.name,
            "weights": backbone.weights,
            "digest": digest,
            "licence": backbone.licence,
            "tune": backbone.tune,
            "layers": backbone.tapped,
            "dense_cls": backbone.dense_cls,
        },
        # Of a head that reads patches, to which smaller tokens are a finer grid.
        "token_px": backbone.stride if head.reads in ("tokens", "patches") else None,
        "input": {
            **{key: backbone.identity[key] for key in ("mean", "std")},
            "assumed": backbone.input_assumed,
        },
        "recipe": head.provenance.get("recipe"),
        "files": head.provenance.get("files", {})
        | results.files_read((), None, None if verb == "fit" else checkpoint),
        "overrides": head.provenance.get("overrides"),
        "start": head.provenance.get("start") if verb == "fit" else None,
        "precision": trainer.precision,
        "steps": head.trained_steps,
        "checkpoint": which,
        "checkpoint_path": None if verb == "fit" or not checkpoint else str(checkpoint),
        "verb": verb,
    }


def _digest_to_record(head: Head) -> str | None:
    """Return the backbone's digest; None while it changes, and where nobody records it."""
    trainer = head.trainer
    running = trainer.state.fn == "fit" and not results.at_last_step(trainer)
    if running and not head.backbone.frozen:
        return None  # all of its bytes would be hashed at every validation
    # The parts of a sharded backbone come together in a collective of all processes.
    if trainer.is_global_zero or head.device_mesh is not None:
        return head.backbone_digest
    return None


def _task_of(head: Head) -> str:
    """Return the name a head is installed under, or else its class's."""
    target = f"{type(head).__module__}:{type(head).__qualname__}"
    names = [plugin.name for plugin in plugins.installed() if plugin.target == target]
    return names[0] if names else type(head).__qualname__
