"""One of two hosts is lost: the other says so and ends, and goes on alone with the same samples."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import batch_log
import hosts
import pytest
from running import pixio
from slurm import wait_for

from pixio_lightning.training.run_folder import Metrics

LOST = 15  # seconds without an answer after which a host counts as lost
PROCESSES = 2  # on each host
PATH = os.pathsep.join([batch_log.__file__.rpartition("/")[0], os.environ.get("PYTHONPATH", "")])


@pytest.fixture
def two_hosts() -> Iterator[tuple[hosts.Host, hosts.Host]]:
    if reason := hosts.why_not():
        pytest.skip(reason)
    pair = hosts.two_hosts()
    yield pair
    for host in pair:
        host.remove()


@pytest.fixture(scope="module")
def line(recipe: Path) -> tuple[object, ...]:
    """In double precision, where Adam does not amplify the rounding of sums."""
    steps = ("--trainer.max_steps", 120, "--checkpoint.every_n_steps", 20)
    log = "--trainer.callbacks+=batch_log.BatchLog"
    return ("fit", "-c", recipe, "--trainer.precision", "64-true", *steps, log)


def logged(folder: Path) -> dict[str, str]:
    """Return the environment in which a run writes down its samples, in a folder."""
    folder.mkdir()
    return {"BATCH_LOG": str(folder), "PYTHONPATH": PATH}


def samples(folder: Path) -> dict[int, list[int]]:
    """Return the keys of all processes by step."""
    found: dict[int, list[int]] = defaultdict(list)
    for path in folder.glob("rank*.jsonl"):
        for text in path.read_text().splitlines():
            entry = json.loads(text)
            found[entry["step"]] += entry["keys"]
    return {step: sorted(keys) for step, keys in found.items()}


@pytest.fixture(scope="module")
def whole(line: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stops, of one process."""
    folder = tmp_path_factory.mktemp("whole")
    words = (*line, "--data.batch_size", 8, "--out", folder / "run")
    pixio(*words, **logged(folder / "samples"))
    return folder


@pytest.mark.parametrize("cut_off", [True, False], ids=["a host cut off", "processes killed"])
def test_the_host_that_is_left_ends_with_a_line_and_goes_on_alone(
    two_hosts: tuple[hosts.Host, hosts.Host],
    line: tuple[object, ...],
    whole: Path,
    tmp_path: Path,
    cut_off: bool,
) -> None:
    (first, second), run = two_hosts, tmp_path / "run"
    both = (*line, "--trainer.num_nodes", 2, "--trainer.devices", PROCESSES, "--data.batch_size", 2)
    both += ("--trainer.strategy", "DDPStrategy", "--trainer.strategy.timeout", f"0:00:{LOST}")
    env = logged(tmp_path / "both")
    for host in two_hosts:
        log = tmp_path / f"log{host.number}"
        host.torchrun(first, PROCESSES, log, *both, "--out", run, **env)

    def text() -> str:
        return (tmp_path / "log1").read_text()

    wait_for("step 40", lambda: "step 40: saved last.ckpt" in text())
    if cut_off:
        second.unplug()
    second.kill()
    assert first.wait(LOST + 60) == 1  # of torchrun
    lines = [each for each in text().splitlines() if "another process of this run was lost" in each]
    assert 1 <= len(lines) <= PROCESSES and all("run the same line again" in each for each in lines)
    assert "[rank" not in text()  # how torch marks the traceback of a process
    # torchrun ends the others as soon as one has said so.
    assert not cut_off or any(f"Timed out waiting {LOST}000ms" in each for each in lines)

    alone = (*line, "--trainer.devices", PROCESSES, "--data.batch_size", 4)
    printed = pixio(*alone, "--out", run, **logged(tmp_path / "alone"))
    assert "trainer.num_nodes: 2 -> 1" in printed
    begun = int(re.findall(r"resumed +at step (\d+)", printed)[0])
    assert 40 <= begun < 120

    expected = samples(whole / "samples")
    before, after = samples(tmp_path / "both"), samples(tmp_path / "alone")
    assert sorted(after) == list(range(begun + 1, 121))
    assert {step: before[step] for step in range(1, begun + 1)} | after == expected
    rows, others = (Metrics(f / "run" / "metrics.csv").rows for f in (tmp_path, whole))
    assert len(rows) == len(others) == 120
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, abs=1e-6)
