"""SegmentationData: images with the class of every pixel, from rendered scenes or from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_heads.segmentation import classes as known
from pixio_heads.segmentation import layouts
from pixio_heads.segmentation.layouts import HubSamples, Labels, Pair, PairSamples, SceneMasks
from pixio_heads.segmentation.metrics import IGNORED
from pixio_lightning.data import (
    Orientation,
    RandomKey,
    Sample,
    SampleData,
    Samples,
    existing_folder,
    images_to_predict,
    pairs_of_split,
)
from pixio_lightning.errors import UserError, at_least_1, one_of, refuse_unread
from pixio_lightning.keyed import Purpose
from pixio_lightning.training import unnamed

# What is added to the stored labels, as the data sets are distributed.
Shift = Literal[-1, 0]
_SHIFTS: dict[str, Shift] = {"ade20k": -1, "loveda": -1}
_SPLITS = {"hub": ("train", "validation"), "voc": ("trainaug", "val")}


class SegmentationData(SampleData):
    """Images with class labels: `image`, and `target`, a class index or 255 for none.

    Args:
        source: `scenes` (rendered on first use); `folder` with images/ and masks/, or a plain
            folder of images to predict; `hub` (hub id or local parquet); `ade20k`; `voc`; `loveda`.
        path: The folder or hub id; not for scenes.
        split: Split of a hub data set, or list of VOC, to train on; None takes train, or trainaug.
        val_split: The one to validate and test on; None takes validation, or val.
        image_column: Column of the images of a hub data set.
        mask_column: Column of their masks, PNG of class indices.
        num_classes: Number of classes of a folder or hub data set; the others have their own.
            Predictions of a checkpoint are of those that it knows.
        classes: Their names, which may stand for their number.
        label_shift: What is added to the labels of a mask when it is read: 0, or -1 where 0 is
            stored for no class and the first class is 1. None takes the layout's own: -1 for
            ADE20K and LoveDA, as they are distributed, else 0. Give 0 for copies of those that
            were shifted before; a mask that contradicts stops the run.
        orientation: How an image is turned that EXIF has viewers turn: `upright`, as they show it,
            or `stored`, as it lies in the file. None stops at the first one beside a mask, which
            may have been drawn on either; images alone are turned upright.
        image_size: Side of the training crops in pixels; None trains on whole images. Scenes are
            cropped to their own size, if that is smaller.
        scale: Range of the random factor on the size of an image before it is cropped.
        flip: Whether training images are mirrored at random.
        batch_size: Images per process and step.
        val_batch_size: Images per process and evaluation step; they must be of one size;
            `predict` takes one by one.

    Raises:
        UserError: A key does not fit the source.
    """

    sources = ("scenes", "folder", "hub", "ade20k", "voc", "loveda")
    predict_batch_size = 1  # pictures are of any size
    incidental = ("seed",)

    def __init__(
        self,
        source: str = "scenes",
        path: str | None = None,
        *,
        split: str | None = None,
        val_split: str | None = None,
        image_column: str = "image",
        mask_column: str = "mask",
        num_classes: int | None = None,
        classes: list[str] | None = None,
        label_shift: Shift | None = None,
        orientation: Orientation | None = None,
        image_size: int | None = 256,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: bool = True,
        batch_size: int = 16,
        val_batch_size: int = 1,
        **loading: Any,
    ) -> None:
        super().__init__(
            source, path, batch_size=batch_size, val_batch_size=val_batch_size, **loading
        )
        at_least_1(**{"data.image_size": image_size})
        one_of("data.label_shift", label_shift, (*get_args(Shift), None))
        one_of("data.orientation", orientation, (*get_args(Orientation), None))
        if not 0 < scale[0] <= scale[1]:
            raise UserError(f"data.scale is {list(scale)}, but expected 0 < least <= greatest")
        if image_size is None:
            whole = "data.image_size is null, so whole images are trained on as they are"
            refuse_unread("data.scale", scale, (0.5, 2.0), whole)
        self.read_by("hub", "voc", split=split, val_split=val_split)
        self.read_by("hub", image_column=image_column, mask_column=mask_column)
        splits = _SPLITS.get(source, ("train", "val"))
        self.split, self.val_split = split or splits[0], val_split or splits[1]
        self.image_column, self.mask_column = image_column, mask_column
        self.count, self.classes = _classes(source, num_classes, classes)
        if source == "voc" and label_shift == -1:
            raise UserError("data.label_shift is -1, but voc stores classes from 0; leave it out")
        if source == "scenes":  # an overlay puts them in place of a recipe's files
            label_shift = None
        self.label_shift = _SHIFTS.get(source, 0) if label_shift is None else label_shift
        self.orientation = orientation
        self.image_size, self.scale, self.flip = image_size, scale, flip
        if source == "scenes" and image_size is not None:
            self.image_size = min(image_size, self.scenes.size)

    @property
    def num_classes(self) -> int:
        """The number of classes.

        Raises:
            UserError: Nothing says it; a head that predicts knows it from its checkpoint.
        """
        if self.count is None:
            raise UserError(
                f"data.source is {self.source}: give data.num_classes, or data.classes, their "
                "names; a checkpoint knows them only to predict"
            )
        return self.count

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their indices."""
        return self.classes or unnamed(self.num_classes)

    @property
    def dataset(self) -> str:
        """What records call the data."""
        parts = [super().dataset]
        parts += [self.val_split] if self.source in ("hub", "voc") else []
        parts += [f"column {self.mask_column}"] if self.source == "hub" else []
        moved = self.label_shift != _SHIFTS.get(self.source, 0)
        parts += [f"label_shift {self.label_shift}"] if moved else []
        return ", ".join([*parts, *([self.orientation] if self.orientation else [])])

    # --- files --------------------------------------------------------------------------------

    def open(self, split: str) -> Samples:
        """Return the samples of a split."""
        if self.source == "scenes":
            return SceneMasks(split, self.scenes)
        listed = self.split if split == "train" else self.val_split
        if self.source == "hub":
            return HubSamples(
                self.path or "",
                listed,
                columns=(self.image_column, self.mask_column),
                labels=self._labels(split),
                max_megapixels=self.max_megapixels,
                orientation=self._turned(split),
            )
        root = existing_folder(self.path or "", "data.path")
        if self.source == "folder":
            return self._open_folder(root, split)
        if self.source == "voc":
            return self._pairs(root, layouts.voc_pairs(root, listed), split)
        return self._pairs(root, layouts.LISTS[self.source](root, split == "train"), split)

    def _labels(self, split: str) -> Labels | None:
        return None if split == "predict" else Labels(self.num_classes, self.label_shift)

    def _turned(self, split: str) -> Orientation | None:
        return self.orientation or ("upright" if split == "predict" else None)

    def _pairs(self, root: Path, pairs: list[Pair], split: str) -> PairSamples:
        return PairSamples(
            root,
            pairs,
            labels=self._labels(split),
            max_megapixels=self.max_megapixels,
            orientation=self._turned(split),
        )

    def _open_folder(self, root: Path, split: str) -> PairSamples:
        if split == "predict":
            folder, images = images_to_predict(root)
            return self._pairs(folder, [Pair(path, None) for path in images], split)
        return self._pairs(*pairs_of_split(root, split, layouts.folder_pairs), split)

    # --- views --------------------------------------------------------------------------------

    @property
    def random(self) -> bool:
        """Whether training views differ from pass to pass."""
        return self.views is None and (self.flip or self.image_size is not None)

    def augment(self, sample: Sample, random_key: RandomKey) -> Sample:
        """Return a random crop of the image at a random size, mirrored half of the time.

        The long side is scaled by a uniform factor; what the crop reaches beyond the right and the
        bottom is black and has no class.
        """
        image, target = sample["image"], sample["target"]
        if self.image_size is not None:
            size, down, across = random_key.uniform(3, Purpose.CROP)
            factor = self.scale[0] + size * (self.scale[1] - self.scale[0])
            image, target = random_crop(
                image, target, self.image_size, factor=factor, at=(down, across)
            )
        if self.flip and random_key.uniform(1, Purpose.FLIP)[0] < 0.5:
            image, target = image[:, ::-1], target[:, ::-1]
        return {"image": image, "target": target}


def random_crop(
    image: NDArray[np.uint8],
    target: NDArray[np.uint8],
    side: int,
    *,
    factor: float,
    at: tuple[float, float],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Scale an image with its labels, bicubic and nearest, and cut a square out.

    Args:
        image: `(H, W, 3)`.
        target: `(H, W)`.
        side: Side of the square in pixels.
        factor: On the long side; the other follows.
        at: Where the square lies between the top and the bottom, the left and the right, from 0 to
            1. Where the image is smaller it starts at 0, and what is beyond is black and 255.
    """
    height, width = target.shape
    scale = max(1, round(max(height, width) * factor)) / max(height, width)
    tall, wide = (max(1, round(n * scale)) for n in (height, width))
    rows, columns = min(side, tall), min(side, wide)
    top, left = int(at[0] * (tall - rows + 1)), int(at[1] * (wide - columns + 1))
    # Only the square is resampled, in a fraction of the time. The box is rounded: pixels are within
    # 2 levels of the whole's, also of noise and checkerboards; where a pixel lies halfway between
    # two labels, it may get the other one.
    box = (
        left * width / wide,
        top * height / tall,
        min(width, (left + columns) * width / wide),
        min(height, (top + rows) * height / tall),
    )
    pixels = np.zeros((side, side, 3), np.uint8)
    labels = np.full((side, side), IGNORED, np.uint8)
    for whole, square, way in (
        (image, pixels, Image.Resampling.BICUBIC),
        (target, labels, Image.Resampling.NEAREST),
    ):
        piece = Image.fromarray(whole).resize((columns, rows), way, box=box)
        square[:rows, :columns] = np.asarray(piece)
    return pixels, labels


def _classes(
    source: str, number: int | None, names: list[str] | None
) -> tuple[int | None, list[str]]:
    """Return number and names of the classes; scenes have their own, whatever is given.

    Raises:
        UserError: They contradict each other or the source, or are too many.
    """
    own = list(known.OF_SOURCE.get(source, ()))
    if source == "scenes":
        return len(own), own
    found = number if number is not None else len(names or own)
    for there, what in ((own, source), (names, "data.classes")):
        if there and len(there) != found:
            raise UserError(
                f"{found} classes are given, but {what} has {len(there)}: correct or leave out "
                "data.num_classes or data.classes"
            )
    if number is None and not names and not own:
        return None, []
    if not 2 <= found < IGNORED:
        raise UserError(f"{found} classes, but expected 2 to {IGNORED - 1}; 255 is for none")
    return found, names or own
