"""Batches cross processes in memory that is used again, and stay what they were while one looks."""

import gc
import os

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pixio_lightning.data import batches as module
from pixio_lightning.data.batches import Lent, collate
from pixio_lightning.data.workers import WorkerContext, start_worker

SIDE, BATCH, WORKERS = 128, 4, 2


def image(number: int, side: int = SIDE) -> torch.Tensor:
    """Return an image `(3, side, side)` unlike those of other numbers."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)


class Numbered(Dataset):
    """Images with a map and a number."""

    def __init__(self, total: int, sides: tuple[int, ...] = (SIDE,)) -> None:
        self.total, self.sides = total, sides

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> dict:
        side = self.sides[index // BATCH % len(self.sides)]
        pixels = image(index, side)
        return {"image": pixels, "mask": pixels > 100, "number": index, "bad": []}


def counted(samples: list[dict]) -> dict:
    """Collate, and say how many buffers the worker has."""
    return collate(samples) | {"buffers": len(module._buffers)}


def loader(total: int, **data: tuple[int, ...]) -> DataLoader:
    return DataLoader(
        Numbered(total, **data),
        batch_size=BATCH,
        num_workers=WORKERS,
        collate_fn=counted,
        worker_init_fn=start_worker,
        multiprocessing_context=WorkerContext(),
    )


def check(batch: dict, side: int = SIDE) -> None:
    expected = torch.stack([image(int(number), side) for number in batch["number"]])
    assert type(batch["image"]) is torch.Tensor
    assert torch.equal(batch["image"], expected)
    assert torch.equal(batch["mask"], expected > 100)


def test_memory_that_was_let_go_is_used_again() -> None:
    most = 0
    for batch in loader(60 * BATCH):
        check(batch)
        most = max(most, batch["buffers"])
    # Of two tensors: two batches in the queue, one here and one that is being made.
    assert 2 <= most <= 2 * 4


def test_batches_that_are_kept_stay_what_they_are() -> None:
    kept = list(loader(60 * BATCH))  # more than a worker has buffers for
    assert max(batch["buffers"] for batch in kept) == module._MOST
    for batch in kept:
        check(batch)


def test_a_view_keeps_the_memory_of_its_batch() -> None:
    views = []
    for batch in loader(40 * BATCH):
        if int(batch["number"][0]) < 8 * BATCH:
            views.append((int(batch["number"][1]), batch["image"][1, :, 5:9]))
    del batch
    gc.collect()
    assert len(views) == 8
    for number, view in views:
        assert torch.equal(view, image(number)[:, 5:9])


def test_sizes_may_change() -> None:
    sides = (128, 160, 96, 200, 144, 256, 112, 208, 176, 240, 224, 264)
    for number, batch in enumerate(loader(60 * BATCH, sides=sides)):
        check(batch, sides[number % len(sides)])
        assert batch["buffers"] <= module._MOST


def lent() -> Lent:
    buffer = torch.zeros(module._HEADER + 1000, dtype=torch.uint8).share_memory_()
    buffer[0] = 1
    return Lent(buffer, (10, 25), torch.float32)


def received(sent: Lent) -> torch.Tensor:
    """Return what arrives of a tensor, as unpickling makes it."""
    arrive, arguments = sent.__reduce__()
    return arrive(*arguments)


def test_a_buffer_is_in_use_until_the_last_view_is_gone() -> None:
    sent = lent()
    sent.tensor().copy_(torch.arange(250.0).view(10, 25))
    arrived = received(sent)
    part = arrived[3:5]
    del arrived
    gc.collect()
    assert sent.buffer[0] == 1
    assert torch.equal(part, torch.arange(75.0, 125.0).view(2, 25))
    del part
    gc.collect()
    assert sent.buffer[0] == 0


def test_a_fork_gives_nothing_back() -> None:
    sent = lent()
    arrived = [received(sent)]
    child = os.fork()
    if child == 0:  # as a data worker that is forked while a batch is in use
        arrived.clear()
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert sent.buffer[0] == 1
    arrived.clear()
    assert sent.buffer[0] == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.bfloat16])
def test_every_type_arrives(dtype: torch.dtype) -> None:
    buffer = torch.zeros(module._HEADER + 1000, dtype=torch.uint8).share_memory_()
    sent = Lent(buffer, (5, 20), dtype)
    values = torch.arange(100).view(5, 20).to(dtype)
    sent.tensor().copy_(values)
    assert torch.equal(received(sent), values)
