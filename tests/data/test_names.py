"""The names of very many files are shared with data workers, not copied to them."""

import os
import sys
from collections.abc import Callable, Sequence

import pytest

from pixio_lightning.data.listing.names import Names

WORDS = ["b/ä.jpg", "", "a.png", os.fsdecode(b"odd\xff.jpg"), "日本/x.jpg"]


def test_names_are_those_given() -> None:
    names = Names(WORDS)
    assert list(names) == WORDS and len(names) == 5
    assert names[-1] == WORDS[-1] and names[1:3] == WORDS[1:3] and "a.png" in names
    with pytest.raises(IndexError):
        names[5]
    assert list(Names([])) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_reads_all_names_copies_none() -> None:
    words = [f"photographs/{i:06d}/{i * 7919 % 100_003}.jpg" for i in range(200_000)]
    assert in_a_worker(lambda: grown(Names(words))) < 2e6
    assert in_a_worker(lambda: grown(words)) > 8e6  # what a list costs


def grown(names: Sequence[str]) -> int:
    """Return by how many bytes the memory that a process does not share grows as it reads all."""
    before = private_bytes()
    for i in range(len(names)):
        names[i]
    return private_bytes() - before


def private_bytes() -> int:
    with open("/proc/self/smaps_rollup") as file:
        lines = dict(line.split(":") for line in file.readlines()[1:])
    return 1024 * int(lines["Private_Dirty"].split()[0])


def in_a_worker(measure: Callable[[], int]) -> int:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, str(measure()).encode())
        os._exit(0)
    os.wait()
    return int(os.read(reader, 100))
