"""The rendered clips on disk, one row per frame and one row group per clip, and how to read them.

Written, cached and shared as the scenes are (`store`); no flow is stored, since `exact_flow` gives
it from the poses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pixio_lightning.data.scenes import store
from pixio_lightning.data.scenes.clips import Clip, render_frames
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.data.sources import digest_of

VERSION = 1  # raise it when pixels, labels or columns change: old caches are then left alone
_OWN = {"scene", "key", "normal", "outdoor", "camera_height", "camera_pitch"}

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


def _clip_rows(split: str, index: int, *, views: int, **looks: Any) -> list[dict[str, Any]]:
    made = render_frames(store.scene_seed(split, index), frames=views, **looks)
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


def clip_shards(split: str, scenes: Scenes, seconds: float) -> list[Path]:
    """Return the parquet files of a split's clips, see `Scenes.shards`.

    Args:
        split: "train", "val" or "test".
        scenes: How many clips, and of what; its views are their frames.
        seconds: Duration of a clip; frames lie `seconds / scenes.views` apart.
    """
    kind = f"clips-v{VERSION}"
    return store.rendered_shards(
        split, scenes, kind, schema=SCHEMA, rows=_clip_rows, seconds=seconds
    )


class RenderedClips:
    """Rendered clips, read one by one.

    Args:
        split: `train`, `val` or `test`; no clip is in two of them.
        scenes: How many, and of what; its views are the frames of a clip.
        seconds: Duration of a clip.
        geometry: Whether to hold more than the images in memory.
    """

    def __init__(
        self, split: str, scenes: Scenes, seconds: float, *, geometry: bool = True
    ) -> None:
        self.split, self.scenes, self.seconds = split, scenes, seconds
        columns = None if geometry else ["clip", "frame", "time", "image", "room_type"]
        self.columns = store.read_columns(clip_shards(split, scenes, seconds), columns)

    def __len__(self) -> int:
        return len(self.columns["clip"]) // self.scenes.views

    def name(self, index: int) -> str:
        """Return the name of a clip, such as `val/000012`."""
        return f"{self.split}/{index:06d}"

    def room_type(self, index: int) -> str:
        """Return the kind of place a clip shows."""
        return self.columns["room_type"][index * self.scenes.views].as_py()

    def times(self, index: int) -> list[float]:
        """Return when its frames are, in seconds."""
        first = index * self.scenes.views
        return self.columns["time"].slice(first, self.scenes.views).to_pylist()

    def encoded(self, index: int, frame: int) -> bytes:
        """Return one frame as a PNG file."""
        return self.columns["image"][index * self.scenes.views + frame].as_py()

    def load(self, index: int, frames: Sequence[int] | None = None) -> Clip:
        """Return a clip with its geometry, or some frames of it."""
        n = self.scenes.views
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
        return digest_of("clips", VERSION, self.split, vars(self.scenes), self.seconds)
