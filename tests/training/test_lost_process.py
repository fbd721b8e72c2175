"""What says that another process is lost is not taken for anything else."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
from torch.distributed import DistNetworkError, DistStoreError, TCPStore

from pixio_lightning.data.workers import worker_failure
from pixio_lightning.training.strategy import lost_process

SECOND = timedelta(seconds=1)


def test_a_first_process_that_nobody_started_is_named_as_such() -> None:
    here = TCPStore("127.0.0.1", 0, is_master=True)
    port = here.port
    del here
    with pytest.raises(DistNetworkError) as caught:
        TCPStore("127.0.0.1", port, is_master=False, timeout=SECOND)
    assert "127.0.0.1" in str(lost_process(caught.value))


def test_a_process_that_never_arrives_is_named_as_such() -> None:
    here = TCPStore("127.0.0.1", 0, is_master=True, timeout=SECOND)
    with pytest.raises(DistStoreError) as caught:
        here.get("what the other was to say")
    assert "another process of this run was lost" in str(lost_process(caught.value))


def test_a_port_in_use_is_no_lost_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(DistNetworkError) as caught:
        TCPStore("127.0.0.1", other.getsockname()[1], is_master=True, timeout=SECOND)
    said = str(lost_process(caught.value))
    assert "is in use" in said and "MASTER_PORT" in said and "lost" not in said


def test_other_errors_are_not() -> None:
    for text in (
        "DataLoader worker (pid 7) is killed by signal: Killed.",
        "timed out after 3 seconds",
    ):
        error = RuntimeError(text)
        assert lost_process(error) is None and worker_failure(error)
    assert lost_process(ValueError("gloo/transport/ in a user's text")) is None
