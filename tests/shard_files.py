"""Small images, packed into parquet or tar shards, for the tests of shards."""

from __future__ import annotations

import errno
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from PIL import Image

from pixio_lightning.data.shards.format import Encoded, ShardIndex
from pixio_lightning.data.shards.index import build_index
from pixio_lightning.data.shards.pack import shard_schema, table_of, write_shard
from pixio_lightning.data.shards.remote import forget_opened


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


def write_images(
    path: Path, images: list[Encoded], columns: dict[str, np.ndarray] | None = None, *, group: int
) -> None:
    """Write a shard of images, with further columns of one value for each."""
    extra = {name: pa.array(values) for name, values in (columns or {}).items()}
    schema = shard_schema({name: values.type for name, values in extra.items()})
    groups = (
        table_of(images[i : i + group], {n: v[i : i + group] for n, v in extra.items()}, schema)
        for i in range(0, len(images), group)
    )
    path.unlink(missing_ok=True)  # one of this name would be taken for finished
    write_shard(path, "", groups, schema, [])


def pack(
    folder: Path, n: int, *, shards: int = 3, group: int = 10, kind: str = "parquet"
) -> ShardIndex:
    """Write `n` images into shards and return their index, which is not kept."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, names = images(n), [f"{number}.{kind}" for number in range(shards)]
    for number, name in enumerate(names):
        part = whole[number * n // shards : (number + 1) * n // shards]
        path = folder / name
        if kind == "tar":
            write_tar(path, [(image.key, image.data) for image in part])
        else:
            write_images(path, part, group=group)
    return build_index(str(folder), names)


def empty_parquet(path: Path) -> None:
    """Write a parquet file without a row."""
    schema = pa.schema([("key", pa.string()), ("image", pa.binary())])
    pq.write_table(schema.empty_table(), path)


class StoredFile(AbstractBufferedFile):
    """An object of a `Store`; one that has become stale stays so."""

    stale = False

    def _fetch_range(self, start: int, end: int) -> bytes:
        if Store.failures:
            failure = Store.failures.pop()
            self.stale = isinstance(failure, OSError) and failure.errno == errno.ESTALE
            raise failure
        if self.stale:
            raise OSError(errno.ESTALE, "Stale file handle")
        Store.fetched.append(end - start)
        return Store.objects[self.path][start:end]


class Store(AbstractFileSystem):
    """An object store in memory that counts what is fetched of it, and fails when it is told to.

    Attributes:
        objects: What it holds, by path.
        fetched: Bytes of each request.
        failures: What the next requests raise, the last one first.
    """

    protocol = "store"
    objects: ClassVar[dict[str, bytes]] = {}
    fetched: ClassVar[list[int]] = []
    failures: ClassVar[list[Exception]] = []

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if any(held.startswith(f"{path}/") for held in self.objects):
            return {"name": path, "size": 0, "type": "directory"}
        return {"name": path, "size": len(self.objects[path]), "type": "file"}

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List what it holds below a path, as one folder."""
        below = f"{self._strip_protocol(path)}/"
        found = [self.info(held) for held in self.objects if held.startswith(below)]
        return found if detail else [each["name"] for each in found]

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> Any:
        # As much beside a group of ten small images as the blocks of a real one beside a hundred.
        return StoredFile(self, path, mode, block_size or 1 << 14, **kwargs)


@contextmanager
def stored(index: ShardIndex) -> Iterator[ShardIndex]:
    """Put local shards into a `Store`, empty but for them, and yield the index of those there."""
    fsspec.register_implementation("store", Store, clobber=True)
    for shard in index.shards:
        Store.objects[f"bucket/{shard.path}"] = Path(index.root, shard.path).read_bytes()
    try:
        yield ShardIndex("store://bucket", index.shards)
    finally:
        forget_opened()
        for held in (Store.objects, Store.fetched, Store.failures):
            held.clear()
