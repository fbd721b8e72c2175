"""Head: the contract that every task on a backbone follows.

    loader -> encode -> features -> forward -> prediction -> loss, metrics, pictures, files

Shapes: B batch, V views of a sample, M images the backbone sees for a batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from pixio_lightning.errors import UserError
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.features import Features
from pixio_lightning.training import results, visualize
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.data_attributes import refuse_other
from pixio_lightning.training.evaluation_metrics import Evaluation, Outcome, without_padding
from pixio_lightning.training.optim import Optim
from pixio_lightning.training.precision import full_precision, to_float32
from pixio_lightning.training.run_folder import Metrics

Batch = dict[str, Any]
_NO_LOSS = torch.tensor(0.0)


class Head(BackboneModule):
    """One task on a frozen or fine-tuned backbone.

    A subclass implements `build`, `forward`, `loss` and `metrics`, and what it can of
    `fit_statistics` with `baselines`, `picture`, and `write`. It never calls the backbone, and owns
    no parameter outside the module that `build` returns.

    Args:
        backbone: The encoder.
        optim: Optimiser and schedule.
        cache: Compute the features of a frozen backbone once and read them from disk afterwards.
            The data must not be random: set `data.views`, or switch augmentation off.
        seed: Seed of drop path.
    """

    # What the weights are made for: names of attributes of the data module, such as "num_classes".
    # They are in `self.data_info` before `build` is called; of a checkpoint, its own stay.
    data_attributes: tuple[str, ...] = ()
    # Those of them in which the data at hand must agree with a checkpoint.
    same_as_trained: tuple[str, ...] = ()
    # What an evaluation depends on, such as a depth range: names of attributes, whose values are in
    # `self.evaluation_info` before `metrics` is called; those of the data at hand always count.
    evaluation_attributes: tuple[str, ...] = ()
    # Names of the predictions that `baselines` returns.
    baseline_names: tuple[str, ...] = ()
    # Training samples that `fit_statistics` looks at, at most; None for all.
    statistics_samples: int | None = 2000

    def __init__(
        self,
        backbone: Backbone,
        *,
        optim: Optim = Optim(lr=1e-3),  # noqa: B008 (frozen)
        cache: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optim=optim)
        if cache and not backbone.frozen:
            raise UserError("model.cache needs model.backbone.tune frozen: features would change")
        self.cache, self.seed = cache, seed
        self.data_info: dict[str, Any] = {}
        self.evaluation_info: dict[str, Any] = {}
        self._statistics = nn.Module()  # holds buffers, which follow the head to its device
        self.provenance: dict[str, Any] = {}
        self.evaluation: Evaluation | None = None
        self.outcome: Outcome | None = None
        self._loaded_step = 0

    # --- for subclasses -----------------------------------------------------------------------

    def build(self, backbone: Backbone) -> nn.Module | None:
        """Return the module that is trained, sized by the backbone; None for a head without."""
        raise NotImplementedError

    def forward(self, features: Features, batch: Batch) -> Any:
        """Return the prediction, a tensor or a structure of them with B rows.

        Args:
            features: What `encode` returned.
            batch: With `size`, the height and width of the images; it may hold no `image`.
        """
        raise NotImplementedError

    def loss(self, prediction: Any, batch: Batch) -> dict[str, Tensor]:
        """Return scalars by name, means over the batch; `loss` is what is minimised.

        Autocast is off, and no tensor of the prediction is in half precision.
        """
        raise NotImplementedError

    def metrics(self) -> Metric | MetricCollection:
        """Return the metrics of an evaluation; they are updated with what `scored` returns."""
        raise NotImplementedError

    def scored(self, prediction: Any, batch: Batch) -> tuple[Any, ...]:
        """Return the arguments that update the metrics, called without autocast, as `loss`."""
        return prediction, batch["target"]

    def inputs(self, images: Tensor) -> Tensor:
        """Turn uint8 images `(B, 3, H, W)` into what the backbone sees, `(B, 3, h, w)`."""
        return self.backbone.normalize(images)

    @property
    def input_config(self) -> dict[str, Any]:
        """Return, as plain data, all that decides what `inputs` does; the cache goes by it."""
        if type(self).inputs is not Head.inputs:
            raise TypeError(
                f"{type(self).__name__} overrides `inputs`, so it must say what it `input_config`"
            )
        return {}

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        """Look at training samples once, before anything is trained or evaluated.

        Args:
            loader: Batches of training samples as they are evaluated.

        Returns:
            Tensors by name, kept in `self.statistics` and in the checkpoint.
        """
        return {}

    def baselines(self, batch: Batch) -> dict[str, Any]:
        """Return for each name in `baseline_names` what it would predict without looking."""
        return {}

    def picture(self, batches: list[Batch], predictions: list[Any]) -> visualize.Panel | None:
        """Draw single samples, a row for each; None draws nothing. Without autocast, as `loss`."""
        return None

    def write(self, prediction: Any, batch: Batch, folder: Path) -> None:
        """Write the predictions of a batch to files in `folder`, named by `batch["name"]`.

        Autocast is off, and no tensor of the prediction is in half precision.
        """
        raise UserError(f"{type(self).__name__} writes no files: it has no `write`")

    @property
    def protocol(self) -> str:
        """One line on how the metrics are computed; equal lines may be compared."""
        return ""

    # --- the way of a batch -------------------------------------------------------------------

    def encode(self, batch: Batch) -> Features:
        """Return the features of a batch: the only line that calls the backbone."""
        if "features" in batch:
            return self.backbone.features_from_tokens(
                batch["features"].flatten(0, 1), batch["grid"]
            )
        images = batch["image"]
        views = images.shape[1] if images.ndim == 5 else 1
        random_key = None
        if self.training and not self.backbone.frozen:
            keys = batch["key"][:, None] + torch.arange(views, device=images.device)
            random_key = RandomKey(keys.flatten(), self.seed, self.global_step)
        images = self.inputs(images.reshape(-1, *images.shape[-3:]))
        return self.backbone(images, random_key=random_key, normalized=True)

    def predicted(self, batch: Batch) -> Any:
        """Return the prediction that is scored or written."""
        return self(self.encode(batch), batch)

    def predict(self, batch: Tensor | Batch) -> Any:
        """Return the prediction for a batch, outside of any trainer.

        Args:
            batch: As a loader gives it; or uint8 images alone, `(B, 3, H, W)`, or
                `(B, V, 3, H, W)` for a head that looks at several views.
        """
        if isinstance(batch, Tensor):
            batch = {"image": batch, "size": tuple(batch.shape[-2:])}
        was_training = self.training
        self.eval()
        with torch.no_grad():
            prediction = self.predicted(move_data_to_device(batch, self.device))
        self.train(was_training)
        return prediction

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        prediction = to_float32(self(self.encode(batch), batch))
        with full_precision(self.device):
            losses = self.loss(prediction, batch)
        self.log_training(losses["loss"])
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the metrics, of the model and of what predicts without looking."""
        batch, prediction = without_padding(batch, self.predicted(batch))
        if not len(batch["key"]):
            return
        assert self.evaluation is not None
        guesses = to_float32(self.baselines(batch))
        prediction = to_float32(prediction)
        with full_precision(self.device):
            loss = self.loss(prediction, batch)["loss"] if self.decoder is not None else _NO_LOSS
            self.evaluation.add(len(batch["key"]), loss)
            self.evaluation.score(self.scored(prediction, batch))
            for name, guess in guesses.items():
                self.evaluation.score(self.scored(guess, batch), name)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """Write the predictions of a batch."""
        batch, prediction = without_padding(batch, self.predicted(batch))
        if len(batch["key"]):
            with full_precision(self.device):
                folder = Path(self.trainer.default_root_dir) / "predictions"
                self.write(to_float32(prediction), batch, folder)

    @torch.no_grad()
    def pictures(self, chosen: Batch) -> visualize.Panel | None:
        """Draw the samples that the data module chose."""
        batches = chosen["batches"]
        if not batches:  # none of the chosen samples can be used
            return None
        predictions = to_float32([self.predicted(batch) for batch in batches])
        with full_precision(self.device):
            return self.picture(batches, predictions)

    # --- what stands around it ----------------------------------------------------------------

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        if not self.backbone.frozen:
            return True
        with torch.device("meta"):
            decoder = self.decoder or self.build(self.backbone)
        return decoder is not None and any(True for _ in decoder.parameters())

    @property
    def trained_steps(self) -> int:
        """Optimiser steps behind the weights."""
        training = self.attached is not None and self.trainer.state.fn == "fit"
        return self.global_step if training else self._loaded_step

    def configure_model(self) -> None:
        """Ask the data what the head must know, then load and build."""
        if self.evaluation is None:
            self._require_data_attributes()
            self.evaluation = Evaluation(self.metrics, self.baseline_names)
        super().configure_model()

    def _require_data_attributes(self) -> None:
        """Ask the data.

        Raises:
            UserError: It does not say all that the head must know.
        """
        trainer = self.attached
        if trainer is None:
            return
        data = trainer.datamodule
        self.read_data_attributes(data)
        known = self.data_info | self.evaluation_info
        for name in (*self.data_attributes, *self.evaluation_attributes):
            if name not in known:
                raise UserError(
                    f"{type(self).__name__} must know {name} of its data, but "
                    f"{type(data).__name__} does not say: give it an attribute {name}"
                )

    def read_data_attributes(self, data: Any) -> None:
        """Take from a data module what the head must know of it.

        What an evaluation depends on is taken whatever was known; what the weights are made for
        only where nothing is known yet.
        """
        for name in self.data_attributes:
            if name not in self.data_info and (value := getattr(data, name, None)) is not None:
                self.data_info[name] = value
        for name in self.evaluation_attributes:
            if (value := getattr(data, name, None)) is not None:
                self.evaluation_info[name] = value

    def compare(self, data: Any, about: dict[str, Any]) -> None:
        """Refuse data that contradicts a checkpoint.

        Args:
            data: The data module.
            about: The `pixio` entry of the checkpoint.

        Raises:
            UserError: A fact in `same_as_trained` differs.
        """
        names = self.same_as_trained
        of_data = {n: value for n in names if (value := getattr(data, n, None)) is not None}
        refuse_other(names, of_data, about.get("facts", {}))

    def remember(self, about: dict[str, Any]) -> None:
        """Take what a checkpoint says of the data it was trained on.

        Args:
            about: The `pixio` entry of the checkpoint.
        """
        facts = about.get("facts", {})
        self.data_info = {name: facts[name] for name in self.data_attributes if name in facts}
        # Checkpoints of before there were two kinds hold all of them in one place.
        facts = facts | about.get("evaluation_facts", {})
        self.evaluation_info = {n: facts[n] for n in self.evaluation_attributes if n in facts}

    @property
    def statistics(self) -> dict[str, Tensor]:
        """What `fit_statistics` found, on the head's device."""
        return dict(self._statistics.named_buffers())

    @statistics.setter
    def statistics(self, found: dict[str, Tensor]) -> None:
        self._statistics = nn.Module()
        for name, tensor in found.items():
            # Not persistent: they are kept beside the weights, for heads without any.
            self._statistics.register_buffer(name, tensor.to(self.device), persistent=False)

    @property
    def lacks_statistics(self) -> bool:
        """Whether the head fits statistics and has none yet."""
        return not self.statistics and type(self).fit_statistics is not Head.fit_statistics

    def on_fit_start(self) -> None:
        """Compute statistics, unless a checkpoint or a callback brought them."""
        if self.lacks_statistics:
            was_training = self.training
            self.eval()
            self.statistics = self.compute_statistics()
            self.train(was_training)

    on_validation_start = on_test_start = on_fit_start

    def compute_statistics(self) -> dict[str, Tensor]:
        """Return the statistics of training samples, as many as `statistics_samples`."""
        loader = self.trainer.datamodule.statistics_dataloader(self.statistics_samples)
        return self.fit_statistics(loader)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics; `outcome` keeps them beside what they must be compared with."""
        assert self.evaluation is not None
        self.outcome = outcome = self.evaluation.finish()
        stage = "test" if self.trainer.testing else "val"
        values = outcome.metrics | ({"loss": outcome.loss} if self.decoder is not None else {})
        if self.trainer.sanity_checking:
            # The pass before the first step is the start of the curve, but Lightning drops it.
            for logger in self.loggers:
                logger.log_metrics({f"{stage}/{k}": v for k, v in values.items()}, step=0)
            return
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, sync_dist=True)

    on_test_epoch_end = on_validation_epoch_end

    def report(self, metrics: Metrics) -> dict[str, str]:
        """Return the last evaluation, each metric beside its baselines, and the best one."""
        lines = results.read(metrics.path.parent)
        return results.summary(lines[-1]) | results.best_of(lines) if lines else {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the head was told of its data, and its statistics."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["pixio"] |= {
            "facts": self.data_info,
            "evaluation_facts": self.evaluation_info,
            "statistics": self.statistics,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what the weights are made for, whatever data they see now.

        Raises:
            UserError: The data contradicts it.
        """
        super().on_load_checkpoint(checkpoint)
        stored = checkpoint.get("pixio", {})
        of_data, evaluation_info = self.data_info, self.evaluation_info
        self.remember(stored)
        refuse_other(self.same_as_trained, of_data, self.data_info)
        self.data_info = of_data | self.data_info
        self.evaluation_info |= evaluation_info
        self.statistics = stored.get("statistics", {})
        self._loaded_step = checkpoint.get("global_step", 0)
