"""Two hosts on one machine: network namespaces with addresses of their own, joined by a cable."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def why_not() -> str:
    """Say why there can be no hosts here, or nothing."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed: make test-cluster installs it"
    name = f"probe{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespaces: {done.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


def _ip(*words: object) -> str:
    line = ["ip", *map(str, words)]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


class Host:
    """One of the two, number 1 or 2."""

    def __init__(self, number: int) -> None:
        self.number, self.address = number, f"10.77.0.{number}"
        self.name, self.link = f"host{number}-{os.getpid()}", f"cable{number}"
        self._launcher: subprocess.Popen[bytes] | None = None
        _ip("netns", "add", self.name)

    def plug_in(self) -> None:
        """Give its end of the cable an address."""
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", self.link)
        for link in ("lo", self.link):
            _ip("-n", self.name, "link", "set", link, "up")

    def unplug(self) -> None:
        """Cut it off: nothing it sends arrives, not even that its processes have ended."""
        _ip("-n", self.name, "link", "set", self.link, "down")

    def torchrun(self, master: Host, processes: int, log: Path, *words: object, **env: str) -> None:
        """Start its part of a command line of pixio on both hosts."""
        line = ["ip", "netns", "exec", self.name, sys.executable, "-m", "torch.distributed.run"]
        line += ["--nnodes=2", f"--nproc-per-node={processes}", f"--node-rank={self.number - 1}"]
        line += [f"--master-addr={master.address}", "--master-port=29500"]
        line += ["-m", "pixio_lightning.cli.main", *map(str, words)]
        with log.open("wb") as file:
            self._launcher = subprocess.Popen(
                line,
                stdout=file,
                stderr=file,
                env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.link} | env,
            )

    def wait(self, seconds: float) -> int:
        """Wait for the end of what was started and return its exit code."""
        assert self._launcher is not None
        return self._launcher.wait(seconds)

    def kill(self) -> None:
        """SIGKILL all that runs there, at once."""
        for number in _ip("netns", "pids", self.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        if self._launcher is not None:
            self._launcher.wait()

    def remove(self) -> None:
        self.kill()
        _ip("netns", "del", self.name)


def two_hosts() -> tuple[Host, Host]:
    """Return two hosts, each of which is to be removed."""
    first, second = Host(1), Host(2)
    peer = ("type", "veth", "peer", "name", second.link, "netns", second.name)
    _ip("link", "add", first.link, "netns", first.name, *peer)
    for host in (first, second):
        host.plug_in()
    return first, second
