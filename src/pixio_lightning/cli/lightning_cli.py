"""LightningCLI with what every run has: recipes, short keys, callbacks, mistakes of one line."""

from __future__ import annotations

import argparse
import copy
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pixio_lightning.cli import config_errors, recipes, resume
from pixio_lightning.cli.class_lookup import CORE_CLASSES, TOP_KEYS
from pixio_lightning.cli.config_tree import flatten, in_files, typed
from pixio_lightning.cli.options import Options
from pixio_lightning.cli.resume.chosen import take_backbones
from pixio_lightning.cli.resume.processes import SameSamples
from pixio_lightning.data.stream import refuse_rereading
from pixio_lightning.errors import UserError
from pixio_lightning.files import expanded
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.build import is_generated, resolve_architecture
from pixio_lightning.models.weights.read import read
from pixio_lightning.training import run_folder
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.callbacks import (
    Checkpoints,
    EvaluationLog,
    MetricsLog,
    Pictures,
    Preemption,
    Progress,
    RunCard,
    Threads,
)
from pixio_lightning.training.checkpoints.checkpoint_io import AtomicIO
from pixio_lightning.training.precision import fastest_precision

_STEPS = {"fit": "training_step", "validate": "validation_step"}
_STEPS |= {verb: f"{verb}_step" for verb in ("test", "predict")}
_NO = {step: getattr(L.LightningModule, step) for step in _STEPS.values()}
_UNTIL = "but a run takes trainer.max_steps, and stops before where it is interrupted: leave it out"
# Options of the trainer, which values of them are refused, and what is said of these.
_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "precision": (
        lambda value: value in ("16-true", "bf16-true"),
        "which would keep weights and labels so: give trainer.precision bf16-mixed or 16-mixed",
    ),
    "min_steps": (bool, _UNTIL),
    "min_epochs": (bool, _UNTIL),
    "default_root_dir": (
        lambda value: value is not None,
        "but a run has one folder, which --out names: give --out {} in its place",
    ),
    "enable_checkpointing": (
        lambda value: value is False,
        "but a run goes on from its last.ckpt: leave it out; checkpoint.every_n_steps 0 saves at "
        "the end only",
    ),
}


class PixioCLI(LightningCLI):
    """LightningCLI over any model around a Backbone; the verb is called by `main`.

    Args:
        options: The command line.
        verb: What is to be done.
    """

    def __init__(self, options: Options, verb: str) -> None:
        self.options, self.verb = options, verb
        args = [word for name in options.configs for word in ("-c", str(recipes.find(name)))]
        super().__init__(
            BackboneModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={
                "max_epochs": -1,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                # The stream divides itself among the processes.
                "use_distributed_sampler": False,
            },
            # An abbreviated key would become another one when a key is added.
            # What jsonargparse prints is not yet what counts: see `parse_arguments`.
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "print_config": None},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            # Without subcommands Lightning never reads a checkpoint's hyper-parameters, which
            # would override the command line.
            run=False,
            args=args + options.rest,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give the callbacks that are always there short keys of their own."""
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(Pictures, "panels")
        parser.add_lightning_class_args(Preemption, "preemption")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a mistake becomes one line. Where it is asked for, print what counts, and end."""
        # What was given, the later counts; all else is a default.
        in_recipes = [in_files([recipes.find(name)]) for name in self.options.configs]
        given = [*in_recipes, typed(self.options.rest)]
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            named = _classes(given)
            raise UserError(config_errors.explain(str(error), TOP_KEYS, named)) from None
        for key, value in list(self.config.items()):
            self.config[key] = expanded(value)
        self._take_architecture()
        evaluates = self.verb in ("validate", "test", "predict")
        self.taken = take_backbones(self.config["model"], self.options) if evaluates else ""
        self._take_rates(given)
        self._take_seed(given)
        self._plain = self._as_plain(self.config)
        for key, values in self._plain.items():
            if key in config_errors.GROUPS:
                config_errors.check_values(values, config_errors.GROUPS[key], key)
            elif key in CORE_CLASSES and (chosen := config_errors.class_of(values["class_path"])):
                config_errors.check_values(values.get("init_args", {}), chosen, key)
        for key, value in flatten(self._plain):
            config_errors.check_leaf(key, value)
        if self.options.print_config:
            print(yaml.safe_dump(self._plain, sort_keys=False), end="")
            parser.exit()

    def _take_architecture(self) -> None:
        """Let weights of the command line say which model they are, not the recipe.

        Where the command line names the model too, the two must agree.
        """
        given = typed(self.options.rest)
        around = self.config["model"]["init_args"]["backbone"]
        backbone = around.get("init_args", around)
        if given.get("model.backbone.name") == "null":  # which is parsed as the text None
            backbone["name"] = None
        if "model.backbone.weights" not in given:
            return
        weights = backbone["weights"]
        if is_generated(weights):
            return
        try:
            resolve_architecture(None, weights, read(weights), {})
        except UserError:  # it does not say, or cannot be read: the recipe's name is tried
            return
        for key in ("name", "model_args"):
            if not any(word.startswith(f"model.backbone.{key}") for word in given):
                backbone[key] = None

    def _take_seed(self, given: list[dict[str, Any]]) -> None:
        """Let model and data follow the run's seed, unless theirs is given with it or later."""
        seed, places = self.config["seed_everything"], range(len(given))
        if isinstance(seed, bool):  # none is set, or it is drawn
            return
        of_run = max((i for i in places if "seed_everything" in given[i]), default=-1)
        for key, arguments in run_folder.nested(self.config, having=("seed",)):
            own = max((i for i in places if f"{key}.seed" in given[i]), default=-1)
            if key in ("model", "data") and of_run > own:
                arguments["seed"] = seed

    def _take_rates(self, given: list[dict[str, Any]]) -> None:
        """Of `lr` and `blr` let the one count that was given last, whatever a head's default is.

        Raises:
            UserError: A recipe or the command line gives both to a training.
        """
        for key, optim in run_folder.nested(self.config, having=("lr", "blr")):
            if optim["lr"] is None or optim["blr"] is None:
                continue
            other = ""
            for source in given:
                rates = {name: source.get(f"{key}.{name}") for name in ("lr", "blr")}
                here = [name for name, rate in rates.items() if rate not in (None, "null")]
                if len(here) > 1:
                    raise UserError(
                        f"{key} has both lr {rates['lr']}, taken as it is, and blr {rates['blr']}, "
                        "for 256 images: give one"
                    )
                other = {"lr": "blr", "blr": "lr"}[here[0]] if here else other
            if other:
                optim[other] = None

    def _as_plain(self, parsed: Any) -> dict[str, Any]:
        """Return a configuration as plain data; parsing has validated it."""
        text = self.parser.dump(parsed, skip_none=False, skip_validation=True, format="yaml")
        return yaml.safe_load(text)

    def config_dict(self) -> dict[str, Any]:
        """Return the complete configuration as plain data, a copy of its own."""
        return copy.deepcopy(self._plain)

    def completed(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a stored configuration with the keys that came since, each at its default.

        A new key's default is what was done before it. What cannot be parsed, such as a key that is
        gone, stays as it is.
        """
        try:
            return self._as_plain(self.parser.parse_object(config))
        except Exception:  # whatever classes and types raise at values of another version
            return config

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; `check` needs no trainer."""
        try:
            super().instantiate_classes()
        except (
            MisconfigurationException,
            argparse.ArgumentError,
            ModuleNotFoundError,
            ValueError,
        ) as error:
            mistake = config_errors.cause(error)
            raise mistake or UserError(config_errors.explain(str(error), TOP_KEYS)) from error
        self._check_verb()
        for module in self.model.modules():  # of a distillation the teacher too
            if isinstance(module, Backbone):
                module.find()

    def _check_verb(self) -> None:
        """Refuse a verb that the model has no step for, such as to train what only scores images.

        Raises:
            UserError: The verbs that it has are named.
        """
        has = [v for v, step in _STEPS.items() if getattr(type(self.model), step) is not _NO[step]]
        if self.verb in _STEPS and self.verb not in has:
            name = type(self.model).__name__
            raise UserError(f"{name} has no step for {self.verb}, only for {' and '.join(has)}")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer with what every run has: bar, card, logs, safe checkpoints."""
        self._check_trainer()
        if self.verb == "check":
            return None  # type: ignore[return-value]
        config, out = self.config_init["trainer"], self.options.out
        kwargs["precision"] = self.precision
        callbacks = self.trainer_defaults["callbacks"] = [
            Threads(),  # before whatever computes
            resume.Accumulation(),
            SameSamples(),
            EvaluationLog(),  # before Checkpoints: a record, then the checkpoint it tells of
        ]
        if config["enable_progress_bar"] is not False:
            callbacks.append(Progress())
        loggers: list[Any] | bool = False
        if self.verb == "fit":
            callbacks.append(RunCard(" ".join(self.options.configs), out))
            loggers = [MetricsLog(out), *self._loggers(config["logger"])]
        try:
            trainer = super().instantiate_trainer(
                default_root_dir=str(out),
                logger=loggers,
                plugins=[*_listed(config["plugins"]), AtomicIO()],
                **kwargs,
            )
        except TypeError as error:  # what Lightning says of values like `devices: two`
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        # First, so that a run that is being pre-empted saves before others do what can wait.
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, Preemption))
        return trainer

    @property
    def precision(self) -> Any:
        """What a run computes in; a pretraining that names none goes on in what it began in."""
        folder, config = self.options.out, self.config_init["trainer"]
        if config["precision"] is not None or not self.model.pretrains:
            return config["precision"]
        goes_on = not self.options.fresh and bool(run_folder.checkpoints(folder))
        known = run_folder.read_state(folder).get("precision") if goes_on else None
        return known or fastest_precision(config["accelerator"])

    def _check_trainer(self) -> None:
        """Refuse options of Lightning that a run cannot heed, before anything is planned or built.

        Raises:
            UserError: One is given; what to do in its place is told.
        """
        trainer = self.config_init["trainer"]
        for name, (is_refused, advice) in _REFUSED.items():
            if is_refused(value := trainer[name]):
                raise UserError(f"trainer.{name} is {value}, {advice.format(value)}")
        epochs, steps = trainer["max_epochs"], trainer["max_steps"]
        if epochs not in (None, -1) and steps > 0:
            raise UserError(
                f"trainer.max_epochs is {epochs} beside trainer.max_steps {steps}, by which the "
                "learning rate goes: set trainer.max_steps alone, of which data.steps_per_epoch "
                "make an epoch"
            )
        rereading = ("overfit_batches", "reload_dataloaders_every_n_epochs")
        refuse_rereading(
            callbacks=_listed(trainer["callbacks"]), **{name: trainer[name] for name in rereading}
        )

    def _loggers(self, asked: Any) -> list[Any]:
        if asked is None or asked is True:
            return [TensorBoardLogger(self.options.out, name="", version="tensorboard")]
        return _listed(asked)


def _classes(given: list[dict[str, Any]]) -> dict[str, type]:
    """Return the classes of model and data that were named last, as far as they are known."""
    found: dict[str, type] = {}
    for key, base in (("model", BackboneModule), ("data", L.LightningDataModule)):
        for source in given:
            name = source.get(f"{key}.class_path", source.get(key))
            if chosen := config_errors.chosen_class(str(name), base):
                found[key] = chosen
    return found


def _listed(value: Any) -> list[Any]:
    if value is None or value is False:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def quieten() -> None:
    """Silence what Lightning says to those who write loops, not to those who run them."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # Evaluations write results.jsonl, and need none.
    warnings.filterwarnings("ignore", r"You called `self\.log.*no logger configured.*")
    # torch counts the cores, but not what a worker of ours waits for.
    warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings(
        "ignore", "You have overridden `transfer_batch_to_device` in `LightningModule` but.*"
    )
    # What Lightning and we call goes in jsonargparse 5, which is not allowed yet.
    warnings.filterwarnings("ignore", "(?s).*was deprecated in v4.49.0.*")
    warnings.filterwarnings("ignore", r".*module\(s\) in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", "predict returned None.*")
    warnings.filterwarnings("ignore", "The `srun` command is available on your system.*")
    warnings.filterwarnings("ignore", "Total length of .* is zero")  # all was done before
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
