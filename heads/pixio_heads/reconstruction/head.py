"""Several pictures in, geometry out: rays, depth, poses and a metric scale.

Shapes: B sets, V views of a set, M = B * V images the backbone sees, H x W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pixio_heads.reconstruction import losses
from pixio_heads.reconstruction.constant import constant_geometry, fit_constant
from pixio_heads.reconstruction.export import Export, export
from pixio_heads.reconstruction.geometry import (
    Geometry,
    intrinsics_of,
    rebased,
    truth_of,
)
from pixio_heads.reconstruction.metrics import ReconstructionMetrics
from pixio_heads.reconstruction.model import Prediction, Reconstructor, Sizes
from pixio_heads.reconstruction.picture import TITLES, set_row
from pixio_heads.reconstruction.reconstructed import Reconstructed
from pixio_lightning.errors import UserError, at_least_1, one_of
from pixio_lightning.files import output_path
from pixio_lightning.models import Backbone, Features
from pixio_lightning.training import Batch, Head, Optim, full_precision, visualize

_PRESETS = {"overall": losses.Weights(), "high_points": losses.HIGH_POINTS}


class Reconstruction(Head):
    """3D reconstruction from several views of a place, after MapAnything (arXiv 2509.13414).

    View 0 of a set is the reference: points and poses are in the frame of its camera.

    Args:
        backbone: The encoder; its last block is read, without class tokens.
        sizes: How large the head is; the default is the one Pixio was measured with.
        weights: Of the loss: `overall`, `high_points`, or every term's own.
        checkpointing: Recompute the head's blocks and maps in the backward pass: less memory.
        views_per_chunk: Views whose maps are decoded at once, which bounds memory; None for all
            while training, else for a million pixels.
        wrong_reference: Evaluate with the reference image of another set as well, of another place
            where there are several: what is left of the figures then was not read from comparing
            views.
        export: What `predict` writes.
        optim: Optimiser and schedule.
        cache: Compute the features of a frozen backbone once.
        seed: Seed of drop path.
    """

    monitor = ("val/points_rel", "min")
    # The constant is fitted to maps of these, pixel by pixel.
    statistics_samples = 1000

    model_as_trained = (*Head.model_as_trained, "sizes")
    evaluation_attributes = ("image_size",)

    def __init__(
        self,
        backbone: Backbone,
        *,
        sizes: Sizes = Sizes(),  # noqa: B008 (frozen)
        weights: Literal["overall", "high_points"] | losses.Weights = "overall",
        checkpointing: bool = False,
        views_per_chunk: int | None = None,
        wrong_reference: bool = False,
        export: Export = Export(),  # noqa: B008 (frozen)
        optim: Optim = Optim(lr=1e-4, weight_decay=0.05, betas=(0.9, 0.95), min_lr=0.01),  # noqa: B008
        cache: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optim=optim, cache=cache, seed=seed)
        at_least_1(**{"model.views_per_chunk": views_per_chunk})
        self.sizes, self.export = sizes, export
        if isinstance(weights, str):
            one_of("model.weights", weights, _PRESETS)
            weights = _PRESETS[weights]
        self.weights = weights
        self.checkpointing, self.views_per_chunk = checkpointing, views_per_chunk
        self.wrong_reference = wrong_reference
        self._mask_is_trained = self.weights.mask > 0
        self._before: Tensor | None = None  # the reference image of the set before
        self.baseline_names = ("constant", "wrong_reference") if wrong_reference else ("constant",)

    def build(self, backbone: Backbone) -> nn.Module:
        """Return the module from features to geometry."""
        return Reconstructor(
            backbone.embed_dim,
            backbone.stride,
            sizes=self.sizes,
            checkpointing=self.checkpointing,
            views_per_chunk=self.views_per_chunk,
        )

    def forward(self, features: Features, batch: Batch) -> Prediction:
        """Return rays, distances, poses and scale of every set."""
        assert self.decoder is not None
        sets = len(batch["image"] if "image" in batch else batch["key"])
        views = len(features.tokens) // sets
        return self.decoder(features, views, batch["size"])

    def prepared(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Refuse a single picture.

        Raises:
            UserError: Always: several views make a set.
        """
        raise UserError(
            "a reconstruction needs several views: give a tensor (B, V, 3, H, W), or run `pixio "
            "predict` on a folder of pictures or a video"
        )

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Return the factored loss and its terms."""
        return losses.factored_loss(prediction, batch, weights=self.weights, training=self.training)

    def remember(self, about: dict[str, Any]) -> None:
        """Take what a checkpoint says of its data, and whether its mask was trained.

        Args:
            about: The `pixio` entry of the checkpoint.
        """
        super().remember(about)
        weights = (about.get("config") or {}).get("init_args", {}).get("weights")
        if weights is not None:
            self._mask_is_trained = not isinstance(weights, dict) or weights.get("mask") != 0

    # --- evaluation ---------------------------------------------------------------------------

    def metrics(self) -> ReconstructionMetrics:
        """Return the figures of MapAnything's benchmark."""
        return ReconstructionMetrics()

    def scored(self, prediction: Prediction | Geometry, batch: Batch) -> tuple[Any, ...]:
        """Return predicted and true geometry, what is valid, and whether it is in metres."""
        guess = prediction.compose() if isinstance(prediction, Prediction) else prediction
        return guess, truth_of(batch), batch["valid"], batch["metric"]

    @property
    def protocol(self) -> str:
        """What is aligned."""
        return (
            "frame of view 0, average distance of valid points normalised, no other alignment; "
            "tau within 3 %, pairs of views by the worse of rotation and line of translation"
        )

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        """Return the best constant reconstruction of the training sets."""
        return fit_constant(loader)

    def on_validation_epoch_start(self) -> None:
        """Begin with nothing, and without a set before."""
        super().on_validation_epoch_start()
        self._before = None

    on_test_epoch_start = on_validation_epoch_start

    def baselines(self, batch: Batch) -> dict[str, Any]:
        """Return the constant, and what is seen with the reference image of another set."""
        with full_precision(self.device):
            found: dict[str, Any] = {"constant": constant_geometry(self.statistics, batch)}
        if not self.wrong_reference:
            return found
        name = "features" if "features" in batch else "image"
        own, others = batch[name][:, 0], self._before
        if len(own) > 1:
            others = own.roll(1, dims=0)
        # The first set has none before it, nor one of another size.
        known = others is not None and others.shape == own.shape
        mixed = batch[name].clone()
        if known:
            mixed[:, 0] = others
        mixed_batch = batch | {name: mixed}
        # Also where there is no other: sharded, the model runs only where all processes call it.
        prediction = self(self.encode(mixed_batch), mixed_batch)
        found["wrong_reference"] = prediction if known else None
        if len(real := own[batch["weight"] > 0]):
            self._before = real[-1:]
        return found

    def picture(
        self, batches: list[Batch], predictions: list[Prediction]
    ) -> visualize.Panel | None:
        """Draw two views, depth of the first, and clouds with cameras from two sides."""
        if not batches:  # none of the sets that were chosen can be used
            return None
        sets = zip(batches, predictions, strict=True)
        rows = [set_row(batch, prediction) for batch, prediction in sets]
        caption = "predicted lengths are brought to the true average distance"
        return visualize.Panel(rows, TITLES, caption)

    def write(self, prediction: Prediction, batch: Batch, folder: Path) -> None:
        """Write every set to a folder of its name: clouds, cameras and arrays, see `Export`."""
        for row, name in enumerate(batch["name"]):
            one = Prediction(*(part[row : row + 1].float().cpu() for part in prediction))
            pictures = self.trainer.datamodule.samples_of("predict")
            names = pictures.picture_names(row)
            if not self._mask_is_trained:  # nothing is known to be no surface
                one = one._replace(mask_logits=torch.ones_like(one.mask_logits))
            found = reconstructed(one, batch["image"][row].cpu(), names=names)
            files = pictures.root and [pictures.root / name for name in names]
            about = {key: batch[key][row].cpu().numpy() for key in ("original_size", "placement")}
            found, out = found._replace(**about), output_path(folder, name)
            for path in export(found, out, self.export, pictures=files):
                print(path, flush=True)


def reconstructed(prediction: Prediction, images: Tensor, *, names: list[str]) -> Reconstructed:
    """Return one set as exporters take it: in metres, in the frame of its first view.

    The pictures count as originals of the size the model saw.

    Args:
        prediction: Of one set.
        images: uint8 `(V, 3, H, W)`.
        names: Of the views.
    """
    geometry = rebased(prediction.compose())
    scale = geometry.scale
    cam2world = geometry.cam2world[0].clone()
    cam2world[:, :3, 3] *= scale
    views, _, height, width = images.shape
    return Reconstructed(
        names=names,
        image=images.movedim(1, -1).numpy(),
        points=(geometry.points[0] * scale).numpy(),
        depth=(geometry.depth[0] * scale).numpy(),
        confidence=prediction.confidence[0].numpy(),
        mask=(prediction.mask_logits[0] > 0).numpy(),
        intrinsics=intrinsics_of(prediction.rays[0]).numpy(),
        cam2world=cam2world.numpy(),
        original_size=torch.tensor([[height, width]]).expand(views, 2).numpy(),
        placement=torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(views, 4).numpy(),
    )
