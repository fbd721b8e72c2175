"""DenseHead: a dense task that evaluates images through windows.

Shapes: B images, M windows of them, K channels of a prediction, S side of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pixio_lightning.errors import UserError, at_least_1, whole_tokens
from pixio_lightning.models import sliding_window
from pixio_lightning.models.features import Features, joined
from pixio_lightning.training.head import Batch, Head


class DenseHead(Head):
    """A head that trains on crops and evaluates whole images of any size, window by window.

    In evaluation every image is cut, also one that is no larger than a window: windows start at
    0, `stride`, 2 `stride`, ... while that is inside of the image, and what they reach beyond it is
    zero after normalisation, as in the evaluation of Pixio (arXiv 2512.15715). An image as large as
    a window is so seen through four, or, where `stride` is `window`, through one. Only
    `windows_per_chunk` of them are encoded and decoded at once, so that memory grows with the image
    by its prediction alone.

    What is predicted to be looked at (`pixio predict`, pictures given to `predict`) is never
    scored: a photograph is brought to the size of the training images, in which a head of metres
    or of classes knows what it sees, and windows lie inside of it, half a window apart at most, and
    are blended.

    A subclass implements `decode_crop`, `decode_window` and `from_mean`, and calls `set_windows`.

    Attributes:
        window: Side of the windows in pixels.
        stride: Distance between their origins.
        windows_per_chunk: How many are encoded and decoded at once.
        predict_side: Short side that images are brought to where they are predicted, but no more
            than four times their own; None for the median of the training images'.
    """

    predict_side: int | None
    window: int
    stride: int
    windows_per_chunk: int

    # --- for subclasses -----------------------------------------------------------------------

    def decode_crop(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Return the prediction for crops that are seen whole, in training."""
        raise NotImplementedError

    def decode_window(self, features: Features) -> Tensor:
        """Return `(M, K, S, S)` of windows, whose mean counts where they overlap."""
        raise NotImplementedError

    def from_mean(self, mean: Tensor) -> Tensor:
        """Return the prediction for images from the mean `(B, K, H, W)`, which may be changed."""
        raise NotImplementedError

    def set_windows(
        self,
        window: int,
        stride: int | None,
        windows_per_chunk: int,
        predict_side: int | None = None,
    ) -> None:
        """Set the windows; a stride of None is two thirds of one, predict_side as above.

        Raises:
            UserError: Windows of this size or at this distance cannot be.
        """
        self.window, self.windows_per_chunk = window, windows_per_chunk
        self.stride = window * 2 // 3 if stride is None else stride
        whole_tokens("model.window", window, self.backbone.stride, self.backbone.name)
        if not 0 < self.stride <= window:
            raise UserError(
                f"model.stride is {self.stride}, but expected 1 to model.window, {window}, so that "
                "no pixel is left out"
            )
        at_least_1(**{"model.windows_per_chunk": windows_per_chunk})
        at_least_1(**{"model.predict_side": predict_side})
        self.predict_side = predict_side

    def on_fit_start(self) -> None:
        """Begin as every head does; say where crops and windows are not of one size."""
        super().on_fit_start()
        side = getattr(self.trainer.datamodule, "image_size", None)
        if self.begins_training and side not in (None, self.window):
            self.note(
                f"trained on crops of {side} px, evaluated through windows of {self.window}: "
                f"model.window {side} would show the encoder as much as in training"
            )

    # --- the way of a batch -------------------------------------------------------------------

    def encode(self, batch: Batch) -> Features:
        """Return the features of crops in training, and of all windows in evaluation."""
        if self.training or "features" in batch:
            return super().encode(batch)
        pieces = self._pieces(batch["image"])
        return joined([self.backbone(x, normalized=True) for x, _ in pieces]).only(self.reads)

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """Return the prediction for what `encode` returned."""
        if self.training:
            return self.decode_crop(features, batch["size"])
        count = len(sliding_window.corners(batch["size"], window=self.window, stride=self.stride))
        mean = self._mean(len(features.tokens) // count, batch["size"])
        for start in range(0, len(features.tokens), self.windows_per_chunk):
            mean.add(self.decode_window(features.rows(start, start + self.windows_per_chunk)))
        return self.from_mean(mean.result())

    def predicted(self, batch: Batch) -> Tensor:
        """Return the prediction for images, with the features of no more than a chunk at a time."""
        if self.training or "features" in batch:
            return super().predicted(batch)
        return self._through_windows(batch)

    def predicted_to_show(self, batch: Batch) -> Tensor:
        """Return the prediction for images at the size of those of the training, without seams."""
        image = batch["image"]
        size = list(image.shape[-2:])
        short = min(size)
        # A strip would become endless if it were brought to the side of a photograph.
        side = min(self._side_to_show(short), 4 * short)
        if side != short:
            size = [max(1, round(n * side / short)) for n in size]
            scaled = F.interpolate(image.float(), size, mode="bicubic", antialias=True)
            image = scaled.round().clamp(0, 255).to(torch.uint8)
        return self._through_windows(batch | {"image": image}, blend=True)

    def _through_windows(self, batch: Batch, *, blend: bool = False) -> Tensor:
        images, size = len(batch["image"]), tuple(batch["image"].shape[-2:])
        mean = self._mean(images, (size[0], size[1]), blend=blend)
        for piece, counts in self._pieces(batch["image"], blend=blend):
            found = self.decode_window(self.backbone(piece, normalized=True))
            if counts:
                mean.add(found)
        return self.from_mean(mean.result())

    def _side_to_show(self, short: int) -> int:
        if self.predict_side is not None:
            return self.predict_side
        known = self.statistics.get("short_side")
        if known is None:  # nothing was measured, so no scale is the right one
            return min(max(short, self.window), 2 * self.window)
        return int(known)

    def compute_statistics(self) -> dict[str, Tensor]:
        """Return those of `fit_statistics`, and `short_side`, the median of the images' in pixels.

        A photograph taken through windows at another scale than the training's shows another focal
        length: a head of metres would be wrong by their ratio.
        """
        loader = _Measured(self.statistics_loader())
        found = self.fit_statistics(loader)
        if loader.short_sides:
            found = found | {"short_side": torch.tensor(loader.short_sides).median()}
        return found

    @property
    def input_config(self) -> dict[str, Any]:
        """Return what decides how images are cut."""
        return {"window": self.window, "stride": self.stride}

    @property
    def evaluation_side(self) -> int:
        """Side of a window in pixels."""
        return self.window

    def _stride(self, blend: bool) -> int:
        return min(self.stride, self.window // 2) if blend else self.stride

    def _mean(
        self, images: int, size: tuple[int, int], *, blend: bool = False
    ) -> sliding_window.Mean:
        return sliding_window.Mean(
            images, size, window=self.window, stride=self._stride(blend), blend=blend
        )

    def _pieces(self, images: Tensor, *, blend: bool = False) -> Iterator[tuple[Tensor, bool]]:
        """Yield chunks of normalised windows, and whether they count.

        A sharded model runs only where all processes call it equally often: the one with a smaller
        image repeats its last chunk.
        """
        size = (images.shape[-2], images.shape[-1])
        layout: dict[str, Any] = {
            "window": self.window,
            "stride": self._stride(blend),
            "inside": blend,
        }
        count = len(images) * len(sliding_window.corners(size, **layout))
        own = most = -(-count // self.windows_per_chunk)
        if self.device_mesh is not None:  # asked first: the chunks are exchanges, too
            most = int(self.all_gather(torch.tensor(own, device=self.device)).max())
        piece = images
        chunk = self.windows_per_chunk
        for piece in sliding_window.cut(images, **layout, at_once=chunk, prepare=self.inputs):
            yield piece, True
        for _ in range(own, most):
            yield piece, False


class _Measured:
    """A loader that knows, once it was read, the short side of each of its images."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.short_sides: list[int] = []

    def __iter__(self) -> Iterator[Batch]:
        self.short_sides = []
        for batch in self.loader:
            self.short_sides += [int(min(batch["size"]))] * len(batch["name"])
            yield batch

    def __len__(self) -> int:
        return len(self.loader)
