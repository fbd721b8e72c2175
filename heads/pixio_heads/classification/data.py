"""ClassificationData: images with their classes, from the rendered scenes or from files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, get_args

from pixio_heads.classification import layouts
from pixio_heads.classification.layouts import FolderSamples, LabelledScenes, RowSamples, Target
from pixio_lightning.data import (
    RandomKey,
    Sample,
    SampleData,
    Samples,
    centre,
    centre_crop,
    check_crops,
    cut,
    existing_folder,
    listed,
    open_columns,
    random_crop,
)
from pixio_lightning.errors import UserError, at_least_1, one_of, refuse_unread
from pixio_lightning.keyed import Purpose


class ClassificationData(SampleData):
    """Images with their class: `image` and `target`, a number, or 0 and 1 for every class.

    Args:
        source: `scenes` (rendered on first use); `folder` with a folder for each class, in
            train/ and val/ or all together; `hub` (hub id or local parquet).
        path: The folder or hub id; not for scenes.
        target: What the classes of scenes are: `room_type`; `objects`, all that a view shows; or
            `outdoor`.
        split: Split of a hub data set to train on.
        val_split: Its split to validate and test on.
        image_column: Column of the images of a hub data set.
        label_column: Column of their classes; of lists where an image may be of several.
        image_size: Side of the images in pixels; of scenes their own size, if that is smaller.
        crop_pct: Share of the short side that evaluation sees, of the centre: 0.875 for an image
            resized to 256 and cropped to 224.
        crop_scale: Range of a training crop's share of the area; None trains on what evaluation
            sees.
        crop_ratio: Range of its width over its height.
        flip: Whether training images are mirrored at random.

    Raises:
        UserError: A key does not fit the source.
    """

    sources = ("scenes", "folder", "hub")
    incidental = ("seed",)

    def __init__(
        self,
        source: str = "scenes",
        path: str | None = None,
        *,
        target: Target = "room_type",
        split: str = "train",
        val_split: str = "validation",
        image_column: str = "image",
        label_column: str = "label",
        image_size: int = 256,
        crop_pct: float = 1.0,
        crop_scale: tuple[float, float] | None = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
        **loading: Any,
    ) -> None:
        super().__init__(source, path, **loading)
        one_of("data.target", target, get_args(Target))
        at_least_1(**{"data.image_size": image_size})
        if not 0 < crop_pct <= 1:
            raise UserError(f"data.crop_pct is {crop_pct}, but expected a share, 0 to 1")
        check_crops(crop_scale, crop_ratio)
        self.read_by("scenes", target=target)
        self.read_by(
            "hub",
            split=split,
            val_split=val_split,
            image_column=image_column,
            label_column=label_column,
        )
        if crop_scale is None:
            whole = "data.crop_scale is null, so nothing is cropped at random"
            refuse_unread("data.crop_ratio", crop_ratio, (3 / 4, 4 / 3), whole)
        self.target, self.split, self.val_split = target, split, val_split
        self.image_column, self.label_column = image_column, label_column
        self.image_size = min(image_size, self.scenes.size) if source == "scenes" else image_size
        self.crop_pct, self.crop_scale, self.crop_ratio = crop_pct, crop_scale, crop_ratio
        self.flip = flip
        self._classes: tuple[list[str], bool] | None = None

    # --- what heads ask -----------------------------------------------------------------------

    @property
    def class_names(self) -> list[str]:
        """Return the names of the classes, in the order of the targets."""
        return self._found()[0]

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)

    @property
    def multilabel(self) -> bool:
        """Return whether an image may be of several classes."""
        return self._found()[1]

    @property
    def centre_crop(self) -> tuple[int, float]:
        """Return what evaluation sees of an image: its side, and its share of the short side."""
        return self.image_size, self.crop_pct

    @property
    def dataset(self) -> str:
        """What records call the data."""
        part = {
            "scenes": f" ({self.target})",
            "hub": f", {self.val_split}, column {self.label_column}",
        }
        return super().dataset + part.get(self.source, "")

    def contents(self) -> dict[str, str]:
        """Return what the data hold, and the classes; of a folder, how many images each has."""
        train, names = self.samples_of("train"), self.class_names
        counts = Counter(train.class_counts) if isinstance(train, FolderSamples) else None
        what = listed(counts, limit=10) if counts else ", ".join(names[:10])
        return super().contents() | {"classes": f"{len(names):,}: {what}"}

    def _found(self) -> tuple[list[str], bool]:
        if self._classes is None:
            self._classes = self._find_classes()
        return self._classes

    def _find_classes(self) -> tuple[list[str], bool]:
        if self.source == "scenes":
            return layouts.scene_classes(self.scenes, self.target), self.target == "objects"
        if self.source == "folder":
            return layouts.class_folders(existing_folder(self.path or "", "data.path")), False
        data = open_columns(self.path or "", self.split, {"label_column": self.label_column})
        return layouts.row_classes(data, self.label_column)

    def prepare_as(self, known: Mapping[str, Any], asked: Collection[str]) -> str:
        """See of images to predict what the evaluation of a checkpoint saw."""
        then = dict(zip(("image_size", "crop_pct"), known.get("centre_crop", ()), strict=False))
        return self.take(then, asked)

    # --- files --------------------------------------------------------------------------------

    def open(self, split: str) -> Samples:
        """Return the samples of a split."""
        predicting = split == "predict"
        if self.source == "scenes":
            return LabelledScenes(split, self.scenes, self.target)
        if self.source == "hub":
            return RowSamples(
                self.path or "",
                self.split if split == "train" else self.val_split,
                image_column=self.image_column,
                label_column=None if predicting else self.label_column,
                classes=() if predicting else self.class_names,
                max_megapixels=self.max_megapixels,
            )
        root = existing_folder(self.path or "", "data.path")
        if predicting:
            return layouts.open_plain(root, max_megapixels=self.max_megapixels)
        return layouts.open_folder(
            root, split, self.class_names, max_megapixels=self.max_megapixels
        )

    # --- views --------------------------------------------------------------------------------

    @property
    def random(self) -> bool:
        """Whether training views differ from pass to pass."""
        return self.views is None and (self.flip or self.crop_scale is not None)

    def prepare(self, sample: Sample) -> Sample:
        """Return the centre of the image: what a resize of its short side and a crop leave."""
        return sample | {"image": centre(sample["image"], *self.centre_crop)}

    def augment(self, sample: Sample, random_key: RandomKey) -> Sample:
        """Return a random resized crop, mirrored half of the time."""
        image = sample["image"]
        height, width = image.shape[:2]
        crop = centre_crop(width, height, self.crop_pct)
        if self.crop_scale is not None:
            scale, ratio = self.crop_scale, self.crop_ratio
            crop = random_crop(width, height, random_key, scale=scale, ratio=ratio)
        view = cut(image, crop, self.image_size)
        if self.flip and random_key.uniform(1, Purpose.FLIP)[0] < 0.5:
            view = view[:, ::-1]
        return sample | {"image": view}
