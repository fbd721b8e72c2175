"""Shards, their index, and score files."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shard_files
from kind import Kind, Make

from pixio_lightning.data.hub import HubSource
from pixio_lightning.data.shards.format import read_group
from pixio_lightning.data.shards.index import open_index, write_index
from pixio_lightning.data.shards.score_files import (
    about_scores,
    check_scores,
    score_file,
    scores_of,
)
from pixio_lightning.keyed import key_of


def shards(kind: str) -> Make:
    """Return what writes one shard of 24 images."""

    def make(folder: Path) -> list[str]:
        shard_files.pack(folder, 24, shards=1, kind=kind)
        return [f"0.{kind}"]

    return make


def _of_a_hub(folder: Path) -> list[str]:
    images = [{"bytes": image.data, "path": image.key} for image in shard_files.images(12)]
    table = pa.table({"image": images, "label": list(range(12))})
    pq.write_table(table, folder / "0.parquet", compression="zstd", row_group_size=5)
    return ["0.parquet"]


def sums_repaired(rng: random.Random, data: bytes) -> bytes:
    """Make the checksums of a tar's headers right."""
    found = bytearray(data)
    for at in range(0, len(found) - 511, 512):
        header = found[at : at + 512]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            total = tarfile.calc_chksums(bytes(header))[0]
            found[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(found)


def _groups(folder: Path) -> None:
    index = open_index(str(folder))
    for group in range(min(index.n_groups, 20)):
        read_group(index, group)


def _indexed(kind: str) -> Make:
    def make(folder: Path) -> list[str]:
        index = shard_files.pack(folder, 24, shards=2, kind=kind)
        write_index(index, folder / "index.parquet")
        return ["index.parquet"]

    return make


def _scored(folder: Path) -> list[str]:
    index = shard_files.pack(folder / "shards", 24, shards=1)
    path = score_file(str(folder / "scores"), index.shards[0].path)
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(24)
    table = pa.table(
        {
            "hash": pa.array([key_of(key) for key in shard_files.keys(24)], pa.int64()),
            "loss": pa.array(numbers / 24, pa.float32()),
            "entropy": pa.array(numbers / 6, pa.float32()),
            "width": pa.array(numbers + 20, pa.int32()),
            "height": pa.array(numbers + 20, pa.int32()),
        }
    ).replace_schema_metadata(about_scores({"size": 64, "masks": 2}, index.shards[0]))
    pq.write_table(table, path)  # in one group, as `write_scores` does
    return [str(path.relative_to(folder))]


def _scores(folder: Path) -> None:
    index = open_index(str(folder / "shards"))
    check_scores(index, str(folder / "scores"))
    for group in range(len(index.shards[0].group_rows)):
        scores_of(index, index.shards[0], group, str(folder / "scores"))


def _rows(folder: Path) -> None:
    source = HubSource(folder, "train")
    for row in range(min(len(source), 20)):
        source.read(row)
        source.label(row)


KINDS = {
    "tar": Kind([shards("tar")], _groups, sums_repaired),
    "parquet": Kind([shards("parquet"), _of_a_hub], _groups),
    "shard_index": Kind([_indexed("parquet"), _indexed("tar")], _groups),
    "hub": Kind([_of_a_hub], _rows),
    "scores": Kind([_scored], _scores),
}
