"""Head: the contract that every task on a backbone follows.

    loader -> encode -> features -> forward -> prediction -> loss, metrics, pictures, files

Shapes: B batch, V views of a sample, M images the backbone sees for a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from pixio_lightning.errors import UserError
from pixio_lightning.files import add_rows
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.features import Features, Reads, joined
from pixio_lightning.training import results, visualize
from pixio_lightning.training.evaluation_metrics import Evaluation, Outcome, without_padding
from pixio_lightning.training.given_pictures import images_of, pixels_of
from pixio_lightning.training.optim import Optim
from pixio_lightning.training.precision import full_precision, taken_by, to_float32
from pixio_lightning.training.run_folder import Metrics
from pixio_lightning.training.task_module import TaskModule

Batch = dict[str, Any]


class Head(TaskModule):
    """One task on a frozen or fine-tuned backbone.

    A subclass implements `build`, `forward`, `loss` and `metrics`, and what it can of
    `fit_statistics` with `baselines`, `picture`, and `write`; without `loss` it trains nothing. It
    never calls the backbone, and owns no parameter outside the module that `build` returns.

    Args:
        backbone: The encoder.
        optim: Optimiser and schedule.
        cache: Compute the features of a frozen backbone once and read them from disk afterwards.
            The data must not be random: set `data.views`, or switch augmentation off.
        seed: Seed of drop path.
    """

    # Names of the predictions that `baselines` returns.
    baseline_names: tuple[str, ...] = ()
    # Name of the table in predictions/ that `write` adds to; None for none.
    table: str | None = None
    # Images that a frozen backbone encodes at once, at most.
    images_per_chunk = 256

    def __init__(
        self,
        backbone: Backbone,
        *,
        optim: Optim = Optim(lr=1e-3),  # noqa: B008 (frozen)
        cache: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optim=optim)
        if type(self).loss is Head.loss and not backbone.frozen:
            raise UserError(
                f"{type(self).__name__} trains nothing: set model.backbone.tune to frozen"
            )
        if cache and not backbone.frozen:
            raise UserError("model.cache needs model.backbone.tune frozen: features would change")
        self.cache, self.seed = cache, seed
        self.provenance: dict[str, Any] = {}
        self.evaluation: Evaluation | None = None
        self._evaluated: Any = None  # what was known of the data when it was built
        self.outcome: Outcome | None = None
        self._untrained: list[Backbone] = []  # in a list, so that it is no part of the module

    # --- for subclasses -----------------------------------------------------------------------

    def build(self, backbone: Backbone) -> nn.Module | None:
        """Return the module that is trained, sized by the backbone; None for a head without."""
        raise NotImplementedError

    def forward(self, features: Features, batch: Batch) -> Any:
        """Return the prediction, a tensor or a structure of them with B rows.

        Args:
            features: What `encode` returned: of V views, `B * V` rows.
            batch: With `size`, the height and width of the images; it may hold no `image`.
        """
        raise NotImplementedError

    def loss(self, prediction: Any, batch: Batch) -> dict[str, Tensor]:
        """Return scalars by name, means over the batch; `loss` is what is minimised.

        Autocast is off, and no tensor of the prediction is in half precision.
        """
        raise NotImplementedError

    def validation_loss(self, prediction: Any, batch: Batch) -> Tensor | None:
        """Return the loss that an evaluation reports, as `loss` does; None for none."""
        return self.loss(prediction, batch)["loss"] if self.decoder is not None else None

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
    def reads(self) -> Reads:
        """Which tokens `forward` reads; the cache stores no others, and `encode` returns none.

        The class tokens of an image are a fraction of a percent of all its tokens.
        """
        return "tokens"

    @property
    def input_config(self) -> dict[str, Any]:
        """Return, as plain data, all that decides what `inputs` does; the cache goes by it."""
        if type(self).inputs is not Head.inputs:
            raise UserError(
                f"{type(self).__name__} overrides `inputs`, but not `input_config`, by which the "
                "cache knows what the backbone was shown: return from it, as plain data, all that "
                "decides what `inputs` does"
            )
        return {}

    @property
    def evaluation_side(self) -> int | None:
        """Side in pixels of the square images that evaluation sees; None if sizes are their own."""
        return None

    @property
    def output_config(self) -> dict[str, Any]:
        """Return, as plain data, what the numbers of a prediction are: `values`, `unit`, ...

        An exported file carries it, whose reader has nothing else to know them by.
        """
        return {}

    def baselines(self, batch: Batch) -> dict[str, Any]:
        """Return for each name in `baseline_names` what it would predict without looking.

        None is what it cannot predict of a batch. All names and no others are returned:
        everything else is refused.

        What calls the model calls it for every batch, equally often: sharded, it runs only where
        all processes do. A batch may then be of stand-ins, rows of weight 0, alone.
        """
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
        """Return what `forward` reads of the features of a batch."""
        if "features" in batch:
            raw = batch["features"].flatten(0, 1)
            return self.backbone.features_from_tokens(raw, batch["grid"], self.reads)
        if self.reads == "nothing":
            return Features((), self.backbone.dense_cls)
        images = batch["image"]
        views = images.shape[1] if images.ndim == 5 else 1
        random_key = None
        if self.training and not self.backbone.frozen:
            keys = batch["key"][:, None] + torch.arange(views, device=images.device)
            random_key = RandomKey(keys.flatten(), self.seed, self.global_step)
        return self.encode_images(images.reshape(-1, *images.shape[-3:]), random_key)

    def encode_images(self, images: Tensor, random_key: RandomKey | None = None) -> Features:
        """Return the same for uint8 images `(M, 3, H, W)`: the only line that calls the backbone.

        Of a frozen backbone no more than `images_per_chunk` are encoded at once.
        """
        at_once = self.images_per_chunk if self.backbone.frozen else len(images)
        parts = [
            self.backbone(self.inputs(chunk), random_key=random_key, normalized=True)
            for chunk in images.split(at_once)
        ]
        return joined([part.only(self.reads) for part in parts])

    def encode_untrained(self, images: Tensor) -> Features:
        """Return the same by a random backbone of the same architecture, all images at once."""
        own = self.backbone
        if not self._untrained:
            taps: dict[str, Any] = {"layers": list(own.tapped), "dense_cls": own.dense_cls}
            random = Backbone(own.name, weights="random:0", model_args=own.model_args, **taps)
            self._untrained = [random]
        random = self._untrained[0].to(images.device)
        return random(self.inputs(images), normalized=True).only(self.reads)

    def predicted(self, batch: Batch) -> Any:
        """Return the prediction that is scored or written."""
        return self(self.encode(batch), batch)

    def prepared(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what evaluation sees of a picture `(H, W, 3)`, where that is not all of it."""
        return pixels

    def predicted_to_show(self, batch: Batch) -> Any:
        """Return the prediction for images of any size, which is written; it is never scored."""
        return self.predicted(batch)

    def predict(self, images: Any) -> Any:
        """Return the prediction for images, outside of any trainer.

        Args:
            images: A picture, which is prepared as evaluation does: a path, a PIL image, or an
                array `(H, W, 3)`; the prediction then has one row, and of a dense head the size
                that was looked at. Or a list of pictures, for a list of predictions. Or a tensor,
                seen as it is: `(B, 3, H, W)`, or `(B, V, 3, H, W)` for a head that looks at V
                views. Bytes, or floats of 0 to 1. Or a batch as a loader gives it.

        Raises:
            UserError: It is none of these; or the head was neither trained nor loaded.
        """
        if self.evaluation is None and self.trains:
            raise UserError(
                f"{type(self).__name__} is not built yet, so it has nothing to predict with: let a "
                "trainer fit it, or load a run that was trained with pixio_lightning.load"
            )
        if isinstance(images, (list, tuple)) or (
            isinstance(images, np.ndarray) and images.ndim == 4
        ):
            return [self.predict(picture) for picture in images]
        channels = self.backbone.vit.patch_embed.proj.in_channels
        predicted, batch = self.predicted, images
        if not isinstance(images, (dict, Tensor)):
            pixels = self.prepared(pixels_of(images, channels=channels))
            images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
            predicted = self.predicted_to_show
        if isinstance(images, Tensor):
            images = images_of(images, channels=channels)
            batch = {"image": images, "size": tuple(images.shape[-2:])}
        with torch.no_grad(), self.in_mode(training=False):
            return predicted(move_data_to_device(taken_by(self.device, batch), self.device))

    def on_predict_start(self) -> None:
        """Remove tables of earlier predictions, before any process writes a line."""
        super().on_predict_start()
        if self.trainer.is_global_zero and self.table is not None:
            folder = Path(self.trainer.default_root_dir) / "predictions"
            for left in folder.glob(f"{self.table}*.csv"):
                left.unlink()
        self.trainer.strategy.barrier("table")

    def add_to_table(
        self, folder: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]
    ) -> None:
        """Add rows to the table in `folder`; each process but the first has one of its own."""
        rank = f"-{self.global_rank}" if self.global_rank else ""
        add_rows(folder / f"{self.table}{rank}.csv", columns, rows)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        prediction = to_float32(self(self.encode(batch), batch))
        with full_precision(self.device):
            losses = self.loss(prediction, batch)
        self.log_training(losses["loss"])
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the metrics, of the model and of what predicts without looking."""
        given = batch
        batch, prediction = without_padding(given, self.predicted(given))
        if not len(batch["key"]):
            if self.device_mesh is not None:
                # Where it calls the model, too: sharded, that runs only where all processes do.
                self.baselines(given)
            return
        assert self.evaluation is not None
        guesses = to_float32(self.baselines(batch))
        prediction = to_float32(prediction)
        with full_precision(self.device):
            self.evaluation.add(len(batch["key"]), self.validation_loss(prediction, batch))
            self.evaluation.score(self.scored(prediction, batch))
            self.evaluation.score_baselines(guesses, lambda guess: self.scored(guess, batch))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """Write the predictions of a batch."""
        batch, prediction = without_padding(batch, self.predicted_to_show(batch))
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

    def configure_callbacks(self) -> list[L.Callback]:
        """Return what fills and reads the cache, if it is asked for."""
        from pixio_lightning.training.callbacks.feature_cache import FeatureCache

        return [FeatureCache()] if self.cache else []

    def on_fit_start(self) -> None:
        """Begin as every task does.

        Raises:
            UserError: The cache is asked for, and what fills it was left out.
        """
        from pixio_lightning.training.callbacks.feature_cache import FeatureCache

        if self.cache and not any(isinstance(one, FeatureCache) for one in self.trainer.callbacks):
            raise UserError(
                f"model.cache is true, but {type(self).__name__}.configure_callbacks leaves out "
                "what fills it: begin it with super().configure_callbacks()"
            )
        super().on_fit_start()

    def configure_model(self) -> None:
        """Ask the data what the head must know, then load and build.

        Raises:
            UserError: It does not say all that must be known; or a frozen backbone was to be
                sharded.
        """
        self.require_data_attributes()
        known = (dict(self.data_info), dict(self.evaluation_info))
        if self.evaluation is None or known != self._evaluated:  # other data than before
            try:
                self.evaluation = Evaluation(self.metrics, self.baseline_names)
            except KeyError as missing:  # of `evaluation_info`, where there is no data
                if missing.args[0] not in self.evaluation_attributes:
                    raise
                raise self.not_known(missing.args[0]) from None
            self._evaluated = known
        super().configure_model()

    @property
    def meters(self) -> Iterable[Any]:
        """The metrics of the model and of its baselines."""
        return (self.evaluation,)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics; `outcome` keeps them beside what they must be compared with."""
        assert self.evaluation is not None
        self.outcome = outcome = self.evaluation.finish()
        values = outcome.metrics | ({} if outcome.loss is None else {"loss": outcome.loss})
        self.log_evaluation(values)

    on_test_epoch_end = on_validation_epoch_end

    def report(self, metrics: Metrics) -> dict[str, str]:
        """Return a training's last evaluation, each metric beside its baselines, and the best."""
        lines = [line for line in results.read(metrics.path.parent) if line["verb"] == "fit"]
        return results.summary(lines[-1]) | results.best_of(lines) if lines else {}
