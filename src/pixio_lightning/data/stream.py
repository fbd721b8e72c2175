"""The stream of training samples, a pure function of the step.

Position p of the stream is image ``permuted(p mod n)`` of pass ``p // n``. Step t of a run with
global batch G reads positions tG to (t+1)G, whoever reads them: so the stream does not depend on
the number of workers or processes, and a run resumes from its step number alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from pixio_lightning.data.batches import Bad, none_usable, usable
from pixio_lightning.data.workers import watched
from pixio_lightning.errors import UserError


def refuse_rereading(*, callbacks: Iterable[Any], **options: Any) -> None:
    """Refuse options of a trainer under which a stream would begin again, or read batches twice.

    Args:
        callbacks: Of the trainer.
        options: `overfit_batches` and `reload_dataloaders_every_n_epochs`.

    Raises:
        UserError: One is given.
    """
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            raise UserError(
                "trainer.callbacks has GradientAccumulationScheduler, but a training stream goes "
                "by the step, of trainer.accumulate_grad_batches batches each: leave it out"
            )
    for name, value in options.items():
        if value:
            raise UserError(
                f"trainer.{name} is {value}, but a training stream has no end and goes by the "
                "step alone: leave it out; of few samples, give data of few"
            )


def stepped_by(data: Any) -> Any:
    """Return the trainer by whose steps a data module's training stream goes.

    Raises:
        UserError: There is none; or of `refuse_rereading`.
    """
    trainer = data.trainer
    if trainer is None:
        raise UserError(
            f"the training stream of {type(data).__name__} goes by the steps of a trainer, and "
            "there is none: give the data to Trainer.fit, or read in a loop of your own, after "
            "prepare_data and setup('fit'), DataLoader(data.training_set(), batch_sampler="
            "data.positions(rank=0, world_size=1), **data.loader_arguments)"
        )
    refuse_rereading(
        callbacks=trainer.callbacks,
        overfit_batches=trainer.overfit_batches,
        reload_dataloaders_every_n_epochs=trainer.reload_dataloaders_every_n_epochs,
    )
    return trainer


class Positions(Sampler[list[int]]):
    """Endless batches of stream positions of one process, from a batch number on."""

    def __init__(self, batch_size: int, *, rank: int, world_size: int) -> None:
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.start
        while True:
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            batch += 1


class EvenShare(Sampler[int]):
    """Every world_size-th index, padded with -1, so that all processes run as many batches."""

    def __init__(self, n: int, *, rank: int, world_size: int) -> None:
        self.indices = range(rank, n, world_size)
        self.share = -(-n // world_size)

    def __iter__(self) -> Iterator[int]:
        yield from self.indices
        yield from repeat(-1, self.share - len(self.indices))

    def __len__(self) -> int:
        return self.share


class Loader:
    """A DataLoader that reports bad images instead of handing them on.

    Args:
        loader: Yields batches with a list of `bad` images.
        count_bad: Called with them, in the main process.
        stand_ins: Whether rows of weight 0, which stand for bad images, are handed on.
    """

    def __init__(
        self,
        loader: DataLoader,
        count_bad: Callable[[list[Bad], int], None],
        *,
        stand_ins: bool = True,
    ) -> None:
        self.loader, self.count_bad, self.stand_ins = loader, count_bad, stand_ins

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return map(self.counted, watched(self.loader))

    def counted(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Report the bad images of a batch, and return the rest.

        Raises:
            UserError: There is none.
        """
        bad = batch.pop("bad", [])
        self.count_bad(bad, len(batch.get("key", ())))
        if not batch:
            # Here, because an error in a worker arrives with its traceback for a text.
            raise none_usable(bad)
        return batch if self.stand_ins else usable(batch)


class EndlessLoader(Loader):
    """A training loader that never ends, in virtual epochs of a fixed number of batches.

    Iterating anew goes on with the running workers; a subclass decides when to start others.

    Args:
        loader: A DataLoader without an end.
        count_bad: Called with the bad images of each batch.
        batches: Batches in a virtual epoch.

    Attributes:
        waited: Seconds that the run has waited for batches.
    """

    def __init__(
        self, loader: DataLoader, count_bad: Callable[[list[Bad], int], None], *, batches: int
    ) -> None:
        super().__init__(loader, count_bad)
        self.batches = batches
        self.waited = 0.0
        # Without a reference to this loader: one that is forgotten ends its workers at once, and
        # not with the garbage, whose queues may be gone by then, so that torch waits in vain.
        self._running: Iterator[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return self.batches

    def __next__(self) -> dict[str, Any]:
        assert self._running is not None
        start = time.perf_counter()
        batch = next(self._running)
        self.waited += time.perf_counter() - start
        return self.counted(batch)

    def close(self) -> None:
        """End the workers; the loader yields nothing more."""
        self._running = None
        # The last reference to the DataLoader's iterator, which ends its workers with it.
        self.loader = None  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the position follows from the step, or is kept by the data module."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing; having both methods tells Lightning that the loader resumes."""


class StepLoader(EndlessLoader):
    """The endless training loader over `Positions`, in virtual epochs of a fixed number of batches.

    It continues where the run is: a new iteration that finds the stream at the right batch goes
    on with the running workers, any other starts them there.

    Args:
        loader: A DataLoader over `Positions`.
        count_bad: Called with the bad images of each batch.
        batches: Batches in a virtual epoch.
        consumed: Returns how many batches the run has trained on so far.
    """

    def __init__(
        self,
        loader: DataLoader,
        count_bad: Callable[[list[Bad], int], None],
        *,
        batches: int,
        consumed: Callable[[], int],
    ) -> None:
        super().__init__(loader, count_bad, batches=batches)
        self.consumed = consumed
        self._next = -1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        start = self.consumed()
        if self._running is None or self._next != start:
            sampler = self.loader.batch_sampler
            assert isinstance(sampler, Positions)
            sampler.start = self._next = start
            self._running = watched(self.loader)
        return self

    def __next__(self) -> dict[str, Any]:
        batch = super().__next__()
        self._next += 1
        return batch
