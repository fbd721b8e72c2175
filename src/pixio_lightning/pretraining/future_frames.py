"""Future prediction: an encoder sees past frames whole and a little of a future one.

The task of SiamMAE (arXiv 2305.14344): the encoder works on single frames and stays an ordinary
image backbone; a decoder asks the past for the hidden patches of the future.

Shapes: B batch, K past frames, N = h*w patches, n visible, m hidden, P patch side, V = P*P*3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pixio_lightning.data.sources import digest_of
from pixio_lightning.errors import UserError, refuse_unread
from pixio_lightning.keyed import Purpose, RandomKey
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.mae_decoder import DecoderSize, normalize_patches, pixel_loss
from pixio_lightning.models.masking import Mask, block_mask, count_blocks, gather_tokens, patchify
from pixio_lightning.pretraining.baselines import capped, errors_of
from pixio_lightning.pretraining.future_baselines import HedgedCopy
from pixio_lightning.pretraining.future_decoder import FutureDecoder
from pixio_lightning.pretraining.future_report import (
    OF_HEDGED,
    SUMMED,
    WEIGHED_BY,
    MeanError,
    report,
)
from pixio_lightning.pretraining.reconstruction import PatchPrediction, Reconstruction
from pixio_lightning.training import visualize
from pixio_lightning.training.optim import Optim
from pixio_lightning.training.run_folder import Metrics

# Training pairs that the hedged copy's factors are fitted to: at most, and where a run sees fewer.
_PAIRS, _FEWEST = 512, 32
# A patch moves where copying it costs more than so much of what predicting nothing does.
_MOVING = 0.5


class FuturePrediction(PatchPrediction):
    """Train a backbone by predicting the hidden patches of a future frame from past ones.

    Args:
        backbone: The encoder; `tune: full`.
        hide: Share of the future frame to hide; with 1.0 the encoder never sees it.
        mask_grid: Side of a mask block in patches.
        norm_pix: Predict pixels normalised per patch instead of plain ones.
        decoder: Width, depth and heads of the decoder.
        optim: Optimiser and schedule.
        seed: Seed of masks and drop path.

    Raises:
        UserError: The backbone is frozen.
    """

    reads_pairs = True
    decoder_class = FutureDecoder

    def __init__(
        self,
        backbone: Backbone,
        *,
        hide: float = 0.95,
        mask_grid: int = 1,
        norm_pix: bool = True,
        decoder: DecoderSize = DecoderSize(depth=8),  # noqa: B008 (frozen)
        optim: Optim = Optim(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone, norm_pix=norm_pix, decoder=decoder, optim=optim, seed=seed, summed=SUMMED
        )
        if not 0 < hide <= 1:
            raise UserError(f"model.hide is {hide}, but expected above 0 and at most 1")
        if hide == 1:
            whole = "model.hide is 1, so that all of the frame is hidden"
            refuse_unread("model.mask_grid", mask_grid, 1, whole)
        self.hide, self.mask_grid = hide, mask_grid
        self.hedged = HedgedCopy(backbone.channels)
        self._hedged_of: str | None = None  # a hash of the pairs that its factors are fitted to
        self.gain_error = MeanError()

    def check_mask(self, grid: tuple[int, int]) -> None:
        """Refuse a grid whose patches are not whole blocks, or none of which is seen or hidden."""
        if self.hide < 1:
            count_blocks(grid, self.mask_grid, self.hide, key="model.hide")

    @property
    def protocol(self) -> str:
        """What is predicted, and how much of the future frame is hidden."""
        return self.told_task(self.hide, self.mask_grid)

    def read_data_attributes(self, data: Any) -> None:
        """Refuse data without pairs of frames.

        Raises:
            UserError: It has none, or its frames do not fit.
        """
        super().read_data_attributes(data)
        if not hasattr(data, "training_pairs"):
            raise UserError(
                f"FuturePrediction needs past and future frames, which {type(data).__name__} does "
                "not give: set data to Clips"
            )

    # --- one pass -----------------------------------------------------------------------------

    def forward(
        self, past: Tensor, future: Tensor, gap: Tensor, random_key: RandomKey
    ) -> Reconstruction:
        """Hide blocks of the future frames and predict them.

        Args:
            past: uint8 `(B, K, 3, H, W)`.
            future: uint8 `(B, 3, H, W)`.
            gap: float `(B, K)`, seconds from each past frame to the future one.
            random_key: Random key for masks and drop path.

        Returns:
            Prediction and target of the hidden patches only.
        """
        batch, frames = past.shape[:2]
        keys = random_key.key[:, None] + torch.arange(frames + 1, device=past.device)
        seen = self._input(past.flatten(0, 1))
        own = random_key._replace(key=keys[:, :frames].flatten())
        features = self.backbone(seen, normalized=True, resized=True, random_key=own)
        memory = features.tokens.unflatten(0, (batch, frames))
        images = self._input(future)
        mask, grid = self._mask(images, random_key)
        visible = None
        if mask.keep.shape[1]:
            own = random_key._replace(key=keys[:, frames])
            visible = self.backbone(
                images, keep=mask.keep, normalized=True, resized=True, random_key=own
            ).tokens
        assert self.decoder is not None, "configure_model builds the decoder"
        prediction = self.decoder(memory, visible, gap, keep=mask.keep, hide=mask.hide, grid=grid)
        pixels = patchify(images, self.backbone.patch_size)
        return Reconstruction(prediction, self.hidden_target(pixels, mask), pixels, mask, grid)

    def _input(self, images: Tensor) -> Tensor:
        return self.backbone.resize(self.backbone.normalize(images))

    def _mask(self, images: Tensor, random_key: RandomKey) -> tuple[Mask, tuple[int, int]]:
        """Return which patches of encoder inputs are hidden, and their grid."""
        patch = self.backbone.patch_size
        grid = (images.shape[-2] // patch, images.shape[-1] // patch)
        if self.hide == 1:
            every = torch.arange(grid[0] * grid[1], device=images.device)
            every = every.expand(len(images), -1)
            return Mask(every[:, :0], every), grid
        n_blocks, _ = count_blocks(grid, self.mask_grid, self.hide, key="model.hide")
        noise = random_key.uniform(n_blocks, Purpose.MASK)
        return block_mask(noise, grid=grid, block=self.mask_grid, ratio=self.hide), grid

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        random_key = RandomKey(batch["key"], self.seed, self.global_step)
        result = self(batch["past"], batch["future"], batch["gap"], random_key)
        loss = pixel_loss(result.prediction, result.target).mean()
        self.log_training(loss)
        return loss

    # --- held-out pairs and baselines ---------------------------------------------------------

    def on_fit_start(self) -> None:
        """Fit the hedged copy to training pairs, all processes alike.

        Once in a run; anew where what is gone on from was fitted to other pairs.
        """
        data = self.trainer.datamodule
        pairs_of = digest_of(data.pairs_digest(), self.hide, self.mask_grid, self.norm_pix)
        if self.hedged.fitted and self._hedged_of == pairs_of:
            return
        self._hedged_of = pairs_of
        sums = self.hedged.begin(*data.gap)
        seen = self.trainer.max_steps * self.global_batch
        for pairs in data.training_pairs(min(_PAIRS, max(seen, _FEWEST)) if seen > 0 else _PAIRS):
            batch = self.trainer.strategy.batch_to_device(pairs)
            with torch.no_grad():
                images = self._input(batch["future"])
                mask, _ = self._mask(images, self.fixed_draw(batch))
                pixels = patchify(images, self.backbone.patch_size)
                copy = self._as_prediction(batch["past"][:, -1], pixels, mask)
                target = self.hidden_target(pixels, mask)
                self.hedged.add(sums, copy, target, batch["gap"][:, -1])
        self.hedged.finish(sums)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add which pairs the hedged copy is fitted to."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["pixio"]["hedged_of"] = self._hedged_of

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back which pairs the hedged copy was fitted to."""
        super().on_load_checkpoint(checkpoint)
        self._hedged_of = checkpoint.get("pixio", {}).get("hedged_of")
        if self.restored_late:
            self.on_fit_start()  # sharded, that came before, and what it had fitted is overwritten

    def _as_prediction(self, image: Tensor, pixels: Tensor, mask: Mask) -> Tensor:
        """Return an image, uint8 `(B, 3, H, W)`, as a prediction of hidden patches `(B, m, V)`.

        With `norm_pix` at the true contrast, which is more than the model is told; see `capped`.
        """
        patches = patchify(self._input(image), self.backbone.patch_size)
        patches = gather_tokens(patches, mask.hide)
        return capped(patches, gather_tokens(pixels, mask.hide)) if self.norm_pix else patches

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Accumulate the errors of held-out pairs under fixed masks, and of the baselines."""
        weight, channels = batch["weight"], self.backbone.channels
        gap, random_key = batch["gap"], self.fixed_draw(batch)
        result = self(batch["past"], batch["future"], gap, random_key)
        copy = self._as_prediction(batch["past"][:, -1], result.pixels, result.mask)
        hedged = self.hedged(copy, gap[:, -1])
        target = result.target
        model = errors_of(result.prediction, target, channels)
        of_hedged = errors_of(hedged, target, channels)
        zero, of_copy = (errors_of(x, target, channels).whole for x in (target * 0, copy))
        each = {
            "loss": model.whole,
            "hue": model.hue,
            "structure": model.structure,
            "zero": zero,
            "copy": of_copy,
            "hedged": of_hedged.whole,
            "hedged_hue": of_hedged.hue,
            "hedged_structure": of_hedged.structure,
        }
        if "wrong_past" in batch:
            wrong = self(batch["wrong_past"], batch["future"], gap, random_key)
            each["wrong_past"] = errors_of(wrong.prediction, target, channels).whole
        if "warp" in batch:
            warp = self._as_prediction(batch["warp"], result.pixels, result.mask)
            each["warp"] = errors_of(warp, target, channels).whole
        moving = (of_copy > _MOVING * zero).float()
        values = {name: error.mean(dim=1) for name, error in each.items()}
        values |= {
            "moving": (each["loss"] * moving).sum(dim=1),
            "moving_hedged": (each["hedged"] * moving).sum(dim=1),
            "moving_patches": moving.sum(dim=1),
            "psnr": self._psnr(result, result.prediction),
            "psnr_copy": self._psnr(result, copy),
            "weight": torch.ones_like(weight),
        }
        for name, value in values.items():
            self.held_out_sums[name].update(value * weight)
        gain = values["hedged_structure"] - values["structure"]
        self.gain_error.update(gain, weight, batch.get("video", batch["key"]))

    test_step = validation_step

    @property
    def meters(self) -> Iterable[Any]:
        """What is summed over held-out pairs, and how their gains vary."""
        return (*super().meters, self.gain_error)

    def on_validation_epoch_end(self) -> None:
        """Log the loss in its parts beside what needs no learning.

        Without the hedged copy where it is not fitted: it would stand for predicting nothing.
        """
        values = self.held_out_means(WEIGHED_BY)
        del values["weight"]
        error = self.gain_error.compute()
        if not error.isinf():
            values["gain_error"] = error
        if not self.hedged.fitted:
            values = {name: value for name, value in values.items() if name not in OF_HEDGED}
        self.log_evaluation(values)

    on_test_epoch_end = on_validation_epoch_end

    def _psnr(self, result: Reconstruction, prediction: Tensor) -> Tensor:
        """Return the peak signal-to-noise ratio of hidden patches in decibels, `(B,)`."""
        truth = gather_tokens(result.pixels, result.mask.hide)
        error = self.in_pixels(result, prediction) - truth
        error = error.unflatten(-1, (-1, self.backbone.channels)) * self.backbone.std.flatten()
        return -10 * error.square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()

    # --- pictures and words -------------------------------------------------------------------

    def pictures(self, batch: dict[str, Any]) -> visualize.Panel:
        """Draw a row for each pair, and say how far ahead each looks."""
        panel = super().pictures(batch)
        gaps = "seconds ahead: " + ", ".join(f"{float(g):.2f}" for g in batch["gap"][:, -1])
        return panel._replace(caption="; ".join(filter(None, (gaps, panel.caption))))

    def drawn(self, batch: dict[str, Any]) -> tuple[visualize.Panel, list[str]]:
        """Draw the past, what is seen of the future, and what is made of it.

        The true means of the patches stand alone, too, for they show much of a picture. Returns the
        gap and the loss of each pair.
        """
        past, gap = batch["past"], batch["gap"]
        result = self(past, batch["future"], gap, self.fixed_draw(batch))
        truth = gather_tokens(result.pixels, result.mask.hide)
        _, mean, _ = normalize_patches(truth)
        hidden = result.mask.hide[..., None].expand_as(truth)

        def filled(patches: Tensor) -> Tensor:
            return self.to_uint8(result.pixels.scatter(1, hidden, patches), result.grid)

        features = self.backbone(batch["future"]).layers[-1].patches
        star, caption = self.star
        columns = {
            "past": past[:, -1],
            "visible future": filled(torch.zeros_like(truth)),
            f"prediction{star}": filled(self.in_pixels(result, result.prediction)),
        }
        if self.hedged.fitted:
            copy = self._as_prediction(past[:, -1], result.pixels, result.mask)
            hedged = self.hedged(copy, gap[:, -1])
            columns[f"hedged copy{star}"] = filled(self.in_pixels(result, hedged))
        columns["truth"] = self.to_uint8(result.pixels, result.grid)
        columns["true patch means"] = filled(mean.expand_as(truth))
        columns["features (PCA)"] = visualize.principal_components(features, past[:, -1].shape)
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        losses = pixel_loss(result.prediction, result.target)
        pairs = zip(gap[:, -1].tolist(), losses.tolist(), strict=True)
        texts = [f"{seconds:.2f} s, loss {loss:.3f}" for seconds, loss in pairs]
        return visualize.Panel(rows, list(columns), caption), texts

    def report(self, metrics: Metrics) -> dict[str, str]:
        """Return the held-out loss beside what needs no learning, and what follows from it."""
        return report(metrics)
