"""Runs of the benchmarks, each in a process of its own."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import child_run


@pytest.mark.slow
def test_the_time_of_a_run_that_is_stopped_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What compares variants by CPU time would favour those that were stopped and went on."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(4)
    try:
        with pytest.raises(KeyboardInterrupt):
            child_run.run(["fit", "-c", "pretrain/demo"], tmp_path / "run")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert float((tmp_path / "run.cpu_s").read_text()) > 0.5
