"""The rendered scenes as samples of a task, whatever the task reads of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pixio_lightning.data.samples import Sample
from pixio_lightning.data.scenes import store as scene_store
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.data.sources import digest_of

# What each name of a view is decoded from.
_COLUMNS = {"depth": ("width", "height"), "normal": ("width", "height")}


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
