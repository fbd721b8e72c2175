"""Run a function of a test in several processes; they need no time to import torch and ours."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fork_server


def metric_of_one(rank: int, folder: str, make: Callable[[], Any], given: tuple[Any, ...]) -> None:
    """Compute a metric of two processes, of which the first alone was given anything: RANK.pt."""
    import torch

    address = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    metric = make()
    if rank == 0:
        metric.update(*given)
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def in_processes(function: Callable[..., None], *args: Any, count: int = 2) -> None:
    """Call `function(rank, *args)` in `count` processes at once; all have to end well.

    Args:
        function: Of a module; what it prints is shown where one fails.
        args: What pickle takes.
        count: Processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = Path(folder) / "call"
        call.write_bytes(pickle.dumps((function, args)))
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        running = [
            subprocess.Popen(
                [fork_server.python(), "-m", "processes", str(call), str(rank)],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(count)
        ]
        try:
            printed = [process.communicate(timeout=300)[0] for process in running]
        finally:
            for process in running:
                process.kill()
    for process, text in zip(running, printed, strict=True):
        assert process.returncode == 0, text


if __name__ == "__main__":
    called, given = pickle.loads(Path(sys.argv[1]).read_bytes())
    called(int(sys.argv[2]), *given)
