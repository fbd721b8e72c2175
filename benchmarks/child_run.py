"""A run of `pixio` in a process of its own, on one thread, and the CPU time that it took."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(words: list[str], out: Path) -> float:
    """Run a command line into a folder, its output in a .log beside it; return CPU seconds.

    Raises:
        subprocess.CalledProcessError: It failed; the .log says why.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pixio_lightning", *words, "--out", str(out)]
    with out.with_name(f"{out.name}.log").open("w") as log:  # names may hold dots
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            # Of this child and its own, as several may run at a time.
            _, status, used = os.wait4(child.pid, 0)
        except BaseException:
            child.terminate()  # it saves its work
            child.wait()
            raise
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return used.ru_utime
