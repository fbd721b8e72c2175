"""The stream is a function of the step: not of workers, processes, interruptions or bad images."""

import io
import multiprocessing
import os
import signal
from collections.abc import Callable
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from PIL import Image
from torch.utils.data import DataLoader

from pixio_lightning.data.batches import Bad, collate
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.data.samples import TrainingSamples
from pixio_lightning.data.stream import EvenShare, Loader, Positions, StepLoader
from pixio_lightning.data.workers import WorkerContext, start_worker
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import key_of, permuted

GLOBAL_BATCH = 12


class Painted:
    """Small pictures, some of which cannot be used; counts what is read."""

    def __init__(self, n: int, *, bad: tuple[int, ...] = (), lost: tuple[int, ...] = ()) -> None:
        self.n, self.bad, self.lost, self.reads = n, bad, lost, 0

    def __len__(self) -> int:
        return self.n

    def name(self, index: int) -> str:
        return f"picture-{index}"

    def read(self, index: int) -> bytes:
        self.reads += 1
        if index in self.lost:
            raise FileNotFoundError(2, "No such file or directory")
        if index in self.bad:
            return b"damaged"
        pixels = np.random.default_rng(index).integers(0, 256, (24, 32, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    def label(self, index: int) -> str | None:
        return None


class PaintedPixels(Pixels):
    """Pretraining on such pictures, as on those of a folder."""

    def __init__(self, source: Painted, **arguments: Any) -> None:
        super().__init__("folder", "none", **arguments)
        self._train = self._everything = source


def training(source: Painted, seed: int = 0) -> TrainingSamples:
    return PaintedPixels(source, image_size=16, seed=seed).training_set()


def loader(source: Painted, *, rank: int = 0, world: int = 1, workers: int = 0) -> DataLoader:
    return DataLoader(
        training(source),
        batch_sampler=Positions(GLOBAL_BATCH // world, rank=rank, world_size=world),
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        multiprocessing_context=WorkerContext() if workers else None,
    )


def ignore(bad: list[Bad], seen: int) -> None:
    """A report that nobody reads."""


def keys(source: Painted, first: int, count: int, seed: int = 0) -> list[int]:
    images = training(source, seed)
    return [images[position]["key"] for position in range(first, first + count)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_stream_is_the_same_for_all_workers_and_processes(world: int, workers: int) -> None:
    """Ten images of which two are bad, five steps of twelve: batches straddle passes."""
    source = Painted(10, bad=(2,), lost=(5,))
    expected = [training(source)[position] for position in range(5 * GLOBAL_BATCH)]
    ranks = [
        islice(loader(source, rank=rank, world=world, workers=workers), 5) for rank in range(world)
    ]
    for step, batches in enumerate(zip(*ranks, strict=True)):
        samples = expected[step * GLOBAL_BATCH :][:GLOBAL_BATCH]
        together = torch.cat([batch["image"] for batch in batches])
        assert torch.equal(together, torch.stack([sample["image"] for sample in samples]))
        assert torch.cat([b["key"] for b in batches]).tolist() == [s["key"] for s in samples]
        assert sum((b["bad"] for b in batches), []) == sum((s["bad"] for s in samples), [])


def test_a_pass_has_every_image_once_in_an_order_of_its_own() -> None:
    source, everything = Painted(10), {key_of(f"picture-{i}") for i in range(10)}
    passes = [keys(source, 10 * epoch, 10) for epoch in range(6)]
    assert all(set(order) == everything for order in passes)
    assert len(set(map(tuple, passes))) == 6
    assert keys(source, 0, 10, seed=1) != passes[0]


def test_an_image_is_cropped_anew_in_every_pass() -> None:
    images = training(Painted(3))
    samples = [images[position] for position in range(12)]
    crops = [s["image"] for s in samples if s["key"] == key_of("picture-1")]
    assert len(crops) == 4
    assert not any(torch.equal(crops[0], other) for other in crops[1:])


def test_a_bad_image_is_replaced_by_the_next_of_the_stream() -> None:
    clean, source = training(Painted(9)), Painted(9, bad=(0, 7), lost=(3,))
    images = training(source)
    reasons = {0: "no JPEG, PNG, WebP, TIFF or BMP", 7: "no JPEG, PNG, WebP, TIFF or BMP"}
    reasons[3] = "cannot be read (No such file or directory)"
    for position in range(27):
        sample, skipped = images[position], []
        while (index := permuted(position % 9, 9, seed=0, step=position // 9)) in reasons:
            skipped.append((f"picture-{index}", reasons[index]))
            position += 1
        assert sample["bad"] == skipped
        assert torch.equal(sample["image"], clean[position]["image"])
        assert sample["key"] == clean[position]["key"]


def refusal(stream: Loader) -> str:
    """Return the mistake that ends a stream; its traceback, which holds the workers, is let go."""
    try:
        next(iter(stream))
    except UserError as error:
        return str(error)
    raise AssertionError("nothing was refused")


@pytest.mark.parametrize("workers", [0, 1])
def test_when_all_images_are_bad_one_line_says_so(workers: int) -> None:
    found: list[Bad] = []
    stream = Loader(
        loader(Painted(4, bad=(0, 1, 2, 3)), workers=workers), lambda bad, seen: found.extend(bad)
    )
    first = f"picture-{permuted(0, 4, seed=0, step=0)}"
    text = f"none of 4 images can be used; the first, {first}: no JPEG, PNG, WebP, TIFF or BMP"
    assert refusal(stream) == text
    assert {name for name, _ in found} == {f"picture-{i}" for i in range(4)}


def test_the_search_for_a_usable_image_ends() -> None:
    """A folder of a million unusable files must not be read through before it is told."""
    source = Painted(50_000, bad=tuple(range(50_000)))
    assert set(training(source)[0]) == {"bad"}
    assert source.reads == 1000


def test_workers_live_through_a_signal_to_the_whole_job() -> None:
    """A scheduler signals every process; the main one needs its workers to finish the step."""
    before = set(multiprocessing.active_children())
    batches = iter(loader(Painted(10), workers=2))
    # One batch of each: a worker that is still starting has not set its signals up.
    next(batches), next(batches)
    for worker in set(multiprocessing.active_children()) - before:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid or 0, number)
    expected = keys(Painted(10), 2 * GLOBAL_BATCH, 8 * GLOBAL_BATCH)
    assert torch.cat([next(batches)["key"] for _ in range(8)]).tolist() == expected


# --- the loader that continues ----------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_where_the_run_is(workers: int) -> None:
    source = Painted(10)
    consumed = 0
    stream = StepLoader(
        loader(source, workers=workers), ignore, batches=3, consumed=lambda: consumed
    )
    assert len(stream) == 3

    def epoch(batches: int) -> list[int]:
        nonlocal consumed
        running = iter(stream)
        found = torch.cat([next(running)["key"] for _ in range(batches)]).tolist()
        consumed += batches
        return found

    def expected(first: int, batches: int) -> list[int]:
        return keys(source, first * GLOBAL_BATCH, batches * GLOBAL_BATCH)

    others = set(multiprocessing.active_children())  # of tests before, not yet gone
    assert epoch(3) == expected(0, 3)
    workers_before = set(multiprocessing.active_children()) - others
    assert epoch(2) == expected(3, 2)
    assert epoch(3) == expected(5, 3)
    consumed = 100
    assert epoch(2) == expected(100, 2)
    consumed = 1  # backwards, as after loading an older checkpoint
    assert epoch(3) == expected(1, 3)
    assert set(multiprocessing.active_children()) - others == workers_before
    stream.close()
    assert not set(multiprocessing.active_children()) & workers_before


def test_a_batch_that_was_fetched_but_not_trained_on_is_fetched_again() -> None:
    consumed = 0
    stream = StepLoader(loader(Painted(10)), ignore, batches=9, consumed=lambda: consumed)
    running = iter(stream)
    first, _ = next(running)["key"], next(running)
    consumed = 1
    assert next(iter(stream))["key"].tolist() == keys(Painted(10), GLOBAL_BATCH, GLOBAL_BATCH)
    assert first.tolist() == keys(Painted(10), 0, GLOBAL_BATCH)


# --- held-out images --------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 9, 10])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_evenly(n: int, world: int) -> None:
    shares = [EvenShare(n, rank=rank, world_size=world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    indices = [index for share in shares for index in share]
    assert sorted(i for i in indices if i >= 0) == list(range(n))
    assert len(indices) - n < world
    assert all(len(list(share)) == len(share) for share in shares)


def test_no_share_is_a_list() -> None:
    """Of a hundred million images it would be gigabytes in every process."""
    share = EvenShare(10**18, rank=1, world_size=3)
    assert next(iter(share)) == 1 and len(share) == 10**18 // 3 + 1


def test_held_out_images_are_centred_and_others_weigh_nothing_in_place_of_bad_ones() -> None:
    source = Painted(3, bad=(1,))
    images = PaintedPixels(source, image_size=24).evaluated(source)
    batch = collate([images[i] for i in (0, 1, 2, -1)])
    assert batch["weight"].tolist() == [1, 0, 1, 0]
    assert batch["bad"] == [("picture-1", "no JPEG, PNG, WebP, TIFF or BMP")]
    assert batch["name"] == [f"picture-{i}" for i in (0, 2, 2, 0)]
    assert batch["key"].tolist() == [key_of(name) for name in batch["name"]]
    for i in (0, 2):
        pixels = np.asarray(Image.open(io.BytesIO(source.read(i))))
        assert np.array_equal(batch["image"][i].permute(1, 2, 0), pixels[:, 4:28])


def test_what_a_loader_reports() -> None:
    reports: list[tuple[list[Bad], int]] = []
    report: Callable[[list[Bad], int], None] = lambda bad, seen: reports.append((bad, seen))  # noqa: E731
    images = PaintedPixels(Painted(5, bad=(4,)), image_size=16).evaluation_set("predict")
    batches = list(Loader(DataLoader(images, batch_size=3, collate_fn=collate), report))
    assert [set(batch) for batch in batches] == [{"image", "size", "key", "weight", "name"}] * 2
    assert reports == [([], 3), ([("picture-4", "no JPEG, PNG, WebP, TIFF or BMP")], 2)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overfit_batches": 1}, "trainer.overfit_batches is 1, but a training stream has no end"),
        ({"reload_dataloaders_every_n_epochs": 1}, "every_n_epochs is 1, but a training stream"),
        ({"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]}, "leave it out"),
    ],
)
def test_a_trainer_that_would_read_batches_twice_is_refused(
    options: dict[str, Any], said: str
) -> None:
    data = PaintedPixels(Painted(8), num_workers=0)
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    with pytest.raises(UserError, match=said):
        data.train_dataloader()


def test_without_a_trainer_the_samples_are_read_in_a_loop_of_one_s_own() -> None:
    data = PaintedPixels(Painted(8), num_workers=0, batch_size=2, image_size=16)
    with pytest.raises(UserError, match="there is none: give the data to Trainer.fit, or read in"):
        data.train_dataloader()
    first, second = islice(
        DataLoader(
            data.training_set(),
            batch_sampler=data.positions(rank=0, world_size=1),
            **data.loader_arguments,
        ),
        2,
    )
    assert first["image"].shape == (2, 3, 16, 16)
    assert len({*first["key"].tolist(), *second["key"].tolist()}) == 4
