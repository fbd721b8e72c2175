"""The rendered scenes on disk: parquet shards, written once and shared by all processes.

A set is a folder of shards with one row per view and one row group per scene, so that a reader
can fetch single scenes with pyarrow alone. Shards are written aside and renamed: a killed run
leaves finished shards only, and the next one renders what is missing. A lock that the kernel
drops with its holder makes other processes wait for the first instead of rendering too.

Depth is raw float32, since it is the exact ground truth that a 16-bit image would round; normals
are float16, to 5e-4; masks and images are PNG, which is lossless.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from pixio_lightning.data.decode import open_picture
from pixio_lightning.data.scenes.render import MAX_DEPTH, SCENE_CLASSES, View, render_scene
from pixio_lightning.data.scenes.worlds import known_places
from pixio_lightning.data.workers import available_cores
from pixio_lightning.errors import UserError, at_least, at_least_1, nearest
from pixio_lightning.files import default_cache, locked, written_aside
from pixio_lightning.files.atomic import sweep

VERSION = 2  # raise it when pixels, labels or columns that are read change: old caches stay
SHARD_SCENES = 64  # seconds of work: what a killed run loses, and what the progress bar counts

_UNPACKED = 128  # pixels of a side up to which images are stored as they are
_ENDED = "a process was ended, for lack of memory perhaps, or"
_UNGUARDED = "a script that renders has to run under `if __name__ == '__main__':`"

# Renders a number into the rows of its group.
Rows = Callable[[int], list[dict[str, Any]]]

# The splits' first seeds lie further apart than any set is large, so no two share a scene.
_FIRST_SEED = {"train": 0, "val": 1 << 40, "test": 2 << 40}

SCHEMA = pa.schema(
    [
        ("scene", pa.int64()),
        ("key", pa.string()),
        ("image", pa.binary()),
        ("depth", pa.binary()),
        ("valid", pa.binary()),
        ("object_id", pa.binary()),
        ("class_id", pa.binary()),
        ("normal", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("intrinsics", pa.list_(pa.float64(), 9)),
        ("cam2world", pa.list_(pa.float64(), 16)),
        ("outdoor", pa.bool_()),
        ("room_type", pa.string()),
        ("camera_height", pa.float64()),
        ("camera_pitch", pa.float64()),
    ],
    metadata={
        "world": "z up, floor at z = 0, metres",
        "camera": "OpenCV: x right, y down, z forward; pixel centres at integer coordinates",
        "image": "PNG, 8-bit sRGB",
        "depth": f"float32 little endian, row-major, z-depth in metres to {MAX_DEPTH:g}, 0 invalid",
        "valid": "PNG, 8-bit, 0 or 255",
        "object_id": "PNG, 16-bit, 0 sky",
        "class_id": "PNG, 8-bit: " + " ".join(SCENE_CLASSES),
        "normal": "float16 little endian, row-major (height, width, 3), camera frame",
        "intrinsics": "3x3, row-major, pixels",
        "cam2world": "4x4, row-major",
        "camera_pitch": "degrees above the horizon",
    },
)


def scene_seed(split: str, index: int) -> int:
    """Return the seed of a scene of "train", "val" or "test"; splits never share one."""
    if split not in _FIRST_SEED:
        known = ", ".join(_FIRST_SEED)
        raise UserError(f"no split '{split}': expected {known}{nearest(split, _FIRST_SEED)}")
    return _FIRST_SEED[split] + index


def read_columns(
    shards: Sequence[Path], columns: list[str] | None = None
) -> dict[str, pa.ChunkedArray]:
    """Read columns of shards, all if none are named, each into one piece of memory.

    In pieces for each scene, as they are stored, a look-up would walk through all before it.
    """
    table = pa.concat_tables(pq.read_table(shard, columns=columns) for shard in shards)
    found = {}
    for name in table.column_names:  # one by one, so that no more than a column is there twice
        found[name] = table.select([name]).combine_chunks()[name]
        table = table.drop_columns([name])
    return found


def _png(array: np.ndarray, *, packed: bool = True) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=6 if packed else 0)
    return buffer.getvalue()


def _pixels(data: bytes) -> np.ndarray:
    return np.array(open_picture(data, max_megapixels=64, formats=("PNG",)))


def encode_view(view: View) -> dict[str, Any]:
    """Turn a view into the columns that it fills."""
    height, width = view.depth.shape
    return {
        # Of small pictures unpacking takes half of the time to read them, in every pass.
        "image": _png(view.image, packed=height > _UNPACKED),
        "depth": view.depth.astype("<f4").tobytes(),
        "valid": _png(view.valid.astype(np.uint8) * 255),
        "object_id": _png(view.object_id.astype(np.uint16)),
        "class_id": _png(view.class_id),
        "normal": view.normal.astype("<f2").tobytes(),
        "width": width,
        "height": height,
        "intrinsics": view.intrinsics.ravel(),
        "cam2world": view.cam2world.ravel(),
        "camera_height": view.camera_height,
        "camera_pitch": view.camera_pitch,
    }


def decode_field(name: str, row: dict[str, Any]) -> Any:
    """Turn one column of a row, as from `pyarrow.Table.to_pylist`, back into what was rendered."""
    value = row[name]
    if name == "depth":
        depth = np.frombuffer(value, "<f4").astype(np.float32)
        return depth.reshape(row["height"], row["width"])
    if name == "normal":
        normal = np.frombuffer(value, "<f2").astype(np.float32)
        return normal.reshape(row["height"], row["width"], 3)
    if name in ("image", "class_id"):
        return _pixels(value)
    if name == "valid":
        return _pixels(value) > 0
    if name == "object_id":
        return _pixels(value).astype(np.int16)
    if name in ("intrinsics", "cam2world"):
        side = 3 if name == "intrinsics" else 4
        return np.array(value, dtype=np.float64).reshape(side, side)
    return value


def _scene_rows(split: str, index: int, **looks: Any) -> list[dict[str, Any]]:
    scene = render_scene(scene_seed(split, index), **looks)
    about = {"scene": index, "outdoor": scene.outdoor, "room_type": scene.room_type}
    return [
        about | {"key": f"{split}/{index:06d}/{number}"} | encode_view(view)
        for number, view in enumerate(scene.views)
    ]


def _write_shard(path: Path, indices: range, schema: pa.Schema, rows: Rows) -> int:
    """Render into a shard that appears complete or not at all; return how many row groups."""
    binary = [field.name for field in schema if field.type == pa.binary()]
    columns = [name for name in schema.names if name not in binary]
    with (
        written_aside(path) as aside,
        pq.ParquetWriter(
            aside, schema, compression="zstd", use_dictionary=False, write_statistics=columns
        ) as writer,
    ):
        for index in indices:
            writer.write_table(pa.Table.from_pylist(rows(index), schema=schema))
    return len(indices)


@dataclass(frozen=True)
class Scenes:
    """How much of the rendered scenes to use, or of clips of them.

    Attributes:
        train: Scenes to train on.
        held_out: Other scenes to validate on, and as many more to test on.
        views: Views of each scene; frames of a clip.
        size: Side of a view in pixels.
        places: Kinds of place, such as `[studio]` or `[office, corridor]`; None for all.

    Raises:
        UserError: A number is too small, or there is no such place.
    """

    train: int = 64
    held_out: int = 16
    views: int = 4
    size: int = 128
    places: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        counts = ("train", "held_out", "views")
        at_least_1(**{f"data.scenes.{name}": getattr(self, name) for name in counts})
        at_least(8, **{"data.scenes.size": self.size})
        known_places(self.places)

    def __str__(self) -> str:
        """What decides on the held-out views."""
        return self.described(f"{self.held_out}x{self.views} views")

    def described(self, what: str) -> str:
        """Say of what kind and size some views are."""
        where = f" of {', '.join(self.places)}" if self.places else ""
        return f"{what}{where}, {self.size} px"

    def shards(self, split: str) -> list[Path]:
        """Return the parquet files of a split in order, rendered now where they are missing.

        A larger set of a split starts with the scenes of a smaller one. Rendering uses fresh
        processes, each on one core; a script that calls this must guard its main part with
        ``if __name__ == "__main__":``, as Python asks.

        Raises:
            UserError: There is no such split.
        """
        return rendered_shards(split, self, f"scenes-v{VERSION}", schema=SCHEMA, rows=_scene_rows)


def rendered_shards(
    split: str,
    scenes: Scenes,
    kind: str,
    *,
    schema: pa.Schema,
    rows: Callable[..., list[dict[str, Any]]],
    seconds: float | None = None,
) -> list[Path]:
    """Return the shards of a rendered set, with those that are not there yet rendered now.

    Args:
        split: "train", "val" or "test".
        scenes: How many scenes or clips there are, each a row group, and of what.
        kind: Of the set, with its version.
        schema: Of the rows.
        rows: Renders a number of a split; can be pickled.
        seconds: Duration of a clip.
    """
    scene_seed(split, 0)
    count = scenes.train if split == "train" else scenes.held_out
    looks: dict[str, Any] = {"views": scenes.views, "size": scenes.size, "places": scenes.places}
    name = f"{kind}-{split}-{count}x{scenes.views}-{scenes.size}px"
    if seconds is not None:
        looks["seconds"] = seconds
        name += f"-{seconds:g}s"
    if scenes.places is not None:
        name += f"-{'+'.join(scenes.places)}"
    root = default_cache() / name
    label = f"rendering {split} {kind.split('-')[0]}, {scenes.size} px"
    starts = range(0, count, SHARD_SCENES)
    shards = {
        root / f"{number:05d}-of-{len(starts):05d}.parquet": range(
            start, min(start + SHARD_SCENES, count)
        )
        for number, start in enumerate(starts)
    }
    if not all(path.exists() for path in shards):
        # A process of the pool, which imports the script anew, would wait here for its own parent.
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise UserError(_UNGUARDED)
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / ".lock") as alone:
            missing = {path: indices for path, indices in shards.items() if not path.exists()}
            if alone:
                sweep(root)
            write = partial(_write_shard, schema=schema, rows=partial(rows, split, **looks))
            _render(missing, write, label)
    return list(shards)


def _end_with_parent() -> None:
    """Let this process end when its parent does, however that ends: it would render for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _render(missing: dict[Path, range], write: Callable[[Path, range], int], label: str) -> None:
    """Write the missing shards, in this process if it is one, else in a pool."""
    workers = min(available_cores(), len(missing))
    total = sum(map(len, missing.values()))
    if not sys.stderr.isatty():
        print(f"{label}: {total} of them, once", flush=True)  # a bar would fill a log file
    with tqdm(total=total, desc=label, disable=None) as bar:
        if workers <= 1:
            for path, indices in missing.items():
                bar.update(write(path, indices))
            return
        # Spawned, not forked: a fork would inherit the locks of torch's and arrow's threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
            tasks = [pool.submit(write, path, indices) for path, indices in missing.items()]
            try:
                for task in as_completed(tasks):
                    bar.update(task.result())
            except BrokenProcessPool:
                raise UserError(f"{label}: {_ENDED} {_UNGUARDED}") from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
