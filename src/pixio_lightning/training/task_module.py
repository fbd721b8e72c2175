"""TaskModule: what a module on a backbone knows of its data, and keeps of it in its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pixio_lightning.data.sample_data import SampleData
from pixio_lightning.data.sources import digest_of
from pixio_lightning.errors import UserError, some_of
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.settings import agree
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.optim import Optim


class TaskModule(BackboneModule):
    """A BackboneModule that must know of its data: attributes by name, and statistics of samples.

    Args:
        backbone: The encoder.
        optim: Optimiser and schedule.
    """

    # What the weights are made for: names of attributes of the data module, such as "num_classes".
    # They are in `self.data_info` before `build` is called; of a checkpoint, its own stay, and what
    # goes on to train its weights must agree in all of them.
    data_attributes: tuple[str, ...] = ()
    # Those of them in which data to evaluate on must agree with a checkpoint, too.
    same_as_trained: tuple[str, ...] = ()
    model_as_trained: tuple[str, ...] = ("backbone.layers", "backbone.dense_cls", "decoder")
    # What an evaluation depends on, such as a depth range: names of attributes, whose values are in
    # `self.evaluation_info` before `metrics` is called; those of the data at hand always count.
    evaluation_attributes: tuple[str, ...] = ()
    # Training samples that `fit_statistics` looks at, at most; None for all.
    statistics_samples: int | None = 2000
    # Whether the processes share them, for a `fit_statistics` that gathers; else each reads all.
    shares_statistics = False

    def __init__(self, backbone: Backbone, *, optim: Optim) -> None:
        super().__init__(backbone, optim=optim)
        self.data_info: dict[str, Any] = {}
        self.evaluation_info: dict[str, Any] = {}
        self._statistics = nn.Module()  # holds buffers, which follow the module to its device
        self._fitted_on: str | None = None  # a hash of the samples that statistics are of
        self._loaded_step = 0

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        """Look at training samples once, before anything is trained or evaluated.

        Args:
            loader: Batches of training samples as they are evaluated.

        Returns:
            Tensors by name, kept in `self.statistics` and in the checkpoint.
        """
        return {}

    def kept_statistics(self) -> dict[str, Tensor]:
        """Return what the weights still mean something by, where they go on on other samples.

        All other statistics are then fitted anew.
        """
        return {}

    def require_data_attributes(self) -> None:
        """Ask the data module; without one, all that weights are made for must be known already.

        Raises:
            UserError: It does not say all that the head must know.
        """
        self.require_of(None if self.attached is None else self.attached.datamodule)

    def require_of(self, data: Any) -> None:
        """Take from a data module all that the head must know of it.

        Args:
            data: The data module; of None nothing is taken, and nothing evaluated.

        Raises:
            UserError: It does not say all that the head must know, or contradicts what its weights
                are made for.
        """
        names = self.data_attributes
        if data is not None:
            agreeing = self._agreeing()
            here = {n: found for n in agreeing if (found := getattr(data, n, None)) is not None}
            anew = f"give the same, or make a new {type(self).__name__} for this data"
            refuse_other(agreeing, here, self.data_info, ways=anew, whose="the model")
            self.read_data_attributes(data)
            names = (*names, *self.evaluation_attributes)
        known = self.data_info | self.evaluation_info
        for name in names:
            if name not in known:
                raise self.not_known(name, data)

    def not_known(self, name: str, data: Any = None) -> UserError:
        """Return what to raise where an attribute must be known that a data module does not say."""
        there = f"but {type(data).__name__} does not say: give it an attribute {name}"
        if data is None:
            there = (
                "but there is no data module: give one to the trainer, or to require_of, or load "
                "a run that was trained with pixio_lightning.load"
            )
        return UserError(f"{type(self).__name__} must know {name} of its data, {there}")

    def read_data_attributes(self, data: Any) -> None:
        """Take from a data module what the head must know of it.

        What an evaluation depends on is taken whatever was known; what the weights are made for
        only where nothing is known yet.
        """
        super().read_data_attributes(data)
        for name in self.data_attributes:
            if name not in self.data_info and (value := getattr(data, name, None)) is not None:
                self.data_info[name] = value
        for name in self.evaluation_attributes:
            if (value := getattr(data, name, None)) is not None:
                self.evaluation_info[name] = value

    def _agreeing(self) -> tuple[str, ...]:
        """Return in which facts the data must agree with the weights; none where it is predicted.

        Images to predict say nothing of a head's data.
        """
        if self.attached is not None and self.trainer.state.fn == "predict":
            return ()
        return (*self.same_as_trained, *(self.data_attributes if self.fitting else ()))

    def compare(self, data: Any, about: dict[str, Any], *, training: bool = False) -> None:
        """Refuse data that contradicts a checkpoint.

        Args:
            data: The data module.
            about: The `pixio` entry of the checkpoint.
            training: Whether its weights go on to be trained on the data.

        Raises:
            UserError: A fact in `same_as_trained` differs, or, in training, any that the weights
                are made for.
        """
        names, ways = self.same_as_trained, ""
        if training:
            names = tuple(dict.fromkeys((*names, *self.data_attributes)))
            ways = "give the same, or leave --ckpt_path out to train a new head"
        of_data = {n: value for n in names if (value := getattr(data, n, None)) is not None}
        refuse_other(names, of_data, about.get("facts", {}), ways=ways)

    def remember(self, about: dict[str, Any]) -> None:
        """Take what a checkpoint says of the data it was trained on.

        Args:
            about: The `pixio` entry of the checkpoint.
        """
        facts = about.get("facts", {})
        self.data_info = {name: facts[name] for name in self.data_attributes if name in facts}
        facts = about.get("evaluation_facts", {})
        self.evaluation_info = {n: facts[n] for n in self.evaluation_attributes if n in facts}

    @property
    def statistics(self) -> dict[str, Tensor]:
        """What `fit_statistics` found, on the head's device."""
        return dict(self._statistics.named_buffers())

    @statistics.setter
    def statistics(self, found: dict[str, Tensor]) -> None:
        self._hold(found, self._training_samples())

    def _hold(self, found: Mapping[str, Tensor], of: str | None) -> None:
        self._statistics, self._fitted_on = nn.Module(), of
        for name, tensor in found.items():
            # Not persistent: they are kept beside the weights, for heads without any.
            self._statistics.register_buffer(name, tensor.to(self.device), persistent=False)

    @property
    def lacks_statistics(self) -> bool:
        """Whether the head fits statistics and has none yet, or those of other samples.

        What was trained keeps those of its training, whatever it is evaluated on. A training takes
        those of its own samples, also where it begins with the weights of another one.
        """
        if type(self).fit_statistics is TaskModule.fit_statistics:
            return False
        if not self.statistics:
            return True
        follow = self.decoder is None or self.begins_training
        return follow and self._fitted_on != self._training_samples()

    @property
    def begins_training(self) -> bool:
        """Whether a training is about to begin or to go on, and not one of its validations."""
        trainer = self.attached
        if trainer is None or trainer.state.fn != "fit":
            return False
        return not trainer.evaluating and not trainer.sanity_checking

    def _training_samples(self) -> str | None:
        """Return a hash of the samples that statistics are taken of; None where nobody says.

        By their names, whatever their files are like: no process looks at all of them for that.
        """
        data = self.attached.datamodule if self.attached is not None else None
        if isinstance(data, SampleData):
            return digest_of(data.identity(), data.seed, data.listing())
        return getattr(data, "dataset", None)

    def on_fit_start(self) -> None:
        """Fit statistics, unless a checkpoint or a callback brought them."""
        self.renew_statistics(self.compute_statistics)

    on_validation_start = on_test_start = on_fit_start

    def renew_statistics(self, fit: Callable[[], dict[str, Tensor]]) -> None:
        """Take statistics of the samples at hand, where the head lacks them.

        Args:
            fit: Returns them by name, as `compute_statistics`, or from where they were kept.
        """
        # All or none: what fits them may be shared by the processes.
        strategy = self.trainer.strategy
        if not strategy.reduce_boolean_decision(self.lacks_statistics, all=False):
            return
        with self.in_mode(training=False):
            found = fit() | self.kept_statistics()
        self.statistics = found

    def compute_statistics(self) -> dict[str, Tensor]:
        """Return the statistics of training samples, as many as `statistics_samples`."""
        return self.fit_statistics(self.statistics_loader())

    def statistics_loader(self) -> Any:
        """Return the training samples that `fit_statistics` looks at, as they are evaluated.

        Raises:
            UserError: The data module has none to give.
        """
        data = self.trainer.datamodule
        if not hasattr(data, "statistics_dataloader"):
            raise UserError(
                f"{type(self).__name__} takes statistics of training samples, but "
                f"{type(data).__name__} has no statistics_dataloader(limit, share=False), which "
                "gives each of them once, as it is evaluated: let the data derive from SampleData, "
                "or write one"
            )
        how = {"share": True} if self.shares_statistics else {}
        return data.statistics_dataloader(self.statistics_samples, **how)

    @property
    def trained_steps(self) -> int:
        """Optimiser steps behind the weights."""
        training = self.attached is not None and self.trainer.state.fn == "fit"
        return self.global_step if training else self._loaded_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the head was told of its data, and its statistics."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["pixio"] |= {
            "facts": self.data_info,
            "evaluation_facts": self.evaluation_info,
            # Not on the device: a sharded run's are read where they lie, by all processes.
            "statistics": {name: tensor.cpu() for name, tensor in self.statistics.items()},
            "statistics_of": self._fitted_on,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what the weights are made for, whatever data they see now.

        Raises:
            UserError: The data contradicts it.
        """
        super().on_load_checkpoint(checkpoint)
        stored = checkpoint.get("pixio", {})
        self._refuse_other_preparation(stored.get("backbone") or {})
        of_data, evaluation_info = self.data_info, self.evaluation_info
        self.remember(stored)
        refuse_other(self._agreeing(), of_data, self.data_info)
        self.data_info = of_data | self.data_info
        self.evaluation_info |= evaluation_info
        self._hold(stored.get("statistics", {}), stored.get("statistics_of"))
        self._loaded_step = checkpoint.get("global_step", 0)
        if self.restored_late:  # in place of those that were fitted
            self.renew_statistics(self.compute_statistics)

    def _refuse_other_preparation(self, then: Mapping[str, Any]) -> None:
        """Refuse a backbone whose weights state another mean or deviation of images than then."""
        now = self.backbone.identity
        for key in ("mean", "std"):
            if key in then and not agree(key, then[key], now[key]):
                raise UserError(
                    f"the head was trained on images whose {key} is {list(then[key])}, but weights "
                    f"'{self.backbone.weights}' state {now[key]}: give "
                    f"model.backbone.model_args.{key} as it was, or train anew"
                )


# --- what data says of itself, beside what a checkpoint was trained on --------------------------


def refuse_other(
    names: Iterable[str],
    of_data: Mapping[str, Any],
    of_checkpoint: Mapping[str, Any],
    *,
    ways: str = "",
    whose: str = "the checkpoint",
) -> None:
    """Refuse data that contradicts what weights were trained for.

    Args:
        names: Of the facts that must agree, where both sides know them.
        of_data: Facts by name.
        of_checkpoint: Facts by name.
        ways: What is to be done, where it is not to evaluate on the same.
        whose: Weights they are.

    Raises:
        UserError: A fact differs; both sides are named.
    """
    for name in names:
        if name not in of_data or name not in of_checkpoint:
            continue
        here, there = of_data[name], of_checkpoint[name]
        if _plain(here) == _plain(there):
            continue
        if isinstance(here, (list, tuple)) and isinstance(there, (list, tuple)):
            if _plain(here) == unnamed(len(here)) or _plain(there) == unnamed(len(there)):
                continue  # a side that names nothing contradicts nothing
            what = "classes" if name == "class_names" else name
            raise UserError(
                f"the data has other {what} than {whose} was trained on "
                f"({_missing(here, there, whose)}): {ways or 'give the same ones'}"
            )
        raise UserError(
            f"{name} is {here} in the data, but {whose} was trained with {there}: "
            + (ways or "give the data it was trained on, or another checkpoint")
        )


def unnamed(count: int) -> list[str]:
    """Return names for classes of which only the number is known."""
    return [f"class {i}" for i in range(count)]


def absent_classes(counts: Sequence[float], names: Sequence[str], *, samples: int) -> str:
    """Return which classes no training sample shows, in a line to print; empty if there is none.

    Args:
        counts: How often each class was seen.
        names: Of the classes, in the same order.
        samples: How many samples were looked at.

    Raises:
        UserError: Fewer than two classes occur: every figure would be perfect, and say nothing.
    """
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if len(names) - len(absent) < 2:
        only = ", ".join(name for name in names if name not in absent) or "none"
        raise UserError(
            f"of {len(names)} classes, {samples} training samples show {only}, so nothing would be "
            "told apart; expected two at least: check the labels, and what the data counts as a "
            "class"
        )
    if not absent:
        return ""
    return (
        f"{len(absent)} of {len(names)} classes are in none of {samples} training samples: "
        f"{some_of(absent, limit=10)}"
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _missing(here: Iterable[Any], there: Iterable[Any], whose: str) -> str:
    here, there = [str(x) for x in here], [str(x) for x in there]
    if sorted(here) == sorted(there):
        first = next(i for i, pair in enumerate(zip(here, there, strict=True)) if len({*pair}) > 1)
        return (
            f"in another order: number {first} is {here[first]} in the data, {there[first]} in "
            f"{whose}"
        )
    counts = f"{len(here)} in the data, {len(there)} in {whose}"
    sides = (
        ([name for name in here if name not in there], "only in the data"),
        ([name for name in there if name not in here], f"only in {whose}"),
    )
    found = [f"{some_of(names)} {where}" for names, where in sides if names]
    return "; ".join([counts, *found] if len(here) != len(there) else found) or counts
