"""Data workers: known to have started, with signals of their own, and named when they are killed.

A worker is a fork of the training process, so that it shares the data set's memory, and a fork can
come up stuck: it inherits the locks of threads that it does not inherit. Up to Python 3.11.10 one
of them is the interpreter's own (python/cpython#112275), which a communication thread takes for a
moment after a collective; one run in some hundreds then waits for its worker for ever.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pixio_lightning.errors import UserError, causes

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

PATIENCE = 30.0  # seconds; a fork takes a few milliseconds
_TRIES = 5
_REAPED = 5  # seconds to wait for one that was killed
_LOOK = 5  # seconds between two looks of a worker at whether its parent is there


def available_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class _Fork(Popen):
    """A fork that ignores SIGTERM, see `start_worker`: who ends it by `terminate` kills it."""

    def terminate(self) -> None:
        self.kill()


class WorkerProcess(ForkProcess):
    """A forked process that tells its parent when it runs, and is forked again if it never does."""

    forking = False  # in the parent, while it forks one
    started_fd: int

    @staticmethod
    def _Popen(process_obj: WorkerProcess) -> Popen:  # type: ignore[override]  # noqa: N802
        for attempt in range(1, _TRIES + 1):
            reader, process_obj.started_fd = os.pipe()
            WorkerProcess.forking = True
            try:
                popen = _Fork(process_obj)
            finally:
                WorkerProcess.forking = False
            os.close(process_obj.started_fd)
            try:
                # Readable as well when the process has died: whoever waits for it will see that.
                if select.select([reader], [], [], PATIENCE)[0] or attempt == _TRIES:
                    return popen
            finally:
                os.close(reader)
            popen.kill()
            popen.wait()
            popen.close()
        raise AssertionError("the last attempt returns")

    def run(self) -> None:
        """Tell the parent, then do the work."""
        os.write(self.started_fd, b"1")
        os.close(self.started_fd)
        super().run()


class Flag:
    """An event that is read without a lock.

    The DataLoader asks one of multiprocessing's whether it is done, as its workers do all the time.
    One that is killed while it asks leaves the lock taken, and the training process, which is to
    say so, waits for it for ever.
    """

    def __init__(self, value: Any) -> None:
        self._value = value

    def is_set(self) -> bool:
        return bool(self._value.value)

    def set(self) -> None:
        self._value.value = 1


class WorkerContext(ForkContext):
    """What a DataLoader takes for `multiprocessing_context`."""

    Process = WorkerProcess  # type: ignore[assignment]

    def Event(self) -> Flag:  # type: ignore[override]
        """Return what tells workers that the loader is done."""
        return Flag(self.RawValue("b", 0))


def start_worker(index: int) -> None:
    """Set up the signals of a data worker, which would inherit those of the training process.

    A signal to the whole job must not take the workers away while their parent finishes its steps
    and saves, however long that takes. A worker ends when its parent says so, kills it, which is
    what `terminate` does, or is gone.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A worker whose results nobody takes any more would wait for ever to hand over the last ones.
    # Its parent is whoever forked it: the system knows another one where that is gone already.
    parent = multiprocessing.parent_process()
    pid = os.getppid() if parent is None else parent.pid
    threading.Thread(target=_end_with, args=(pid,), daemon=True).start()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _print_exception


def _end_with(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGKILL)  # at once: an orderly end would wait, too


def _print_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print what nobody caught in a worker, but not that its parent left while it was sending."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def watched(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Yield batches; what happens to a worker becomes one line."""
    batches = _started(loader)
    while True:
        try:
            yield next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError, RuntimeError) as error:
            raise _told(error) from error


def _told(error: Exception) -> Exception:
    """Return what to raise of an error that came in place of a batch."""
    try:
        failure = worker_failure(error)
        if failure is None and not isinstance(error, RuntimeError):
            failure = _killed(" ".join(str(error).split()))  # the other end of the pipe is gone
        if failure is not None:
            # Or torch's handler interrupts the clean-up that the failure itself sets off.
            leave_workers_unwatched()
        return failure or error
    except RuntimeError as interrupted:  # by that handler, as the worker's pipe goes before it does
        leave_workers_unwatched()
        return worker_failure(interrupted) or interrupted


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


def _started(loader: DataLoader) -> Iterator[dict[str, Any]]:
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


def leave_workers_unwatched() -> None:
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
    for cause in causes(error):
        text = " ".join(str(cause).split())
        if isinstance(cause, RuntimeError) and "timed out after" in text:
            seconds = re.findall(r"after ([\d.]+) seconds", text)
            return UserError(
                f"the data workers gave no batch for {' '.join(seconds)} s: the file system hangs, "
                "or data.timeout is too short"
            )
        if "exited unexpectedly" in text or "is killed by signal" in text:
            return _killed(text)
    return None


def _killed(text: str) -> UserError:
    return UserError(
        f"a data worker was killed ({text}); most often the machine is out of memory: use "
        "fewer data.num_workers, then run the same line again to go on"
    )


def end_workers() -> None:
    """Kill the data workers of a run that has failed, which would hold its exit up for a while."""
    # torch's handler would take their end for another failure.
    leave_workers_unwatched()
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:  # as long as their end is nobody's business
        child.join(_REAPED)
