"""The rendered scenes as samples of a task, whatever the task reads of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixio_lightning.data.samples import Sample
from pixio_lightning.data.scenes import store as scene_store
from pixio_lightning.data.sources import digest_of

# What each name of a view is decoded from.
_COLUMNS = {"depth": ("width", "height"), "normal": ("width", "height")}


@dataclass(frozen=True)
class Scenes:
    """How much of the rendered scenes to use.

    Attributes:
        train: Scenes to train on.
        held_out: Other scenes to validate on, and as many more to test on.
        views: Views of each scene.
        size: Side of a view in pixels.
        places: Kinds of place, such as `[studio]` or `[office, corridor]`; None for all.
    """

    train: int = 64
    held_out: int = 16
    views: int = 4
    size: int = 128
    places: tuple[str, ...] | None = None

    def __str__(self) -> str:
        """What decides on the held-out views."""
        where = f" of {', '.join(self.places)}" if self.places else ""
        return f"{self.held_out}x{self.views} views{where}, {self.size} px"

    def shards(self, split: str) -> list[Path]:
        """Return the parquet files of a split, rendered now where they are missing."""
        return scene_store.scenes(
            split,
            scenes=self.train if split == "train" else self.held_out,
            views=self.views,
            size=self.size,
            places=self.places,
        )


class SceneSamples:
    """Views of rendered scenes; as a source of images, their class is the kind of place.

    Args:
        split: `train`, `val` or `test`, of which no two share a scene; `predict` shows `val`.
        scenes: How many scenes and views.
        fields: What to load of each view: `image`; `depth`, metres along the optical axis; `valid`;
            `normal`, unit vectors `(H, W, 3)` in the camera's OpenCV axes (x right, y down, z
            forward), facing it, 0 in the sky; `class_id`; `intrinsics`, `cam2world`;
            `camera_pitch`, degrees; and of its scene, `room_type` and `outdoor`.
    """

    def __init__(self, split: str, scenes: Scenes, fields: tuple[str, ...]) -> None:
        split = "val" if split == "predict" else split
        self.split, self.scenes, self.fields = split, scenes, fields
        shards = scenes.shards(split)
        columns = ["key", *fields]
        columns += [name for field in fields for name in _COLUMNS.get(field, ())]
        columns = list(dict.fromkeys(columns))
        self.columns = scene_store.read_columns(shards, columns)

    def __len__(self) -> int:
        return len(self.columns["key"])

    def name(self, index: int) -> str:
        return self.columns["key"][index].as_py()

    def load(self, index: int) -> Sample:
        row = {name: column[index].as_py() for name, column in self.columns.items()}
        return {field: np.asarray(scene_store.decode_field(field, row)) for field in self.fields}

    def read(self, index: int) -> bytes:
        return self.columns["image"][index].as_py()

    def label(self, index: int) -> str | None:
        return self.columns["room_type"][index].as_py()

    def digest(self) -> str:
        facts: dict[str, Any] = vars(self.scenes)
        return digest_of("scenes", scene_store.VERSION, self.split, facts)
