"""Small images, packed into parquet or tar shards, for the tests of shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pixio_lightning.data.shards.format import Encoded, ShardIndex
from pixio_lightning.data.shards.index import open_index
from pixio_lightning.data.shards.pack import write_shard


def jpeg(seed: int, side: int = 20) -> bytes:
    """Return a small JPEG of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def keys(n: int) -> list[str]:
    """Return the keys of `n` images."""
    return [f"images/{i:05d}.jpg" for i in range(n)]


def images(n: int) -> list[Encoded]:
    """Return `n` images."""
    return [Encoded(key, jpeg(i)) for i, key in enumerate(keys(n))]


def write_tar(path: Path, entries: list[tuple[str, bytes]]) -> None:
    """Write a plain tar."""
    with tarfile.open(path, "w") as archive:
        for name, data in entries:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def pack(
    folder: Path, n: int, *, shards: int = 3, group: int = 10, kind: str = "parquet"
) -> ShardIndex:
    """Write `n` images into shards and open their index, which is built now."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = images(n)
    for number in range(shards):
        part = whole[number * n // shards : (number + 1) * n // shards]
        path = folder / f"{number}.{kind}"
        if kind == "tar":
            write_tar(path, [(image.key, image.data) for image in part])
        else:
            write_shard(path, part, {}, group=group, about={})
    return open_index(str(folder), cache=folder.parent / "cache", progress=False)


def empty_parquet(path: Path) -> None:
    """Write a parquet file without a row."""
    schema = pa.schema([("key", pa.string()), ("image", pa.binary())])
    pq.write_table(schema.empty_table(), path)
