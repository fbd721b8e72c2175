"""The names and numbers of very many files are shared with data workers, not copied to them."""

import os
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pytest

from pixio_lightning.data.listing.names import Names
from pixio_lightning.data.listing.ragged import Ragged

WORDS = ["b/ä.jpg", "", "a.png", os.fsdecode(b"odd\xff.jpg"), "日本/x.jpg"]


def test_names_are_those_given() -> None:
    names = Names(WORDS)
    assert list(names) == WORDS and len(names) == 5
    assert names[-1] == WORDS[-1] and names[1:3] == WORDS[1:3] and "a.png" in names
    with pytest.raises(IndexError):
        names[5]
    assert list(Names([])) == []


def test_lists_of_unequal_lengths_are_those_given() -> None:
    lists = [[1, 2], [], [3], [4, 5, 6]]
    parts = [pa.array(part, pa.list_(pa.int32())) for part in (lists[:1], lists[1:])]
    whole = pa.chunked_array(parts)
    arrays = [np.array(each, np.int32) for each in lists]
    for ragged in (Ragged.of(arrays, np.int32), Ragged.of_column(whole)):
        assert [each.tolist() for each in ragged] == lists and ragged[3].dtype == np.int32
        assert ragged.lengths.tolist() == [2, 0, 1, 3] and len(ragged) == 4
    sliced = whole.slice(2)
    assert [each.tolist() for each in Ragged.of_column(sliced)] == lists[2:]
    empty = pa.chunked_array([], pa.list_(pa.float64()))
    assert len(Ragged.of_column(empty)) == len(Ragged.of([], np.float64)) == 0
    for damaged in ([[1, None]], [None, [1]]):
        with pytest.raises(ValueError, match="without all of its numbers"):
            Ragged.of_column(pa.chunked_array([pa.array(damaged, pa.list_(pa.int32()))]))


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
