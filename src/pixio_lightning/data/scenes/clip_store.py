"""The rendered clips on disk, one row per frame and one row group per clip, and how to read them.

Written, cached and shared as the scenes are (`store`); no flow is stored, since `exact_flow` gives
it from the poses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pixio_lightning.data.scenes import store
from pixio_lightning.data.scenes.clips import Clip, render_frames
from pixio_lightning.data.scenes.worlds import known_places
from pixio_lightning.data.sources import digest_of
from pixio_lightning.errors import UserError
from pixio_lightning.files import default_cache

VERSION = 1  # raise it when pixels, labels or columns change: old caches are then left alone
_OWN = {"scene", "view", "key", "normal", "outdoor", "lights", "objects"}
_OWN |= {"camera_height", "camera_pitch"}

SCHEMA = pa.schema(
    [
        ("clip", pa.int64()),
        ("frame", pa.int32()),
        ("key", pa.string()),
        ("time", pa.float64()),
        ("bodies", pa.list_(pa.float64())),
        *(field for field in store.SCHEMA if field.name not in _OWN),
    ],
    metadata={
        name.decode(): text.decode()
        for name, text in (store.SCHEMA.metadata or {}).items()
        if name.decode() not in _OWN
    }
    | {
        "time": "seconds",
        "bodies": "(N, 4), row-major: x, y, z, yaw in radians of the body with object_id n + 1",
    },
)


def _clip_rows(split: str, index: int, **looks: Any) -> list[dict[str, Any]]:
    made = render_frames(store.scene_seed(split, index), **looks)
    return [
        {
            "clip": index,
            "frame": number,
            "key": f"{split}/{index:06d}/{number}",
            "time": made.time[number],
            "bodies": made.bodies[number].ravel(),
            "room_type": made.room_type,
        }
        | store.encode_view(frame)
        for number, frame in enumerate(made.frames)
    ]


def clips(
    split: str,
    *,
    clips: int,
    frames: int = 10,
    size: int = 64,
    places: Sequence[str] | None = None,
    seconds: float = 2.0,
    folder: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[Path]:
    """Return the shards of a set of clips, rendering those that are not there yet.

    A larger set of a split starts with the clips of a smaller one. A script that calls this must
    guard its main part, as for `store.scenes`.

    Args:
        split: "train", "val" or "test".
        clips: Number of clips.
        frames: Frames of each.
        size: Pixels along a side.
        places: Kinds of place to draw from, see `render_scene`; None for all.
        seconds: Duration of each.
        folder: Where sets are kept; None for `default_cache()`.
        workers: Processes; None for one per core.
        progress: Whether to show a progress bar while rendering.

    Raises:
        UserError: If the split or a place is unknown, or a number is too small.
    """
    store.scene_seed(split, 0)
    if clips < 1 or frames < 1 or size < 8 or not seconds > 0:
        raise UserError(
            f"{clips} clips of {frames} frames of {size} px in {seconds:g} s: expected at least 1, "
            "1 and 8, and seconds above 0"
        )
    known_places(places)
    where = "" if places is None else "-" + "+".join(places)
    name = f"clips-v{VERSION}-{split}-{clips}x{frames}-{size}px-{seconds:g}s{where}"
    return store.rendered_shards(
        (folder or default_cache()) / name,
        clips,
        schema=SCHEMA,
        rows=partial(_clip_rows, split, frames=frames, size=size, places=places, seconds=seconds),
        label=f"rendering {split} clips of {frames} frames, {size} px",
        workers=workers,
        progress=progress,
    )


@dataclass(frozen=True)
class SceneClips:
    """How much of the rendered clips to use.

    Attributes:
        train: Clips to train on.
        held_out: Other clips to validate on.
        frames: Frames of each clip.
        size: Side of a frame in pixels.
        places: Kinds of place, such as `[studio]` or `[office, corridor]`; None for all.
        seconds: Duration of a clip; frames lie `seconds / frames` apart.
    """

    train: int = 64
    held_out: int = 16
    frames: int = 10
    size: int = 64
    places: tuple[str, ...] | None = None
    seconds: float = 2.0

    def __str__(self) -> str:
        """What decides on the held-out clips."""
        where = f" of {', '.join(self.places)}" if self.places else ""
        return f"{self.held_out} clips of {self.frames} frames{where}, {self.size} px"

    def shards(self, split: str) -> list[Path]:
        """Return the parquet files of a split, rendered now where they are missing."""
        return clips(
            split,
            clips=self.train if split == "train" else self.held_out,
            frames=self.frames,
            size=self.size,
            places=self.places,
            seconds=self.seconds,
        )


class RenderedClips:
    """Rendered clips, read one by one.

    Args:
        split: `train`, `val` or `test`; no clip is in two of them.
        clips: How many, and of what.
        geometry: Whether to hold more than the images in memory.
    """

    def __init__(self, split: str, clips: SceneClips, *, geometry: bool = True) -> None:
        self.split, self.clips, self.geometry = split, clips, geometry
        columns = None if geometry else ["clip", "frame", "time", "image", "room_type"]
        shards = clips.shards(split)
        self.columns = store.read_columns(shards, columns)

    def __len__(self) -> int:
        return len(self.columns["clip"]) // self.clips.frames

    def name(self, index: int) -> str:
        """Return the name of a clip, such as `val/000012`."""
        return f"{self.split}/{index:06d}"

    def room_type(self, index: int) -> str:
        """Return the kind of place a clip shows."""
        return self.columns["room_type"][index * self.clips.frames].as_py()

    def times(self, index: int) -> list[float]:
        """Return when its frames are, in seconds."""
        first = index * self.clips.frames
        return self.columns["time"].slice(first, self.clips.frames).to_pylist()

    def encoded(self, index: int, frame: int) -> bytes:
        """Return one frame as a PNG file."""
        return self.columns["image"][index * self.clips.frames + frame].as_py()

    def load(self, index: int, frames: Sequence[int] | None = None) -> Clip:
        """Return a clip with its geometry, or some frames of it."""
        n = self.clips.frames
        numbers = range(n) if frames is None else frames
        columns = self.columns.items()
        rows = [{k: v[index * n + number].as_py() for k, v in columns} for number in numbers]

        def stacked(name: str) -> np.ndarray:
            return np.stack([store.decode_field(name, row) for row in rows])

        return Clip(
            image=np.ascontiguousarray(stacked("image").transpose(0, 3, 1, 2)),
            depth=stacked("depth"),
            valid=stacked("valid"),
            object_id=stacked("object_id"),
            class_id=stacked("class_id"),
            intrinsics=store.decode_field("intrinsics", rows[0]),
            cam2world=stacked("cam2world"),
            time=np.array([row["time"] for row in rows]),
            bodies=np.array([row["bodies"] for row in rows]).reshape(len(rows), -1, 4),
        )

    def digest(self) -> str:
        """Return what tells these clips from others."""
        return digest_of("clips", VERSION, self.split, vars(self.clips))
