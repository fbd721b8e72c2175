"""Images with one number each: rendered scenes, or a folder with a table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_lightning import SampleData, UserError
from pixio_lightning.data import (
    BadImage,
    Sample,
    Samples,
    SceneSamples,
    decode_pixels,
    digest_of,
    existing_folder,
    image_files,
    read_file,
)


class TableSamples:
    """The images that `targets.csv` in a folder lists: columns `file` and `target`.

    Args:
        folder: Where the table and the images are.
        predicting: Whether all images of the folder are taken instead, without targets.

    Raises:
        UserError: There is no such table, it holds something else, or there is no image.
    """

    def __init__(self, folder: Path, *, predicting: bool = False) -> None:
        self.folder, table = folder, folder / "targets.csv"
        self.rows: list[tuple[str, float | None]]
        if predicting:
            self.rows = [(p.relative_to(folder).as_posix(), None) for p in image_files(folder)]
            return
        if not table.is_file():
            raise UserError(f"{table} does not exist; expected the columns file,target")
        self.rows = [*read_table(table)]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return self.rows[index][0]

    def load(self, index: int) -> Sample:
        name, target = self.rows[index]
        image = decode_pixels(read_file(self.folder / name), max_megapixels=64)
        return {"image": image} | ({} if target is None else {"target": np.float32(target)})

    def digest(self) -> str:
        files = [(self.folder / name) for name, _ in self.rows]
        return digest_of(self.rows, [f.stat().st_mtime_ns for f in files if f.exists()])


def read_table(table: Path) -> list[tuple[str, float]]:
    """Return the file and the target of each line of a table.

    Raises:
        UserError: A column is missing, a target is no number, or there is no line.
    """
    found = []
    # Excel begins a file with a mark, which would count as a part of the first column's name.
    with table.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.DictReader(file)
        try:
            for line in lines:
                found.append((line["file"], float(line["target"])))
        except KeyError as error:
            raise UserError(
                f"{table}, line 1: there is no column {error}; expected file,target"
            ) from None
        except (ValueError, TypeError, csv.Error) as error:  # also of bytes that are no text
            raise UserError(
                f"{table}, line {lines.line_num}: {error}; expected file,target, a number in target"
            ) from None
    if not found:
        raise UserError(f"{table} lists no image; expected a line file,target for each")
    return found


class ExampleData(SampleData):
    """Images with the angle at which the camera looks up, in degrees.

    Args:
        source: `scenes`, or `folder` with a table.
        path: The folder, with `train/` and `val/`, each with images and their table; to predict,
            any folder of images.
        image_size: Side that images are scaled to.
        num_workers: Processes that decode, per training process.
        steps_per_epoch: Training batches between two validations.
    """

    sources = ("scenes", "folder")

    def __init__(
        self,
        source: str = "scenes",
        path: str | None = None,
        *,
        image_size: int = 128,
        num_workers: int = 2,
        steps_per_epoch: int = 100,
        **loading: Any,
    ) -> None:
        super().__init__(
            source, path, num_workers=num_workers, steps_per_epoch=steps_per_epoch, **loading
        )
        # Kept as a public attribute: it identifies the samples in caches and records.
        self.image_size = image_size

    def open(self, split: str) -> Samples:
        """Return the samples of a split."""
        if self.source == "scenes":
            return SceneSamples(split, self.scenes, ("image", "camera_pitch"))
        folder = existing_folder(self.path or "", "data.path")
        if split == "predict":
            return TableSamples(folder, predicting=True)
        return TableSamples(folder / ("train" if split == "train" else "val"))

    def prepare(self, sample: Sample) -> Sample:
        """Scale the image; a random `augment` may stand beside this for training."""
        image = scaled(sample["image"], self.image_size)
        target = sample.get("camera_pitch", sample.get("target"))
        if target is None:  # an image to predict
            return {"image": image}
        if not np.isfinite(target):
            raise BadImage("the target is no number")
        return {"image": image, "target": np.float32(target)}


def scaled(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return an image `(H, W, 3)` scaled to a square; the head sees pictures through it, too."""
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
