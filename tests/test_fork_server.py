"""A forked interpreter behaves as one that is started: what tests of the command line rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import fork_server
import pytest

CODES = {"0": 0, "3": 3, "raise": 1, "signal": -9}

# A main module that tells what it was started with, and leaves as it is told to.
TELLING = """\
import os, sys
print(sys.argv[1:], __name__, __spec__.name, os.getcwd(), os.environ.get("MOOD"), sys.stdin.read())
print(sys.path[0], os.environ["PYTHONPATH"] in sys.path, "torch" in sys.modules, file=sys.stderr)
end = sys.argv[1]
if end == "raise":
    raise RuntimeError("on purpose")
if end == "signal":
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
sys.exit(int(end))
"""


@pytest.mark.parametrize("end", CODES)
def test_it_is_as_the_interpreter(end: str, tmp_path: Path) -> None:
    (tmp_path / "telling.py").write_text(TELLING)
    found = [
        subprocess.run(
            [python, "-m", "telling", end, "two words"],
            input="asked",
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"MOOD": "good", "PYTHONPATH": str(tmp_path)},
        )
        for python in (sys.executable, fork_server.python())
    ]
    real, forked = found
    assert real.returncode == forked.returncode == CODES[end]
    assert real.stdout == forked.stdout and "good asked" in forked.stdout
    told = [done.stderr.splitlines() for done in found]
    assert told[0][0] == f"{tmp_path} True False" and told[1][0] == f"{tmp_path} True True"
    assert ("RuntimeError: on purpose" in forked.stderr) == (end == "raise")


def test_code_is_run_as_the_main_module(tmp_path: Path) -> None:
    code = "import os, sys; print(__name__, sys.argv, os.getcwd()); sys.exit(4)"
    real, forked = (
        subprocess.run([python, "-c", code, "a b"], capture_output=True, text=True, cwd=tmp_path)
        for python in (sys.executable, fork_server.python())
    )
    assert (real.returncode, real.stdout) == (forked.returncode, forked.stdout)
    assert forked.returncode == 4 and forked.stdout.startswith("__main__ ['-c', 'a b']")


def test_what_is_left_to_do_at_the_end_is_done(tmp_path: Path) -> None:
    code = """\
import atexit, sys, threading
atexit.register(print, "at exit")
threading.Timer(0.1, print, ["by a thread"]).start()
print("first")
sys.exit("a reason")
"""
    real, forked = (
        subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        for python in (sys.executable, fork_server.python())
    )
    assert real.stdout == forked.stdout == "first\nby a thread\nat exit\n"
    assert (real.stderr, real.returncode) == (forked.stderr, forked.returncode)
    assert (forked.stderr, forked.returncode) == ("a reason\n", 1)


def test_it_ends_with_the_program_and_says_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(
        "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n"
    )
    program = subprocess.Popen(
        [fork_server.python(), "-m", "waiting"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONFAULTHANDLER": "1"},
    )
    assert program.stdout is not None
    behind = int(program.stdout.readline())
    program.kill()
    _, told = program.communicate(timeout=300)  # its output is closed when the other one ends
    assert "waiting.py" in told and behind != program.pid


def test_it_can_be_killed_by_its_own_number(tmp_path: Path) -> None:
    code = (
        "import os, time; print(os.getpid(), 'FORK_PID' in os.environ, flush=True); time.sleep(9)"
    )
    program = subprocess.Popen(
        [fork_server.python(), "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"FORK_PID": str(tmp_path / "pid")},
    )
    assert program.stdout is not None
    told = program.stdout.readline()
    number = int((tmp_path / "pid").read_text())
    assert told == f"{number} False\n"
    os.killpg(number, signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL
    program.stdout.close()


def test_with_other_options_it_is_the_real_interpreter() -> None:
    code = "import sys; print(sys.executable, 'torch' in sys.modules)"
    done = subprocess.run([fork_server.python(), "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [sys.executable, "False"]
