"""`-c with/slurm` under a real SLURM: a job that is stopped or killed ends as if never touched."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from running import pixio, same
from slurm import Slurm, wait_for

from pixio_lightning.training.run_folder import Metrics

# No epoch ends at a step at which the processes agree to stop, which are multiples of 20.
LONG = ("--trainer.max_steps", 160, "--data.steps_per_epoch", 33, "--checkpoint.every_n_steps", 10)
TWO = ("--trainer.devices", 2, "--data.batch_size", 4)
WORKER = ("--data.num_workers", 1)  # of each process; SLURM may signal it, too

_SCRIPT = """\
#!/bin/bash
#SBATCH --ntasks-per-node=2
#SBATCH --signal=USR1@120
#SBATCH --time=10
#SBATCH --open-mode=append
#SBATCH --output={log}
srun --kill-on-bad-exit {python} -m pixio_lightning.cli.main {words}
"""


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that nothing stops, started without SLURM."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    pixio("fit", "-c", recipe, *LONG, *TWO, "--trainer.strategy", "ddp", "--out", folder)
    return folder


class Job:
    """The same run as a job of SLURM."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.run, self.script, self.log = folder / "run", folder / "job.sh", folder / "log"
        words = ("fit", "-c", recipe, "-c", "with/slurm", *LONG, *TWO, *WORKER, "--out", self.run)
        line = " ".join(map(str, words))
        self.script.write_text(_SCRIPT.format(log=self.log, python=sys.executable, words=line))

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def reached(self, step: int) -> None:
        wait_for(f"step {step}", lambda: f"step {step}: saved last.ckpt" in self.text())


@pytest.fixture
def job(recipe: Path, tmp_path: Path) -> Job:
    return Job(recipe, tmp_path)


def equals(run: Path, whole: Path) -> bool:
    """Whether a run ended bit for bit as another, with the same metrics at every step."""
    rows, others = (Metrics(folder / "metrics.csv").rows for folder in (run, whole))
    return rows == others and len(rows) == 160 and same(run / "last.ckpt", whole / "last.ckpt")


def processes(folder: Path) -> dict[int, int]:
    """Return what runs in a folder, by command lines: process numbers and those of the parents."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended
        if os.fsencode(folder) in words and os.fsencode(sys.executable) == words[0]:
            found[int(path.name)] = int(parent)
    return found


def test_a_job_told_to_stop_is_queued_again_and_ends_as_if_it_had_not_been(
    cluster: Slurm, job: Job, whole: Path
) -> None:
    number = cluster.submit(job.script)
    job.reached(10)
    cluster("scancel", "--signal=USR1", number)  # what --signal=USR1@120 does before the time limit
    assert cluster.ended(number, "COMPLETED")["Restarts"] == "1"
    stopped = re.findall(r"SIGUSR1 at step (\d+): saved last.ckpt, stopping", job.text())
    assert len(stopped) == 1 and 10 <= int(stopped[0]) < 160 and int(stopped[0]) % 33
    assert f"at step {stopped[0]}" in job.text().partition("stopping")[2]
    assert equals(job.run, whole)


def test_a_job_that_is_cancelled_stays_so(cluster: Slurm, job: Job) -> None:
    number = cluster.submit(job.script)
    job.reached(10)
    cluster("scancel", number)  # SIGTERM first
    assert cluster.ended(number, "CANCELLED")["Restarts"] == "0"
    wait_for("the end of all processes", lambda: not processes(job.run), 60)


def test_a_task_that_is_killed_ends_the_job_and_the_same_script_goes_on(
    cluster: Slurm, job: Job, whole: Path
) -> None:
    number = cluster.submit(job.script)
    job.reached(20)
    running = processes(job.run)
    tasks = [process for process, parent in running.items() if parent not in running]
    assert len(tasks) == 2 < len(running)  # the others are data workers
    os.kill(tasks[1], signal.SIGKILL)
    failed = cluster.ended(number, "FAILED")
    assert failed["Restarts"] == "0" and failed["ExitCode"] != "0:0"
    assert re.search(r"srun: error: localhost: task [01]: Killed", job.text())
    # --kill-on-bad-exit: the other one waits for nobody.
    wait_for("the end of all processes", lambda: not processes(job.run), 20)

    cluster.ended(cluster.submit(job.script), "COMPLETED")
    assert "resumed" in job.text()
    assert equals(job.run, whole)


def test_a_node_that_is_lost_costs_the_job_nothing_but_time(
    cluster: Slurm, job: Job, whole: Path
) -> None:
    number = cluster.submit(job.script)
    job.reached(20)
    # Before its tasks end, which would be a failure of the job's own.
    cluster("scontrol", "update", "nodename=localhost", "state=down", "reason=lost")
    for process in processes(job.run):
        with suppress(ProcessLookupError):  # SLURM ends them, too, if it can
            os.kill(process, signal.SIGKILL)
    wait_for("the job in the queue", lambda: cluster.job(number)["JobState"] == "PENDING")
    # Refused where the node has come back by itself (ReturnToService).
    cluster("scontrol", "update", "nodename=localhost", "state=resume", check=False)
    assert cluster.ended(number, "COMPLETED")["Restarts"] == "1"
    assert equals(job.run, whole)
