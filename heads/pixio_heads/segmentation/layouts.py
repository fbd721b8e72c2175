"""Where images with label masks lie: users' own folders and tables, ADE20K, VOC, LoveDA.

Every class is a list of samples: `image` uint8 (H, W, 3), and `target` uint8 (H, W), the index of
each pixel's class or 255 where it has none. Files are only read: a shift of labels happens in
memory, so none can happen twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixio_heads.segmentation.metrics import IGNORED
from pixio_lightning.data import (
    STOPS,
    BadImage,
    FolderSource,
    HubRows,
    Orientation,
    PairedFiles,
    Partners,
    Sample,
    Scenes,
    SceneSamples,
    content,
    decode_numbers,
    decode_pixels,
    digest_of,
    folders_of_pairs,
    open_columns,
    read_file,
)
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files import read_text


class Pair(NamedTuple):
    """An image with the file of its labels, if there is one."""

    image: Path
    mask: Path | None


class Labels(NamedTuple):
    """What the numbers in a mask mean.

    Attributes:
        num_classes: Number of classes.
        shift: Added to what is stored; with -1 the stored 0 is no class.
    """

    num_classes: int
    shift: int = 0

    def read(self, data: bytes, *, max_megapixels: float) -> NDArray[np.uint8]:
        """Decode a PNG of class indices `(H, W)`, grey or with a palette; no class becomes 255.

        Of 1 bit, the indices are 0 and 1.

        Raises:
            BadImage: The file is damaged or too large; or its labels are not these classes, and
                the reason then begins with `STOPS`.
        """
        array = decode_numbers(data, max_megapixels=max_megapixels)
        if array.ndim != 2:
            raise BadImage(
                f"{STOPS}its mask has {array.shape[-1]} channels; expected one, the class's index"
            )
        return self.checked(array)

    def checked(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        """Return stored labels as indices of classes.

        Raises:
            BadImage: They are not these classes.
        """
        greatest = self.num_classes - 1 - self.shift
        none = stored == (0 if self.shift else IGNORED)
        if self.shift and (stored == IGNORED).any():
            raise BadImage(
                f"{STOPS}its mask stores 255, but with data.label_shift {self.shift} the stored "
                "0 is no class: the masks were shifted already, or count from 0; set "
                "data.label_shift to 0"
            )
        if len(beyond := stored[(stored > greatest) & ~none]):
            expected = f"1 to {greatest}, or 0" if self.shift else f"0 to {greatest}, or 255"
            raise BadImage(
                f"{STOPS}its mask stores {beyond.max()}; expected {expected} for no class: check "
                "data.num_classes and data.label_shift"
            )
        return np.where(none, IGNORED, stored.astype(np.int32) + self.shift).astype(np.uint8)


def checked(image: NDArray[np.uint8], target: NDArray[np.uint8]) -> Sample:
    """Return a sample of an image and its labels.

    Raises:
        BadImage: Their sizes differ, or no pixel has a class.
    """
    if target.shape != image.shape[:2]:
        sizes = (f"{a.shape[1]}x{a.shape[0]}" for a in (target, image))
        raise BadImage("mask of {} for an image of {}".format(*sizes))
    if (target == IGNORED).all():
        raise BadImage("no pixel with a class")
    return {"image": image, "target": target}


class PairSamples(PairedFiles):
    """Pairs of files.

    Args:
        root: What names are relative to.
        pairs: The files.
        labels: What the masks mean; None loads images alone.
        max_megapixels: Larger images are bad.
        orientation: How images are turned, see `decode_pixels`.
    """

    def __init__(
        self,
        root: Path,
        pairs: Sequence[Pair],
        *,
        labels: Labels | None,
        max_megapixels: float,
        orientation: Orientation | None = None,
    ) -> None:
        super().__init__(root, pairs, max_megapixels=max_megapixels, orientation=orientation)
        self.labels = labels

    def load(self, index: int) -> Sample:
        image = self.picture(index)
        if self.labels is None:
            return {"image": image}
        mask = read_file(self.partner(index, "mask"))
        labels = self.labels.read(mask, max_megapixels=self.max_megapixels)
        return checked(image, labels)

    def digest(self) -> str:
        return digest_of("masks", self.file_facts())


class HubSamples(HubRows):
    """Rows of a Hugging Face data set with an image and a mask column.

    Args:
        path: Hub id, or a local folder of parquet.
        split: Split to read.
        columns: Names of the image and the mask column.
        labels: What the masks mean; None loads images alone.
        max_megapixels: Larger images are bad.
        orientation: How images are turned, see `decode_pixels`.

    Raises:
        UserError: The data set or a column does not exist.
    """

    def __init__(
        self,
        path: str,
        split: str,
        *,
        columns: tuple[str, str],
        labels: Labels | None,
        max_megapixels: float,
        orientation: Orientation | None = None,
    ) -> None:
        self.columns, self.labels = columns, labels
        self.max_megapixels, self.orientation = max_megapixels, orientation
        wanted = {"image_column": columns[0], "mask_column": columns[1]}
        if labels is None:
            del wanted["mask_column"]
        super().__init__(path, split, open_columns(path, split, wanted))

    def load(self, index: int) -> Sample:
        row = self.data[index]
        data = content(row[self.columns[0]])
        image = decode_pixels(
            data, max_megapixels=self.max_megapixels, orientation=self.orientation
        )
        if self.labels is None:
            return {"image": image}
        mask = row[self.columns[1]]
        if mask is None:
            raise BadImage("no mask")
        if not isinstance(mask, (dict, bytes)):
            raise BadImage(f"the mask is a {type(mask).__name__}; expected an encoded image")
        labels = self.labels.read(content(mask), max_megapixels=self.max_megapixels)
        return checked(image, labels)

    def digest(self) -> str:
        return self.rows_digest(self.columns)


class SceneMasks(SceneSamples):
    """Views of rendered scenes with the class of every pixel."""

    def __init__(self, split: str, scenes: Scenes) -> None:
        super().__init__(split, scenes, ("image", "class_id"))

    def load(self, index: int) -> Sample:
        sample = super().load(index)
        return {"image": sample["image"], "target": sample["class_id"]}


# --- layouts ----------------------------------------------------------------------------------


def folder_pairs(root: Path) -> list[Pair]:
    """List `images/**` with `masks/**.png` of the same name.

    Raises:
        UserError: There are no such folders.
    """
    expected = "PNG of class indices, of the same names"
    return _paired(*folders_of_pairs(root, "masks", expected=expected))


def ade20k_pairs(root: Path, training: bool) -> list[Pair]:
    """List ADE20K: `images/training/*.jpg` with `annotations/training/*.png`, and `validation`.

    Raises:
        UserError: A folder is missing.
    """
    part = "training" if training else "validation"
    images, masks = root / "images" / part, root / "annotations" / part
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(
                f"data.path '{root}' has no {folder.relative_to(root)}/; expected images/ and "
                "annotations/ with training/ and validation/ in each, as ADEChallengeData2016 has"
            )
    return _paired(images, masks)


def voc_pairs(root: Path, listed: str) -> list[Pair]:
    """List VOC by `ImageSets/Segmentation/LISTED.txt`: lines "NAME", or "IMAGE MASK" below root.

    The mask of a name is that of `SegmentationClass`; what it lacks is taken from
    `SegmentationClassAug`, where the further annotations of SBD (Hariharan et al., 2011) usually
    lie.

    Raises:
        UserError: The list or a folder is missing, or a line is neither.
    """
    lists, images = root / "ImageSets" / "Segmentation", root / "JPEGImages"
    for folder in (lists, images, root / "SegmentationClass"):
        if not folder.is_dir():
            raise UserError(
                f"data.path '{root}' has no {folder.relative_to(root)}/; expected JPEGImages/, "
                "SegmentationClass/ and ImageSets/Segmentation/, as VOC2012 has"
            )
    table = lists / f"{listed}.txt"
    if not table.is_file():
        known = sorted(path.stem for path in lists.glob("*.txt"))
        raise UserError(
            f"'{lists}' has no {table.name}, but {', '.join(known) or 'nothing'}: set data.split "
            f"and data.val_split{nearest(listed, known)}"
        )
    pairs = []
    for number, line in enumerate(read_text(table).splitlines(), 1):
        words = [word.lstrip("/") for word in line.split()]  # relative, whatever a list says
        if len(words) == 1:
            own = root / "SegmentationClass" / f"{words[0]}.png"
            added = root / "SegmentationClassAug" / f"{words[0]}.png"
            pairs.append(Pair(images / f"{words[0]}.jpg", own if own.is_file() else added))
        elif len(words) == 2 and words[1].endswith(".png"):
            pairs.append(Pair(root / words[0], root / words[1]))
        elif words:
            raise UserError(f'{table}, line {number}: {line!r}; expected "NAME" or "IMAGE MASK"')
    if not pairs:
        raise UserError(f"{table} lists no image")
    return pairs


def loveda_pairs(root: Path, training: bool) -> list[Pair]:
    """List LoveDA: `Train/{Rural,Urban}/images_png/*.png` with `masks_png/*.png`, and `Val`.

    Raises:
        UserError: There is no such folder.
    """
    part = root / ("Train" if training else "Val")
    # The archives unpack to Train/Rural or, with a folder of their own, to Train/Train/Rural.
    folders = sorted(part.glob("*/images_png")) or sorted(part.glob("*/*/images_png"))
    if not folders:
        raise UserError(
            f"data.path '{root}' has no {part.name}/Rural/images_png; expected Rural/ and Urban/ "
            "with images_png/ and masks_png/ in Train/ and in Val/, as LoveDA has"
        )
    return [pair for folder in folders for pair in _paired(folder, folder.parent / "masks_png")]


def _paired(images: Path, masks: Path) -> list[Pair]:
    partners = Partners(masks, [".png"])
    names = FolderSource(images).names
    return [Pair(images / name, partners.of(name)) for name in names]


# How the sources with a fixed layout list their files: by root, and whether for training.
LISTS: dict[str, Callable[[Path, bool], list[Pair]]] = {
    "ade20k": ade20k_pairs,
    "loveda": loveda_pairs,
}
