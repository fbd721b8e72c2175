"""A run of `pixio` in a process of its own, on one thread, and the CPU time that it took."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path


def run(words: list[str], out: Path) -> float:
    """Run a command line into a folder, its output in a .log beside it; return CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pixio_lightning", *words, "--out", str(out)]
    with out.with_suffix(".log").open("w") as log:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=log, stderr=log, env=env)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
