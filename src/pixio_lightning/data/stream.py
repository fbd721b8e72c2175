"""The stream of training samples, a pure function of the step.

Position p of the stream is image ``permuted(p mod n)`` of pass ``p // n``. Step t of a run with
global batch G reads positions tG to (t+1)G, whoever reads them: so the stream does not depend on
the number of workers or processes, and a run resumes from its step number alone.
"""

from __future__ import annotations

import gc
import multiprocessing
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pixio_lightning.data.decode import (
    BadImage,
    Crop,
    centre_crop,
    decode_pixels,
    random_crop,
    to_tensor,
)
from pixio_lightning.data.sources import Source
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import key_of, permuted

_GRACE = 20  # seconds a worker lives on after SIGTERM
_REAPED = 5  # seconds to wait for one that was killed
Bad = tuple[str, str]  # name of an image and why it is unusable

# Even where nine of ten images are bad, a run of so many never occurs.
_LONGEST_RUN = 1000


def open_image(source: Source, index: int, *, max_megapixels: float) -> NDArray[np.uint8]:
    """Read and decode one image of a source, `(H, W, 3)`.

    Raises:
        BadImage: It cannot be read or decoded.
    """
    try:
        data = source.read(index)
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror or type(error).__name__})") from None
    return decode_pixels(data, max_megapixels=max_megapixels)


class TrainingImages(Dataset):
    """Samples by position in the stream.

    Args:
        source: Encoded images.
        size: Side of a crop in pixels.
        scale: Range of a crop's share of the area.
        ratio: Range of its width over its height.
        max_megapixels: Larger images are bad.
        seed: The run's seed.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        max_megapixels: float,
        seed: int,
    ) -> None:
        self.source, self.size, self.scale, self.ratio = source, size, scale, ratio
        self.max_megapixels, self.seed = max_megapixels, seed

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the crop at a position; a bad image is replaced by the next of the stream.

        Where none of the next can be used either, the sample is no more than its bad images.
        """
        bad: list[Bad] = []
        n = len(self.source)
        for candidate in range(position, position + min(n, _LONGEST_RUN)):
            turn, offset = divmod(candidate, n)
            index = permuted(offset, n, seed=self.seed, turn=turn)
            name = self.source.name(index)
            try:
                image = open_image(self.source, index, max_megapixels=self.max_megapixels)
            except BadImage as error:
                bad.append((name, str(error)))
                continue
            key = key_of(name)
            crop = self._crop(image.shape[1], image.shape[0], key, turn)
            return {"image": to_tensor(image, crop, self.size), "key": key, "bad": bad}
        return {"bad": bad}

    def _crop(self, width: int, height: int, key: int, turn: int) -> Crop:
        return random_crop(
            width,
            height,
            key=key,
            seed=self.seed,
            turn=turn,
            scale=self.scale,
            ratio=self.ratio,
        )


class HeldOutImages(Dataset):
    """All images of a source once, centre-cropped; index -1 pads a batch with weight 0."""

    def __init__(self, source: Source, *, size: int, max_megapixels: float) -> None:
        self.source, self.size, self.max_megapixels = source, size, max_megapixels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an image; a bad one is empty and has weight 0, so that batches stay even."""
        name = self.source.name(max(index, 0))
        sample = {"key": key_of(name), "name": name, "weight": 1.0, "bad": []}
        try:
            if index < 0:
                raise BadImage("")
            image = open_image(self.source, index, max_megapixels=self.max_megapixels)
        except BadImage as error:
            empty = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
            bad = [(name, str(error))] if index >= 0 else []
            return sample | {"image": empty, "weight": 0.0, "bad": bad}
        return sample | {
            "image": to_tensor(image, centre_crop(image.shape[1], image.shape[0]), self.size)
        }


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors and numbers, list names, and keep what all samples share.

    Where a sample is no more than its bad images, or the samples do not fit beside each other,
    the batch is only that: `bad`.
    """
    bad = [bad for sample in samples for bad in sample["bad"]]
    batch: dict[str, Any] = {"bad": bad}
    if any(sample.keys() == {"bad"} for sample in samples):
        return batch
    for field, first in samples[0].items():
        values = [sample[field] for sample in samples if field != "bad"]
        if isinstance(first, Tensor):
            other = [value.shape for value in values if value.shape != first.shape]
            if other:
                sizes = f"{field} of {tuple(first.shape)} beside {tuple(other[0])}"
                return {"bad": [(samples[0]["name"], f"{sizes}: set data.val_batch_size to 1")]}
            batch[field] = torch.stack(values)
        elif isinstance(first, (int, float)):
            batch[field] = torch.tensor(values)
        elif field != "bad":
            batch[field] = values if isinstance(first, str) else first
    return batch


def start_worker(index: int) -> None:
    """Set up the signals of a data worker, which would inherit those of the training process.

    A signal to the whole job must not take the workers away while their parent finishes its step
    and saves; but a parent that ends by an exception tells them to end with the same SIGTERM.
    So a worker lives on for a while.
    """

    def end_later(number: int, frame: FrameType | None) -> None:
        signal.alarm(_GRACE)

    signal.signal(signal.SIGTERM, end_later)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.excepthook = _print_exception


def _print_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print what nobody caught in a worker, but not that its parent left while it was sending."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


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
        share = -(-n // world_size)
        padded = list(range(n)) + [-1] * (share * world_size - n)
        self.indices = padded[rank::world_size]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class Loader:
    """A DataLoader that reports bad images instead of handing them on.

    Args:
        loader: Yields batches with a list of `bad` images.
        report: Called with them, in the main process.
    """

    def __init__(self, loader: DataLoader, report: Callable[[list[Bad], int], None]) -> None:
        self.loader, self.report = loader, report

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in _told(self.loader):
            bad = batch.pop("bad", [])
            self.report(bad, len(batch.get("key", ())))
            if not batch:
                # Here, because an error in a worker arrives with its traceback for a text.
                (name, reason), count = bad[0], len(set(bad))
                raise UserError(f"none of {count} images can be used; the first, {name}: {reason}")
            yield batch


def _told(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Yield batches; what happens to a worker becomes one line."""
    batches = _watched(loader)
    while True:
        try:
            yield next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError, RuntimeError) as error:
            failure = worker_failure(error)
            if failure is None and not isinstance(error, RuntimeError):
                failure = _killed(" ".join(str(error).split()))  # the other end of the pipe is gone
            if failure is not None:
                # Or torch's handler interrupts the clean-up that the failure itself sets off.
                _leave_workers_unwatched()
            raise failure or error from error


_torchs: list[Any] = []  # handler of a dead worker's signal, which it installs once in a process


@contextmanager
def child_signal_kept() -> Iterator[None]:
    """Put back, in the end, the handler of a dead child's signal that was there before.

    Lightning does so after a run, but not after what is done about one that has failed.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        # None is a handler that was not installed from Python, and cannot be put back from there.
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def _watched(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Start the workers of a loader, whose end torch's handler is told of."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    now = signal.getsignal(signal.SIGCHLD)
    if now is not before:
        _torchs[:] = [now]
        return batches
    main = threading.current_thread() is threading.main_thread()
    if main and loader.num_workers and _torchs and now is not _torchs[0]:
        # An earlier run has put back what was there before it.
        gc.collect()  # the loaders of a run that failed, whose workers are dead
        signal.signal(signal.SIGCHLD, _torchs[0])
    return batches


def _leave_workers_unwatched() -> None:
    """Take no notice of workers that end, until a loader starts others."""
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not _torchs:  # installed by a loader that is none of ours
        _torchs[:] = [handler]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def worker_failure(error: Exception) -> UserError | None:
    """Return what to say of an error that a data worker's end caused; None for any other.

    torch may raise it anywhere: the signal of a dead worker interrupts whatever is being done, and
    that may have made another error of it.
    """
    cause: BaseException | None = error
    seen: list[BaseException] = []  # an error may have been raised from itself
    while cause is not None and cause not in seen:
        seen.append(cause)
        text = " ".join(str(cause).split())
        if isinstance(cause, RuntimeError) and "timed out after" in text:
            seconds = re.findall(r"after ([\d.]+) seconds", text)
            return UserError(
                f"the data workers gave no batch for {' '.join(seconds)} s: the file system hangs, "
                "or data.timeout is too short"
            )
        if "exited unexpectedly" in text or "is killed by signal" in text:
            return _killed(text)
        cause = cause.__cause__ or cause.__context__
    return None


def _killed(text: str) -> UserError:
    return UserError(
        f"a data worker was killed ({text}); most often the machine is out of memory: use "
        "fewer data.num_workers, then run the same line again to go on"
    )


def end_workers() -> None:
    """Kill the data workers of a run that has failed, which would hold its exit up for a while."""
    # torch's handler would take their end for another failure.
    _leave_workers_unwatched()
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:  # as long as their end is nobody's business
        child.join(_REAPED)


class EndlessLoader(Loader):
    """A training loader that never ends, in virtual epochs of a fixed number of batches.

    Iterating anew goes on with the running workers; a subclass decides when to start others.

    Args:
        loader: A DataLoader without an end.
        report: Called with the bad images of each batch.
        batches: Batches in a virtual epoch.
    """

    def __init__(
        self, loader: DataLoader, report: Callable[[list[Bad], int], None], *, batches: int
    ) -> None:
        super().__init__(loader, report)
        self.batches = batches
        self._running: Iterator[dict[str, Tensor]] | None = None

    def __len__(self) -> int:
        return self.batches

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
        report: Called with the bad images of each batch.
        batches: Batches in a virtual epoch.
        consumed: Returns how many batches the run has trained on so far.
    """

    def __init__(
        self,
        loader: DataLoader,
        report: Callable[[list[Bad], int], None],
        *,
        batches: int,
        consumed: Callable[[], int],
    ) -> None:
        super().__init__(loader, report, batches=batches)
        self.consumed = consumed
        self._next = -1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        start = self.consumed()
        if self._running is None or self._next != start:
            sampler = self.loader.batch_sampler
            assert isinstance(sampler, Positions)
            sampler.start = self._next = start
            self._running = super().__iter__()
        return self

    def __next__(self) -> dict[str, Tensor]:
        assert self._running is not None
        batch = next(self._running)
        self._next += 1
        return batch
