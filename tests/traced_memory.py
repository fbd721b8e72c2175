"""The memory that Python holds after a call, and held at its peak."""

from __future__ import annotations

import multiprocessing
import tracemalloc
from collections.abc import Callable
from typing import Any


def traced(call: Callable[[], Any]) -> tuple[int, int]:
    """Return the bytes that are held by what a call returns, and those of the peak.

    In a fork, which has a single thread: Python 3.11 ends where tracing stops while another thread
    allocates.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def measure() -> None:
        tracemalloc.start()
        found = call()
        sender.send(tracemalloc.get_traced_memory())
        del found

    process = context.Process(target=measure)
    process.start()
    sender.close()  # so that nothing is awaited where the call fails
    held, peak = receiver.recv()
    process.join()
    return held, peak
