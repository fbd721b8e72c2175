"""DepthHead: what heads of metric and of relative depth share.

Shapes: B batch, M images the backbone sees for a batch, H x W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pixio_lightning.models import Backbone, Features, MakeDecoder
from pixio_lightning.training import Batch, Head, Optim, visualize


class DepthHead(Head):
    """What both kinds of depth share: the decoder to one map, and the pictures."""

    evaluation_attributes: tuple[str, ...] = ("min_depth", "max_depth")
    monitor = ("val/abs_rel", "min")

    def __init__(
        self, backbone: Backbone, *, decoder: MakeDecoder, optim: Optim, cache: bool, seed: int
    ) -> None:
        super().__init__(backbone, optim=optim, cache=cache, seed=seed)
        self.make_decoder: Any = decoder

    def build(self, backbone: Backbone) -> nn.Module:
        """Return the decoder to one channel."""
        return self.make_decoder(backbone.dense_dim, 1, taps=len(backbone.tapped))

    def decoded(self, features: Features, size: tuple[int, int]) -> Tensor:
        """Return the decoder's map `(M, 1, H, W)`, float32 whatever the decoder gives."""
        assert self.decoder is not None
        return self.decoder(features, size).float()

    def scored(self, prediction: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return prediction, depth and valid, each `(B, H, W)`."""
        return prediction, batch["depth"], batch["valid"]

    def draw(
        self, batches: list[Batch], maps: list[Tensor], valid: list[Tensor], title: str
    ) -> visualize.Panel:
        """Draw image, truth, prediction and error; one scale for all, to the truth's 98 %."""
        truths = [batch["depth"][0].float() for batch in batches]
        seen = torch.cat([t[v] for t, v in zip(truths, valid, strict=True)])
        high = visualize.quantile(seen, 0.98) if len(seen) else 1.0
        rows = []
        for batch, truth, known, guess in zip(batches, truths, valid, maps, strict=True):
            error = (guess - truth).abs() / truth.clamp_min(1e-6)
            rows.append(
                [
                    batch["image"][0],
                    visualize.colour(torch.where(known, truth / high, torch.nan), "depth"),
                    visualize.colour(guess / high, "depth"),
                    visualize.colour(torch.where(known, error / 0.5, torch.nan), "error"),
                ]
            )
        legends = (
            visualize.Legend("depth", 0, float(f"{high:.2g}"), "m", "depth"),
            visualize.Legend("error", 0, 50, "% of the truth, grey: no truth", "error"),
        )
        return visualize.Panel(rows, ["image", "truth", title, "error"], legends=legends)
