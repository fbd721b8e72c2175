"""Where images with classes lie: a folder for each class, tables, and the rendered scenes.

Every class is a list of samples: `image` uint8 (H, W, 3), and `target`, an int64 scalar, or `(C,)`
of 0 and 1 where an image may be of several classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pixio_lightning.data import SCENE_CLASSES as CLASSES
from pixio_lightning.data import (
    BadImage,
    FolderSource,
    HubRows,
    Images,
    Sample,
    Scenes,
    SceneSamples,
    Source,
    content,
    decode_pixels,
    digest_of,
    digest_of_files,
    hold_out,
    is_hidden,
    known_places,
    open_columns,
    part_of,
)
from pixio_lightning.errors import UserError

Target = Literal["room_type", "objects", "outdoor"]
_SHOWN = 0.002  # share of a view that an object must cover: a few pixels would be guesswork


# --- folders ----------------------------------------------------------------------------------


def _has_folders(folder: Path) -> bool:
    return any(p.is_dir() and not is_hidden(p.name) for p in folder.iterdir())


def class_folders(root: Path) -> list[str]:
    """Return the sorted names of the folders with images in `root`, or in its `train/`.

    They are the classes; a folder without an image is none.

    Raises:
        UserError: There are fewer than two.
    """
    below = part_of(root, "train", holds=_has_folders).folder
    found = _classes_of(FolderSource(below))
    if len(found) < 2:
        raise UserError(
            f"'{below}' holds images in {', '.join(found) or 'no folder'}; expected a folder of "
            "images for each of two or more classes, in it or in its train/ and val/"
        )
    return found


def _classes_of(source: FolderSource) -> list[str]:
    return sorted({name.partition("/")[0] for name in source.names if "/" in name})


def open_folder(root: Path, split: str, classes: Sequence[str], *, max_megapixels: float) -> Any:
    """Return the samples of a split of `train/CLASS/` and `val/CLASS/`, or of `CLASS/` alone.

    Without `val/` a tenth is held out, by the hash of the names; `test/` is used if it is there.

    Raises:
        UserError: There is no image, or a folder that is no class of the training set.
    """
    folder, whole = part_of(root, split, holds=_has_folders)
    source = FolderSource(folder)
    if unknown := [name for name in _classes_of(source) if name not in classes]:
        raise UserError(
            f"'{folder}' holds {', '.join(unknown[:3])}, but train/ has no such class: expected "
            "the same folders in both"
        )
    chosen: Source = source if whole else hold_out(source)[0 if split == "train" else 1]
    return FolderSamples(folder, chosen, classes, max_megapixels=max_megapixels)


def open_plain(root: Path, *, max_megapixels: float) -> FolderSamples:
    """Return images to predict: those to test or validate on, else all there are."""
    part = part_of(root, "test", holds=lambda folder: True)
    folder = part.folder if part.whole else root
    return FolderSamples(folder, FolderSource(folder), None, max_megapixels=max_megapixels)


class FolderSamples(Images):
    """Images of a folder; the outermost folder of an image is its class.

    Args:
        root: What names are relative to.
        source: Its images, or some of them.
        classes: Names of the classes, in order; None loads images only.
        max_megapixels: Larger images are bad.
    """

    def __init__(
        self, root: Path, source: Source, classes: Sequence[str] | None, *, max_megapixels: float
    ) -> None:
        super().__init__(source, max_megapixels=max_megapixels)
        self.root = root
        self.numbers = None if classes is None else {name: i for i, name in enumerate(classes)}

    @property
    def class_counts(self) -> Counter[str]:
        """How many images lie in the folder of each class."""
        return Counter(self.name(i).partition("/")[0] for i in range(len(self)))

    def load(self, index: int) -> Sample:
        target = {} if self.numbers is None else {"target": self._target(self.name(index))}
        return super().load(index) | target

    def _target(self, name: str) -> np.ndarray:
        assert self.numbers is not None
        folder, _, file = name.partition("/")
        if not file:
            raise BadImage("in no folder of a class")
        return np.array(self.numbers[folder])

    def digest(self) -> str:
        files = digest_of_files(self.root, map(self.name, range(len(self))))
        return digest_of("classes", str(self.root), self.numbers, files)


# --- tables -----------------------------------------------------------------------------------


def _names(feature: Any, value: Any) -> list[str]:
    """Return the classes of a value: several of a list, none of null and of -1, a kept secret."""
    import datasets

    inner = getattr(feature, "feature", feature)
    values = value if isinstance(value, list) else [value]
    if isinstance(inner, datasets.ClassLabel):
        return [inner.names[v] for v in values if v is not None and v >= 0]
    return [str(v) for v in values if v is not None]


def row_classes(data: Any, column: str) -> tuple[list[str], bool]:
    """Return the names of the classes of a column, and whether a row may be of several.

    A column of `ClassLabel` knows their names; of any other they are its values, sorted.
    """
    import datasets

    feature = data.features[column]
    inner = getattr(feature, "feature", feature)
    several = inner is not feature
    if isinstance(inner, datasets.ClassLabel):
        return list(inner.names), several
    try:
        values = {v for row in data[column] for v in (row if several else [row]) if v is not None}
        return [str(v) for v in sorted(values)], several
    except TypeError:
        raise UserError(
            f"data.label_column {column} holds {inner}, but expected names or numbers of classes"
        ) from None


class RowSamples(HubRows):
    """Rows of a Hugging Face data set with a column of images and one of classes.

    Args:
        path: Hub id, or a local folder of parquet.
        split: Split to read.
        image_column: Column of the images.
        label_column: Column of their classes; None loads images only.
        classes: Names of the classes, in order.
        max_megapixels: Larger images are bad.

    Raises:
        UserError: The data set or a column does not exist.
    """

    def __init__(
        self,
        path: str,
        split: str,
        *,
        image_column: str,
        label_column: str | None,
        classes: Sequence[str],
        max_megapixels: float,
    ) -> None:
        self.max_megapixels = max_megapixels
        self.image_column, self.label_column = image_column, label_column
        self.numbers = {name: i for i, name in enumerate(classes)}
        columns = {"image_column": image_column}
        columns |= {"label_column": label_column} if label_column else {}
        super().__init__(path, split, open_columns(path, split, columns))

    def load(self, index: int) -> Sample:
        row = self.data[index]
        target = {}
        if self.label_column is not None:
            target["target"] = self._target(row[self.label_column], self.label_column)
        data = content(row[self.image_column])
        return {"image": decode_pixels(data, max_megapixels=self.max_megapixels)} | target

    def _target(self, value: Any, column: str) -> np.ndarray:
        names = _names(self.data.features[column], value)
        if unknown := [name for name in names if name not in self.numbers]:
            raise BadImage(f"class {unknown[0]}, which the training set does not have")
        numbers = [self.numbers[name] for name in names]
        if isinstance(value, list):
            return np.isin(np.arange(len(self.numbers)), numbers).astype(np.int64)
        if not numbers:
            raise BadImage("no class")
        return np.array(numbers[0])

    def digest(self) -> str:
        return self.rows_digest(self.image_column, self.label_column, self.numbers)


# --- scenes -----------------------------------------------------------------------------------


def scene_classes(scenes: Scenes, target: Target) -> list[str]:
    """Return the names of the classes of the rendered scenes.

    Raises:
        UserError: There is only one kind of place, or no such place.
    """
    if target != "room_type":
        return list(CLASSES) if target == "objects" else ["indoor", "outdoor"]
    places = list(known_places(scenes.places))
    if len(places) < 2:
        raise UserError(
            f"data.target is room_type, but data.scenes.places is {places[0]} alone; expected two "
            "kinds of place or more, or null for all"
        )
    return places


class LabelledScenes(SceneSamples):
    """Views of rendered scenes with the kind of place, what they show, or if it is outdoors.

    Args:
        split: As of `SceneSamples`.
        scenes: How many scenes and views.
        target: What the classes are; with `objects`, all a view shows.
    """

    def __init__(self, split: str, scenes: Scenes, target: Target) -> None:
        self.target, self.classes = target, scene_classes(scenes, target)
        self.field = "class_id" if target == "objects" else target
        super().__init__(split, scenes, ("image", self.field))

    def load(self, index: int) -> Sample:
        sample = super().load(index)
        found = sample[self.field]
        if self.target == "room_type":
            target = np.array(self.classes.index(str(found)))
        elif self.target == "outdoor":
            target = found.astype(np.int64)
        else:
            counts = np.bincount(found.ravel(), minlength=len(self.classes))
            target = (counts >= _SHOWN * found.size).astype(np.int64)
        return {"image": sample["image"], "target": target}

    def digest(self) -> str:
        return digest_of(super().digest(), self.target)
