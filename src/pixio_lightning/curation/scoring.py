"""Scoring: how hard every image of a data set is to reconstruct, for self-curation.

`Scorer` is free of Lightning: it turns a batch of encoded images into losses, and fits into a
worker of Ray or any loop. `Scoring` runs the same over shards with the trainer's
processes, precision and devices, and writes one file of scores for each shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pixio_lightning.curation.scores import ENTROPY, ImagesToScore, ScoredImages
from pixio_lightning.data.shards.format import Shard, column_read
from pixio_lightning.data.shards.score_files import (
    SCORE_SCHEMA,
    different,
    settings_of,
    write_scores,
)
from pixio_lightning.errors import UserError, at_least, at_least_1, one_of, refuse_unread
from pixio_lightning.keyed import RandomKey, key_of
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.blocks import compile_blocks
from pixio_lightning.models.build import is_generated
from pixio_lightning.models.features import dense_cls_of, tapped_blocks
from pixio_lightning.models.mae_decoder import DecoderSize, MaeDecoder
from pixio_lightning.models.masking import gather_tokens
from pixio_lightning.models.weights.read import digest
from pixio_lightning.models.weights.shipped import located
from pixio_lightning.pretraining.masked_pixels import PixelPretraining
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.checkpoints import load as restore
from pixio_lightning.training.optim import Optim

# Masks of scoring are drawn in steps of their own, below the fixed step of validation.
_FIRST_STEP = -1000


def load_model(weights: str, *, noise_floor: float = 0.0) -> PixelPretraining:
    """Return the pretraining module of a checkpoint, or a small one of random weights.

    Args:
        weights: The file; or `random:SEED`, to see whether all goes through, as `with/debug` does.
        noise_floor: What images will be scored with, see `image_losses`.

    Raises:
        UserError: The file is no checkpoint of pretraining, or one that a noise floor says nothing
            of.
    """
    if is_generated(weights):
        backbone = Backbone("pixio_vitt16", weights=weights, tune="full")
        model = PixelPretraining(backbone, decoder=DecoderSize(dim=64, depth=1, heads=2))
        model.configure_model()
        return model.eval()
    loaded = restore.load(located(weights))
    if not isinstance(loaded, PixelPretraining):
        raise UserError(
            f"'{weights}' is a checkpoint of {type(loaded).__name__}: images are scored by a "
            "pretraining, whose decoder reconstructs them"
        )
    if noise_floor and not loaded.norm_pix:
        raise UserError(
            f"model.noise_floor is {noise_floor:g}, but '{weights}' predicts plain pixels "
            "(norm_pix false), of which noise is never blown up: leave it out"
        )
    return loaded


@torch.no_grad()
def image_losses(
    model: PixelPretraining,
    images: Tensor,
    keys: Tensor,
    *,
    masks: int = 4,
    noise_floor: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Return the mean reconstruction loss of each image over several masks.

    With a noise floor S, a hidden patch of variance v counts ``v / (v + s^2)`` of its loss: what it
    would cost if targets were normalised by ``v + s^2``. Both are of the colours as the model sees
    them, so that s^2 is the mean of ``(S / (255 std_c))^2`` over the three. So a patch that holds
    nothing but noise of that strength costs half, and an image is not hard for being noisy.

    Args:
        model: The pretraining module, loaded; with a noise floor one of normalised pixels.
        images: uint8 `(B, 3, S, S)`.
        keys: int64 `(B,)`; an image's masks depend on its key and the seed.
        masks: Masks drawn for each image.
        noise_floor: Standard deviation of the noise, in levels of 255; 0 in the paper.
        seed: Seed of the masks.

    Returns:
        float32 `(B,)`.
    """
    total = torch.zeros(len(images), device=images.device)
    for number in range(masks):
        result = model(images, RandomKey(keys, seed, _FIRST_STEP - number))
        errors = (result.prediction.float() - result.target.float()).square().mean(dim=-1)
        if noise_floor:
            # By which the targets were divided.
            variance = gather_tokens(result.pixels, result.mask.hide).var(dim=-1)
            noise = (noise_floor / (255 * model.backbone.std)).square().mean()
            errors = errors * variance / (variance + noise)
        total += errors.mean(dim=1)
    return total / masks


def settings(
    model: PixelPretraining,
    *,
    masks: int,
    noise_floor: float,
    seed: int,
    precision: str = "32-true",
) -> dict[str, Any]:
    """Return, as plain data, what the scores of images depend on; only equal ones may be compared.

    Of images in shards that is their column, too.
    """
    return {
        "checkpoint": digest(model.state_dict()),
        "image_size": side_of(model),
        "mask_ratio": model.mask_ratio,
        "mask_grid": model.mask_grid,
        "norm_pix": model.norm_pix,
        "masks": masks,
        "noise_floor": noise_floor,
        "seed": seed,
        "precision": precision,
        "entropy": ENTROPY,
    }


def side_of(model: PixelPretraining) -> int:
    """Return the side of the images a model was trained on, in pixels."""
    return model.backbone.grid[0] * model.backbone.stride


class Scorer:
    """Score batches of encoded images, as `ray.data.Dataset.map_batches` hands them over.

    Args:
        checkpoint: Of `pixio fit`, on a pretraining recipe.
        masks: Masks drawn for each image.
        noise_floor: See `image_losses`.
        seed: Seed of the masks.
        precision: `32-true`, or `bf16-mixed`, which is many times faster on a GPU; part of
            `settings`.
        device: Where to run; None takes a GPU if there is one.
        max_megapixels: Larger images are not decoded.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        masks: int = 4,
        noise_floor: float = 0.0,
        seed: int = 0,
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        device: str | None = None,
        max_megapixels: float = 64.0,
    ) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_model(checkpoint, noise_floor=noise_floor).to(self.device)
        self.options: dict[str, Any] = {"masks": masks, "noise_floor": noise_floor, "seed": seed}
        one_of("precision", precision, ("32-true", "bf16-mixed"))
        self.precision = precision
        self.max_megapixels = max_megapixels

    @property
    def settings(self) -> dict[str, Any]:
        """What its scores depend on, as plain data, for `write_scores`."""
        return settings(self.model, **self.options, precision=self.precision)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add `hash`, `loss`, `entropy`, `width`, `height` and `reason` to a batch.

        Args:
            batch: `key`, names; and `image`, the encoded bytes, or dicts with `bytes`.

        Returns:
            The batch without `image`. Where `reason` is not empty, the loss is NaN.
        """
        encoded = [i["bytes"] if isinstance(i, dict) else i for i in batch["image"]]
        names = [str(key) for key in batch["key"]]
        side = side_of(self.model)
        found = [
            ScoredImages.describe(data, size=side, max_megapixels=self.max_megapixels)
            for data in encoded
        ]
        hashes = torch.tensor([key_of(name) for name in names])
        images = torch.stack([entry["image"] for entry in found]).to(self.device)
        mixed = self.precision == "bf16-mixed"
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=mixed):
            losses = image_losses(self.model, images, hashes.to(self.device), **self.options).cpu()
        bad = np.array([entry["reason"] != "" for entry in found])
        columns = {
            "hash": hashes.numpy(),
            "loss": np.where(bad, np.nan, losses.numpy()).astype(np.float32),
            "reason": np.array([entry["reason"] for entry in found]),
        }
        for name in ("entropy", "width", "height"):
            kind = SCORE_SCHEMA.field(name).type.to_pandas_dtype()
            columns[name] = np.array([entry[name] for entry in found], kind)
        return {k: v for k, v in batch.items() if k != "image"} | columns


class Scoring(BackboneModule):
    """Score the images of shards with a pretrained model: `pixio predict -c curation/score`.

    One file of scores is written for each shard, complete or not at all; the same line again skips
    those that are there. Processes share the shards and never wait for each other.

    Args:
        backbone: Its `weights` are a checkpoint of pretraining, which brings all else with it but
            whether its blocks are compiled.
        masks: Masks drawn for each image; more make the scores steadier.
        noise_floor: Standard deviation of noise that must not count as content, in levels of 255;
            0 is the paper's rule, and all there is for a model of plain pixels. See
            docs/curation.md.
        seed: Seed of the masks.
        optim: Not used: nothing is trained.

    Raises:
        UserError: A number is too small, or a key of the backbone is given that scoring does not
            read.
    """

    resumes = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        masks: int = 4,
        noise_floor: float = 0.0,
        seed: int = 0,
        optim: Optim = Optim(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(backbone.requires_grad_(False), optim=optim)
        _refuse_settings(backbone)
        at_least_1(**{"model.masks": masks})
        at_least(0, **{"model.noise_floor": noise_floor})
        self.masks, self.noise_floor, self.seed = masks, noise_floor, seed
        self.model: PixelPretraining | None = None
        self.settings: dict[str, Any] = {}
        self._open: dict[int, dict[str, np.ndarray]] = {}
        self._missing: dict[int, int] = {}

    def build(self, backbone: Backbone) -> MaeDecoder | None:
        """Return nothing: the decoder comes with the checkpoint."""
        return None

    def configure_model(self) -> None:
        """Load the pretraining of the checkpoint, once.

        Raises:
            UserError: It is none, or scores that are there were made differently, or a noise floor
                is given for a model of plain pixels.
        """
        if self.model is not None:
            return
        self.model = load_model(self.backbone.weights, noise_floor=self.noise_floor)
        if self.backbone.compile_blocks:
            compile_blocks(self.model.backbone.vit.blocks)
        self.backbone = self.model.backbone
        data = self.trainer.datamodule
        if not isinstance(data, ImagesToScore):
            raise UserError(
                f"Scoring needs data.class_path ImagesToScore, not {type(data).__name__}"
            )
        data.image_size = side_of(self.model)
        self.settings = settings(
            self.model,
            masks=self.masks,
            noise_floor=self.noise_floor,
            seed=self.seed,
            precision=str(self.trainer.precision),
        ) | {"column": column_read(data.index)}
        self._refuse_others()

    @property
    def folder(self) -> Path:
        """Where the score files go."""
        return Path(self.trainer.default_root_dir) / "scores"

    def _refuse_others(self) -> None:
        """Refuse to add scores to those of another model or of other masks.

        Each process opens its share of the files, of which there are as many as shards.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer, names = self.trainer, []
        if trainer.is_global_zero:
            names = sorted(path.name for path in self.folder.glob("*.scores.parquet"))
        names = trainer.strategy.broadcast(names)
        mine = range(trainer.global_rank, len(names), trainer.world_size)
        own = next((i for i in mine if self._difference(self.folder / names[i])), len(names))
        device = trainer.strategy.root_device
        first = int(trainer.strategy.all_gather(torch.tensor(own, device=device)).min())
        if first < len(names):
            path = self.folder / names[first]
            raise UserError(self._difference(path) or f"another process cannot add to '{path}'")

    def _difference(self, path: Path) -> str:
        """Return why the scores in a file are not as they would be now; nothing if they are."""
        try:
            found = settings_of(path)
        except UserError as error:
            return str(error) if path.exists() else ""  # on another node, with its own folder
        differ = different(found, self.settings)
        if not differ:
            return ""
        facts = ", ".join(f"{k} {found.get(k)} there, {self.settings.get(k)} now" for k in differ)
        return (
            f"'{path}' holds scores that were made differently ({facts}): give another --out, or "
            "remove them"
        )

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score a batch; write the files of the shards that it completes."""
        assert self.model is not None
        losses = image_losses(
            self.model,
            batch["image"],
            batch["key"],
            masks=self.masks,
            noise_floor=self.noise_floor,
            seed=self.seed,
        )
        values = {"loss": torch.where(batch["weight"] > 0, losses, torch.nan)}
        values |= {name: batch[name] for name in ("entropy", "width", "height")}
        values["hash"] = batch["key"]
        columns = {name: value.cpu().numpy() for name, value in values.items()}
        shards, rows = batch["shard"].tolist(), batch["row"].tolist()
        for at, (number, row) in enumerate(zip(shards, rows, strict=True)):
            table = self._table(number)
            for name, column in columns.items():
                table[name][row] = column[at]
            self._missing[number] -= 1
            if not self._missing[number]:
                self._write(number)

    def _table(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._open:
            rows = self._shard(number).rows
            self._open[number] = {
                field.name: np.zeros(rows, field.type.to_pandas_dtype()) for field in SCORE_SCHEMA
            }
            self._missing[number] = rows
        return self._open[number]

    def _shard(self, number: int) -> Shard:
        data: Any = self.trainer.datamodule
        return data.index.shards[number]

    def _write(self, number: int) -> None:
        write_scores(self.folder, self._shard(number), self._open.pop(number), self.settings)

    def predictions_text(self, folder: Path) -> str:
        """Say where the scores are, and what to do with them."""
        data: Any = self.trainer.datamodule
        path = data.shard_path("train")
        return f"scores: {self.folder}\nnext: pixio curate {path} --scores {self.folder}"


def _refuse_settings(backbone: Backbone) -> None:
    """Raise a UserError for keys of a backbone that the one of the checkpoint would not heed."""
    if not backbone.frozen:
        raise UserError("Scoring trains nothing: set model.backbone.tune to frozen")
    last = tapped_blocks("last", backbone.depth, name=backbone.name)
    usual = dense_cls_of(None, backbone.n_cls_tokens, name=backbone.name)
    because = "heads read it, and images are scored by a pretraining"
    refuse_unread("model.backbone.layers", backbone.tapped, last, because)
    refuse_unread("model.backbone.dense_cls", backbone.dense_cls, usual, because)
