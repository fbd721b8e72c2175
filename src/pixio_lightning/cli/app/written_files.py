"""What `write` has written, as the page shows it: by the kinds of files, whichever head it was."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.depth import UNIT_FIELD, read_depth
from pixio_lightning.files import written_aside
from pixio_lightning.training import visualize

_COLOUR = "_colour.png"  # pictures for people; others of the same name are maps of values
_TEXTS = (".txt", ".json", ".csv")
_MOST_TEXT = 4000  # characters of a text file that are shown


class Map(NamedTuple):
    """A value for each pixel.

    Attributes:
        values: float32 `(H, W)`, or class indices.
        picture: uint8 `(H, W, 3)`, the values as colours.
        unit: Of the values, such as "m"; empty where nothing says it.
        names: Of the classes; empty where values are none.
    """

    values: NDArray[Any]
    picture: NDArray[np.uint8]
    unit: str
    names: Sequence[str]

    def at(self, x: int, y: int) -> str:
        """Return what stands at a pixel."""
        value = self.values[y, x]
        if not self.names:
            return self.told(f"{float(value):.4g}")
        return self.names[int(value)] if int(value) < len(self.names) else f"class {int(value)}"

    def told(self, number: str) -> str:
        """Return a number with the unit behind it."""
        return f"{number} {self.unit}".strip()


class Written(NamedTuple):
    """Files by what they are shown as.

    Attributes:
        map: Values of pixels, if a file holds them.
        pictures: Panels for people to look at.
        clouds: 3D scenes.
        videos: Films.
        text: What text files say.
        files: All files.
    """

    map: Map | None
    pictures: list[Path]
    clouds: list[Path]
    videos: list[Path]
    text: str
    files: list[Path]


def sort_files(folder: Path, names: Sequence[str] = (), unit: str = "") -> Written:
    """Return what a folder holds.

    Args:
        folder: Where `write` has written.
        names: Of the classes that a map of classes may hold.
        unit: Of the values of a map, where its file does not say that they are metres.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())

    def of(*suffixes: str) -> list[Path]:
        return [path for path in files if path.suffix in suffixes]

    maps = [found for path in files if (found := _read_map(path, names, unit)) is not None]
    shown = [path for path in of(".png") if path.name.endswith(_COLOUR) or not maps]
    texts = [path.read_text(errors="replace")[:_MOST_TEXT].strip() for path in of(*_TEXTS)]
    text = "\n".join(texts)
    return Written(maps[0] if maps else None, shown, of(".glb"), of(".mp4"), text, files)


def _read_map(path: Path, names: Sequence[str], unit: str) -> Map | None:
    if path.name.endswith(_COLOUR) or path.suffix not in (".png", ".npy"):
        return None
    data = path.read_bytes()
    if path.suffix == ".png":
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode == "P":
                return Map(np.asarray(image), np.asarray(image.convert("RGB")), "", names)
            unit = "m" if UNIT_FIELD in image.info else unit
    try:
        values = read_depth(data, path.suffix, scale=1.0)  # as they are, if not in metres
    except BadImage:
        return None
    found = torch.from_numpy(values)
    low, high = min(visualize.quantile(found, 0.02), 0.0), visualize.quantile(found, 0.98)
    colours = visualize.colour((found - low) / max(high - low, 1e-6), "depth")
    return Map(values, colours.permute(1, 2, 0).numpy(), unit, ())


def pack(files: Iterable[Path], folder: Path, path: Path) -> Path:
    """Pack files into a zip archive, named as they lie below a folder."""
    with written_aside(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.relative_to(folder).as_posix())
    return path
