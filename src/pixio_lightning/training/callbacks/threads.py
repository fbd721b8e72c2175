"""How many threads a process on the CPU computes with.

torch takes every core for itself, in each process, and the data workers have to share them. The
threads of one operation wait for one another: if a single one has no core, all stand still, and
two threads beside a busy process are several times slower than one.
"""

from __future__ import annotations

import os

import lightning as L
import torch

from pixio_lightning.data.workers import available_cores

_TORCHS = torch.get_num_threads()  # as it starts: no more than there are physical cores
# Of the user or torchrun: Lightning sets it, too, when it starts several processes, and leaves data
# workers out.
_GIVEN = os.environ.get("OMP_NUM_THREADS")


def threads_for(cores: int, *, processes: int, workers: int) -> int:
    """Return how many of a machine's cores one process computes with.

    Each data worker has a core to itself, as far as half of the process's cores goes.

    Args:
        cores: Cores that this job may use on the machine.
        processes: Training processes on the machine.
        workers: Data workers of each process.
    """
    share = cores // processes
    return max(1, share - workers, share // 2)


def has_cores_of_its_own(cores: int) -> bool:
    """Whether a scheduler has bound this process to its cores, so that no other shares them.

    SLURM's `srun` does where tasks are bound to cores: each then sees as many as a task was given.

    Args:
        cores: Cores that this process may run on.
    """
    return "SLURM_LOCALID" in os.environ and os.environ.get("SLURM_CPUS_PER_TASK") == str(cores)


class Threads(L.Callback):
    """Compute with the cores that data workers leave, where `OMP_NUM_THREADS` does not say."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.strategy.root_device.type != "cpu" or _GIVEN:
            return
        cores = available_cores()
        processes = 1 if has_cores_of_its_own(cores) else trainer.world_size // trainer.num_nodes
        threads = threads_for(
            min(cores, _TORCHS),
            processes=max(1, processes),
            workers=getattr(trainer.datamodule, "num_workers", 0),
        )
        torch.set_num_threads(threads)
