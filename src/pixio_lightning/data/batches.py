"""From samples to a batch, and how a worker hands it over.

A large tensor is written to shared memory where one of an earlier batch was, once the training
process has let go of that: new memory, whose pages the kernel has to find, clear and map one by
one, is a tenth of what a worker does. A small one is sent as it is. Neither uses /dev/shm, which
is 64 MB in a container that nobody has given more.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import weakref
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from pixio_lightning.data.workers import WorkerProcess
from pixio_lightning.errors import UserError

Bad = tuple[str, str]  # name of an image and why it is unusable

# Bytes of a tensor from which on it is not sent itself: of a worker that is killed while it writes
# more than a pipe takes at once, the rest would be waited for without an end.
_LEAST = 1 << 10
_HEADER = 64  # bytes before a tensor, so that it is aligned; the first is 1 while it is in use
_IDLE = 8  # buffers that a worker keeps while nothing uses them


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors and numbers, list names, and keep what all samples share.

    Where a sample is no more than its bad images, or the samples do not fit beside each other,
    the batch is only that: `bad`. In a worker, where a batch is made to be sent, its tensors are
    `Sent` or `Lent` ones, which become tensors as they arrive.
    """
    bad = [bad for sample in samples for bad in sample["bad"]]
    batch: dict[str, Any] = {"bad": bad}
    if any(sample.keys() == {"bad"} for sample in samples):
        return batch
    if odd := _odd_size(samples):
        return {"bad": [odd]}
    for field, first in samples[0].items():
        values = [sample[field] for sample in samples if field != "bad"]
        if isinstance(first, Tensor):
            batch[field] = _handed_over(values)
        elif isinstance(first, (int, float)):
            numbers = torch.tensor(values)
            batch[field] = numbers if get_worker_info() is None else Sent(numbers)
        elif field != "bad":
            batch[field] = values if isinstance(first, str) else first
    return batch


def _odd_size(samples: list[dict[str, Any]]) -> Bad | None:
    """Return whose tensors do not fit beside each other, and which."""
    for field, first in samples[0].items():
        if not isinstance(first, Tensor):
            continue
        other = [s[field].shape for s in samples if s[field].shape != first.shape]
        if other:
            sizes = f"{field} of {tuple(first.shape)} beside {tuple(other[0])}"
            # Samples that are evaluated have a weight each.
            key = "val_batch_size" if "weight" in samples[0] else "batch_size"
            also = " or data.image_size to a number" if key == "batch_size" else ""
            return samples[0]["name"], f"{sizes}: set data.{key} to 1{also}"
    return None


def weighted(batch: Any) -> Any:
    """Return a batch to evaluate with `weight`, 1 for each sample where it does not say them."""
    if not isinstance(batch, dict) or "weight" in batch or "key" not in batch:
        return batch
    return batch | {"weight": torch.ones(len(batch["key"]), device=batch["key"].device)}


def usable(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch without the rows that only fill it up: those of weight 0."""
    keep = batch["weight"] > 0
    if bool(keep.all()):
        return batch
    names = [name for name, kept in zip(batch["name"], keep.tolist(), strict=True) if kept]
    return apply_to_collection(
        batch, Tensor, lambda tensor: tensor[keep] if tensor.ndim else tensor
    ) | {"name": names}


def none_usable(bad: list[Bad]) -> UserError:
    """Return what to raise where no image of a batch can be used."""
    name, reason = bad[0]
    return UserError(f"none of {len(set(bad))} images can be used; the first, {name}: {reason}")


class Sent:
    """A small tensor on its way to the training process, where it arrives as a plain one."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        content = self.tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        return _copied, (content, self.tensor.shape, self.tensor.dtype)


def _copied(content: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).view(shape)


class Buffer:
    """Shared memory of a worker: a header, then room for a tensor.

    Args:
        size: Bytes for the tensor.

    Attributes:
        file: Descriptor of the memory.
        memory: All of it, uint8.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.file = os.memfd_create("batch")
        weakref.finalize(self, os.close, self.file)
        os.ftruncate(self.file, _HEADER + size)
        self.memory = _mapped(self.file)

    @property
    def in_use(self) -> bool:
        """Whether anything in the training process has a view of it, or will get one."""
        return bool(self.memory[0])


def _mapped(file: int) -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(file, 0), np.uint8)


class Lent:
    """A tensor in a buffer, on its way to the training process, where it arrives as a plain one.

    When nothing has a view of its memory any more, the worker may write another tensor to it; so
    a batch can be kept for as long as one likes.

    Args:
        buffer: Where it is.
        shape: Of the tensor.
        dtype: Of the tensor.
    """

    def __init__(self, buffer: Buffer, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.buffer, self.shape, self.dtype = buffer, shape, dtype
        buffer.memory[0] = 1

    def tensor(self) -> Tensor:
        """Return the tensor, a view of the buffer."""
        return _view(self.buffer.memory, self.shape, self.dtype)[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.buffer.file), self.shape, self.dtype)


def _view(
    memory: NDArray[np.uint8], shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[NDArray[np.uint8], Tensor]:
    """Return the tensor in a buffer's memory, and the array that it was made of."""
    room = memory[_HEADER : _HEADER + math.prod(shape) * dtype.itemsize]
    return room, torch.from_numpy(room).view(dtype).view(shape)


_forks = 0  # of this process, but for data workers, which use no batch that they find


def _count_fork() -> None:
    global _forks
    if not WorkerProcess.forking:
        _forks += 1


os.register_at_fork(before=_count_fork)


def _received(handle: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor that gives its buffer back once nothing shares its memory."""
    file = handle.detach()
    try:
        memory = _mapped(file)
    finally:
        os.close(file)
    # torch keeps the array that a tensor was made of, by which it can tell when it is done.
    array, tensor = _view(memory, shape, dtype)
    weakref.finalize(array, _give_back, memory, os.getpid(), _forks).atexit = False
    return tensor


def _give_back(memory: NDArray[np.uint8], process: int, forks: int) -> None:
    # What a fork lets go of may be in use where it came from, and the other way round.
    if (os.getpid(), _forks) == (process, forks):
        memory[0] = 0


_buffers: list[Buffer] = []  # of this worker


def _free_buffer(size: int) -> Buffer:
    """Return a buffer with room for so many bytes that nothing uses, of those there are or new."""
    free = [buffer for buffer in _buffers if not buffer.in_use]
    for one_more in free[_IDLE:]:
        _buffers.remove(one_more)
    free = free[:_IDLE]
    fitting = [buffer for buffer in free if buffer.size >= size]
    if fitting:
        return min(fitting, key=lambda buffer: buffer.size)
    if free:
        _buffers.remove(max(free, key=lambda buffer: buffer.size))
    _buffers.append(Buffer(size))
    return _buffers[-1]


def _handed_over(values: list[Tensor]) -> Any:
    """Stack tensors of one shape; in a worker, into what crosses to the training process."""
    shape, dtype = (len(values), *values[0].shape), values[0].dtype
    size = math.prod(shape) * dtype.itemsize
    if get_worker_info() is None or sys.platform != "linux":  # elsewhere as torch hands over
        return torch.stack(values)
    if size < _LEAST:
        return Sent(torch.stack(values))
    try:
        lent = Lent(_free_buffer(size), shape, dtype)
    except OSError:  # as many files are open as may be
        return torch.stack(values)
    torch.stack(values, out=lent.tensor())
    return lent
