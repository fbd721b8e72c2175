"""Files damaged in any way are read, or refused in one line; they hang nothing and fill nothing.

What an input may do and take is in run.py, the kinds of files are in fuzzed_*.py.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import fork_server
import pytest

RUN = Path(__file__).with_name("run.py")
GROUPS = sorted(path.stem.removeprefix("fuzzed_") for path in RUN.parent.glob("fuzzed_*.py"))


def read(group: str, first: int, count: int) -> None:
    words = [fork_server.python(), "-m", "run", group, str(first), str(count)]
    env = os.environ | {"PYTHONPATH": str(RUN.parent)}
    found = subprocess.run(words, capture_output=True, text=True, env=env)
    lines = found.stdout.splitlines()
    done = [line for line in lines if line.startswith("DONE")]
    print("\n".join(done))
    # Of the seeds only those at which a process ended, before another line.
    shown = [
        line
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if not (line.startswith("at seed") and following.startswith(("at seed", "DONE", "FAILED")))
    ]
    assert found.returncode == 0, "\n".join([*shown[-200:], found.stderr[-4000:]])
    assert done and all(f" 0 failed of {count}, " in line for line in done)


@pytest.mark.parametrize("group", GROUPS)
def test_damaged_files_are_read_or_refused(group: str) -> None:
    read(group, 0, 20)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_many_more_damaged_files(group: str) -> None:
    read(group, 20, 2130)
