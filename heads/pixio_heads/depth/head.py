"""Depth from one image: metric, and up to an affine map of the disparity.

Shapes: B batch, M images the backbone sees for a batch, H x W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixio_heads.depth import losses
from pixio_heads.depth.base import DepthHead
from pixio_heads.depth.maps import enlarged, write_map
from pixio_heads.depth.metrics import Alignment, DepthMetrics, EvalCrop, align
from pixio_lightning.data import unit_of
from pixio_lightning.errors import UserError, above_0, at_least, one_of, refuse_unread, whole_tokens
from pixio_lightning.files import output_path
from pixio_lightning.models import Backbone, Features, LinearDecoder, MakeDecoder
from pixio_lightning.training import Batch, DenseHead, Optim, visualize

Files = Literal["png", "npy"]
Space = Literal["depth", "disparity"]
_THUMBNAIL = (64, 64)  # the median map is taken of maps of this size, so that images may differ


class Depth(DenseHead, DepthHead):
    """Metric depth from one image, in metres: a sigmoid times the greatest depth, SILog loss.

    Args:
        backbone: The encoder.
        decoder: `LinearDecoder` or `DPTDecoder` (with `backbone.layers: quarters`), or any class
            that takes input and output channels and the number of taps.
        reduction: Root of the loss per `image` and then averaged, or over the whole `batch`, which
            is the official form and changes with the number of processes.
        window: Side of the windows that images are evaluated through, in pixels.
        stride: Distance between their origins; None takes two thirds of the window.
        windows_per_chunk: Windows that are evaluated at once, which bounds memory and changes
            nothing else.
        predict_side: Short side that images are brought to for `predict`, in pixels; None takes
            that of the training images. Files have the size of the image all the same.
        eval_crop: Part of the image that is scored.
        min_depth: Least depth that counts, metres; the greatest is the data's `max_depth`.
        files: What `predict` writes: 16-bit PNG or float32 npy, beside a picture.
        optim: Optimiser and schedule.
        cache: Compute the features of a frozen backbone once.
        seed: Seed of drop path.
    """

    # What the sigmoid is multiplied by; the range that is scored is the data's.
    data_attributes = ("max_depth",)
    baseline_names = ("constant", "median_map")

    def __init__(
        self,
        backbone: Backbone,
        *,
        decoder: MakeDecoder = LinearDecoder,
        reduction: losses.Reduction = "image",
        window: int = 256,
        stride: int | None = None,
        windows_per_chunk: int = 16,
        predict_side: int | None = None,
        eval_crop: EvalCrop = "none",
        min_depth: float = 1e-3,
        files: Files = "png",
        optim: Optim = Optim(lr=2e-4, weight_decay=0.01, betas=(0.9, 0.999), schedule="poly"),  # noqa: B008
        cache: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, decoder=decoder, optim=optim, cache=cache, seed=seed)
        one_of("model.reduction", reduction, get_args(losses.Reduction))
        one_of("model.files", files, get_args(Files))
        one_of("model.eval_crop", eval_crop, get_args(EvalCrop))
        above_0("model.min_depth", min_depth, "metres")
        self.reduction, self.min_depth, self.files = reduction, min_depth, files
        self.eval_crop = eval_crop
        self.set_windows(window, stride, windows_per_chunk, predict_side)

    def on_fit_start(self) -> None:
        """Begin as every head does.

        Raises:
            UserError: The data's depth has no unit, so that no metres can be told from it; or
                training images are resized, which evaluated ones are not.
        """
        data = self.trainer.datamodule
        if not getattr(data, "metric", True):
            raise UserError(
                f"depth of data.source {data.source} at '{data.path}' has no unit, but Depth is in "
                "metres: use RelativeDepth"
            )
        if self.trainer.state.fn == "fit" and getattr(data, "short_side", None):
            raise UserError(
                f"data.short_side {data.short_side} is for training images alone, and resized they "
                "show other metres than evaluated ones: leave it out, or use RelativeDepth"
            )
        super().on_fit_start()

    on_validation_start = on_test_start = on_fit_start

    # --- prediction ---------------------------------------------------------------------------

    def build(self, backbone: Backbone) -> nn.Module:
        """Return the decoder to one channel."""
        greatest = self.data_info["max_depth"]
        if self.min_depth >= greatest:  # nothing would be left to learn from, or to score
            raise UserError(
                f"model.min_depth is {self.min_depth:g} m, but data.max_depth is {greatest:g}; "
                "expected less"
            )
        return super().build(backbone)

    def decode_crop(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Return depth `(B, H, W)` in metres, float32."""
        return torch.sigmoid(self.decoded(features, size))[:, 0] * self.data_info["max_depth"]

    def decode_window(self, features: Features) -> Tensor:
        """Return the depth of windows, `(M, 1, S, S)`."""
        return self.decode_crop(features, (self.window, self.window))[:, None]

    def from_mean(self, mean: Tensor) -> Tensor:
        """Return the mean depth `(B, H, W)` of the windows that overlap."""
        return mean[:, 0]

    @property
    def output_config(self) -> dict[str, Any]:
        """Return the unit and the greatest depth."""
        return {
            "values": "depth",
            "unit": "metres",
            "activation": "sigmoid times the greatest, applied",
            "greatest": self.data_info["max_depth"],
        }

    def loss(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the scale-invariant logarithmic loss."""
        return {
            "loss": losses.silog(
                prediction,
                batch["depth"],
                batch["valid"],
                reduction=self.reduction,
                min_depth=self.min_depth,
            )
        }

    # --- evaluation ---------------------------------------------------------------------------

    def metrics(self) -> DepthMetrics:
        """Return the nine figures, means of per-image values, of depths in the data's range."""
        return DepthMetrics(
            min_depth=max(self.min_depth, self.evaluation_info["min_depth"]),
            max_depth=self.evaluation_info["max_depth"],
            eval_crop=self.eval_crop,
        )

    @property
    def protocol(self) -> str:
        """Range, crop, alignment, and how images are seen."""
        return f"{self.metrics().protocol}; windows of {self.window} px every {self.stride}"

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        """Return the median depth of the training set, and the median map of its depth maps."""
        maps = []
        for batch in loader:
            depth = torch.where(batch["valid"], batch["depth"].float(), torch.nan)[:, None]
            # Nearest: means over the border of an object are the depth of nothing.
            maps.append(F.interpolate(depth, _THUMBNAIL, mode="nearest-exact")[:, 0])
        stack = torch.cat(maps)
        constant = stack.nanmedian()
        median_map = stack.nanmedian(dim=0).values
        return {
            "constant": constant,
            "median_map": torch.where(median_map.isnan(), constant, median_map),
        }

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Return the constant and the median map as predictions `(B, H, W)`."""
        shape = batch["depth"].shape
        median_map = self.statistics["median_map"][None, None]
        resized = F.interpolate(median_map, shape[-2:], mode="bilinear", align_corners=False)
        return {
            "constant": self.statistics["constant"].expand(shape),
            "median_map": resized[0].expand(shape),
        }

    def picture(self, batches: list[Batch], predictions: list[Tensor]) -> visualize.Panel:
        """Draw image, truth, prediction and error."""
        maps = [prediction[0] for prediction in predictions]
        return self.draw(batches, maps, [batch["valid"][0] for batch in batches], "prediction")

    def write(self, prediction: Tensor, batch: Batch, folder: Path) -> None:
        """Write NAME.png or NAME.npy, and NAME_colour.png with its scale.

        All PNG of a run have one unit, by the greatest depth that the head can predict.

        Raises:
            UserError: That is more than a 16-bit PNG can hold.
        """
        unit = unit_of(self.data_info["max_depth"]) if self.files == "png" else None
        for name, image, depth in zip(batch["name"], batch["image"], prediction, strict=True):
            large = enlarged(depth, image.shape[-2:])
            write_map(output_path(folder, name, f".{self.files}"), large, unit=unit)
            high = visualize.quantile(depth, 0.98)
            picture = visualize.as_shown(image)
            shown = visualize.colour(enlarged(depth, picture.shape[-2:]) / high, "depth")
            legend = visualize.Legend("depth", 0, float(f"{high:.3g}"), "m", "depth")
            panel = visualize.Panel([[picture, shown]], ["image", "depth"], legends=(legend,))
            self.show(folder, name, panel)


class RelativeDepth(DepthHead):
    """Disparity from one image up to scale and shift: affine-invariant loss, gradient matching.

    Args:
        backbone: The encoder.
        decoder: `LinearDecoder` or `DPTDecoder`, see `Depth`.
        form: How scale and shift are taken out: by median and mean deviation (`robust`), or by
            `least_squares`.
        gradient_weight: Weight of gradient matching beside the affine-invariant loss.
        image_size: Short side that images are brought to in evaluation, a multiple of the pixels of
            a token, as 16; the long side is brought to the nearest one.
        space: Where the prediction is aligned and scored: `disparity` or `depth`.
        cap: Greatest depth of the aligned prediction, metres, in the space `depth`; None takes the
            data's `max_depth`.
        eval_crop: Part of the image that is scored; what is scored of it are depths within the
            data's `min_depth` and `max_depth`.
        optim: Optimiser and schedule.
        cache: Compute the features of a frozen backbone once.
        seed: Seed of drop path.
    """

    baseline_names: tuple[str, ...] = ("constant", "image_row")

    def __init__(
        self,
        backbone: Backbone,
        *,
        decoder: MakeDecoder = LinearDecoder,
        form: losses.Form = "robust",
        gradient_weight: float = 2.0,
        image_size: int = 256,
        space: Space = "depth",
        cap: float | None = None,
        eval_crop: EvalCrop = "none",
        optim: Optim = Optim(lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999), schedule="poly"),  # noqa: B008
        cache: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, decoder=decoder, optim=optim, cache=cache, seed=seed)
        one_of("model.form", form, get_args(losses.Form))
        one_of("model.space", space, get_args(Space))
        one_of("model.eval_crop", eval_crop, get_args(EvalCrop))
        self.form, self.gradient_weight = form, gradient_weight
        at_least(0, **{"model.gradient_weight": gradient_weight})
        whole_tokens("model.image_size", image_size, backbone.stride, backbone.name)
        above_0("model.cap", cap, "metres")
        if space == "disparity":
            refuse_unread("model.cap", cap, None, "model.space is disparity, which is not capped")
        self.image_size, self.space, self.cap, self.eval_crop = image_size, space, cap, eval_crop

    def inputs(self, images: Tensor) -> Tensor:
        """Normalise; in evaluation bring the short side to `image_size`, the long one near it."""
        images = super().inputs(images)
        if self.training:
            return images
        step, short = self.backbone.stride, min(images.shape[-2:])
        scale = self.image_size / short
        size = [round(n * scale / step) * step for n in images.shape[-2:]]
        if tuple(size) == tuple(images.shape[-2:]):
            return images
        return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)

    @property
    def input_config(self) -> dict[str, Any]:
        """Return what decides the size of images in evaluation."""
        return {"image_size": self.image_size}

    @property
    def evaluation_side(self) -> int:
        """Side that square images are brought to."""
        return self.image_size

    @property
    def output_config(self) -> dict[str, Any]:
        """Return that it is disparity, and what is not known of it."""
        return {
            "values": "disparity, greater is nearer",
            "unit": "none: known up to an affine map, scale and shift",
            "activation": "none",
        }

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """Return disparity `(B, H, W)` up to scale and shift, float32."""
        return self.decoded(features, batch["size"])[:, 0]

    def loss(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the affine-invariant loss and gradient matching, and their weighted sum."""
        valid = batch["valid"]
        disparity = torch.where(valid, 1 / batch["depth"].float().clamp_min(1e-6), 0.0)
        affine, residual = losses.affine_invariant(prediction, disparity, valid, form=self.form)
        gradient = losses.gradient_matching(residual, valid)
        total = affine + self.gradient_weight * gradient
        return {"loss": total, "affine": affine, "gradient": gradient}

    @property
    def alignment(self) -> Alignment:
        """Return how a prediction is brought to the truth's scale and shift."""
        return Alignment(space=self.space, cap=self.cap or self.evaluation_info["max_depth"])

    def metrics(self) -> DepthMetrics:
        """Return the nine figures of the aligned prediction, means of per-image values."""
        return DepthMetrics(
            min_depth=self.evaluation_info["min_depth"],
            max_depth=self.evaluation_info["max_depth"],
            eval_crop=self.eval_crop,
            alignment=self.alignment,
        )

    @property
    def protocol(self) -> str:
        """Range, crop, alignment and size."""
        return f"{self.metrics().protocol}; short side {self.image_size} px"

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Return disparity that is the same everywhere, and that grows down the image."""
        height, width = batch["size"]
        rows = torch.arange(height, device=batch["key"].device).float()[:, None]
        found = {"constant": torch.zeros_like(rows), "image_row": rows}
        shape = (len(batch["key"]), height, width)
        return {name: found[name].expand(shape) for name in self.baseline_names}

    def picture(self, batches: list[Batch], predictions: list[Tensor]) -> visualize.Panel:
        """Draw image, truth, the aligned prediction as depth, and its error."""
        alignment = Alignment(space="depth", cap=self.alignment.cap)
        maps, valid = [], [batch["valid"][0] for batch in batches]
        for batch, disparity in zip(batches, predictions, strict=True):
            aligned, _ = align(disparity, batch["depth"], batch["valid"], alignment)
            maps.append(aligned[0].float())
        return self.draw(batches, maps, valid, "prediction, aligned")

    def write(self, prediction: Tensor, batch: Batch, folder: Path) -> None:
        """Write NAME.npy, the disparity, and NAME_colour.png."""
        for name, image, disparity in zip(batch["name"], batch["image"], prediction, strict=True):
            write_map(output_path(folder, name, ".npy"), disparity)
            low, high = disparity.min(), disparity.max()
            picture = visualize.as_shown(image)
            shown = enlarged(
                1 - (disparity - low) / (high - low).clamp_min(1e-6), picture.shape[-2:]
            )
            row = [picture, visualize.colour(shown, "depth")]
            self.show(folder, name, visualize.Panel([row], ["image", "disparity"]))
