"""Tests run on one thread each: beside each other without contention, and with the same sums."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from itertools import count

os.environ["OMP_NUM_THREADS"] = "1"

import fork_server
import pytest
import torch
import torch.distributed as dist
from torch import nn

gc.disable()  # what is imported for tests stays: a quarter of the time would go into looking at it
torch.set_num_threads(1)
# A job in the background of a script ignores it, and so would all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Start a fork server for all test processes, where this one starts them."""
    if getattr(config.option, "numprocesses", None):
        os.environ["FORK_SERVER"] = fork_server.start()


def pytest_collection_finish() -> None:
    """Let garbage be collected from here on, among what the tests make."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let all of it be freed at the end: some extensions call what is left a leak."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test with the same random numbers, whichever tests ran before."""
    torch.manual_seed(0)


_tests = count()

# What Lightning sets when it launches processes, and reads as a sign that others have done so.
_LAUNCHED = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def launch() -> Iterator[None]:
    """Let no test's launch or group be taken for the next one's, and give each a port of its own.

    Ports lie below those the system hands out.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    os.environ["MASTER_PORT"] = str(20_000 + worker * 4_000 % 12_000 + next(_tests) % 4_000)
    yield
    for name in _LAUNCHED:
        os.environ.pop(name, None)
    if dist.is_initialized():  # of Lightning, which leaves it to the end of the process
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Add noise to every parameter: no bias left at 0, no norm at 1, so each one matters."""

    def add_noise(module: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return module

    return add_noise
