"""Start `python -m MODULE` or `-c CODE` as a fork of a process that has imported torch and ours.

`python()` returns a program that stands for the interpreter: importing torch and Lightning takes
five seconds of a core, which every command line of a test would pay. What it runs is a process like
any other, with its own arguments, environment, folder, output and exit code, in which the module
named by `-m`, or the code, is run as the main one; Lightning launches further processes by the same
program. It passes anything else on to the real interpreter.

A program that is killed takes the process that stands behind it along: with SIGABRT where
PYTHONFAULTHANDLER is set, which then shows where it was. That process leads a session and writes
its number into the file that FORK_PID names; killed by that, it takes its program along. What
depends on a terminal, on the program's own number or on what is imported needs the real
interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from typing import Any

# Isolated and without site-packages it starts in 15 ms.
_PROGRAM = """\
#!{python} -IS
import json, os, signal, socket, sys
if sys.argv[1:2] not in (["-m"], ["-c"]):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect("{address}")
request = dict(kind=sys.argv[1], argv=sys.argv[2:], environ=dict(os.environ), folder=os.getcwd())
request["program"] = sys.argv[0]
data = json.dumps(request).encode()
socket.send_fds(server, [len(data).to_bytes(4, "big")], [0, 1, 2])
server.sendall(data)
code = int(server.recv(16) or b"1")
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@functools.cache
def python() -> str:
    """Return the path of the program, once the server is ready; the first call starts it."""
    program = Path(os.environ.get("FORK_SERVER") or start())
    ready = program.with_name("ready")
    until = time.monotonic() + 300
    while not ready.exists():
        assert time.monotonic() < until, "the fork server did not start"
        time.sleep(0.05)
    return str(program)


def start() -> str:
    """Start a server that ends with this process; returns the path of the program.

    Processes of tests use the one that FORK_SERVER names.
    """
    folder = Path(tempfile.mkdtemp(prefix="fork-"))
    program, address = folder / "python", folder / "socket"
    program.write_text(_PROGRAM.format(python=sys.executable, address=address))
    program.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, __file__, str(address)],
        stdin=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )
    # It ends when its standard input closes: with this process, however that ends.
    atexit.register(process.communicate)
    return str(program)


def _serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for every request; returns it in the process that is to run it, and there alone."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(listener, select.POLLIN)
    while True:
        if 0 in dict(poll.poll(1000)):
            shutil.rmtree(Path(sys.argv[1]).parent)
            os._exit(0)
        while _reaped():
            pass
        if not select.select([listener], [], [], 0)[0]:
            continue
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            size, descriptors, _, _ = socket.recv_fds(client, 4, 3)
            data = client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
            child = os.fork()
            if child == 0:
                client.close()
                for number, descriptor in enumerate(descriptors):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                return json.loads(data)
            for descriptor in (0, 1, 2, *descriptors):
                os.close(descriptor)
            _supervise(client, child, shown=b'"PYTHONFAULTHANDLER"' in data)
            os._exit(0)
        client.close()


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _supervise(client: socket.socket, child: int, *, shown: bool) -> None:
    """Report the exit code of a child; it ends when nobody waits for it any more."""
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([client, ended], [], [])
    if ended not in ready:
        for number in (signal.SIGABRT, signal.SIGKILL)[not shown :]:
            try:
                os.killpg(child, number)
            except ProcessLookupError:
                break
            if select.select([ended], [], [], 20)[0]:
                break
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        client.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _become(request: dict[str, Any]) -> None:
    """Make this process what an interpreter that was started so would be."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    if told := os.environ.pop("FORK_PID", ""):
        Path(told).write_text(str(os.getpid()))
    added = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    here = str(Path(__file__).parent)
    sys.path[:] = [request["folder"], *filter(None, added), *(p for p in sys.path if p != here)]
    sys.argv[:] = request["argv"]
    sys.executable = request["program"]
    tempfile.tempdir = None
    # What Lightning reads of the environment when it is imported.
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    rank_zero_only.rank = int(next(filter(None, ranks), 0))
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()


def _run(request: dict[str, Any]) -> None:
    """Run the module, or the code, as the main one."""
    if request["kind"] == "-m":
        runpy.run_module(request["argv"][0], run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        sys.argv[0] = "-c"
        exec(compile(request["argv"][0], "<string>", "exec"), main.__dict__)


def _end(code: Any) -> None:
    """End as the interpreter does, but free nothing: half a second, as a fork copies it first."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


def _import_all() -> None:
    """Import what training takes, but not the module that will be the main one."""
    import importlib
    import pkgutil

    import pixio_heads

    for name in ("pandas", "torch.utils.tensorboard"):  # which a run imports
        importlib.import_module(name)
    for name in ("run", "bench", "export"):
        importlib.import_module(f"pixio_lightning.cli.{name}")
    for name in ("materialize", "report", "scoring"):
        importlib.import_module(f"pixio_lightning.curation.{name}")
    for head in pkgutil.iter_modules(pixio_heads.__path__):
        importlib.import_module(f"pixio_heads.{head.name}.head")


if __name__ == "__main__":
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[1])
    _import_all()
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    # That of pyarrow's allocator starts again after a fork.
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"threads are lost in a fork: {threads}"
    gc.collect()
    gc.freeze()  # what the collector never looks at is not copied after a fork
    listening.listen(64)
    Path(sys.argv[1]).with_name("ready").touch()
    asked = _serve(listening)
    _become(asked)
    try:
        _run(asked)
    except SystemExit as ended:
        _end(ended.code)
    _end(0)
