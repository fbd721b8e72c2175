"""Where the time of a training step goes: a page to read, and a trace to look at."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

from pixio_lightning.errors import at_least
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.callbacks.progress import say

PARTS = ("data wait", "encoder", "decoder", "loss and rest", "backward", "optimiser")


class Profile(L.Callback):
    """Measure some steps of a run, then write `profile/` in its folder; it trains on as it was.

    Half of the steps are timed part by part, for which a GPU is waited for after each; the other
    half are traced as they are, by torch's profiler.

    Args:
        first_step: Steps of this start before: compiling and the file cache come first.
        steps: Steps to measure, 2 or more.

    Raises:
        UserError: One is less.
    """

    def __init__(self, first_step: int = 20, steps: int = 20) -> None:
        at_least(0, **{"Profile's first_step": first_step})
        at_least(2, **{"Profile's steps": steps})
        self.timed = range(first_step, first_step + steps // 2)
        self.traced = range(self.timed.stop, self.timed.stop + steps // 2)
        self._seconds: dict[str, float] = defaultdict(float)
        self._batches = 0
        self._written = False
        self._clock = 0.0
        self._hooks: list[Any] = []
        self._profiler: profile | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: BackboneModule) -> None:
        self._batches, self._written = 0, False
        self._clock = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: BackboneModule, *args: Any
    ) -> None:
        if self._batches == self.timed.start:
            for name, part in (("encoder", pl_module.backbone), ("decoder", pl_module.decoder)):
                if part is not None:
                    self._time_forward(part, name, pl_module)
        self._lap("data wait", pl_module)
        if self._batches == self.traced.start:
            activities = [ProfilerActivity.CPU]
            if pl_module.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profiler = profile(activities=activities)
            self._profiler.start()

    def _time_forward(self, part: nn.Module, name: str, module: BackboneModule) -> None:
        self._hooks += [
            part.register_forward_pre_hook(lambda *_: self._lap("loss and rest", module)),
            part.register_forward_hook(lambda *_: self._lap(name, module)),
        ]

    def on_before_backward(self, trainer: L.Trainer, pl_module: BackboneModule, *_: Any) -> None:
        self._lap("loss and rest", pl_module)

    def on_after_backward(self, trainer: L.Trainer, pl_module: BackboneModule) -> None:
        self._lap("backward", pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: BackboneModule, *_: Any) -> None:
        self._lap("optimiser", pl_module)
        self._batches += 1
        if self._batches == self.timed.stop:
            self._remove_hooks()
        if self._batches == self.traced.stop:
            self._write(trainer)
        self._clock = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: BackboneModule) -> None:
        self._clock = time.perf_counter()  # a validation between two steps is no wait for data

    def _lap(self, part: str, module: BackboneModule) -> None:
        """Add the time since the last one to a part."""
        if self._batches not in self.timed:
            return
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        now = time.perf_counter()
        self._seconds[part] += now - self._clock
        self._clock = now

    def _write(self, trainer: L.Trainer) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        self._written = True
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        text = self._summary(profiler)
        (folder / "summary.txt").write_text(text)
        say(text + f"trace: {folder / 'trace.json'}, for chrome://tracing or ui.perfetto.dev")

    def _summary(self, profiler: profile) -> str:
        """Return the share of each part, then what took longest."""
        total = sum(self._seconds.values())
        steps = len(self.timed)
        lines = [f"profile: {1e3 * total / steps:.1f} ms a step, of {steps} steps"]
        lines += [
            f"  {part:<14}{1e3 * self._seconds[part] / steps:9.2f} ms  "
            f"{self._seconds[part] / total:4.0%}"
            for part in PARTS
        ]
        # Without the ranges that torch names, an optimiser's whole step for one.
        averages = EventList([e for e in profiler.key_averages() if not e.is_user_annotation])
        kernels = [e for e in averages if e.device_type != torch.profiler.DeviceType.CPU]
        operations = [e for e in averages if e.key.startswith("aten::")]
        launched = sum(e.count for e in kernels or operations) / len(self.traced)
        kind = "kernels" if kernels else "operations"
        key = "self_device_time_total" if kernels else "self_cpu_time_total"
        lines += [f"{launched:,.0f} {kind} a step; the longest of {len(self.traced)} steps:"]
        lines += [averages.table(sort_by=key, row_limit=15, max_name_column_width=60)]
        return "\n".join(lines) + "\n"

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def on_exception(self, trainer: L.Trainer, pl_module: BackboneModule, error: Any) -> None:
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: BackboneModule) -> None:
        """Leave nothing behind in a run that ends before all steps were measured."""
        self._remove_hooks()
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
        if not self._written and trainer.is_global_zero:
            say(f"profile: the run ended before step {self.traced.stop}, so nothing is written")
