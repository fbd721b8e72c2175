"""A real SLURM of one node: munged, slurmctld and slurmd in a folder of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")

# A job that is queued again waits as long as a credential lives, by default two minutes.
_CONF = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=0,bf_interval=2
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=30
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName=localhost CPUs=2 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=60 State=UP
"""


def why_not() -> str:
    """Say why there can be no SLURM here, or nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"SLURM is not installed (no {', '.join(missing)}): make test-cluster installs it"
    return "" if os.geteuid() == 0 else "munged, slurmctld and slurmd are started as root"


def wait_for(what: str, look: Callable[[], object], seconds: float = 120) -> None:
    """Wait until `look` finds something; fails with what was waited for."""
    until = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < until, f"in {seconds} s not seen: {what}"
        time.sleep(0.1)


class Slurm:
    """Daemons that run until `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)  # munged refuses a folder that others may write to
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.conf = folder / "slurm.conf"
        controller, node = free_ports(2)
        self.conf.write_text(_CONF.format(folder=folder, controller=controller, node=node))
        self.environment = os.environ | {"SLURM_CONF": str(self.conf), "OMP_NUM_THREADS": "1"}
        files = [f"--{n}-file={folder}/munge.{n}" for n in ("key", "pid", "log", "seed")]
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._start(
                "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files
            )
            wait_for("munged", (folder / "munge.socket").exists, 20)
            self._start("slurmctld", "-D", "-f", str(self.conf))
            self._start("slurmd", "-D", "-N", "localhost", "-f", str(self.conf))
            wait_for("an idle node", lambda: "idle" in self("sinfo", "-h", check=False), 60)
        except BaseException:
            self.stop()
            raise

    def _start(self, *line: str) -> None:
        log = (self.folder / f"{line[0]}.out").open("wb")
        with log:
            process = subprocess.Popen(line, stdout=log, stderr=log, env=self.environment)
        self._daemons.append(process)

    def __call__(self, *line: str, check: bool = True) -> str:
        """Run a command of SLURM and return what it prints."""
        done = subprocess.run(line, capture_output=True, text=True, env=self.environment)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: Path) -> str:
        """Queue a script and return the number of its job."""
        return self("sbatch", "--parsable", str(script)).strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM knows of a job: JobState, Restarts, ExitCode and more."""
        words = self("scontrol", "show", "job", "-o", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ended(self, number: str, state: str) -> dict[str, str]:
        """Wait for the end of a job, which must be this one."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY")
        wait_for(f"the end of job {number}", lambda: self.job(number)["JobState"] in ends, 300)
        job = self.job(number)
        assert job["JobState"] == state, job
        return job

    def stop(self) -> None:
        """Cancel what runs and end the daemons, the last one started first."""
        if len(self._daemons) == 3:
            self("scancel", "--user=root", check=False)
            with suppress(AssertionError):
                wait_for("no jobs", lambda: not self("squeue", "-h", check=False), 20)
        for process in reversed(self._daemons):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at."""
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
