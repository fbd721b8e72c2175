"""Masked pixel pretraining: an encoder sees some blocks of patches, a decoder makes the rest.

Shapes: B batch, N = h*w patches, n visible, m hidden, P patch side, V = P*P*3 values in a patch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Purpose, RandomKey
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.build import is_generated
from pixio_lightning.models.mae_decoder import (
    DecoderSize,
    MaeDecoder,
    normalize_patches,
    pixel_loss,
)
from pixio_lightning.models.masking import (
    Mask,
    block_mask,
    count_blocks,
    gather_tokens,
    patchify,
    unpatchify,
)
from pixio_lightning.models.weights.fill import refuse_non_finite
from pixio_lightning.models.weights.key_names import to_mae_decoder
from pixio_lightning.models.weights.read import read
from pixio_lightning.models.weights.report import matched
from pixio_lightning.pretraining.baselines import (
    beside_baselines,
    capped,
    digits,
    errors_of,
    inverse_distance,
)
from pixio_lightning.pretraining.reconstruction import PatchPrediction, Reconstruction
from pixio_lightning.training import visualize
from pixio_lightning.training.optim import Optim
from pixio_lightning.training.run_folder import Metrics

# What needs no learning: logged as val/NAME, and told under these titles.
_BASELINES = {
    "zero": "predicting zero",
    "interpolated": "interpolated colours",
    "capped": "with capped contrast",
}


class PixelPretraining(PatchPrediction):
    """Train a backbone by reconstructing hidden pixels (Pixio; MAE with other keys).

    Args:
        backbone: The encoder; `tune: full`.
        mask_ratio: Share of the image to hide.
        mask_grid: Side of a mask block in patches; 4 in Pixio, 1 in MAE.
        norm_pix: Predict pixels normalised per patch instead of plain ones.
        decoder: Width, depth and heads of the decoder.
        pretrained_decoder: Begin with the decoder in `backbone.weights`, not with a fresh one.
        optim: Optimiser and schedule.
        seed: Seed of masks and drop path.

    Raises:
        UserError: The backbone is frozen, or has no class token; or its weights have no decoder, or
            one of another size, to begin with.
    """

    decoder_class = MaeDecoder

    def __init__(
        self,
        backbone: Backbone,
        *,
        mask_ratio: float = 0.75,
        mask_grid: int = 4,
        norm_pix: bool = True,
        decoder: DecoderSize = DecoderSize(),  # noqa: B008 (frozen)
        pretrained_decoder: bool = False,
        optim: Optim = Optim(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            norm_pix=norm_pix,
            decoder=decoder,
            optim=optim,
            seed=seed,
            summed=("loss", "hue", "structure", *_BASELINES),
        )
        self.mask_ratio, self.mask_grid = mask_ratio, mask_grid
        self.pretrained_decoder = pretrained_decoder
        # Of the batches that were evaluated, by what they hold.
        self._baseline_losses: dict[tuple[Any, ...], dict[str, Tensor]] = {}

    def check_mask(self, grid: tuple[int, int]) -> None:
        """Refuse a grid whose patches are not whole blocks, or all or none of which are hidden."""
        count_blocks(grid, self.mask_grid, self.mask_ratio)

    @property
    def protocol(self) -> str:
        """What is predicted, and how much is hidden."""
        return self.told_task(self.mask_ratio, self.mask_grid)

    def build(self, backbone: Backbone) -> MaeDecoder:
        """Return the decoder, sized by the backbone."""
        decoder: MaeDecoder = super().build(backbone)
        if self.pretrained_decoder:
            _fill(decoder, backbone.weights)
        return decoder

    def forward(
        self, images: Tensor, random_key: RandomKey, mask: Mask | None = None
    ) -> Reconstruction:
        """Hide blocks of the images and predict them.

        Args:
            images: uint8 `(B, 3, H, W)`.
            random_key: Random key for masks and drop path.
            mask: What to hide; None draws it.

        Returns:
            Prediction and target of the hidden patches only.
        """
        patch = self.backbone.patch_size
        images = self.backbone.resize(self.backbone.normalize(images))
        grid = (images.shape[-2] // patch, images.shape[-1] // patch)
        if mask is None:
            n_blocks, _ = count_blocks(grid, self.mask_grid, self.mask_ratio)
            noise = random_key.uniform(n_blocks, Purpose.MASK)
            mask = block_mask(noise, grid=grid, block=self.mask_grid, ratio=self.mask_ratio)
        features = self.backbone(
            images, keep=mask.keep, normalized=True, resized=True, random_key=random_key
        )
        assert self.decoder is not None, "configure_model builds the decoder"
        prediction = self.decoder(features.tokens, mask.keep, mask.hide, grid)
        pixels = patchify(images, patch)
        target = self.hidden_target(pixels, mask)
        return Reconstruction(prediction, target, pixels, mask, grid)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        random_key = RandomKey(batch["key"], self.seed, self.global_step)
        result = self(batch["image"], random_key)
        loss = pixel_loss(result.prediction, result.target).mean()
        self.log_training(loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Accumulate the loss of held-out images under fixed masks, and its baselines."""
        weight = batch["weight"]
        # Neither images nor masks change in a run, so that a batch that was seen needs no second
        # interpolation. It is known by its sums, too: images of other data may go by these names,
        # and one that could not be read that time had another in its place.
        sums = batch["image"].flatten(1).sum(dim=1, dtype=torch.int64)
        seen = (*batch["image"].shape, *torch.stack([batch["key"], sums]).flatten().tolist())
        result = self(batch["image"], self.fixed_draw(batch))
        if seen not in self._baseline_losses:
            self._baseline_losses[seen] = self._score_baselines(result)
        error = errors_of(result.prediction, result.target, self.backbone.channels)
        losses = {
            "loss": pixel_loss(result.prediction, result.target),
            "hue": error.hue.mean(dim=1),
            "structure": error.structure.mean(dim=1),
        }
        self.held_out_sums["weight"].update(weight)
        for name, values in (losses | self._baseline_losses[seen]).items():
            self.held_out_sums[name].update(values * weight)

    test_step = validation_step

    def _score_baselines(self, result: Reconstruction) -> dict[str, Tensor]:
        """Return the losses `(B,)` of what needs no learning."""
        interpolated, capped = self._interpolate(result)
        return {
            "zero": pixel_loss(torch.zeros_like(result.target), result.target),
            "interpolated": pixel_loss(interpolated, result.target),
            "capped": pixel_loss(capped, result.target),
        }

    def _interpolate(self, result: Reconstruction) -> tuple[Tensor, Tensor]:
        """Fill hidden patches with interpolated colours, as predictions `(B, m, V)`.

        With `norm_pix` only the shape inside a patch is scored, so the fill loses its own mean and
        is divided by the true contrast of the patch, which is more than the model is told.

        Returns:
            The prediction at the true contrast, and the one whose contrast is capped.
        """
        patch, grid, hide = self.backbone.patch_size, result.grid, result.mask.hide
        visible = torch.zeros_like(result.pixels[..., :1])
        visible.scatter_(1, result.mask.keep[..., None], 1.0)
        visible = visible.expand(-1, -1, patch * patch)
        filled = inverse_distance(
            unpatchify(result.pixels, patch, grid), unpatchify(visible, patch, grid)
        )
        filled = gather_tokens(patchify(filled, patch), hide)
        if not self.norm_pix:
            return filled, filled
        truth = gather_tokens(result.pixels, hide)
        _, _, contrast = normalize_patches(truth)
        return (filled - filled.mean(dim=-1, keepdim=True)) / contrast, capped(filled, truth)

    def drawn(self, batch: dict[str, Any]) -> tuple[visualize.Panel, list[str]]:
        """Draw what the model sees, its reconstruction and the truth; returns the loss of each."""
        images = batch["image"]
        result = self(images, self.fixed_draw(batch))
        columns = self.painted(result)
        features = self.backbone(images)
        columns.append(
            visualize.principal_components(features.layers[-1].patches, columns[0].shape)
        )
        star, caption = self.star
        titles = ["masked input", f"reconstruction{star}", "truth", "features (PCA)"]
        rows = [list(row) for row in zip(*columns, strict=True)]
        losses = pixel_loss(result.prediction, result.target).tolist()
        return visualize.Panel(rows, titles, caption), [f"loss {loss:.3f}" for loss in losses]

    def painted(self, result: Reconstruction) -> list[Tensor]:
        """Return the masked input, the reconstruction and the truth, uint8 `(B, 3, H, W)` each.

        See `in_pixels`.
        """
        painted = self.in_pixels(result, result.prediction)
        index = result.mask.hide[..., None].expand_as(painted)
        masked = result.pixels.scatter(1, index, 0.0)
        reconstruction = result.pixels.scatter(1, index, painted)
        return [self.to_uint8(x, result.grid) for x in (masked, reconstruction, result.pixels)]

    def report(self, metrics: Metrics) -> dict[str, str]:
        """Return the held-out loss at the start and the end, beside what needs no learning."""
        facts = beside_baselines(metrics, _BASELINES)
        hue, structure = (metrics.first_and_last(f"val/{name}") for name in ("hue", "structure"))
        if hue and structure:
            facts["held-out loss"] += f" (hue {digits(hue[1])} + structure {digits(structure[1])})"
        return facts


def _fill(decoder: MaeDecoder, source: str) -> None:
    """Give a decoder the weights of the one that a file holds beside its encoder.

    A decoder on the meta device stays empty, as in a plan, but the file must fit all the same.

    Raises:
        UserError: There is none, or it is not of this size.
    """
    stored = None if is_generated(source) else read(source).decoder
    if stored is None:
        raise UserError(
            f"model.pretrained_decoder: '{source}' holds no decoder; give a checkpoint of a "
            "pretraining, or what `pixio export --to safetensors` wrote of one"
        )
    state = to_mae_decoder(stored)
    matched(decoder.state_dict(), state).check(f"the decoder of {source}")
    if not decoder.mask_token.is_meta:
        refuse_non_finite(state, source)
        decoder.load_state_dict(state)
