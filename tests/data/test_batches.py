"""Batches cross processes in memory that is used again, and stay what they were while one looks."""

import gc
import os
import select
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pixio_lightning.data import batches as module
from pixio_lightning.data.batches import Buffer, Lent, Sent, collate
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
    used = sum(buffer.in_use for buffer in module._buffers)
    return collate(samples) | {"buffers": len(module._buffers), "used": used}


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
    kept = list(loader(60 * BATCH))
    assert kept[-1]["buffers"] == kept[-1]["used"] + 2 == 2 * 60 / WORKERS  # two tensors each
    for batch in kept:
        check(batch)


def test_memory_of_batches_that_were_kept_is_given_up() -> None:
    kept = []
    for number, batch in enumerate(loader(100 * BATCH)):
        check(batch)
        kept = [*kept, batch] if number < 60 else []
        last = batch
    assert last["buffers"] - last["used"] <= module._IDLE


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
        assert batch["buffers"] - batch["used"] <= module._IDLE


def lent() -> Lent:
    return Lent(Buffer(1000), (10, 25), torch.float32)


def received(sent: Lent | Sent) -> torch.Tensor:
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
    assert sent.buffer.in_use
    assert torch.equal(part, torch.arange(75.0, 125.0).view(2, 25))
    del part
    gc.collect()
    assert not sent.buffer.in_use


def test_a_fork_gives_nothing_back() -> None:
    sent = lent()
    arrived = [received(sent)]

    def let_go() -> None:  # of what a data worker found where it was forked
        arrived.clear()
        gc.collect()

    child = WorkerContext().Process(target=let_go)
    child.start()
    child.join()
    assert child.exitcode == 0 and sent.buffer.in_use
    arrived.clear()
    assert not sent.buffer.in_use


def test_what_a_fork_holds_is_not_written_over() -> None:
    """As where pictures are saved by a process of their own while training goes on."""
    sent = lent()
    arrived = [received(sent)]
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    arrived.clear()
    assert sent.buffer.in_use
    sent.buffer.memory[0] = 0


def test_data_workers_hold_no_batch() -> None:
    """Those that are forked for a validation do not cost the batches of the training."""
    sent = lent()
    arrived = [received(sent)]
    for batch in loader(2 * BATCH):
        check(batch)
    arrived.clear()
    assert not sent.buffer.in_use


def test_a_batch_that_is_given_up_takes_no_buffer() -> None:
    class Odd(Numbered):
        def __getitem__(self, index: int) -> dict:
            depth = torch.zeros(3, 10 + index % 2)
            return super().__getitem__(index) | {"depth": depth, "name": str(index)}

    odd = DataLoader(
        Odd(20 * BATCH),
        batch_size=BATCH,
        num_workers=1,
        collate_fn=counted,
        multiprocessing_context=WorkerContext(),
    )
    for batch in odd:
        assert batch.keys() == {"bad", "buffers", "used"} and not batch["buffers"]


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bool, torch.int64, torch.bfloat16, torch.complex64]
)
def test_every_type_arrives(dtype: torch.dtype) -> None:
    values = torch.arange(100).view(5, 20).to(dtype)
    sent = Lent(Buffer(1000), (5, 20), dtype)
    sent.tensor().copy_(values)
    for way in (sent, Sent(values), Sent(values[:, ::3]), Sent(values[:0])):
        expected = values if way is sent else way.tensor
        arrived = received(way)
        assert arrived.dtype == dtype and torch.equal(arrived, expected)
    arrived.zero_()  # nobody else's
    # Of a part of a batch torch would save the whole memory.
    assert received(sent).untyped_storage().nbytes() == values.nbytes


def test_nothing_is_taken_of_dev_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container it has 64 MB, unless somebody thought of it."""

    def refuse(*size: object) -> None:
        raise RuntimeError("unable to allocate shared memory: No space left on device")

    for name in ("_share_fd_cpu_", "_share_filename_cpu_", "_new_using_fd_cpu"):
        monkeypatch.setattr(torch.UntypedStorage, name, refuse)
    for batch in loader(10 * BATCH):
        check(batch)


def test_where_no_file_can_be_opened_batches_arrive_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: str) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    for batch in loader(10 * BATCH):
        check(batch)
        assert not batch["buffers"]


def sized(samples: list[dict]) -> dict:
    batch = collate(samples)
    return batch | {"sent": len(ForkingPickler.dumps(batch))}


def test_a_small_batch_is_written_at_once() -> None:
    """Else one whose worker is killed in between would be waited for without an end."""
    images = DataLoader(
        Numbered(4 * BATCH, (32,)),
        batch_size=BATCH,
        num_workers=1,
        collate_fn=sized,
        multiprocessing_context=WorkerContext(),
    )
    for batch in images:
        check(batch, 32)
        assert batch["sent"] < select.PIPE_BUF
