"""Pixels: the DataModule of pretraining, one interface over every source of images."""

from __future__ import annotations

import fcntl
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch.utils.data import DataLoader

from pixio_lightning.data.sources import (
    FolderSource,
    HubSource,
    ScenesSource,
    Source,
    Subset,
    hold_out,
)
from pixio_lightning.data.stream import (
    Bad,
    EvenShare,
    HeldOutImages,
    Loader,
    Positions,
    StepLoader,
    TrainingImages,
    collate,
    start_worker,
)
from pixio_lightning.errors import UserError

# A rate of bad images is judged after so many, or after one pass if that is shorter.
_JUDGED_AFTER = 10_000


@dataclass(frozen=True)
class Scenes:
    """How much of the rendered scenes to use.

    Attributes:
        train: Scenes to train on.
        held_out: Other scenes to validate on.
        views: Views of each scene.
        size: Side of a view in pixels.
    """

    train: int = 64
    held_out: int = 16
    views: int = 4
    size: int = 128


class Pixels(L.LightningDataModule):
    """Images to pretrain on: `{"image": uint8 (B, 3, S, S), "key": int64 (B,)}`.

    Args:
        source: `scenes` (rendered on first use), `folder` (nested JPEG, PNG, WebP) or `hub`
            (a Hugging Face data set: hub id, or local parquet, arrow or image folder).
        path: Folder or hub id; not for scenes.
        split: Split of a hub data set to train on.
        val_path: Where the held-out images are; None holds out a tenth, at most `val_images`.
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
        super().__init__()
        if source == "scenes" and path is not None:
            raise UserError(
                f"data.path '{path}' is given, but data.source is scenes, which are rendered; "
                "set data.source to folder or hub"
            )
        if source != "scenes" and path is None:
            raise UserError(f"data.source is {source}: give data.path")
        if val_split and (source != "hub" or val_path):
            raise UserError(
                f"data.val_split '{val_split}' names a split of data.path; it goes with "
                "data.source hub, and without data.val_path"
            )
        sizes = {"image_size": image_size, "batch_size": batch_size, "val_images": val_images}
        for name, value in (sizes | {"steps_per_epoch": steps_per_epoch}).items():
            if value < 1:
                raise UserError(f"data.{name} is {value}, but expected at least 1")
        if path and val_path and Path(val_path).resolve().is_relative_to(Path(path).resolve()):
            raise UserError(
                f"data.val_path '{val_path}' lies inside data.path '{path}', so held-out images "
                "would be trained on; leave val_path out, or move them apart"
            )
        self.source, self.path, self.split, self.column = source, path, split, column
        self.val_path, self.val_split, self.val_images = val_path, val_split, val_images
        self.image_size, self.batch_size = image_size, batch_size
        self.num_workers, self.steps_per_epoch = num_workers, steps_per_epoch
        self.crop_scale, self.crop_ratio = crop_scale, crop_ratio
        self.max_bad, self.max_megapixels, self.seed = max_bad, max_megapixels, seed
        self.scenes = scenes
        self.bad: dict[str, str] = {}
        self._seen = 0
        self._train: Source | None = None
        self._held_out: Source | None = None
        self._stream: StepLoader | None = None

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
        count = self.scenes.train if split == "train" else self.scenes.held_out
        source = ScenesSource(split, scenes=count, views=self.scenes.views, size=self.scenes.size)
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

    # --- loaders ------------------------------------------------------------------------------

    def train_dataloader(self) -> StepLoader:
        """Return the endless stream, at the batch the run has reached."""
        assert self._train is not None and self.trainer is not None
        trainer = self.trainer
        images = TrainingImages(
            self._train,
            size=self.image_size,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            max_megapixels=self.max_megapixels,
            seed=self.seed,
        )
        positions = Positions(
            self.batch_size, rank=trainer.global_rank, world_size=trainer.world_size
        )
        loader = DataLoader(images, batch_sampler=positions, **self._loader_arguments)
        accumulate = trainer.accumulate_grad_batches
        self._stream = StepLoader(
            loader,
            self._report,
            batches=self.steps_per_epoch * accumulate,
            consumed=lambda: trainer.global_step * accumulate,
        )
        return self._stream

    def teardown(self, stage: str) -> None:
        """End the workers of the stream."""
        if self._stream is not None:
            self._stream.close()

    def val_dataloader(self) -> Loader:
        """Return every held-out image once, shared evenly by the processes."""
        assert self._held_out is not None
        return self._once(self._held_out)

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> Loader:
        """Return every image of the source once; the held-out ones of the scenes."""
        source = self._held_out if self.source == "scenes" else self._train
        assert source is not None
        return self._once(source)

    def _once(self, source: Source) -> Loader:
        rank, world_size = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        images = HeldOutImages(source, size=self.image_size, max_megapixels=self.max_megapixels)
        share = EvenShare(len(source), rank=rank, world_size=world_size)
        arguments = self._loader_arguments | {"persistent_workers": False}
        return Loader(
            DataLoader(images, batch_size=self.batch_size, sampler=share, **arguments),
            self._report,
        )

    @property
    def _loader_arguments(self) -> dict:
        return {
            "num_workers": self.num_workers,
            "collate_fn": collate,
            "worker_init_fn": start_worker,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": self.trainer is not None
            and self.trainer.strategy.root_device.type == "cuda",
        }

    # --- bad images ---------------------------------------------------------------------------

    def _report(self, bad: list[Bad], seen: int) -> None:
        """Count bad images by name, list new ones in bad_files.txt, stop above `max_bad`."""
        self._seen += seen
        new = {name: reason for name, reason in bad if name not in self.bad}
        self.bad |= new
        if new and self.trainer is not None:
            self._write(new)
        # Without new ones, too: in a small set all are found before it is time to judge.
        total = len(self._train) if self._train is not None else 0
        if self.max_bad is None or self._seen < min(_JUDGED_AFTER, total):
            return
        if len(self.bad) > self.max_bad * min(self._seen, total):
            reasons = ", ".join(f"{n} {r}" for r, n in self.bad_reasons.most_common())
            raise UserError(
                f"{len(self.bad)} of {min(self._seen, total)} images are unusable ({reasons}), "
                f"more than data.max_bad {self.max_bad}; see bad_files.txt in the run folder"
            )

    def _write(self, new: dict[str, str]) -> None:
        path = Path(self.trainer.default_root_dir) / "bad_files.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name need not be UTF-8: file systems take any bytes.
        with path.open("a+", encoding="utf-8", errors="surrogateescape") as file:
            with suppress(OSError):  # without locks, as on some clusters, a line may come twice
                fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            listed = set(file.read().splitlines())
            lines = [f"{name}\t{reason}" for name, reason in new.items()]
            file.writelines(f"{line}\n" for line in lines if line not in listed)

    @property
    def bad_reasons(self) -> Counter[str]:
        """How many images were unusable, by reason."""
        return Counter(self.bad.values())
