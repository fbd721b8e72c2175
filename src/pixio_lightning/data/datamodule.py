"""StreamData: what every DataModule shares, whatever its task.

An endless training stream that is a pure function of the step, evaluation sets that all processes
share evenly, and bad files that are counted, named and never fatal by themselves.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, Dataset

from pixio_lightning.data.batches import Bad, collate
from pixio_lightning.data.decode import STOPS
from pixio_lightning.data.sources import digest_of, listed
from pixio_lightning.data.stream import EvenShare, Loader, Positions, StepLoader, stepped_by
from pixio_lightning.data.workers import WorkerContext, start_worker
from pixio_lightning.errors import UserError, at_least_1, refuse_unread
from pixio_lightning.files import line_break, lock

# A rate of bad samples is judged after so many, or after one pass if that is shorter.
_JUDGED_AFTER = 10_000
# Deviations above the limit, as each of many processes judges by what it has seen, at every step:
# with fewer, one in hundreds would soon stop a run that is well under it.
_DEVIATIONS = 5
_NAMES = 1_000_000  # that are hashed at most, in half a second


class StreamData(L.LightningDataModule):
    """Training by step, evaluation by pass.

    A subclass opens its files in `setup` and implements `training_set`, `evaluation_set` and
    `training_size`. It takes what stands here as `**loading`: the command line shows it all.

    Args:
        batch_size: Samples per process and training step.
        val_batch_size: Samples per process and evaluation step, all of one size; None takes
            `batch_size`.
        num_workers: Processes that decode, per training process.
        steps_per_epoch: Training steps between two validations.
        max_bad: Stop when more than this share of the training samples is unusable, as far as a
            process can tell by those it has seen; None never stops.
        seed: Seed of order and augmentation.
        timeout: Seconds to wait for a batch of the workers before giving up.
    """

    # Kind of files, where there are several.
    source: str = ""
    # Of its images: what is decoded here is RGB. Data of your own may give others.
    channels: int = 3
    # Samples per process and step of predicting; None takes `val_batch_size`.
    predict_batch_size: int | None = None
    # What samples are made of, so many of each that is read: what is unusable is counted by these.
    counted: str = "images"
    repeat: int = 1

    def __init__(
        self,
        *,
        batch_size: int = 32,
        val_batch_size: int | None = None,
        num_workers: int = 4,
        steps_per_epoch: int = 1000,
        max_bad: float | None = None,
        seed: int = 0,
        timeout: float = 600.0,
    ) -> None:
        super().__init__()
        counts = {"data.batch_size": batch_size, "data.steps_per_epoch": steps_per_epoch}
        at_least_1(**counts, **{"data.val_batch_size": val_batch_size})
        self.batch_size, self.num_workers = batch_size, num_workers
        self.steps_per_epoch, self.max_bad, self.seed = steps_per_epoch, max_bad, seed
        self.val_batch_size = val_batch_size or batch_size
        self.timeout = timeout
        self.bad: dict[str, str] = {}
        self._bad_of_training: set[str] = set()
        self._seen = 0
        self._lists: dict[Path, _BadList] = {}
        self._listings: dict[str, tuple[Any, str]] = {}
        self._stream: Any = None

    def read_by(self, *sources: str, **given: Any) -> None:
        """Refuse arguments that none but these sources read: with another they would do nothing.

        The rendered scenes take none of them ill, as an overlay puts them in place of a recipe's
        files.

        Args:
            sources: What `data.source` may be.
            given: The arguments by their names.

        Raises:
            UserError: One is not its default.
        """
        if self.source in (*sources, "scenes"):
            return
        because = f"data.source is {self.source}, which does not read it, as "
        for name, value in given.items():
            default = _default(type(self), name)
            refuse_unread(
                f"data.{name}", value, default, because + f"{' and '.join(sources)} would"
            )

    def training_set(self) -> Dataset:
        """Return the samples by their position in the endless stream."""
        raise NotImplementedError

    def evaluation_set(self, stage: str) -> Dataset:
        """Return the samples of "val", "test" or "predict", each once; index -1 pads a batch."""
        raise NotImplementedError

    def training_size(self) -> int:
        """Return the number of samples in one pass over the training set."""
        raise NotImplementedError

    def named(self, split: str) -> Any:
        """Return what has the names of the samples of a split by `name(i)`; None if nothing has."""
        return None

    def listing(self, split: str = "train") -> str:
        """Return a hash of which samples a split holds, and in which order; nothing if unknown."""
        samples = self.named(split)
        if samples is None:
            return ""
        if (known := self._listings.get(split)) and known[0] is samples:
            return known[1]  # asked for again at every validation
        # Of a very large set a part: with what was added or removed, the names move.
        chosen = range(0, len(samples), max(1, -(-len(samples) // _NAMES)))
        found = digest_of(len(samples), [samples.name(i) for i in chosen])
        self._listings[split] = (samples, found)
        return found

    def training_order(self) -> str:
        """Return a hash of what the order of training follows from, equal in all processes."""
        return self.listing()

    @property
    def first_of_node(self) -> bool:
        """Whether this process looks at files for all of its machine: also if it is alone."""
        return getattr(self.trainer, "local_rank", 0) == 0

    def names_of(self, split: str) -> list[str] | None:
        """Return the names of the samples of a split, where splits are made here of one whole.

        Args:
            split: "train", "val" or "test".

        Returns:
            No names where the split has a place of its own; None where they are not known.
        """
        return None

    def names_anywhere(self, split: str) -> list[str]:
        """Return names of samples of a split that mean the same, whatever folder and split is read.

        A run is not judged by what it was trained on as part of other data, as far as these tell:
        a name such as 0001.png alone does not.
        """
        return []

    # --- loaders ------------------------------------------------------------------------------

    def train_dataloader(self) -> StepLoader:
        """Return the endless stream, at the batch the run has reached."""
        trainer = stepped_by(self)
        positions = self.positions(rank=trainer.global_rank, world_size=trainer.world_size)
        loader = DataLoader(
            self.training_set(),
            batch_sampler=positions,
            persistent_workers=self.num_workers > 0,
            **self.loader_arguments,
        )
        accumulate = trainer.accumulate_grad_batches
        self._stream = StepLoader(
            loader,
            self.count_bad,
            batches=self.batches_per_epoch(),
            consumed=lambda: trainer.global_step * accumulate,
        )
        return self._stream

    def batches_per_epoch(self) -> int:
        """Return the training batches between two validations: all of whole steps.

        Raises:
            UserError: `limit_train_batches` cuts the last step short.
        """
        trainer = stepped_by(self)
        limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
        batches = self.steps_per_epoch * accumulate
        read = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
        # A step of fewer batches would be counted as a whole one, and the stream go on behind it.
        if read % accumulate and not trainer.fast_dev_run:
            raise UserError(
                f"trainer.limit_train_batches {limit} ends an epoch after {read} batches, which "
                f"trainer.accumulate_grad_batches {accumulate} does not divide: give a multiple, "
                "or data.steps_per_epoch instead"
            )
        return batches

    def positions(self, *, rank: int, world_size: int) -> Positions:
        """Return the batches of stream positions that a process trains on."""
        return Positions(self.batch_size, rank=rank, world_size=world_size)

    def teardown(self, stage: str) -> None:
        """End the workers of the stream."""
        if self._stream is not None:
            self._stream.close()

    def val_dataloader(self) -> Loader:
        """Return every validation sample once, shared evenly by the processes."""
        return self.evaluation_loader(self.evaluation_set("val"))

    def test_dataloader(self) -> Loader:
        """Return every test sample once."""
        return self.evaluation_loader(self.evaluation_set("test"))

    def predict_dataloader(self) -> Loader:
        """Return every sample to predict once."""
        samples = self.evaluation_set("predict")
        return self.evaluation_loader(samples, batch_size=self.predict_batch_size)

    def evaluation_loader(
        self,
        samples: Any,
        *,
        batch_size: int | None = None,
        share: bool = True,
        stand_ins: bool = True,
        count_bad: Callable[[list[Bad], int], None] | None = None,
    ) -> Loader:
        """Return a loader over a sized set, each sample once.

        Args:
            samples: A data set with a length; index -1 pads.
            batch_size: Samples per process and step; None takes `val_batch_size`.
            share: Whether the processes share the samples; otherwise each reads all.
            stand_ins: Whether batches keep the rows of weight 0, which stand for samples that
                cannot be used, so that all processes have equally many.
            count_bad: Told of what cannot be used; by default `list_bad`.
        """
        rank, world_size = 0, 1
        if share and self.trainer:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        indices = EvenShare(len(samples), rank=rank, world_size=world_size)
        batch_size = batch_size or self.val_batch_size
        loader = DataLoader(
            samples, batch_size=batch_size, sampler=indices, **self.loader_arguments
        )
        return Loader(loader, count_bad or self.list_bad, stand_ins=stand_ins)

    @property
    def loader_arguments(self) -> dict:
        return {
            "num_workers": self.num_workers,
            "collate_fn": collate,
            "worker_init_fn": start_worker,
            "multiprocessing_context": WorkerContext() if self.num_workers > 0 else None,
            "timeout": self.timeout if self.num_workers > 0 else 0,
            "pin_memory": self.trainer is not None
            and self.trainer.strategy.root_device.type == "cuda",
        }

    # --- bad samples --------------------------------------------------------------------------

    @property
    def bad_file(self) -> Path:
        """Where bad samples are listed: in the run folder; of what is predicted beside the rest."""
        folder = Path(self.trainer.default_root_dir)
        predicting = self.trainer.state.fn == "predict"
        return (folder / "predictions" if predicting else folder) / "bad_files.txt"

    def list_bad(self, bad: list[Bad], seen: int = 0) -> None:
        """List bad samples that are not yet known in bad_files.txt.

        Raises:
            UserError: One is bad for a reason that is hardly ever its alone: the rest may fit by
                chance and mean something else.
        """
        new = {name: reason for name, reason in bad if name not in self.bad}
        self.bad |= new
        if bad and self.trainer is not None:
            self._lists.setdefault(self.bad_file, _BadList(self.bad_file)).add(dict(bad))
        for name, reason in new.items():
            if reason.startswith(STOPS):
                raise UserError(f"{name}: {reason.removeprefix(STOPS)}")

    def count_bad(self, bad: list[Bad], seen: int) -> None:
        """List bad samples of those that are trained on, and stop above `max_bad`.

        Raises:
            UserError: More than `max_bad` of them are unusable; or as in `list_bad`.
        """
        self.list_bad(bad)
        self._seen += seen
        self._bad_of_training.update(name for name, _ in bad)
        read, total = self._seen // self.repeat, self.training_size() // self.repeat
        self.judge(self._bad_of_training, read, total)

    def counter(self, total: int) -> Callable[[list[Bad], int], None]:
        """Return what does as `count_bad` for `total` training samples that are read once."""
        found: set[str] = set()
        read = 0

        def count(bad: list[Bad], seen: int) -> None:
            nonlocal read
            read += seen
            found.update(name for name, _ in bad)
            self.list_bad(bad)
            self.judge(found, read, total)

        return count

    @property
    def lost_together(self) -> int:
        """How many samples one failure may cost, by which the share found so far varies."""
        return 1

    def judge(self, bad: Collection[str], seen: int, total: int, *, of: str | None = None) -> None:
        """Stop where the share of unusable ones is above `max_bad`, of a part of them clearly so.

        Args:
            bad: Their names, all listed.
            seen: How many were looked at; judged after 10,000 or all.
            total: How many there are.
            of: What they are; None for what is `counted`.

        Raises:
            UserError: It is.
        """
        # Without new ones, too: in a small set all are found before it is time to judge.
        if self.max_bad is None or seen < min(_JUDGED_AFTER, total):
            return
        count, seen = len(bad), min(seen, total)
        most = self.max_bad * seen
        if count > most and seen < total:
            most += _DEVIATIONS * math.sqrt(most * self.lost_together)
        if count > most:
            reasons = listed(Counter(self.bad[name] for name in bad))
            raise UserError(
                f"{count} of {seen} {of or self.counted} are unusable ({reasons}), "
                f"more than data.max_bad {self.max_bad}; see bad_files.txt in the run folder"
            )

    # --- what is said of the data -------------------------------------------------------------

    def contents(self) -> dict[str, str]:
        """Return what a run's card says of the data, by name: how many there are, and where."""
        return {"images": f"{self.training_size():,} to train on"}

    def left_out(self) -> str:
        """Return what of the files is not looked at, because it is of no format that is read."""
        return ""

    @property
    def bad_reasons(self) -> Counter[str]:
        """How many samples were unusable, by reason."""
        return Counter(self.bad.values())


class _BadList:
    """A file with a line for each bad sample, written to by all processes.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: set[str] = set()  # whoever wrote them
        self.read_to = 0  # bytes

    def add(self, bad: dict[str, str]) -> None:
        """Write the lines that are not there."""
        lines = {f"{name}\t{reason}".replace("\n", "?"): None for name, reason in bad.items()}
        if lines.keys() <= self.lines:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            lock(file)  # where there are none, a line may come twice
            file.seek(self.read_to)
            # A name need not be UTF-8: file systems take any bytes.
            self.lines.update(file.read().decode(errors="surrogateescape").splitlines())
            added = [line for line in lines if line not in self.lines]
            text = "".join(f"{line}\n" for line in added)
            file.write(line_break(file) * bool(added) + text.encode(errors="surrogateescape"))
            self.lines.update(added)
            self.read_to = file.tell()


def _default(kind: type, name: str) -> Any:
    """Return the default of an argument, which a class may have from one it is derived from."""
    signatures = (inspect.signature(base.__init__).parameters for base in kind.__mro__)  # type: ignore[misc]
    return next(found[name].default for found in signatures if name in found)
