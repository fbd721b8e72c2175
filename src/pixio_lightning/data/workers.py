"""Data workers that are known to have started.

A worker is a fork of the training process, so that it shares the data set's memory, and a fork can
come up stuck: it inherits the locks of threads that it does not inherit. Up to Python 3.11.10 one
of them is the interpreter's own (python/cpython#112275), which a communication thread takes for a
moment after a collective; one run in some hundreds then waits for its worker for ever.
"""

from __future__ import annotations

import os
import select
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen

PATIENCE = 30.0  # seconds; a fork takes a few milliseconds
_TRIES = 5


class WorkerProcess(ForkProcess):
    """A forked process that tells its parent when it runs, and is forked again if it never does."""

    started_fd: int

    @staticmethod
    def _Popen(process_obj: WorkerProcess) -> Popen:  # type: ignore[override]  # noqa: N802
        for attempt in range(1, _TRIES + 1):
            reader, process_obj.started_fd = os.pipe()
            popen = ForkProcess._Popen(process_obj)  # type: ignore[attr-defined]
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


class WorkerContext(ForkContext):
    """What a DataLoader takes for `multiprocessing_context`."""

    Process = WorkerProcess  # type: ignore[assignment]
