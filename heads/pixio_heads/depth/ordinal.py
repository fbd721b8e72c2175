"""Which of two points is nearer: how often the disparity is right about it, as DA-2K asks.

Shapes: B batch, N pairs of an image, H x W pixels. A pair is (nearer, farther), a point (row,
column).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from pixio_heads.depth.head import RelativeDepth
from pixio_lightning.models import Backbone, LinearDecoder, MakeDecoder
from pixio_lightning.training import Batch, Optim, visualize

_NEAR, _FAR = (60, 220, 90), (235, 60, 60)  # colours of the two points in pictures


def at_points(disparity: Tensor, points: Tensor) -> Tensor:
    """Return the disparity `(B, N, 2)` of pairs of points.

    Args:
        disparity: `(B, H, W)`.
        points: int64 `(B, N, 2, 2)`, inside of the image.
    """
    rows = torch.arange(len(disparity), device=disparity.device)[:, None, None]
    return disparity[rows, points[..., 0], points[..., 1]]


class OrdinalAccuracy(Metric):
    """The share of pairs whose nearer point has the greater disparity, in all and by scene type.

    Equal disparities are wrong. An image counts by its pairs, as in DA-2K's figures
    (arXiv 2406.09414).

    Args:
        kinds: The scene types.
    """

    full_state_update = False
    correct: Tensor
    pairs: Tensor

    def __init__(self, kinds: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kinds = tuple(kinds)
        zero = torch.zeros(len(self.kinds), dtype=torch.float64)
        self.add_state("correct", zero.clone(), dist_reduce_fx="sum")
        self.add_state("pairs", zero.clone(), dist_reduce_fx="sum")

    def update(self, disparity: Tensor, points: Tensor, kind: Tensor) -> None:
        """Add images.

        Args:
            disparity: `(B, H, W)`.
            points: int64 `(B, N, 2, 2)`.
            kind: Index of the scene type `(B,)`.
        """
        nearer, farther = at_points(disparity, points).unbind(-1)
        right = (nearer > farther).sum(1).to(self.correct)
        self.correct.index_add_(0, kind, right)
        self.pairs.index_add_(0, kind, torch.full_like(right, points.shape[1]))

    def compute(self) -> dict[str, Tensor]:
        """Return `accuracy`, `accuracy_KIND` of each kind that was met, and `pairs`."""
        found = {"accuracy": self.correct.sum() / self.pairs.sum()}
        for kind, correct, pairs in zip(self.kinds, self.correct, self.pairs, strict=True):
            if pairs:
                found[f"accuracy_{kind}"] = correct / pairs
        return found | {"pairs": self.pairs.sum()}


class OrdinalDepth(RelativeDepth):
    """Disparity up to scale and shift, judged by which of two points is nearer (DA-2K).

    It takes the checkpoints of RelativeDepth. Trained by itself, it learns from the pairs alone.

    Args:
        backbone: The encoder.
        decoder: `LinearDecoder` or `DPTDecoder`, see `Depth`.
        image_size: Short side that images are brought to in evaluation, see `RelativeDepth`.
        optim: Optimiser and schedule.
        cache: Compute the features of a frozen backbone once.
        seed: Seed of drop path.
    """

    evaluation_attributes = ("kinds",)
    baseline_names = ("image_row",)
    monitor = ("val/accuracy", "max")

    def __init__(
        self,
        backbone: Backbone,
        *,
        decoder: MakeDecoder = LinearDecoder,
        image_size: int = 256,
        optim: Optim = Optim(lr=1e-4, weight_decay=0.01, betas=(0.9, 0.999), schedule="poly"),  # noqa: B008
        cache: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            decoder=decoder,
            image_size=image_size,
            optim=optim,
            cache=cache,
            seed=seed,
        )

    def loss(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return ``log(1 + exp(farther - nearer))``, a mean over pairs (arXiv 1604.03901)."""
        nearer, farther = at_points(prediction, batch["points"]).unbind(-1)
        return {"loss": F.softplus(farther - nearer).mean()}

    def metrics(self) -> OrdinalAccuracy:
        """Return the accuracy, in all and by scene type."""
        return OrdinalAccuracy(self.evaluation_info["kinds"])

    def scored(self, prediction: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return disparity, points and scene type."""
        return prediction, batch["points"], batch["kind"]

    @property
    def protocol(self) -> str:
        """What counts as right, and the size."""
        return (
            "share of pairs whose nearer point has the greater disparity; "
            f"short side {self.image_size} px"
        )

    def picture(self, batches: list[Batch], predictions: list[Tensor]) -> visualize.Panel:
        """Draw the pairs on image and disparity."""
        rows = []
        for batch, prediction in zip(batches, predictions, strict=True):
            disparity, points = prediction[0].detach().cpu(), batch["points"][0].cpu()
            low, high = (visualize.quantile(disparity, share) for share in (0.02, 0.98))
            shown = visualize.colour(1 - (disparity - low) / max(high - low, 1e-6), "depth")
            rows.append([_marked(batch["image"][0].cpu(), points), _marked(shown, points)])
        caption = "green is nearer than red; light is near"
        return visualize.Panel(rows, ["pairs", "disparity"], caption=caption)


def _marked(picture: Tensor, pairs: Tensor) -> Tensor:
    """Return a picture `(3, H, W)` with a line from red to green for each pair."""
    marked = picture.clone()
    height, width = picture.shape[-2:]
    radius = max(1, min(height, width) // 60)
    for pair in pairs:
        nearer, farther = pair.double()
        steps = int((farther - nearer).abs().max()) + 1
        line = torch.lerp(nearer, farther, torch.linspace(0, 1, steps)[:, None].double())
        rows, columns = line.round().long().T
        marked[:, rows, columns] = 255
        for point, colour in ((nearer, _NEAR), (farther, _FAR)):
            row, column = (int(x) for x in point)
            top, left = max(0, row - radius), max(0, column - radius)
            spot = marked[:, top : row + radius + 1, left : column + radius + 1]
            spot[:] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return marked
