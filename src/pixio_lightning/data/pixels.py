"""Pixels: the DataModule of pretraining, one interface over every source of images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pixio_lightning.data.datamodule import StreamData
from pixio_lightning.data.decode import check_crops, random_crop
from pixio_lightning.data.hub import HubSource
from pixio_lightning.data.listing.splits import pictures_of_splits
from pixio_lightning.data.samples import (
    Crops,
    HeldOutSamples,
    Images,
    TrainingSamples,
    centre_cropped,
    refuse_shared,
    spread,
)
from pixio_lightning.data.scenes.samples import SceneSamples
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.data.shards.format import ShardIndex, is_tar
from pixio_lightning.data.shards.index import open_index
from pixio_lightning.data.shards.keep_rule import Curation, KeepRule
from pixio_lightning.data.shards.score_files import INSIDE
from pixio_lightning.data.shards.set import ShardSet
from pixio_lightning.data.shards.stream import ShardLoader
from pixio_lightning.data.sources import (
    FolderSource,
    Source,
    Subset,
    check_source,
    existing_folder,
    hold_out,
    listed,
    refuse_overlap,
)
from pixio_lightning.data.stream import stepped_by
from pixio_lightning.errors import UserError, at_least_1, refuse_unread

Kind = Literal["scenes", "folder", "hub", "shards"]
_MAX_BAD_OF_SHARDS = 0.001


class Pixels(StreamData):
    """Images to pretrain on: `{"image": uint8 (B, 3, S, S), "key": int64 (B,)}`.

    Args:
        source: `scenes` (rendered on first use), `folder` (nested JPEG, PNG, WebP, TIFF, BMP),
            `hub` (a Hugging Face data set: hub id, or local parquet, arrow or image folder) or
            `shards` (parquet and tar files of any number, streamed).
        path: Folder, hub id, or address of the shards (`hf://`, `s3://`, ...); not for scenes.
        split: Split of a hub data set to train on, or of shards whose names tell theirs.
        val_path: Where the held-out images are; None takes `val/` of a folder that has `train/`
            beside it, or holds out a tenth, at most `val_images`. Not read for scenes, as
            `val_split`.
        val_split: Or the split of a hub data set, or of shards whose names tell theirs, that
            holds them.
        column: Image column of a hub data set or of parquet shards; None takes the first.
        image_size: Side of the crops in pixels.
        batch_size: Images per process and step.
        val_images: Held-out images, at most.
        crop_scale: Range of a crop's share of the image's area.
        crop_ratio: Range of a crop's width over its height.
        max_bad: Stop when more than this share of the images is unusable; None never stops, but
            takes 0.001 for shards.
        max_megapixels: Larger images count as bad and are not decoded.
        scenes: How many scenes and views.
        curation: Which images of scored shards to train on.
        restart_pass: For shards: if a checkpoint was written with another number of processes or
            workers, begin the next pass instead of refusing.
    """

    def __init__(
        self,
        source: Kind = "scenes",
        path: str | None = None,
        *,
        split: str = "train",
        val_path: str | None = None,
        val_split: str | None = None,
        column: str | None = None,
        image_size: int = 256,
        batch_size: int = 64,
        val_images: int = 512,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        max_bad: float | None = None,
        max_megapixels: float = 64.0,
        scenes: Scenes = Scenes(),  # noqa: B008 (frozen)
        curation: Curation = Curation(),  # noqa: B008 (frozen)
        restart_pass: bool = False,
        **loading: Any,
    ) -> None:
        if source == "shards" and max_bad is None:
            max_bad = _MAX_BAD_OF_SHARDS
        super().__init__(batch_size=batch_size, max_bad=max_bad, **loading)
        check_source(source, path, get_args(Kind))
        if source == "scenes":  # an overlay may put them in place of a recipe's files
            val_path = val_split = None
            if curation.scores == INSIDE:
                curation = Curation()
        if val_split and (source == "folder" or (source == "hub" and val_path)):
            raise UserError(
                f"data.val_split '{val_split}' names a split of data.path; it goes with "
                "data.source hub or shards, and of hub without data.val_path"
            )
        if source == "folder":
            for key, given, default in (("split", split, "train"), ("column", column, None)):
                if given != default:
                    raise UserError(
                        f"data.{key} '{given}' is of the hub and of shards; of a folder of "
                        "pictures name the folder itself, as data.path"
                    )
        if curation.scores is None and curation != Curation():
            raise UserError(
                "data.curation says which images of scored shards to keep, but "
                "data.curation.scores, which names the scores, is missing"
            )
        if curation.scores is not None and source not in ("shards", "scenes"):
            raise UserError(
                f"data.curation.scores '{curation.scores}' are scores of shards, but data.source "
                f"is {source}: pack the images with `pixio shard`, and set it to shards"
            )
        at_least_1(**{"data.image_size": image_size, "data.val_images": val_images})
        check_crops(crop_scale, crop_ratio)
        refuse_overlap(path, val_path)
        self.source, self.path, self.split, self.column = source, path, split, column
        self.val_path, self.val_split, self.val_images = val_path, val_split, val_images
        self.image_size, self.max_megapixels, self.scenes = image_size, max_megapixels, scenes
        self.crop_scale, self.crop_ratio = crop_scale, crop_ratio
        self.curation, self.restart_pass = curation, restart_pass
        self.read_by("shards", restart_pass=restart_pass)
        self._shards: ShardSet | None = None
        self._stored: dict[str, Any] | None = None
        self._train: Source | None = None
        self._everything: Source | None = None  # at `path`, to predict
        self._held_out: Source | None = None
        self._held_back: list[str] | None = None
        self._skipped: list[str] = []

    def prepare_data(self) -> None:
        """Render the scenes, or index the shards and look at each, in one process of a node."""
        if self.streamed:
            self._shards = self._shards or self._open_shards()
        elif self.source == "scenes":
            self._scenes("train")
            self._scenes("val")

    def setup(self, stage: str) -> None:
        """Open the sources; nothing is decoded yet."""
        if stage == "predict" and self.source in ("folder", "hub"):
            if self._everything is None:
                self._everything = self._open(self.path, self.split)
            return
        if self._train is not None or self._held_out is not None:
            return
        if self.streamed:
            rule = self._shards.rule if self._shards is not None else None
            if self.curation.scores is not None and self.trainer is not None:
                # Found by the first process, while it prepared the data; and alike for all.
                rule = self.trainer.strategy.broadcast(rule)
            self._shards = self._shards or self._open_shards(rule)
            self._shards.rule = rule or self._shards.rule
            self._refuse_lost(self._shards.index)
            self._held_out = self._shards.held_out
            self._skipped = [": ".join(entry) for entry in self._shards.index.skipped]
            self.count_bad(self._shards.index.damaged, 0)
            return
        if self.source == "scenes":
            self._train, self._held_out = self._scenes("train"), self._scenes("val")
            return
        path, val_path = self.path, self.val_path
        if val_path is None and self.source == "folder":
            path, val_path = pictures_of_splits(existing_folder(path or "", "data.path"))
        self._train = everything = self._open(path, self.split)
        self._held_back = []
        if self.val_split is not None:
            self._held_out = self._open(self.path, self.val_split)
            if stage == "fit":
                ways = "give another data.split or data.val_split"
                refuse_shared(everything, self._held_out, self.path, ways=ways)
        elif val_path is not None:
            self._held_out = self._open(val_path, self.split, key="data.val_path")
        else:
            self._train, self._held_out = hold_out(everything, limit=self.val_images)
            self._held_back = [self._held_out.name(i) for i in range(len(self._held_out))]
        if len(self._held_out) > self.val_images:
            _, self._held_out = hold_out(self._held_out, limit=self.val_images, share=1.0)

    def _refuse_lost(self, index: ShardIndex) -> None:
        """Stop where shards that cannot be read hold more than `max_bad` of the images."""
        if self.max_bad is None or index.lost <= self.max_bad:
            return
        (name, reason), *more = index.damaged
        also = f" and {len(more)} more" if more else ""
        raise UserError(
            f"about {index.lost:.2%} of the images of '{index.root}' are lost with damaged shards "
            f"({name}: {reason}{also}), more than data.max_bad {self.max_bad:g}: mend or remove "
            "the shards, or raise it"
        )

    @property
    def streamed(self) -> bool:
        """Whether images are streamed from shards; the scenes are stored as such, too."""
        return self.source == "shards" or (
            self.source == "scenes" and self.curation.scores is not None
        )

    @property
    def lost_together(self) -> int:
        """Images of a group of shards, which are lost together; else one."""
        return 1 if self._shards is None else int(self._shards.index.group_rows.max())

    def shard_path(self, split: str) -> str:
        """Return where the shards of a split are; the scenes are rendered now if need be."""
        if self.source == "scenes":
            return str(self.scenes.shards(split)[0].parent)
        return self.path or ""

    def shard_index(self) -> ShardIndex:
        """Return the index of the shards to train on or to score; made where there is none."""
        path = self.shard_path("train")
        if self.source == "scenes":
            return open_index(path, look=self.first_of_node)
        index = open_index(path, split=self.split, column=self.column, look=self.first_of_node)
        if index.shards and all(is_tar(shard.path) for shard in index.shards):
            because = f"the shards of '{path}' are tar archives, whose images are in no column"
            refuse_unread("data.column", self.column, None, because)
        return index

    def _open_shards(self, rule: KeepRule | None = None) -> ShardSet:
        val_path = self.shard_path("val") if self.source == "scenes" else self.val_path
        return ShardSet(
            self.shard_index(),
            val_path=val_path,
            val_split=self.val_split,
            val_images=self.val_images,
            curation=self.curation,
            seed=self.seed,
            look=self.first_of_node,
            rule=rule,
        )

    def _scenes(self, split: str) -> Source:
        source = SceneSamples(split, self.scenes, ("image", "room_type"))
        if split == "val":
            return Subset(source, spread(len(source), self.val_images))
        return source

    def _open(self, path: str | None, split: str, *, key: str = "data.path") -> Source:
        if self.source == "folder":
            source = FolderSource(path or "", key=key)
            if source.skipped:
                self._skipped = [f"of other formats {listed(source.skipped)}"]
            return source
        return HubSource(path or "", split, column=self.column, key=key)

    @property
    def labelled(self) -> tuple[Source, Source]:
        """The training and held-out images with their classes, for probes."""
        if self._train is None or self._held_out is None:
            raise UserError("images of shards have no class: give OnlineProbe its train and val")
        return self._train, self._held_out

    def samples(self, n: int) -> dict[str, Any]:
        """Return a batch of held-out images, evenly spread, for pictures."""
        source = self._held_out
        assert source is not None
        return self.evaluated(source, spread(len(source), n)).batch()

    # --- shards -------------------------------------------------------------------------------

    def train_dataloader(self) -> Any:
        """Return the endless stream, at the batch the run has reached."""
        if self._shards is None:
            return super().train_dataloader()
        trainer = stepped_by(self)
        self._shards.stored = self._stored
        self._stream = self._shards.open(
            {
                "rank": trainer.global_rank,
                "world_size": trainer.world_size,
                "batch_size": self.batch_size,
                "size": self.image_size,
                "scale": self.crop_scale,
                "ratio": self.crop_ratio,
                "max_megapixels": self.max_megapixels,
            },
            self.count_bad,
            batches=self.batches_per_epoch(),
            arguments=self.loader_arguments,
            restart_pass=self.restart_pass,
        )
        return self._stream

    def training_values(self) -> dict[str, float]:
        """Return what is logged beside the loss: of curated shards the share that is kept."""
        rate = None if self._shards is None else self._shards.keep_rate
        return {} if rate is None else {"data/keep_rate": rate}

    def state_dict(self) -> dict[str, Any]:
        """Return where all processes stand in the shards; other sources need no state."""
        if self._shards is None or not isinstance(self._stream, ShardLoader):
            return {}
        if self.trainer is not None and self.trainer.is_global_zero:
            self._shards.write_keep_rates(Path(self.trainer.default_root_dir))
        return self._shards.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._stored = state

    # --- sets ---------------------------------------------------------------------------------

    def training_set(self) -> TrainingSamples:
        """Return the crops by their position in the stream."""
        assert self._train is not None
        images = Images(self._train, max_megapixels=self.max_megapixels)
        draw = partial(random_crop, scale=self.crop_scale, ratio=self.crop_ratio)
        return Crops(images, draw, self.image_size, seed=self.seed)

    def evaluated(self, source: Source, indices: list[int] | None = None) -> HeldOutSamples:
        """Return images of a source, or some of them, each once and centre-cropped."""
        return centre_cropped(source, self.image_size, self.max_megapixels, indices)

    def evaluation_set(self, stage: str) -> HeldOutSamples:
        """Return the held-out images; to predict, all of a source but the scenes'."""
        source = self._everything if stage == "predict" else None
        source = self._held_out if source is None else source
        assert source is not None
        return self.evaluated(source)

    def contents(self) -> dict[str, str]:
        """Return how many images there are to train on and held out, and what is none."""
        split = f" of {self.split}" if self.source == "hub" else ""
        held_out = len(self._held_out) if self._held_out is not None else 0
        images = f"{self.training_size():,}{split} to train on, {held_out:,} held out"
        return {"images": "; ".join(filter(None, (images, self.left_out())))}

    def left_out(self) -> str:
        """Return which files, or shards, are not looked at, and why."""
        more = f" and {len(self._skipped) - 3} more" if len(self._skipped) > 3 else ""
        return f"skipped {', '.join(self._skipped[:3])}{more}" if self._skipped else ""

    def named(self, split: str) -> Source | None:
        """Return the images of a split; a place in shards says itself which are trained on."""
        return self._train if split == "train" else self._held_out

    def training_order(self) -> str:
        """Return a hash of what the order of training follows from, wherever shards lie."""
        return super().training_order() if self._shards is None else self._shards.digest

    def names_of(self, split: str) -> list[str] | None:
        """Return the images of a folder or of a hub data set that are trained on or held out."""
        if split == "train" and self._held_back is not None and self._train is not None:
            return [self._train.name(i) for i in range(len(self._train))]
        return None if split == "train" else self._held_back

    def training_size(self) -> int:
        """Return the number of training images."""
        if self._shards is not None:
            return self._shards.rows
        return len(self._train) if self._train is not None else 0
