"""The training stream over shards: endless, shuffled, divided among readers, resumed exactly.

The groups of all shards are put into a new order in every pass and cut into blocks, about 2,000
images each, which are read as a whole and shuffled inside. The blocks of all passes form one
endless sequence: of R readers (processes x workers) reader r takes the blocks r, r + R, r + 2R,
... So every image comes once in a pass whatever R is, a batch may straddle two passes, nothing is
dropped, and a reader's whole state is a `Cursor`: the number of its block and the position in it.

Every batch carries the cursor of its reader behind its last image. What was prefetched but never
trained on is therefore read again after a resume, and nothing else.

A worker reads its next block while it hands out the second half of the one it has, whose images
are freed one by one: it holds one and a half blocks.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pixio_lightning.data.batches import Bad, collate
from pixio_lightning.data.decode import BadImage, decode_crop, random_crop
from pixio_lightning.data.shards.format import Encoded, ShardIndex, read_group
from pixio_lightning.data.shards.keep_rule import KeepRule
from pixio_lightning.data.stream import EndlessLoader
from pixio_lightning.data.workers import watched
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import RandomKey, fold, key_of, permuted

BLOCK_ROWS = 2048  # at 60 kB an image 120 MB, of which a worker holds up to one and a half
_LEAST_BLOCKS = 8  # in a pass, so that a small set is shuffled as well
# A reader that goes through so many images without one to keep will never fill a batch.
_LONGEST_SEARCH = 1_000_000
_HANDED_OUT = Encoded("", b"")  # in place of an image that is not needed any more

Made = TypeVar("Made")


class Cursor(NamedTuple):
    """Where a reader stands: the number of its block in the endless sequence, and the position."""

    block: int
    position: int


class Tally(NamedTuple):
    """What the keep rule did to one group of a shard, which goes by its number."""

    shard: int
    drawn: int
    kept: int


Block = tuple[list[Encoded], list[str], list[Tally]]  # images, their names, and what was kept


@dataclass(frozen=True, eq=False)
class BlockOrder:
    """The endless sequence of blocks.

    Attributes:
        groups: Numbers of the groups to read, int64.
        per_block: Groups in a block.
        seed: The run's seed.
    """

    groups: NDArray[np.int64]
    per_block: int
    seed: int

    @classmethod
    def of(
        cls, index: ShardIndex, groups: NDArray[np.int64], *, rows: int, seed: int
    ) -> BlockOrder:
        """Cut groups into blocks of about `rows` images."""
        first = index.group_rows[groups[:1000]]
        mean = (int(first.sum()) or 1) / max(1, len(first))
        per_block = max(1, min(round(rows / mean), len(groups) // _LEAST_BLOCKS))
        return cls(groups, per_block, seed)

    @property
    def blocks_per_pass(self) -> int:
        """Number of blocks in a pass."""
        return -(-len(self.groups) // self.per_block)

    def epoch(self, block: int) -> int:
        """Return the pass that a block belongs to."""
        return block // self.blocks_per_pass

    def groups_of(self, block: int) -> list[int]:
        """Return the numbers of the groups in a block."""
        epoch, number = divmod(block, self.blocks_per_pass)
        n = len(self.groups)
        places = range(number * self.per_block, min((number + 1) * self.per_block, n))
        return [int(self.groups[permuted(i, n, seed=self.seed, step=epoch)]) for i in places]


class ShardImages(IterableDataset):
    """Batches of random crops of one process; each worker is one reader.

    Args:
        index: The shards.
        order: The blocks.
        rule: Which images to keep; None keeps all.
        rank: Number of this process.
        world_size: Number of processes.
        batch_size: Images of a batch.
        size: Side of a crop in pixels.
        scale: Range of a crop's share of the area.
        ratio: Range of its width over its height.
        max_megapixels: Larger images are bad.
        seed: The run's seed.
    """

    def __init__(
        self,
        index: ShardIndex,
        order: BlockOrder,
        rule: KeepRule | None,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        max_megapixels: float,
        seed: int,
    ) -> None:
        self.index, self.order, self.rule = index, order, rule
        self.rank, self.world_size, self.batch_size = rank, world_size, batch_size
        self.size, self.scale, self.ratio = size, scale, ratio
        self.max_megapixels, self.seed = max_megapixels, seed
        # Set by the loader: where the readers of this process stand, and which is next.
        self.cursors: list[Cursor] = []
        self.next_reader = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches; beside what is trained on: `bad`, `cursor` and `tallies`."""
        info = get_worker_info()
        if info:  # arrow's own pool keeps what it has freed, for every worker tens of megabytes
            pa.set_memory_pool(pa.system_memory_pool())
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        # The DataLoader asks its workers in turns from 0, so the one whose turn it is comes first.
        local = (worker + self.next_reader) % workers
        # Not in the training process, which forks: a fork inherits what a thread has locked.
        samples = self._samples(
            self.cursors[local], stride=self.world_size * workers, ahead=info is not None
        )
        while True:
            try:
                drawn = [next(samples) for _ in range(self.batch_size)]
            except UserError as error:  # raised, it would arrive with a traceback for its text
                yield {"error": str(error)}
                return
            tallies = [tally for _, _, counted in drawn for tally in counted]
            batch = collate([sample for sample, _, _ in drawn])
            yield batch | {"cursor": drawn[-1][1], "tallies": tallies}

    def first_cursors(self, workers: int, *, block: int = 0) -> list[Cursor]:
        """Return where the readers of this process begin, if the first of all is at `block`."""
        return [Cursor(block + self.rank * workers + worker, 0) for worker in range(workers)]

    def _samples(
        self, cursor: Cursor, *, stride: int, ahead: bool
    ) -> Iterator[tuple[dict[str, Any], Cursor, list[Tally]]]:
        block, position = cursor
        following: Callable[[], Block] | None = None  # what is being read in the meantime
        bad: list[Bad] = []
        tallies: list[Tally] = []
        searched = 0
        while True:
            images, names, counted = following() if following else self._read(block)
            following = None
            # A block that is read again for its rest has been counted before.
            tallies += counted if position == 0 else []
            epoch, searched = self.order.epoch(block), searched + sum(t.drawn for t in counted)
            images[:position] = [_HANDED_OUT] * position  # before a resume
            for at in range(position, len(images)):
                if ahead and not following and at >= len(images) // 2:
                    following = _in_background(partial(self._read, block + stride))
                image, images[at] = images[at], _HANDED_OUT  # which frees it
                sample = self._sample(image, names[at], epoch, bad)
                if sample is None:
                    continue
                after = Cursor(block, at + 1)
                yield sample, after, tallies
                bad, tallies, searched = [], [], 0
            if searched > _LONGEST_SEARCH or len(bad) > _LONGEST_SEARCH:
                worst = f", the first of the bad: {': '.join(bad[0])}" if bad else ""
                raise UserError(f"none of {searched} images is kept and can be used{worst}")
            images, names = [], []
            _give_back_memory()
            block, position = block + stride, 0

    def _sample(
        self, image: Encoded, name: str, epoch: int, bad: list[Bad]
    ) -> dict[str, Any] | None:
        try:
            if image.reason:
                raise BadImage(image.reason)
            random_key = RandomKey(key := key_of(image.key), self.seed, epoch)
            draw = partial(random_crop, random_key=random_key, scale=self.scale, ratio=self.ratio)
            crop = decode_crop(image.data, draw, self.size, max_megapixels=self.max_megapixels)
        except BadImage as error:
            bad.append((name, str(error)))
            return None
        return {"image": torch.from_numpy(crop).permute(2, 0, 1), "key": key, "bad": bad}

    def _read(self, block: int) -> Block:
        """Read the groups of a block, thin them by the rule, and shuffle what is left."""
        epoch, groups = self.order.epoch(block), self.order.groups_of(block)
        # Shard by shard, as opening one may take longer than reading a small group of it.
        read = {group: self._read_group(group, epoch) for group in sorted(groups)}
        images: list[Encoded] = []
        names: list[str] = []
        tallies: list[Tally] = []
        for group in groups:
            found, tally = read.pop(group)
            path = self.index.shards[tally.shard].path
            tallies.append(tally)
            images += found
            names += [i.key if i.key.startswith(path) else f"{path}:{i.key}" for i in found]
        n, seed = len(images), fold(self.seed, block)
        places = [permuted(i, n, seed=seed, step=epoch) for i in range(n)]
        return [images[i] for i in places], [names[i] for i in places], tallies

    def _read_group(self, group: int, epoch: int) -> tuple[list[Encoded], Tally]:
        """Read what the rule keeps of a group in a pass."""
        shard, _ = self.index.locate(group)
        rows = self.index.rows_of(group)
        if self.rule and not self.rule.takes_group(self.index, group, epoch=epoch):
            return [], Tally(shard, rows, 0)
        read = read_group(self.index, group)
        if self.rule:
            kept = self.rule.keep(self.index, group, read, epoch=epoch)
            read = [image for image, keep in zip(read, kept, strict=True) if keep]
        return read, Tally(shard, rows, len(read))


def _in_background(make: Callable[[], Made]) -> Callable[[], Made]:
    """Begin a call in a thread; return what waits for its end, and returns or raises what it did.

    A process that ends does not wait for the thread.
    """
    made: Future[Made] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return made.result


def _give_back_memory() -> None:
    """Return freed memory to the system, where the C library can: else the heap grows for hours."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class ShardLoader(EndlessLoader):
    """The endless loader over `ShardImages`, in virtual epochs of a fixed number of batches.

    Args:
        images: The data set; the loader sets its cursors.
        report: Called with the bad images of each batch.
        tally: Called with what the keep rule did.
        batches: Batches in a virtual epoch.
        arguments: Of the DataLoader.
    """

    def __init__(
        self,
        images: ShardImages,
        report: Callable[[list[Bad], int], None],
        *,
        tally: Callable[[list[Tally]], None],
        batches: int,
        arguments: dict[str, Any],
    ) -> None:
        arguments = arguments | {"batch_size": None, "collate_fn": None}
        arguments["persistent_workers"] = arguments["num_workers"] > 0
        super().__init__(DataLoader(images, **arguments), report, batches=batches)
        self.images, self.tally = images, tally
        self.readers = max(1, arguments["num_workers"])
        self.cursors = images.first_cursors(self.readers)
        self.batches_read = 0

    def state(self) -> dict[str, Any]:
        """Return where the readers of this process stand, as plain data."""
        return {"cursors": [list(cursor) for cursor in self.cursors], "turn": self.batches_read}

    def go_to(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.cursors = [Cursor(*cursor) for cursor in state["cursors"]]
        self.batches_read = state["turn"]
        self._running = None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Go on with the running workers, or start them where the cursors are."""
        if self._running is None:
            self.images.cursors = list(self.cursors)
            self.images.next_reader = self.batches_read % self.readers
            self._running = watched(self.loader)
        return self

    def __next__(self) -> dict[str, Any]:
        batch = super().__next__()
        if "error" in batch:
            raise UserError(batch["error"])
        self.cursors[self.batches_read % self.readers] = batch.pop("cursor")
        self.batches_read += 1
        self.tally(batch.pop("tallies"))
        return batch
