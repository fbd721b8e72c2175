"""Pixels: the DataModule of pretraining, one interface over every source of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pixio_lightning.data.scene_samples import Scenes
from pixio_lightning.data.sources import (
    FolderSource,
    HubSource,
    ScenesSource,
    Source,
    Subset,
    hold_out,
)
from pixio_lightning.data.stream import HeldOutImages, TrainingImages, collate
from pixio_lightning.data.stream_data import StreamData
from pixio_lightning.errors import UserError


class Pixels(StreamData):
    """Images to pretrain on: `{"image": uint8 (B, 3, S, S), "key": int64 (B,)}`.

    Args:
        source: `scenes` (rendered on first use), `folder` (nested JPEG, PNG, WebP) or `hub`
            (a Hugging Face data set: hub id, or local parquet, arrow or image folder).
        path: Folder or hub id; not for scenes.
        split: Split of a hub data set to train on.
        val_path: Where the held-out images are; None holds out a tenth, at most `val_images`.
            Not read for scenes, as `val_split`.
        val_split: Or the split of a hub data set that holds them.
        column: Image column of a hub data set; None takes the first.
        image_size: Side of the crops in pixels.
        batch_size: Images per process and step.
        num_workers: Processes that decode, per training process.
        steps_per_epoch: Batches in an epoch: between two validations.
        val_images: Held-out images, at most.
        crop_scale: Range of a crop's share of the image's area.
        crop_ratio: Range of a crop's width over its height.
        max_bad: Stop when more than this share of the images is unusable; None never stops.
        max_megapixels: Larger images count as bad and are not decoded.
        seed: Seed of order and crops.
        scenes: How many scenes and views.
    """

    def __init__(
        self,
        source: Literal["scenes", "folder", "hub"] = "scenes",
        path: str | None = None,
        *,
        split: str = "train",
        val_path: str | None = None,
        val_split: str | None = None,
        column: str | None = None,
        image_size: int = 256,
        batch_size: int = 64,
        num_workers: int = 4,
        steps_per_epoch: int = 1000,
        val_images: int = 512,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        max_bad: float | None = None,
        max_megapixels: float = 64.0,
        seed: int = 0,
        scenes: Scenes = Scenes(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            steps_per_epoch=steps_per_epoch,
            max_bad=max_bad,
            seed=seed,
        )
        if source == "scenes" and path is not None:
            raise UserError(
                f"data.path '{path}' is given, but data.source is scenes, which are rendered; "
                "set data.source to folder or hub"
            )
        if source != "scenes" and path is None:
            raise UserError(f"data.source is {source}: give data.path")
        if source == "scenes":  # an overlay may put them in place of a recipe's files
            val_path = val_split = None
        if val_split and (source != "hub" or val_path):
            raise UserError(
                f"data.val_split '{val_split}' names a split of data.path; it goes with "
                "data.source hub, and without data.val_path"
            )
        for name, value in {"image_size": image_size, "val_images": val_images}.items():
            if value < 1:
                raise UserError(f"data.{name} is {value}, but expected at least 1")
        if path and val_path and Path(val_path).resolve().is_relative_to(Path(path).resolve()):
            raise UserError(
                f"data.val_path '{val_path}' lies inside data.path '{path}', so held-out images "
                "would be trained on; leave val_path out, or move them apart"
            )
        self.source, self.path, self.split, self.column = source, path, split, column
        self.val_path, self.val_split, self.val_images = val_path, val_split, val_images
        self.image_size, self.max_megapixels, self.scenes = image_size, max_megapixels, scenes
        self.crop_scale, self.crop_ratio = crop_scale, crop_ratio
        self._train: Source | None = None
        self._held_out: Source | None = None

    def prepare_data(self) -> None:
        """Render the scenes once, in one process."""
        if self.source == "scenes":
            self._scenes("train")
            self._scenes("val")

    def setup(self, stage: str) -> None:
        """Open the sources; nothing is decoded yet."""
        if self._train is not None:
            return
        if self.source == "scenes":
            self._train, self._held_out = self._scenes("train"), self._scenes("val")
            return
        self._train = everything = self._open(self.path, self.split)
        if stage == "predict":
            return
        if self.val_split is not None:
            self._held_out = self._open(self.path, self.val_split)
        elif self.val_path is not None:
            self._held_out = self._open(self.val_path, self.split, key="data.val_path")
        else:
            self._train, self._held_out = hold_out(everything, most=self.val_images)
        if len(self._held_out) > self.val_images:
            _, self._held_out = hold_out(self._held_out, most=self.val_images, share=1.0)

    def _scenes(self, split: str) -> Source:
        source = ScenesSource(self.scenes.shards(split))
        if split == "val" and len(source) > self.val_images:
            step = len(source) / self.val_images
            return Subset(source, [int(i * step) for i in range(self.val_images)])
        return source

    def _open(self, path: str | None, split: str, *, key: str = "data.path") -> Source:
        if self.source == "folder":
            return FolderSource(path or "", key=key)
        return HubSource(path or "", split, column=self.column, key=key)

    @property
    def labelled(self) -> tuple[Source, Source]:
        """The training and held-out images with their classes, for probes."""
        assert self._train is not None and self._held_out is not None
        return self._train, self._held_out

    def samples(self, n: int) -> dict[str, Any]:
        """Return a batch of held-out images, evenly spread, for pictures."""
        source = self._held_out
        assert source is not None
        images = HeldOutImages(source, size=self.image_size, max_megapixels=self.max_megapixels)
        n = min(n, len(source))
        batch = collate([images[i * len(source) // n] for i in range(n)])
        del batch["bad"]
        return batch

    # --- sets ---------------------------------------------------------------------------------

    def training_set(self) -> TrainingImages:
        """Return the crops by their position in the stream."""
        assert self._train is not None
        return TrainingImages(
            self._train,
            size=self.image_size,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            max_megapixels=self.max_megapixels,
            seed=self.seed,
        )

    def evaluation_set(self, stage: str) -> HeldOutImages:
        """Return the held-out images; to predict, all of a source but the scenes'."""
        whole = stage == "predict" and self.source != "scenes"
        source = self._train if whole else self._held_out
        assert source is not None
        return HeldOutImages(source, size=self.image_size, max_megapixels=self.max_megapixels)

    def training_size(self) -> int:
        """Return the number of training images."""
        return len(self._train) if self._train is not None else 0
