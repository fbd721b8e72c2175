"""The class of every pixel, from one image.

Shapes: B batch, M images the backbone sees for a batch, K classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pixio_heads.segmentation.losses import Reduction, cross_entropy
from pixio_heads.segmentation.metrics import IGNORED, SegmentationMetrics
from pixio_lightning.errors import UserError, one_of
from pixio_lightning.files import output_path
from pixio_lightning.models import Backbone, Features, LinearDecoder, MakeDecoder
from pixio_lightning.training import Batch, DenseHead, Optim, absent_classes, visualize

_THUMBNAIL = (64, 64)  # the majority is taken of maps of this size, so that images may differ


class Segmentation(DenseHead):
    """The class of every pixel of an image: cross-entropy, pixels without a class left out.

    Args:
        backbone: The encoder.
        decoder: `LinearDecoder` or `DPTDecoder` (with `backbone.layers: quarters`), or any class
            that takes input and output channels and the number of taps.
        reduction: Mean of the loss per `image` and then averaged, or over the whole `batch`, which
            is the official form and changes with the number of processes.
        window: Side of the windows that images are evaluated through, in pixels.
        stride: Distance between their origins; None takes two thirds of the window.
        windows_per_chunk: Windows that are evaluated at once, which bounds memory and changes
            nothing else.
        predict_side: Short side that images are brought to for `predict`, in pixels; None takes
            that of the training images. Files have the size of the image all the same.
        optim: Optimiser and schedule.
        cache: Compute the features of a frozen backbone once.
        seed: Seed of drop path.
    """

    data_attributes = ("num_classes", "class_names")
    same_as_trained = ("class_names", "num_classes")
    baseline_names = ("majority", "majority_map")
    monitor = ("val/miou", "max")

    def __init__(
        self,
        backbone: Backbone,
        *,
        decoder: MakeDecoder = LinearDecoder,
        reduction: Reduction = "image",
        window: int = 256,
        stride: int | None = None,
        windows_per_chunk: int = 16,
        predict_side: int | None = None,
        optim: Optim = Optim(  # noqa: B008 (frozen)
            lr=2e-4, weight_decay=0.01, betas=(0.9, 0.999), warmup=0.0, schedule="poly"
        ),
        cache: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optim=optim, cache=cache, seed=seed)
        self.make_decoder: Any = decoder
        one_of("model.reduction", reduction, get_args(Reduction))
        self.reduction: Reduction = reduction
        self.set_windows(window, stride, windows_per_chunk, predict_side)

    def build(self, backbone: Backbone) -> nn.Module:
        """Return the decoder to one channel for each class."""
        channels = self.data_info["num_classes"]
        return self.make_decoder(backbone.dense_dim, channels, taps=len(backbone.tapped))

    # --- prediction ---------------------------------------------------------------------------

    def decode_crop(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Return logits `(B, K, H, W)`, float32."""
        assert self.decoder is not None
        return self.decoder(features, size).float()

    def decode_window(self, features: Features) -> Tensor:
        """Return the probabilities `(M, K, S, S)`: soft-max before the mean, not after."""
        return self.decode_crop(features, (self.window, self.window)).softmax(1)

    def from_mean(self, mean: Tensor) -> Tensor:
        """Return scores `(B, K, H, W)`, the logarithms of the mean probabilities."""
        return mean.clamp_min_(torch.finfo(mean.dtype).tiny).log_()

    @property
    def output_config(self) -> dict[str, Any]:
        """Return what the scores are, and the classes in their order."""
        return {
            "values": "natural logarithms of the classes' probabilities",
            "activation": "softmax and logarithm, applied",
            "class_names": list(self.data_info["class_names"]),
        }

    def loss(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the labelled pixels."""
        return {"loss": cross_entropy(prediction, batch["target"], reduction=self.reduction)}

    # --- evaluation ---------------------------------------------------------------------------

    def metrics(self) -> SegmentationMetrics:
        """Return mean intersection over union and pixel accuracy."""
        return SegmentationMetrics(self.data_info["num_classes"])

    def on_validation_epoch_end(self) -> None:
        """Log the metrics; say so where nothing could be told apart."""
        super().on_validation_epoch_end()
        assert self.evaluation is not None
        count: Any = self.evaluation.meters["model"].occurring
        if count < 2:
            self.note(
                f"{count} of {self.data_info['num_classes']} classes occur in what was evaluated: "
                "the figures say nothing; check the masks"
            )

    on_test_epoch_end = on_validation_epoch_end

    @property
    def protocol(self) -> str:
        """Classes, pooling, and how images are seen."""
        return f"{self.metrics().protocol}; windows of {self.window} px every {self.stride}"

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        """Return the most frequent class of all training pixels, and that of every position."""
        num_classes = self.data_info["num_classes"]
        # One row more, for pixels without a class.
        counts = torch.zeros(num_classes + 1, _THUMBNAIL[0] * _THUMBNAIL[1], dtype=torch.long)
        pixels, samples = torch.zeros(IGNORED + 1, dtype=torch.long), 0
        for batch in loader:
            pixels += batch["target"].flatten().long().bincount(minlength=IGNORED + 1)
            samples += len(batch["target"])
            # As float, in which labels are exact: torch resizes no integers beyond bytes.
            labels = batch["target"].float()[:, None]
            small = F.interpolate(labels, _THUMBNAIL, mode="nearest-exact").long().flatten(1)
            counts.scatter_add_(0, small.clamp_max(num_classes), torch.ones_like(small))
        self._look_at(pixels, samples)
        counts = counts[:-1]
        majority = pixels[:num_classes].argmax()  # of pixels, as what is scored
        majority_map = torch.where(counts.sum(0) > 0, counts.argmax(0), majority)
        return {"majority": majority, "majority_map": majority_map.view(_THUMBNAIL)}

    def _look_at(self, pixels: Tensor, samples: int) -> None:
        """Name classes without a pixel; of a single one, say what else the masks hold.

        Raises:
            UserError: Fewer than two classes occur.
        """
        counts, names = pixels[: self.data_info["num_classes"]], self.data_info["class_names"]
        if int((counts > 0).sum()) == 1 and pixels[IGNORED]:
            raise UserError(
                f"the masks of {samples} training samples hold no class but "
                f"{names[int(counts.argmax())]}; all else in them is for no class: {IGNORED}, or 0 "
                "with data.label_shift -1. Is that the foreground? Store the index of its class "
                "instead, or leave data.label_shift out"
            )
        self.note(absent_classes(counts.tolist(), names, samples=samples))

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Return both as class indices `(B, H, W)`."""
        shape = batch["target"].shape
        small = self.statistics["majority_map"].float()[None, None]
        resized = F.interpolate(small, shape[-2:], mode="nearest-exact")[0].long()
        return {
            "majority": self.statistics["majority"].expand(shape),
            "majority_map": resized.expand(shape),
        }

    # --- pictures and files -------------------------------------------------------------------

    def picture(self, batches: list[Batch], predictions: list[Tensor]) -> visualize.Panel:
        """Draw image, truth, prediction, and the wrong pixels in the colour predicted there."""
        colours = visualize.class_colours(self.data_info["num_classes"])
        rows, shown = [], []
        for batch, scores in zip(batches, predictions, strict=True):
            truth, guess = batch["target"][0].long().cpu(), scores[0].argmax(0).cpu()
            known = truth != IGNORED
            error = visualize.paint(torch.where(known, guess, IGNORED), colours)
            error[:, guess == truth] = 0
            shown += [truth[known], guess.flatten()]
            rows.append(
                [
                    batch["image"][0],
                    visualize.paint(truth, colours),
                    visualize.paint(guess, colours),
                    error,
                ]
            )
        return visualize.Panel(
            rows,
            ["image", "truth", "prediction", "error"],
            caption="error: the predicted class where it is wrong; black is right, grey unknown",
            swatches=self._swatches(torch.cat(shown)),
        )

    def _swatches(self, labels: Tensor) -> tuple[visualize.Swatch, ...]:
        """Return the colours of the classes that occur."""
        colours = visualize.class_colours(self.data_info["num_classes"]).tolist()
        names = self.data_info["class_names"]
        return tuple(
            visualize.Swatch(names[i], tuple(colours[i])) for i in labels.unique().tolist()
        )

    def write(self, prediction: Tensor, batch: Batch, folder: Path) -> None:
        """Write NAME.png, class indices with a palette, and NAME_colour.png, over the image."""
        colours = visualize.class_colours(self.data_info["num_classes"])
        for name, image, scores in zip(batch["name"], batch["image"], prediction, strict=True):
            labels = _labels(scores, image.shape[-2:]).cpu()
            indexed = Image.fromarray(labels.to(torch.uint8).numpy())
            indexed.putpalette(colours.flatten().tolist())
            visualize.save(output_path(folder, name, ".png"), indexed)
            picture = visualize.as_shown(image)
            labels = _labels(scores, picture.shape[-2:]).cpu()
            laid = picture // 2 + visualize.paint(labels, colours) // 2
            panel = visualize.Panel(
                [[picture, laid]], ["image", "classes"], swatches=self._swatches(labels)
            )
            self.show(folder, name, panel)


def _labels(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Return the likeliest classes `(H, W)` at the size of an image, of scores `(K, h, w)`.

    One class at a time: the scores of 150 for a photograph would fill the memory.
    """
    if scores.shape[-2:] == tuple(size):
        return scores.argmax(0)
    best = scores.new_full(tuple(size), -torch.inf)
    labels = torch.zeros(tuple(size), dtype=torch.int16, device=scores.device)
    for index, score in enumerate(scores):
        large = F.interpolate(score[None, None], tuple(size), mode="bilinear")[0, 0]
        labels = torch.where(large > best, index, labels)
        best = large.maximum(best)
    return labels
