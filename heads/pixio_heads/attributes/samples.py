"""Images with their attributes: of the rendered scenes, and of a folder with a table.

An attribute is a number, a direction (three numbers) or a kind (a number for each, 0 or 1). They
stand in one row, D numbers in all, and `Columns` says which are whose.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data import (
    PLACES,
    SCENE_CLASSES,
    BadImage,
    FolderSource,
    Images,
    Sample,
    Scenes,
    SceneSamples,
    decode_pixels,
    digest_of,
    digest_of_files,
    held_out,
    is_open,
    known_places,
    lights_of,
    read_file,
    scene_seed,
)
from pixio_lightning.errors import UserError, nearest

# The columns of each attribute: its own name for a number, the kinds' names for a kind.
Columns = dict[str, list[str]]

TABLE = "attributes.csv"
_SHELL = ("sky", "floor", "wall", "ceiling", "ground", "lamp")  # what is no thing in a scene
_SMALLEST = 0.002  # share of a view that a thing fills, to be counted
_MOST_KINDS = 50
_GREATEST = float(np.finfo(np.float32).max)


def scene_columns(scenes: Scenes) -> Columns:
    """Return the attributes of rendered scenes; those that never differ are left out."""
    places = list(known_places(scenes.places))
    columns: Columns = {"place": places} if len(places) > 1 else {}
    if len({is_open(PLACES[place]) for place in places}) > 1:
        columns["outdoor"] = ["outdoor"]
    return columns | {
        "camera_pitch": ["camera_pitch"],
        "camera_height": ["camera_height"],
        "light_direction": ["light right", "light down", "light ahead"],
        "light_contrast": ["light_contrast"],
        "things": ["things"],
    }


def scene_units(scenes: Scenes) -> dict[str, str]:
    """Return the units of the attributes of rendered scenes, see `SceneAttributes`."""
    units = {
        "place": "1 of the kind it is, else 0",
        "outdoor": "1 or 0",
        "camera_pitch": "degrees above the horizon",
        "camera_height": "metres above the floor",
        "light_direction": "unit vector in the camera's axes",
        "light_contrast": "natural logarithm of all lights over the ambient one",
        "things": "count",
    }
    return {name: units[name] for name in scene_columns(scenes)}


@lru_cache(maxsize=64)
def _lights(seed: int, places: tuple[str, ...] | None) -> tuple[NDArray[np.float64], float]:
    """Return where a scene's strongest light stands `(3,)`, and its light over the ambient one."""
    lights, ambient = lights_of(seed, places)
    strongest = max(lights, key=lambda light: float(np.mean(light.colour)))
    direct = sum(float(np.mean(light.colour)) for light in lights)
    return strongest.position, math.log(direct / float(np.mean(ambient)))


class SceneAttributes(SceneSamples):
    """Views of rendered scenes: `image`, and `target`, float32 `(D,)`.

    `camera_pitch` is in degrees above the horizon, `camera_height` in metres above the floor.
    `light_direction` is the unit vector from the camera to the strongest light, in the camera's
    axes (x right, y down, z ahead); `light_contrast` the logarithm of all lights over the ambient
    one. `things` counts what stands in view and fills a five-hundredth of it.

    Args:
        split: As of `SceneSamples`.
        scenes: How many scenes and views.
    """

    _fields = ("image", "scene", "room_type", "outdoor", "camera_pitch", "camera_height")

    def __init__(self, split: str, scenes: Scenes) -> None:
        fields = (*self._fields, "cam2world", "object_id", "class_id")
        super().__init__(split, scenes, fields)
        self.attributes = scene_columns(scenes)

    def load(self, index: int) -> Sample:
        view = super().load(index)
        seed = scene_seed(self.split, int(view["scene"]))
        position, contrast = _lights(seed, self.scenes.places)
        pose = view["cam2world"]
        towards = pose[:3, :3].T @ (position - pose[:3, 3])
        shell = np.isin(view["class_id"], [SCENE_CLASSES.index(name) for name in _SHELL])
        ids, sizes = np.unique(view["object_id"][~shell], return_counts=True)
        known = {
            "place": [
                float(view["room_type"] == place) for place in self.attributes.get("place", ())
            ],
            "outdoor": [float(view["outdoor"])],
            "camera_pitch": [float(view["camera_pitch"])],
            "camera_height": [float(view["camera_height"])],
            "light_direction": list(towards / np.linalg.norm(towards)),
            "light_contrast": [contrast],
            "things": [float((sizes >= _SMALLEST * shell.size).sum())],
        }
        row = [value for name in self.attributes for value in known[name]]
        return {"image": view["image"], "target": np.array(row, np.float32)}

    def digest(self) -> str:
        return digest_of("attributes of scenes", super().digest())


def read_table(root: Path, chosen: Sequence[str] | None) -> tuple[list[str], Columns, NDArray]:
    """Read `attributes.csv`: a column `name`, an image's path in the folder, and attributes.

    A column of numbers is a number; of words, a kind.

    Args:
        root: The folder.
        chosen: Columns to read; None for all.

    Returns:
        Names, the attributes' columns, and float32 `(N, D)`.

    Raises:
        UserError: There is no such table or column, a cell is empty or of numbers not finite, or a
            column never differs.
    """
    path = root / TABLE
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, csv.Error) as error:
        raise UserError(
            f"data.path: '{path}' cannot be read ({error}); expected a table with a column `name`, "
            "an image's path in the folder, and a column for each attribute"
        ) from None
    for column in ("name", *(chosen or ())):
        if column not in header:
            hint = nearest(column, header)
            raise UserError(f"'{path}' has no column '{column}', but {', '.join(header)}{hint}")
    names = [name for name in header if name != "name" and (chosen is None or name in chosen)]
    for number, line in enumerate(lines, start=2):
        cells = dict(zip(header, line, strict=False))
        if missing := [name for name in ("name", *names) if not cells.get(name, "").strip()]:
            raise UserError(f"'{path}', line {number}: '{missing[0]}' is empty; fill or remove it")
    columns: Columns = {}
    parts = []
    for name in names:
        words = [line[header.index(name)].strip() for line in lines]
        numbers = _numbers(words)
        for number, cell in enumerate(numbers or (), start=2):
            if not abs(cell) <= _GREATEST:
                raise UserError(
                    f"'{path}', line {number}: '{name}' is {cell:g}; expected a finite number: "
                    "correct or remove it"
                )
        kinds = sorted({*words}) if numbers is None else []
        if numbers is None and not 2 <= len(kinds) <= _MOST_KINDS:
            raise UserError(
                f"'{path}': '{name}' holds {len(kinds)} different words; expected numbers, or 2 to "
                f"{_MOST_KINDS} kinds, or leave it out of data.columns"
            )
        if numbers and min(numbers) == max(numbers):
            raise UserError(
                f"'{path}': '{name}' is {numbers[0]:g} for every image, which leaves nothing to "
                "explain; leave it out of data.columns"
            )
        columns[name] = kinds or [name]
        one_hot = [[float(cell == kind) for kind in kinds] for cell in words]
        parts.append(np.array(one_hot if numbers is None else [[n] for n in numbers], np.float32))
    if not names or len(lines) < 2:
        raise UserError(f"'{path}' holds {len(names)} attributes of {len(lines)} images")
    at = header.index("name")
    return [line[at] for line in lines], columns, np.concatenate(parts, axis=1)


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None


class TableAttributes:
    """Images of a folder with their rows of a table; a tenth is held out.

    Args:
        root: The folder.
        split: `train`, or any other for what is held out.
        table: What `read_table` returned.
        max_megapixels: Larger images are bad.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        table: tuple[list[str], Columns, NDArray],
        max_megapixels: float,
    ) -> None:
        self.root, self.split, self.max_megapixels = root, split, max_megapixels
        self.names, self.columns, self.rows = table
        train, val = held_out(range(len(self.names)), self.names.__getitem__)
        self.indices = train if split == "train" else val

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.names[self.indices[index]]

    def load(self, index: int) -> Sample:
        number = self.indices[index]
        path = (self.root / self.names[number]).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise BadImage("lies outside of the folder")
        pixels = decode_pixels(read_file(path), max_megapixels=self.max_megapixels)
        return {"image": pixels, "target": self.rows[number]}

    def digest(self) -> str:
        files = digest_of_files(self.root, map(self.name, range(len(self))))
        return digest_of("attributes", files, self.rows[self.indices].tobytes().hex())


class PlainImages(Images):
    """Images of which nothing is known."""

    source: FolderSource

    def digest(self) -> str:
        return digest_of("images", digest_of_files(self.source.root, self.source.names))
