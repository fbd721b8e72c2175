"""What one pass over held-out samples adds up, on all processes, for a model and its baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection, SumMetric

from pixio_lightning.data.batches import usable
from pixio_lightning.errors import UserError, some_of
from pixio_lightning.models.probes import has_float64

_MODEL = "model"


class ListMetric(Metric):
    """A metric that keeps what it is given, in lists that are joined over all processes.

    A process may have been given nothing, where none of its samples can be used. torchmetrics puts
    a float32 vector in the place of its list, which is of another form than the others' tensors:
    gathering them hangs or aborts.

    Args:
        empty: By name of a list, a tensor of no rows, of the shape and type of what is kept.
        options: Those of `Metric`.
    """

    full_state_update = False

    def __init__(self, empty: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(**options)
        self._empty = dict(empty)
        for name in self._empty:
            self.add_state(name, [], dist_reduce_fx="cat")

    def sync(self, *args: Any, **options: Any) -> None:
        """Join the lists of all processes, as `Metric` does; none of them is empty."""
        for name, empty in self._empty.items():
            kept = getattr(self, name)
            if isinstance(kept, list) and not kept:
                kept.append(empty.to(self.device))
        super().sync(*args, **options)


class Outcome(NamedTuple):
    """The result of an evaluation.

    Attributes:
        n: Samples that were evaluated.
        loss: Their mean loss; None for a head without one.
        metrics: The model's metrics by name.
        baselines: The metrics of each baseline, by its name.
    """

    n: int
    loss: float | None
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]


class Evaluation(nn.Module):
    """Metrics of a model and of the baselines beside it; a module, so that devices follow.

    Their sums are in float64: where a device has none they stay on the CPU.

    Args:
        metrics: Makes the metrics of one of them.
        baselines: Their names.
    """

    meters: Any

    def __init__(self, metrics: Callable[[], Metric | MetricCollection], baselines: Iterable[str]):
        super().__init__()
        here = torch.get_default_device()
        with here if has_float64(here) else torch.device("cpu"):
            self.meters = nn.ModuleDict({name: metrics() for name in (_MODEL, *baselines)})
        self.count = SumMetric(nan_strategy="disable")
        self.loss = SumMetric(nan_strategy="disable")
        self.judged = SumMetric(nan_strategy="disable")  # samples that have a loss

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        to = fn(torch.empty(0, device="cpu")).device
        return super()._apply(fn, recurse) if has_float64(to) else self

    def add(self, count: int, loss: Tensor | None) -> None:
        """Count samples and their mean loss, if they have one."""
        self.count.update(float(count))
        self.loss.update(0.0 if loss is None else count * _beside_sums(loss.detach()))
        self.judged.update(0.0 if loss is None else float(count))

    def score(self, arguments: tuple[Any, ...], baseline: str = _MODEL) -> None:
        """Update the metrics of the model, or of a baseline."""
        self.meters[baseline].update(*apply_to_collection(arguments, Tensor, _beside_sums))

    def score_baselines(
        self, guesses: Mapping[str, Any], scored: Callable[[Any], tuple[Any, ...]]
    ) -> None:
        """Update the metrics of the baselines.

        Args:
            guesses: What each of them says, by its name; None where it has nothing to say.
            scored: Returns the arguments of a guess that update the metrics.

        Raises:
            UserError: They have other names than were promised: one would stand beside the model
                with figures of nothing.
        """
        promised = [name for name in self.meters if name != _MODEL]
        if {*guesses} != {*promised}:
            raise UserError(
                f"the head's `baselines` returns {some_of(guesses) or 'none'}, but its "
                f"`baseline_names` says {some_of(promised) or 'none'}: give the same names in "
                "both, with None for a baseline that has nothing to say of a batch"
            )
        for name, guess in guesses.items():
            if guess is not None:
                self.score(scored(guess), name)

    def reset(self) -> None:
        """Forget all that was added."""
        for meter in (*self.meters.values(), self.count, self.loss, self.judged):
            meter.reset()

    def finish(self) -> Outcome:
        """Return the result over all processes, and start anew."""
        found = {name: _numbers(meter.compute()) for name, meter in self.meters.items()}
        sums = (self.count, self.loss, self.judged)
        n, loss, judged = (float(meter.compute()) for meter in sums)
        self.reset()  # what is kept may be large
        return Outcome(int(n), loss / judged if judged else None, found.pop(_MODEL), found)


def _beside_sums(tensor: Tensor) -> Tensor:
    return tensor if has_float64(tensor.device) else tensor.cpu()


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        values = {"score": values}
    return {name: float(value) for name, value in values.items()}


def without_padding(batch: dict[str, Any], prediction: Any) -> tuple[dict[str, Any], Any]:
    """Drop the rows that only fill a batch up: those of weight 0.

    Raises:
        ValueError: A tensor has not one row for each sample, so that it cannot be told which of
            its rows are to be dropped.
    """
    size = len(batch["weight"])

    def checked(tensor: Tensor) -> Tensor:
        if tensor.ndim and len(tensor) != size:
            raise ValueError(
                f"a batch of {size} samples and its prediction hold a tensor of shape "
                f"{tuple(tensor.shape)}: every tensor in them must have a row for each sample"
            )
        return tensor

    apply_to_collection((batch, prediction), Tensor, checked)
    if bool((batch["weight"] > 0).all()):  # almost every batch
        return batch, prediction
    kept = usable(batch | {"prediction": prediction})
    return kept, kept.pop("prediction")
