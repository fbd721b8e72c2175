"""One block before the first step says what will run; one after the last says what came out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import lightning as L
import torch

from pixio_lightning.data.sources import listed
from pixio_lightning.errors import visible
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.training import optim as optimisation
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.callbacks.progress import duration, say
from pixio_lightning.training.precision import fastest_precision
from pixio_lightning.training.results import at_last_step, began
from pixio_lightning.training.run_folder import Metrics, read_state


def millions(count: int) -> str:
    """Write a number of parameters, as `85.9 M`."""
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def plan(module: BackboneModule, *, global_batch: int, batch: str, steps: int) -> dict[str, str]:
    """Return the facts of a run by name, from a built or unbuilt (meta) module."""
    backbone: Backbone = module.backbone
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    settings = [part.optim for part in module.parts] if trained else []
    if trained:
        optimisation.refuse_unread(module.parts)
    for optim in settings:
        optimisation.schedule_factor(optim, steps)  # refuses a decay without an end
    return {
        "backbone": f"{backbone.name}, {millions(sum(p.numel() for p in backbone.parameters()))}"
        f" parameters, {backbone.tune}",
        "weights": f"{backbone.weights} ({backbone.matched or 'not loaded yet'})",
        "licence": backbone.licence,
        "input": _input(backbone),
        **module.facts(),
        "parameters": f"{millions(trained)} trained, {millions(frozen)} frozen",
        "global batch": f"{global_batch} = {batch}",
        "peak lr": _each(_peak(optim, global_batch) for optim in settings) or "none",
        "steps": _each(_schedule(optim, steps) for optim in settings) or str(steps),
    }


def _input(backbone: Backbone) -> str:
    """Return with which mean and deviation pixels are normalised, and whence these are."""
    mean, std = ([round(x, 3) for x in backbone.identity[key]] for key in ("mean", "std"))
    whence = f" (timm's for {backbone.name}: the weights say none)" * backbone.input_assumed
    return f"mean {mean}, deviation {std}{whence}"


def _each(texts: Iterable[str]) -> str:
    """Return what is said of each part that is trained, once where they are equal."""
    return "; ".join(dict.fromkeys(texts))


def _peak(optim: optimisation.Optim, global_batch: int) -> str:
    """Return the peak learning rate, and how it comes about."""
    peak = f"{optimisation.peak_lr(optim, global_batch):g}"
    return f"{peak} " + (
        f"({optim.blr:g} x {global_batch} / 256)" if optim.lr is None else "(as given)"
    )


def _schedule(optim: optimisation.Optim, steps: int) -> str:
    """Return how the learning rate goes; a warm-up may be of a longer run than this one."""
    warmup = optimisation.warmup_steps(optim, steps)
    if warmup > steps > 0:
        return f"{steps}, all of them warm-up, which has {warmup:g}: the peak lr is not reached"
    return f"{steps}, {optim.schedule} after {warmup:g} of warm-up"


def block(title: str, facts: dict[str, str]) -> str:
    """Lay out a title and aligned facts."""
    width = max(map(len, facts))
    return "\n".join([title, *(visible(f"  {n:<{width}}  {v}") for n, v in facts.items())])


class RunCard(L.Callback):
    """Print the plan of a run and its outcome.

    Args:
        recipe: Names of the recipes the run was started from.
        folder: The run folder.
    """

    def __init__(self, recipe: str, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self._start: tuple[float, int] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: BackboneModule) -> None:
        self._start = (time.perf_counter(), trainer.global_step)
        if not trainer.is_global_zero:
            return
        batch = f"{trainer.datamodule.batch_size} x {trainer.world_size} processes"
        if trainer.accumulate_grad_batches > 1:
            batch += f" x {trainer.accumulate_grad_batches} accumulated"
        facts = {"recipe": self.recipe} | plan(
            pl_module,
            global_batch=pl_module.global_batch,
            batch=batch,
            steps=trainer.max_steps,
        )
        device = trainer.strategy.root_device.type
        facts |= getattr(trainer.datamodule, "contents", dict)()
        facts["precision"] = f"{trainer.precision} on {trainer.world_size} x {device}"
        begins = not trainer.global_step  # one that goes on keeps its own
        if begins and device == "cuda" and trainer.precision == "32-true":
            fast = fastest_precision(device)
            facts["precision"] += f" (faster: trainer.precision {fast})" * (fast != "32-true")
        if device == "cpu":
            threads = torch.get_num_threads()
            facts["precision"] += f", {threads} thread{'s' * (threads > 1)} each"
        facts["run folder"] = str(self.folder)
        if start := read_state(self.folder).get("start"):
            facts["begun from"] = began(start)
        if trainer.global_step:
            facts["resumed"] = f"at step {trainer.global_step}"
        say(block("pixio", facts))

    def on_fit_end(self, trainer: L.Trainer, pl_module: BackboneModule) -> None:
        if not trainer.is_global_zero:
            return
        if self._start is None:
            why = "trainer.max_epochs or trainer.limit_train_batches leaves none"
            if trainer.should_stop:
                why = (
                    "trainer.max_time has passed, in which earlier starts of the run count: the "
                    "same line with a longer one goes on"
                )
            say(f"step {trainer.global_step}: no step was taken, as {why}")
            return
        seconds = time.perf_counter() - self._start[0]
        steps = trainer.global_step - self._start[1]
        rate = pl_module.global_batch * steps / seconds if seconds else 0.0
        facts = {"speed": f"{steps} steps in {duration(seconds)}, {rate:.0f} img/s"}
        if not steps:  # what is left was an evaluation
            facts = {}
        bad = getattr(trainer.datamodule, "bad", {})
        if bad:
            reasons = listed(trainer.datamodule.bad_reasons)
            of = f" of the first of {trainer.world_size} processes" * (trainer.world_size > 1)
            facts["unusable images"] = f"{len(bad)}{of} ({reasons}), all listed in bad_files.txt"
        title = f"step {trainer.global_step}"
        if trainer.max_steps > 0 and not at_last_step(trainer):
            title += f" of {trainer.max_steps}"
        say(block(title, outcome(pl_module, self.folder) | facts))


def outcome(module: BackboneModule, folder: Path) -> dict[str, str]:
    """Return what a run folder holds: the module's report, the last pictures, the checkpoint."""
    facts = module.report(Metrics(folder / "metrics.csv"))
    pictures = sorted((folder / "panels").glob("*.png"))
    if pictures:
        facts["pictures"] = str(pictures[-1])
    return facts | {"checkpoint": str(folder / "last.ckpt")}
