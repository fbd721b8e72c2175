"""What modules share that train a backbone by the pixels of hidden patches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import SumMetric

from pixio_lightning.errors import UserError
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.mae_decoder import DecoderSize, normalize_patches
from pixio_lightning.models.masking import Mask, gather_tokens, unpatchify
from pixio_lightning.pretraining.pretraining import Pretraining
from pixio_lightning.training.optim import Optim


class Reconstruction(NamedTuple):
    """One masked forward pass.

    Shapes: B batch, N patches, m hidden, V = P*P*3 values in a patch.

    Attributes:
        prediction: `(B, m, V)`, the decoder's output.
        target: `(B, m, V)`, what it should be.
        pixels: The encoder's input cut into patches `(B, N, V)`.
        mask: Which patches were visible and hidden.
        grid: Height and width in patches.
    """

    prediction: Tensor
    target: Tensor
    pixels: Tensor
    mask: Mask
    grid: tuple[int, int]


class PatchPrediction(Pretraining):
    """A backbone that is trained with a decoder of hidden patches.

    Args:
        backbone: The encoder; `tune: full`.
        norm_pix: Predict pixels normalised per patch instead of plain ones.
        decoder: Width, depth and heads of the decoder.
        optim: Optimiser and schedule.
        seed: Seed of masks and drop path.
        summed: What is summed over held-out samples, by name.

    Raises:
        UserError: The backbone is frozen.
    """

    model_as_trained = ("norm_pix", "decoder")
    # What `build` makes, of the sizes of the backbone.
    decoder_class: type[Any]

    def __init__(
        self,
        backbone: Backbone,
        *,
        norm_pix: bool,
        decoder: DecoderSize,
        optim: Optim,
        seed: int,
        summed: tuple[str, ...],
    ) -> None:
        super().__init__(backbone, optim=optim, seed=seed)
        if backbone.frozen:
            raise UserError("pretraining trains its backbone: set model.backbone.tune to full")
        self.norm_pix, self.decoder_size = norm_pix, decoder
        # Not MeanMetric: it would wait for the device, or, told not to, drop the weights.
        names = (*summed, "weight")
        self.held_out_sums: Any = torch.nn.ModuleDict(
            {n: SumMetric(nan_strategy="disable") for n in names}
        )

    def as_trained(self) -> dict[str, Any]:
        """Return the values of `model_as_trained`."""
        return super().as_trained() | {"decoder": asdict(self.decoder_size)}

    def build(self, backbone: Backbone) -> Any:
        """Return the decoder, sized by the backbone."""
        return self.decoder_class(
            backbone.embed_dim,
            backbone.patch_size**2 * backbone.channels,
            n_cls_tokens=backbone.n_cls_tokens,
            grid=backbone.grid,
            size=self.decoder_size,
            checkpointing=backbone.checkpointing,
        )

    def told_task(self, share: float, block: int) -> str:
        """Return what is predicted, where so much of an image is hidden in blocks of that side."""
        what = "pixels normalised by patch" if self.norm_pix else "plain pixels"
        return f"{what}, {share:.4g} of each image hidden in blocks of {block} x {block} patches"

    def hidden_target(self, pixels: Tensor, mask: Mask) -> Tensor:
        """Return what is to be predicted of patches `(B, N, V)`: the hidden ones `(B, m, V)`."""
        target = gather_tokens(pixels, mask.hide)
        return normalize_patches(target)[0] if self.norm_pix else target

    def held_out_means(self, weighed_by: dict[str, str] | None = None) -> dict[str, Tensor]:
        """Return the means of what was summed, and `weight`, the samples.

        Args:
            weighed_by: Which sum others than "weight" are divided by, by name.
        """
        weighed_by = weighed_by or {}
        sums = {name: m.compute() for name, m in self.held_out_sums.items() if m.update_called}
        weights = {"weight", *weighed_by.values()}
        values = {"weight": sums["weight"]}
        for name in (name for name in sums if name not in weights):
            weight = sums[weighed_by.get(name, "weight")]
            if name not in weighed_by or weight > 0:  # where nothing moves there is no such mean
                values[name] = sums[name] / weight
        return values

    @property
    def meters(self) -> Iterable[Any]:
        """What is summed over held-out samples."""
        return self.held_out_sums.values()

    def on_validation_epoch_end(self) -> None:
        """Log the held-out loss beside what needs no learning."""
        values = self.held_out_means()
        del values["weight"]
        self.log_evaluation(values)

    on_test_epoch_end = on_validation_epoch_end

    def in_pixels(self, result: Reconstruction, prediction: Tensor) -> Tensor:
        """Return a prediction `(B, m, V)` as pixels of the encoder's input.

        With `norm_pix` each patch has its true mean and contrast, which `star` says.
        """
        prediction = prediction.float()
        if not self.norm_pix:
            return prediction
        _, mean, std = normalize_patches(gather_tokens(result.pixels, result.mask.hide))
        return prediction * std + mean

    @property
    def star(self) -> tuple[str, str]:
        """What stands behind the title of a column of predictions, and what it means."""
        told = "* hidden patches with the true mean and contrast of each"
        return ("*", told) if self.norm_pix else ("", "")

    def to_uint8(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Turn patches of normalised pixels `(B, N, V)` into pictures uint8 `(B, 3, H, W)`."""
        images = unpatchify(pixels, self.backbone.patch_size, grid)
        images = images * self.backbone.std + self.backbone.mean
        return (images.clamp(0, 1) * 255).round().to(torch.uint8)
