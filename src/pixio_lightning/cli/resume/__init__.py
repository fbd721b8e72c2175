"""Which changes of its configuration a run goes on with, and which it refuses.

What changes nothing that is learned is taken and noted: a run that was pre-empted goes on where
there is room. How the global batch is divided among devices may change, its size may not. Every
key that is not named here counts as learned, those of plug-ins too. What is typed beside a
checkpoint that takes its place is refused, not ignored.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy

from pixio_lightning.cli.config_errors import class_of
from pixio_lightning.cli.config_tree import differences, flatten, typed
from pixio_lightning.errors import UserError, printable
from pixio_lightning.models.weights.students import absolute

# Functions of Lightning and torch that take up what a checkpoint holds.
_RESTORES = re.compile("load_(combined_loader_)?state|setstate")

# Keys, with all below them, that change nothing that is learned.
FREE = (
    # Who does the work and what it costs; sums may round differently.
    "data.num_workers",  # streams are functions of the step; shards look to themselves
    "data.timeout",
    "data.restart_pass",  # what shards ask for when the readers are others
    "trainer.accelerator",
    "trainer.benchmark",
    "trainer.deterministic",
    "model.backbone.checkpointing",
    "model.backbone.compile",
    "preemption",
    # When a run stops or gives up; it goes on from there.
    "data.max_bad",
    "trainer.max_epochs",  # the rate goes by trainer.max_steps, beside which it does nothing
    "trainer.max_time",
    "trainer.detect_anomaly",
    # What is kept and shown. Not checkpoint.best: best.ckpt would be the best of a part.
    "checkpoint.every_n_steps",
    "panels",
    "trainer.logger",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    "trainer.enable_autolog_hparams",
    "trainer.enable_checkpointing",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.model_registry",
    # How episodes of a policy run; not how many.
    "data.processes",
    "model.timeout",
    "model.videos",
    # How an evaluation runs; not which samples and how often, by which best.ckpt is chosen.
    "data.val_batch_size",
    "trainer.inference_mode",
    "trainer.num_sanity_val_steps",  # before the first step only
    # Of other verbs.
    "trainer.limit_test_batches",
    "trainer.limit_predict_batches",
)
# Keys that divide the global batch.
DIVISION = (
    "data.batch_size",
    "trainer.accumulate_grad_batches",
    "trainer.devices",
    "trainer.num_nodes",
)
# Options of the trainer that, as whole numbers, count batches and not steps.
COUNTED = ("val_check_interval", "limit_train_batches")
# Keys of a model that its checkpoint answers: what it began with, and how it was made and trained.
_BEGUN = re.compile(r"(students\.[^.]+\.)?(backbone\.weights|pretrained_decoder)$")
_MADE = re.compile(r"(students\.[^.]+\.)?(backbone|optim)\.|pretrained_decoder$")


class Batch(NamedTuple):
    """A global batch and its division."""

    batch_size: int
    processes: int
    accumulate: int

    @property
    def size(self) -> int:
        """Samples of an optimiser step."""
        return self.batch_size * self.processes * self.accumulate

    def __str__(self) -> str:
        many = "es" if self.processes > 1 else ""
        text = f"{self.size} = data.batch_size {self.batch_size} x {self.processes} process{many}"
        more = f" x {self.accumulate} accumulated" if self.accumulate > 1 else ""
        return text + more


def check_changes(
    folder: Path,
    old: dict[str, Any],
    new: dict[str, Any],
    *,
    then: Batch | None,
    now: Batch | None,
    per_step: Callable[[int, int], tuple[int, ...]] | None = None,
) -> str:
    """Return what a run goes on with, in a line; empty if nothing is changed.

    Args:
        folder: The run folder.
        old: Its configuration.
        new: The one it is to go on with.
        then: How its global batch was divided; None if that is not known.
        now: How it would be.
        per_step: Returns how many samples steps have, of a batch size and the number of such
            batches in a step; None where that is the global batch.

    Raises:
        UserError: A key that changes what is learned differs, or the size of the global batch or of
            steps.
    """
    changed = differences(old, new)
    learned = [key for key in changed if not _is_free(key, old, new)]
    divided = [key for key in learned if key in DIVISION]
    if then and now:
        learned = [key for key in learned if key not in divided]
    if learned:
        listed = "; ".join(f"{key}: {changed[key]}" for key in learned)
        raise UserError(
            f"{folder} holds a run with another configuration ({listed}): "
            "run the same line to go on, give another --out, or --fresh to start anew "
            "(the old folder is kept under another name)"
        )
    if then and now and then.size != now.size:
        raise UserError(
            f"{folder} holds a run with a global batch of {then}, but now it would be {now}, which "
            f"changes what is learned: {_same_size(then, now)}give another --out, or --fresh to "
            "start anew (the old folder is kept under another name)"
        )
    if then and now and per_step:
        sizes = [per_step(one.batch_size, one.processes * one.accumulate) for one in (then, now)]
        if sizes[0] != sizes[1]:
            had, has = (" or ".join(str(count) for count in counts) for counts in sizes)
            raise UserError(
                f"{folder} holds a run with a global batch of {then}, in steps of {had} samples, "
                f"and now it would be {now}, in steps of {has}, which changes what is learned: "
                "divide it as it was, give another --out, or --fresh to start anew (the old folder "
                "is kept under another name)"
            )
    counted = [key for key in COUNTED if isinstance(new["trainer"].get(key), int)]
    if then and now and then.accumulate != now.accumulate and counted:
        raise UserError(
            f"{folder} holds a run with trainer.accumulate_grad_batches {then.accumulate}, and now "
            f"it is {now.accumulate}, but trainer.{counted[0]} {new['trainer'][counted[0]]} counts "
            "batches, so that it would be validated at other steps: keep it, and divide by devices "
            "or data.batch_size alone"
        )
    texts = [f"{key}: {text}" for key, text in changed.items()]
    if then and now and then != now:
        texts.append(f"global batch as before, then {then}, now {now}")
    return f"goes on with other {'; '.join(texts)}" if texts else ""


def _is_free(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    if key == "trainer.strategy.timeout":  # how long processes wait for one another
        return True
    if key.startswith("trainer.strategy"):
        # One process, or copies of the model: their checkpoints are one file, whatever their kind.
        names = [_strategy(config["trainer"].get("strategy")) for config in (old, new)]
        return all(n in ("auto", "single_device") or n.startswith("ddp") for n in names)
    if key == "trainer.plugins":
        first, second = (_plugins(config["trainer"].get("plugins")) for config in (old, new))
        others = [p for p in first + second if p not in first or p not in second]
        return all(_is_environment(plugin) for plugin in others)
    # Of each student as of the backbone.
    key = re.sub(r"^model\.students\.[^.]+\.", "model.", key)
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def check_model(
    words: list[str],
    model: dict[str, Any],
    about: dict[str, Any],
    source: Path,
    *,
    trains: bool,
    ways: str,
) -> None:
    """Refuse what is typed of a model and contradicts the checkpoint that takes its place.

    It would be ignored. Other keys of a recipe are not looked at, as they name the model, whatever
    it was begun with; those that say what trained weights read, the model itself compares.

    Args:
        words: The command line.
        model: The configuration of the model that it makes, paths as typed.
        about: The `pixio` entry of the checkpoint that is to be loaded.
        source: The checkpoint.
        trains: Whether it is trained further: then how to train is not ignored.
        ways: What is to be done.

    Raises:
        UserError: A key contradicts it.
    """
    keys = tuple(
        f"{key.removeprefix('model.')}." for key in typed(words) if key.startswith("model.")
    )
    then, now, said = dict(flatten(about.get("config", {}))), dict(flatten(model)), []
    kind = _BEGUN if trains else _MADE
    for key, value in now.items():
        asked = f"{key}.".startswith(keys) and kind.match(key)
        was = then.get(key)  # None: as the weights say
        if not asked or was is None or _is_free(f"model.{key}", {}, {}):
            continue
        if key == "backbone.weights" and "backbone_digest" in about:
            continue  # frozen, so these weights are read, wherever they lie, and told by the digest
        # A checkpoint says where weights were; the path that is typed may mean the same elsewhere.
        same = str(was) in (str(value), absolute(str(value))) or str(was).endswith(f"/{value}")
        if not same:
            said.append(f"model.{key}: {printable(str(was))} -> {value}")
    if said:
        raise UserError(
            f"checkpoint '{source}' is of a model with another configuration "
            f"({'; '.join(said)}), which counts: {ways}"
        )


def _strategy(value: Any) -> str:
    """Return the name of a strategy; DDP with a timeout, say, is DDP, with hooks of its own not."""
    if isinstance(value, dict) and class_of(value.get("class_path", "")) is DDPStrategy:
        given = value.get("init_args", {})
        if not any(given.get(name) for name in given if name.startswith(("ddp_comm", "model_"))):
            return "ddp"
    return str(value)


def _plugins(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _is_environment(plugin: Any) -> bool:
    """Whether a plug-in of the trainer only tells where its processes are."""
    path = plugin.get("class_path", "") if isinstance(plugin, dict) else ""
    cls = class_of(path)
    return cls is not None and issubclass(cls, ClusterEnvironment)


def _same_size(then: Batch, now: Batch) -> str:
    """Advise how to keep the global batch on the processes there are."""
    ways = []
    for key, rest in (
        ("data.batch_size", now.processes * now.accumulate),
        ("trainer.accumulate_grad_batches", now.processes * now.batch_size),
    ):
        if then.size % rest == 0:
            ways.append(f"{key} {then.size // rest}")
    return f"set {' or '.join(ways)}, " if ways else ""


class Accumulation(L.Callback):
    """Keep the count of batches in an epoch right where a run goes on with other accumulation.

    An epoch is a number of optimiser steps; Lightning counts the batches they are made of.
    """

    def __init__(self) -> None:
        self._now = 1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._now = trainer.accumulate_grad_batches

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches make a step."""
        return {"batches": self._now}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count the steps of the checkpoint in batches of this run."""
        then = checkpoint["callbacks"].get(self.state_key, {}).get("batches", self._now)
        if then == self._now or trainer.state.fn != "fit":
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            ready = counts["ready"] // then * self._now
            # A save after the last batch of a step comes before that batch counts as completed.
            behind = {name: counts["ready"] - count for name, count in counts.items()}
            counts.update({name: ready - gap for name, gap in behind.items()})


def while_restoring(error: BaseException) -> bool:
    """Whether an exception comes out of what Lightning does with a checkpoint that it has read."""
    codes = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        Path(code.co_filename).stem == "checkpoint_connector" or _RESTORES.search(code.co_name)
        for code in codes
    )
