"""SampleData: the DataModule of a task, of which a head's own data is a short subclass."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from pixio_lightning.data.batches import collate
from pixio_lightning.data.datamodule import StreamData
from pixio_lightning.data.hub import HubRows
from pixio_lightning.data.samples import (
    HeldOutSamples,
    RandomKey,
    Sample,
    Samples,
    TrainingSamples,
    View,
    refuse_shared,
    spread,
)
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.data.sources import FolderSource, check_source, digest_of, listed
from pixio_lightning.data.stream import Loader
from pixio_lightning.errors import UserError, at_least_1, refuse_unread

# What changes no sample, only how fast or in what portions it is read.
_FREE = {
    *("batch_size", "val_batch_size", "num_workers", "steps_per_epoch", "max_bad", "timeout"),
    *("val_images", "views", "bad", "stores"),
}

_NAMES = 10_000  # of training samples that a run keeps to know them again


class SampleData(StreamData):
    """Samples with what a task is told about them, from the rendered scenes or files.

    A subclass lists its `sources`, implements `open` and, where it crops or flips, `augment` and
    `prepare`. Whatever it takes it keeps as plain public attributes: they identify its samples in
    the cache of features and in the records of evaluations.

    Args:
        source: Kind of files, or `scenes`, which are rendered on first use.
        path: Folder or hub id; not for scenes.
        scenes: How many scenes and views.
        max_megapixels: Larger images count as bad and are not decoded.
        val_images: Validation samples, at most; None takes all.
        views: Number of fixed training views of each sample; None draws new ones in every pass.
        loading: Arguments of `StreamData`.

    Raises:
        UserError: The source is unknown, or goes without a path that it needs.
    """

    # The sources a subclass reads; `scenes` is always among them.
    sources: tuple[str, ...] = ("scenes",)
    # Those of them that are made here, and so have no path.
    made: tuple[str, ...] = ("scenes",)
    # Attributes that change no sample: how many run at once, how many are evaluated; and the seed,
    # where nothing but the order and `augment` takes it.
    incidental: tuple[str, ...] = ()

    def __init__(
        self,
        source: str = "scenes",
        path: str | None = None,
        *,
        scenes: Scenes = Scenes(),  # noqa: B008 (frozen)
        max_megapixels: float = 64.0,
        val_images: int | None = None,
        views: int | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        check_source(source, path, self.sources, made=self.made)
        at_least_1(**{"data.val_images": val_images, "data.views": views})
        if type(self).augment is SampleData.augment:
            refuse_unread("data.views", views, None, "its training views are the same every time")
        self.source, self.path = source, path
        self.scenes, self.max_megapixels = scenes, max_megapixels
        self.val_images, self.views = val_images, views
        self.stores: dict[str, Mapping[str, View]] = {}
        self._opened: dict[str, Samples] = {}

    # --- for subclasses -----------------------------------------------------------------------

    def open(self, split: str) -> Samples:
        """Return the samples of "train", "val", "test" or "predict".

        Raises:
            UserError: The files are not where or what they should be.
        """
        raise NotImplementedError

    def augment(self, sample: Sample, random_key: RandomKey) -> Sample:
        """Return a training view; the same key gives the same view."""
        return self.prepare(sample)

    def prepare(self, sample: Sample) -> Sample:
        """Return the view that is evaluated."""
        return sample

    @property
    def random(self) -> bool:
        """Whether training views differ from pass to pass."""
        return type(self).augment is not SampleData.augment and self.views is None

    @property
    def dataset(self) -> str:
        """What records call the data."""
        # Which scenes: results on others may not be compared.
        return f"{self.source} {self.scenes if self.source == 'scenes' else self.path}"

    # --- for the framework --------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Render the scenes once, in one process."""
        if self.source == "scenes":
            stage = self.trainer.state.fn if self.trainer is not None else "fit"
            for split in ("train", "val", *(["test"] if stage == "test" else [])):
                self.samples_of(split)

    def samples_of(self, split: str) -> Samples:
        """Return the samples of a split, opened once.

        Raises:
            UserError: Of `open`.
        """
        if split not in self._opened:
            self._opened[split] = self.open(split)
        return self._opened[split]

    def part_of(self, stage: str) -> str:
        """Return the split that a stage reads: of data without a part to test on, `val`.

        best.ckpt was chosen on those samples, so they are no test of it.
        """
        if stage != "test":
            return stage
        with suppress(UserError):  # of data with nothing but a part to test on
            if self.samples_of("val").digest() == self.samples_of("test").digest():
                return "val"
        return stage

    def prepare_as(self, known: Mapping[str, Any], asked: Collection[str]) -> str:
        """Prepare images to predict as the evaluation of a checkpoint did.

        Args:
            known: What that depended on, by the names in `evaluation_attributes`.
            asked: Arguments of this data that were given on purpose, and stay.

        Returns:
            A line that says what is changed, if anything is. Here `image_size` is, where an
            evaluation depends on it.
        """
        return self.take({"image_size": known.get("image_size")}, asked)

    def take(self, then: Mapping[str, Any], asked: Collection[str]) -> str:
        """Set attributes that were not asked for to what they were, and say so; None is unknown."""
        taken = {
            name: value
            for name, value in then.items()
            if value not in (None, getattr(self, name, value)) and name not in asked
        }
        for name, value in taken.items():
            setattr(self, name, value)
        said = ", ".join(f"data.{name} {value}" for name, value in taken.items())
        return f"{said}: as the checkpoint was evaluated" if taken else ""

    def training_set(self) -> TrainingSamples:
        """Return training views by their position in the stream.

        Raises:
            UserError: Samples are held out as well.
        """
        with suppress(UserError):  # nothing need be held out
            self.samples_of("val")
        if "val" in self._opened:
            self.refuse_shared("val")
        return TrainingSamples(
            self.samples_of("train"),
            self.augment,
            seed=self.seed,
            views=None if self.random else self.views or 1,
            store=self.stores.get("train"),
        )

    def refuse_shared(self, split: str) -> None:
        """Refuse training samples that a split has as well: files, or rows of a data set.

        Raises:
            UserError: There are such samples.
        """
        train, held_out = self.samples_of("train"), self.samples_of(split)
        roots = [getattr(samples, "root", None) for samples in (train, held_out)]
        if isinstance(train, HubRows) and isinstance(held_out, HubRows):
            ways = (
                "give another data.split or data.val_split, which may be parts of one: "
                "'train[:90%]' and 'train[90%:]'"
            )
        elif None not in roots and roots[0] == roots[1]:
            ways = "give lists, or data.split and data.val_split, that share none"
        else:  # scenes, or what has a folder of its own
            return
        refuse_shared(train, held_out, self.path, ways=ways)

    def evaluation_set(self, stage: str) -> HeldOutSamples:
        """Return the samples of a stage, each once; of validation at most `val_images`."""
        samples = self.samples_of(stage)
        indices = spread(len(samples), self.val_images if stage == "val" else None)
        store = self.stores.get(stage)
        return HeldOutSamples(samples, self.prepare, indices=indices, store=store)

    def named(self, split: str) -> Samples:
        """Return the samples of a split."""
        return self.samples_of(split)

    def names_of(self, split: str) -> list[str] | None:
        """Return the samples of a split of a folder, where it is made of the training one's.

        They are where both have one root: what has a folder of its own is apart.
        """
        if self.source != "folder":
            return None
        others = "val" if split == "train" else "train"
        try:
            samples, beside = self.samples_of(split), self.samples_of(others)
        except UserError:  # what is trained on need not be there to evaluate
            return []
        root = getattr(samples, "root", None)
        if root is None or getattr(beside, "root", None) != root:
            return None if root is None else []
        return [samples.name(i) for i in range(len(samples))]

    def names_anywhere(self, split: str) -> list[str]:
        """Return files by where they lie, and rows by their data set; none of what is made here.

        Training samples are up to 10,000, evenly spread.
        """
        samples = self.samples_of(split)
        of_hub = isinstance(samples, HubRows)
        root = self.path if of_hub else getattr(samples, "root", None)
        if root is None:
            return []
        place = Path(root).expanduser()
        where = place.resolve() if place.exists() else root
        chosen = spread(len(samples), _NAMES if split == "train" else None)
        return [f"{where}/{samples.name(i)}" for i in chosen]

    def training_size(self) -> int:
        """Return the number of training samples."""
        return len(self.samples_of("train"))

    def statistics_dataloader(self, limit: int | None = None, *, share: bool = False) -> Loader:
        """Return training samples as they are evaluated, each once; without images of frames.

        Where each process reads all, batches hold usable samples alone; where they share them, rows
        that stand for others have a weight of 0, so that all have equally many.

        Args:
            limit: At most so many, evenly spread; None for all.
            share: Whether the processes share them; otherwise each reads all.
        """
        samples = self.samples_of("train")
        indices = spread(len(samples), limit)
        held_out = HeldOutSamples(samples, self.prepare, indices=indices)
        held_out.frames = None
        world_size = self.trainer.world_size if share and self.trainer else 1
        count = self.counter(len(indices) // world_size)
        return self.evaluation_loader(held_out, share=share, stand_ins=share, count_bad=count)

    def contents(self) -> dict[str, str]:
        """Return how many samples each split that was opened has, and where; and what is none."""
        root = Path(self.path or "").expanduser()
        parts = []
        for split, samples in self._opened.items():
            below = getattr(samples, "root", root)
            inside = below != root and below.is_relative_to(root)
            where = f"in {below.relative_to(root).as_posix()}/" if inside else ""
            words = (f"{len(samples):,} {split}", where, getattr(samples, "note", ""))
            parts.append(" ".join(filter(None, words)))
        if left := self.left_out():
            parts.append(left)
        return {"samples": ", ".join(parts)} if parts else {}

    def left_out(self) -> str:
        """Return what of a folder is of no format that is read."""
        if self.source != "folder":
            return ""
        skipped = FolderSource(Path(self.path or "").expanduser()).skipped
        return f"skipped of other formats {listed(skipped)}" if skipped else ""

    def samples(self, n: int) -> dict[str, Any]:
        """Return `n` validation samples for pictures, as batches of one: sizes may differ."""
        samples = self.samples_of("val")
        held_out = HeldOutSamples(samples, self.prepare, indices=spread(len(samples), n))
        batches = [collate([held_out[i]]) for i in range(len(held_out))]
        return {"batches": [batch for batch in batches if batch.keys() != {"bad"}]}

    def identity(self) -> dict[str, Any]:
        """Return, as plain data, all that decides what a sample looks like."""
        return plain_facts(self, without={*_FREE, *self.incidental})

    def digest(self, split: str) -> str:
        """Return a hash that changes with the samples of a split and with how they are cut."""
        return digest_of(self.identity(), self.samples_of(split).digest())


def plain_facts(thing: Any, *, without: Collection[str]) -> dict[str, Any]:
    """Return the class and the plain attributes of something, which tell it from others.

    Args:
        thing: It.
        without: Attributes that do not count; those that begin with `_` never do.
    """
    values = {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in vars(thing).items()
        if not name.startswith("_") and name not in without
    }
    kinds = (str, int, float, bool, list, tuple, dict, type(None))
    kept = {name: value for name, value in values.items() if isinstance(value, kinds)}
    return {"class": f"{type(thing).__module__}:{type(thing).__qualname__}"} | kept
