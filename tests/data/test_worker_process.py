"""Forks that come up stuck, which a clean machine shows once in hundreds of runs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from pixio_lightning.data import workers as worker_process
from pixio_lightning.data.workers import WorkerContext, start_worker
from pixio_lightning.errors import UserError

# A function registered for forks stays for good, so these tests share one that looks here.
stuck: list[Path] = []


def hang() -> None:
    """Stand in for a lock that nobody will ever give back, in as many forks as there are files."""
    if stuck:
        for mark in stuck[0].iterdir():
            mark.unlink()
            time.sleep(600)


os.register_at_fork(after_in_child=hang)


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which each file makes one fork hang."""
    monkeypatch.setattr(worker_process, "PATIENCE", 0.5)
    stuck.append(tmp_path)
    yield tmp_path
    stuck.clear()


def batches(workers: int) -> list[list[int]]:
    loader = DataLoader(
        list(range(8)),
        batch_size=2,
        num_workers=workers,
        multiprocessing_context=WorkerContext(),
        timeout=20,
    )
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("hanging", [0, 1, 2])
def test_a_stuck_fork_is_made_again(hanging: int, marks: Path) -> None:
    for number in range(hanging):
        (marks / str(number)).touch()
    assert batches(2) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert not list(marks.iterdir())


def test_it_gives_up_in_the_end(marks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (marks / str(number)).touch()
    monkeypatch.setattr(worker_process, "PATIENCE", 0.6)
    process = WorkerContext().Process(target=print, daemon=True)
    process.start()
    assert len(list(marks.iterdir())) == 20 - 5
    assert process.is_alive()  # the loader's own timeout names it
    process.kill()


def test_a_process_that_dies_at_once_is_left_to_its_parent(marks: Path) -> None:
    process = WorkerContext().Process(target=os._exit, args=(7,))
    process.start()
    process.join(10)
    assert process.exitcode == 7


class Signalled:
    """Samples that send SIGTERM to the worker, and say how long it then has to live."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, int]:
        os.kill(os.getpid(), signal.SIGTERM)
        return os.getpid(), signal.alarm(0)


def test_a_signal_to_the_whole_job_is_nothing_to_a_worker() -> None:
    """Its parent may take longer than any grace to agree with the others, and to save."""
    loader = DataLoader(
        Signalled(),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=1,
        worker_init_fn=start_worker,
        multiprocessing_context=WorkerContext(),
        timeout=20,
    )
    found = list(loader)
    assert len({worker for worker, _ in found} - {os.getpid()}) == 1
    assert [left for _, left in found] == [0] * 4


def ready_then_sleep(ready: int) -> None:
    start_worker(0)
    os.write(ready, b"1")
    time.sleep(600)


ORPHANED = """
import os, sys, time
from torch.utils.data import DataLoader
from pixio_lightning.data import workers

workers._LOOK = 0.1


class Long:
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return "x" * 100_000  # more than a pipe holds


late, parent = "late" in sys.argv, os.getpid()


def start(index):
    while late and os.getppid() == parent:
        time.sleep(0.01)
    workers.start_worker(index)


how = {"worker_init_fn": start, "prefetch_factor": 8, "num_workers": 4}
how["multiprocessing_context"] = workers.WorkerContext()
batches = iter(DataLoader(Long(), batch_size=None, **how))
if not late:
    next(batches)
print(*[worker.pid for worker in batches._workers], flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("when", ["at work", "late"])
def test_workers_end_with_a_parent_that_is_killed(when: str, tmp_path: Path) -> None:
    """Those that have results to hand over, which nobody takes, or that were just forked."""
    with (tmp_path / "workers").open("w") as out:  # no pipe, which they would hold open
        done = subprocess.run([sys.executable, "-c", ORPHANED, when], stdout=out)
    workers = [int(word) for word in (tmp_path / "workers").read_text().split()]
    assert done.returncode == -signal.SIGKILL and len(workers) == 4
    end = time.monotonic() + 60
    while alive := [worker for worker in workers if Path(f"/proc/{worker}").exists()]:
        assert time.monotonic() < end, f"{len(alive)} of {len(workers)} workers are still there"
        time.sleep(0.1)


def test_whoever_started_a_worker_ends_it_all_the_same() -> None:
    """The interpreter's exit sends SIGTERM to what is left of them, and waits."""
    reader, writer = os.pipe()
    process = WorkerContext().Process(target=ready_then_sleep, args=(writer,), daemon=True)
    process.start()
    os.read(reader, 1)
    try:
        process.terminate()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
    finally:
        process.kill()
        os.close(reader)
        os.close(writer)


def test_a_worker_that_is_killed_while_it_asks_leaves_nothing_locked() -> None:
    """With multiprocessing's own event, of which this fails in the first tries."""
    event = WorkerContext().Event()
    for _ in range(20):
        child = os.fork()
        if not child:
            while True:
                event.is_set()
        time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        asking = threading.Thread(target=event.is_set, daemon=True)
        asking.start()
        asking.join(timeout=5)
        assert not asking.is_alive()
    event.set()
    assert event.is_set()


def test_the_signal_of_a_killed_worker_may_come_while_it_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its pipe is gone first, and what is then said of it is interrupted by torch's handler."""
    before = signal.getsignal(signal.SIGCHLD)
    loader = DataLoader(
        list(range(8)), num_workers=1, multiprocessing_context=WorkerContext(), timeout=20
    )
    others = {child.pid for child in multiprocessing.active_children()}
    stream = iter(loader)
    next(stream)
    (worker,) = {child.pid for child in multiprocessing.active_children()} - others
    told = worker_process._killed

    def slow(text: str) -> UserError:
        if not text:  # of the pipe, which says nothing
            os.kill(worker, signal.SIGKILL)
            time.sleep(20)
        return told(text)

    monkeypatch.setattr(worker_process, "_killed", slow)
    try:
        failure = worker_process._told(EOFError())
        assert isinstance(failure, UserError)
        assert f"a data worker was killed (DataLoader worker (pid {worker}) is" in str(failure)
    finally:
        del stream
        signal.signal(signal.SIGCHLD, before)
