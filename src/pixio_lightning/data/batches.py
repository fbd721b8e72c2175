"""From samples to a batch, which workers hand over in shared memory that they use again.

torch gives every batch memory of its own, whose pages the kernel has to find, clear and map one by
one: a tenth of what a worker does. Here a batch is written where an earlier one was, once the
training process has let go of that.
"""

from __future__ import annotations

import math
import os
import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

from pixio_lightning.errors import UserError

Bad = tuple[str, str]  # name of an image and why it is unusable

_LEAST = 1 << 16  # bytes of a tensor; torch hands over smaller ones
_HEADER = 64  # bytes before a tensor, so that it is aligned; the first is 1 while it is in use
_MOST = 16  # buffers of a worker; batches that are kept beyond them have memory of their own


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors and numbers, list names, and keep what all samples share.

    Where a sample is no more than its bad images, or the samples do not fit beside each other,
    the batch is only that: `bad`. In a worker, a large tensor is a `Lent` one.
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
                # Samples that are evaluated have a weight each.
                key = "val_batch_size" if "weight" in samples[0] else "batch_size"
                also = " or data.image_size to a number" if key == "batch_size" else ""
                return {"bad": [(samples[0]["name"], f"{sizes}: set data.{key} to 1{also}")]}
            batch[field] = _stacked(values)
        elif isinstance(first, (int, float)):
            batch[field] = torch.tensor(values)
        elif field != "bad":
            batch[field] = values if isinstance(first, str) else first
    return batch


def none_usable(bad: list[Bad]) -> UserError:
    """Return what to raise where no image of a batch can be used."""
    name, reason = bad[0]
    return UserError(f"none of {len(set(bad))} images can be used; the first, {name}: {reason}")


class Lent:
    """A tensor in a buffer of a worker, on its way to the training process.

    There it arrives as a plain tensor. When nothing has a view of its memory any more, the worker
    may write another batch to it; so a batch can be kept for as long as one likes.

    Args:
        buffer: Shared memory, uint8: the header, then room for the tensor.
        shape: Of the tensor.
        dtype: Of the tensor.
    """

    def __init__(self, buffer: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.buffer, self.shape, self.dtype = buffer, shape, dtype

    def tensor(self) -> Tensor:
        """Return the tensor, a view of the buffer."""
        return _view(self.buffer[_HEADER:], self.shape, self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.buffer, self.shape, self.dtype)


def _view(memory: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return memory[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


def _received(buffer: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor that gives its buffer back once nothing shares its memory."""
    whole = buffer.numpy()
    room = whole[_HEADER:]  # torch keeps the array itself, by which it can tell when it is done
    weakref.finalize(room, _give_back, whole, os.getpid()).atexit = False
    return _view(torch.from_numpy(room), shape, dtype)


def _give_back(buffer: NDArray[np.uint8], process: int) -> None:
    if os.getpid() == process:  # what a fork lets go of may be in use where it came from
        buffer[0] = 0


_buffers: list[Tensor] = []  # of this worker


def _free_buffer(size: int) -> Tensor | None:
    """Return a buffer with room for so many bytes that nothing uses, of those there are or new."""
    free = [number for number, buffer in enumerate(_buffers) if not buffer[0]]
    fitting = [number for number in free if _buffers[number].nbytes >= _HEADER + size]
    if fitting:
        return _buffers[min(fitting, key=lambda number: _buffers[number].nbytes)]
    if len(_buffers) == _MOST:
        if not free:
            return None
        del _buffers[free[0]]
    _buffers.append(torch.zeros(_HEADER + size, dtype=torch.uint8).share_memory_())
    return _buffers[-1]


def _stacked(values: list[Tensor]) -> Any:
    """Stack tensors of one shape; in a worker, into memory that is used again."""
    shape, dtype = (len(values), *values[0].shape), values[0].dtype
    size = math.prod(shape) * dtype.itemsize
    if get_worker_info() is None or size < _LEAST:
        return default_collate(values)
    buffer = _free_buffer(size)
    if buffer is None:
        return default_collate(values)
    buffer[0] = 1
    lent = Lent(buffer, shape, dtype)
    torch.stack(values, out=lent.tensor())
    return lent
