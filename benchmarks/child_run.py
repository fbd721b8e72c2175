"""Runs of `pixio`, each in a process of its own on one thread, and the CPU time that it took."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm


def run(words: list[str], out: Path) -> float:
    """Run a command line into a folder, its output in a .log beside it; return CPU seconds.

    Where it was stopped before and goes on, those of before are counted; a `.cpu_s` keeps them.

    Raises:
        subprocess.CalledProcessError: It failed; the .log says why.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    spent = out.with_name(f"{out.name}.cpu_s")
    before = float(spent.read_text()) if out.is_dir() and spent.exists() else 0.0
    command = [sys.executable, "-m", "pixio_lightning", *words, "--out", str(out)]
    with out.with_name(f"{out.name}.log").open("w") as log:  # names may hold dots
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        # Of this child and its own, as several may run at a time.
        try:
            _, status, used = os.wait4(child.pid, 0)
        except BaseException:
            child.terminate()  # it saves its work
            _, status, used = os.wait4(child.pid, 0)
            spent.write_text(f"{before + used.ru_utime:.1f}")
            raise
        finally:
            child.returncode = 0  # it is waited for
    spent.write_text(f"{before + used.ru_utime:.1f}")
    if code := os.waitstatus_to_exitcode(status):
        raise subprocess.CalledProcessError(code, command)
    return before + used.ru_utime


def several(calls: Sequence[Callable[[], object]], jobs: int) -> None:
    """Make calls, so many at a time; where one fails, what runs is ended or awaited."""
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(calls)) as bar:
        tasks = [pool.submit(call) for call in calls]
        try:
            for task in as_completed(tasks):
                task.result()
                bar.update()
        except BaseException:  # nothing new begins
            pool.shutdown(cancel_futures=True)
            raise
