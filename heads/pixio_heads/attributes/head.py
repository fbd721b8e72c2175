"""Attributes: what a linear map reads of an image's attributes from each of its tokens.

Shapes: B batch, R readings, C width of a token, D numbers of all attributes, N training images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MetricCollection

from pixio_heads.attributes import picture
from pixio_heads.attributes.metrics import Explained
from pixio_lightning.data import centre
from pixio_lightning.errors import UserError
from pixio_lightning.models import Backbone, Features, ridge
from pixio_lightning.training import Batch, Head, full_precision, visualize

_BINS = 8  # of a colour histogram, for each channel


class Attributes(Head):
    """Attributes by ridge regression from single tokens, their mean, and the patches' mean.

    Nothing is trained by steps: the maps are fitted in closed form to the training images, every
    reading by itself with a penalty of its own, before each evaluation. Beside them stand the same
    of a random backbone of the same architecture (`random_init`), of a histogram of the colours
    (`histogram`), and of labels in another order (`shuffled`).

    Args:
        backbone: The encoder, frozen; read after its last tapped block.
        samples: Training images that maps are fitted to, at most, evenly spread; null for all.
        seed: Of the order of shuffled labels.
    """

    data_attributes = ("attributes",)
    evaluation_attributes = ("image_size", "units")
    baseline_names = ("histogram", "random_init", "shuffled")
    table = "attributes"
    shares_statistics = True

    def __init__(self, backbone: Backbone, *, samples: int | None = 4000, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        if samples is not None and samples < 2:
            raise UserError(f"model.samples is {samples}; expected two images or more, or null")
        self.statistics_samples = samples

    def build(self, backbone: Backbone) -> None:
        """Return nothing to train."""

    @property
    def readings(self) -> list[str]:
        """What is read of an image, by name: the first is the mean of the class tokens, if any."""
        k = self.backbone.n_cls_tokens
        singles = [f"token{i}" for i in range(k)] if k > 1 else []
        return ["", *singles, *(["patches"] if k else [])]

    def metrics(self) -> MetricCollection:
        """Return the share of variance explained, of each attribute from each reading."""
        return MetricCollection({"explained": Explained(self._columns, self.readings)})

    @property
    def _columns(self) -> dict[str, list[str]]:
        return self.data_info["attributes"]

    @property
    def protocol(self) -> str:
        """The map, its features, how it is scored, and what is seen of an image.

        The rule of the readings, not their list: backbones of few and of many class tokens compare.
        """
        many = self.statistics_samples or "all"
        return (
            "ridge regression from normed tokens, the mean of class tokens (patches where there is "
            f"none), each of them, and that of patches; penalty by a held-back fifth, {many} "
            "training images; share of variance explained, around the training mean; centre crop "
            f"of {self.evaluation_side} px"
        )

    def prepared(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the centre that evaluation sees; of a head that has met no data, all."""
        side = self.evaluation_side
        return pixels if side is None else centre(pixels, side)

    @property
    def evaluation_side(self) -> int | None:
        """Side of the centre that is seen."""
        return self.evaluation_info.get("image_size")

    @property
    def output_config(self) -> dict[str, Any]:
        """Return the readings, and the numbers of every attribute with their units."""
        first = "mean of class tokens" if self.backbone.n_cls_tokens else "patches"
        return {
            "values": "numbers of attributes, from each reading",
            "readings": [first, *self.readings[1:]],
            "numbers": [name for own in self._columns.values() for name in own],
            "units": dict(self.evaluation_info.get("units", {})),
        }

    # --- readings and maps --------------------------------------------------------------------

    def _read(self, features: Features) -> Tensor:
        """Return the readings `(B, R, C)`, float32."""
        layer = features.layers[-1]
        tokens = layer.tokens.float()
        parts = [tokens[:, layer.n_cls :].mean(dim=1, keepdim=True)]
        if layer.n_cls:
            cls = tokens[:, : layer.n_cls]
            parts = [cls.mean(dim=1, keepdim=True), *([cls] if layer.n_cls > 1 else []), *parts]
        return torch.cat(parts, dim=1)

    def _random(self, batch: Batch) -> Tensor:
        """Return the readings of a random backbone of the same architecture."""
        return self._read(self.encode_untrained(batch["image"]))

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        """Return the weights `(R, C, D)` and biases `(R, D)` of each kind of map, and the mean."""

        def read(batch: Batch) -> tuple[Tensor, ...]:
            own, random = self._read(self.encode(batch)), self._random(batch)
            return own, random, histogram(batch["image"])[:, None], batch["target"].float()

        own, random, colours, target = self.encoded(loader, read)
        if len(target) < 2:
            raise UserError(f"{len(target)} training images are too few to fit maps; expected two")
        order = torch.randperm(len(target), generator=torch.Generator().manual_seed(self.seed))
        shuffled = target[order.to(target.device)]
        found = {"mean": target.mean(dim=0)}
        for name, x, y in (
            ("own", own, target),
            ("random_init", random, target),
            ("histogram", colours, target),
            ("shuffled", own, shuffled),
        ):
            maps = [ridge(one, y) for one in x.unbind(dim=1)]
            found[f"{name}_weight"] = torch.stack([one.weight for one in maps])
            found[f"{name}_bias"] = torch.stack([one.bias for one in maps])
        return found

    def _told(self, name: str, readings: Tensor) -> Tensor:
        """Return what the maps of a name tell of readings `(B, R, C)`: `(B, R, D)`."""
        weight, bias = self.statistics[f"{name}_weight"], self.statistics[f"{name}_bias"]
        with full_precision(readings.device):
            told = torch.einsum("brc,rcd->brd", readings.float(), weight) + bias
        return told.expand(-1, len(self.readings), -1)

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """Return what each reading tells, `(B, R, D)`; the batch keeps the readings, too."""
        batch["readings"] = self._read(features)
        return self._told("own", batch["readings"])

    def scored(self, prediction: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Return predictions, the truth, and the mean of the training images."""
        return prediction, batch["target"], self.statistics["mean"]

    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Return the same from colours, from a random backbone, and from shuffled labels."""
        if "readings" not in batch:
            batch["readings"] = self._read(self.encode(batch))
        return {
            "histogram": self._told("histogram", histogram(batch["image"])[:, None]),
            "random_init": self._told("random_init", self._random(batch)),
            "shuffled": self._told("shuffled", batch["readings"]),
        }

    # --- pictures and files -------------------------------------------------------------------

    def picture(self, batches: list[Batch], predictions: list[Tensor]) -> visualize.Panel:
        """Draw images in a row, and below each what the mean token tells beside the truth."""
        images = [batch["image"][0] for batch in batches]
        texts = [
            picture.told(self._columns, prediction[0, 0].cpu(), batch["target"][0].cpu())
            for batch, prediction in zip(batches, predictions, strict=True)
        ]
        return visualize.Panel([images, texts], [""] * len(images))

    def on_predict_start(self) -> None:
        """Fit the maps, which nothing stored."""
        super().on_predict_start()
        self.on_validation_start()

    def write(self, prediction: Tensor, batch: Batch, folder: Path) -> None:
        """Add a line for each image to attributes.csv."""
        told = [picture.values(self._columns, row).values() for row in prediction[:, 0].cpu()]
        rows = [[name, *row] for name, row in zip(batch["name"], told, strict=True)]
        self.add_to_table(folder, ["name", *self._columns], rows)


def histogram(images: Tensor) -> Tensor:
    """Return the shares of pixels in eight bins of each channel, `(B, 24)`, of uint8 images."""
    bins = (images.long() * _BINS) // 256  # (B, 3, H, W)
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    at = (bins + channels * _BINS).flatten(1)
    counts = torch.zeros(len(images), images.shape[1] * _BINS, device=images.device)
    counts.scatter_add_(1, at, torch.ones_like(at, dtype=counts.dtype))
    return counts / (images.shape[2] * images.shape[3])
