"""AttributeData: images with what is known of them, from the rendered scenes or a table."""

from __future__ import annotations

from typing import Any

from pixio_heads.attributes.samples import (
    Columns,
    PlainImages,
    SceneAttributes,
    TableAttributes,
    read_table,
    scene_columns,
    scene_units,
)
from pixio_lightning.data import (
    FolderSource,
    Sample,
    SampleData,
    Samples,
    centre,
    existing_folder,
)
from pixio_lightning.errors import UserError, at_least_1


class AttributeData(SampleData):
    """Images with their attributes: `image`, and `target`, float32 `(D,)`.

    Args:
        source: `scenes` (rendered on first use): the kind of place, where the camera looks, where
            the light comes from, how many things stand about; or `folder`, with attributes.csv: a
            column `name`, an image's path in the folder, and columns of numbers or words.
        path: The folder; not for scenes.
        columns: Columns of the table to read; None for all.
        image_size: Side of the centre that is seen, in pixels; of scenes their own size.

    Raises:
        UserError: A key does not fit the source.
    """

    sources = ("scenes", "folder")

    def __init__(
        self,
        source: str = "scenes",
        path: str | None = None,
        *,
        columns: list[str] | None = None,
        image_size: int = 256,
        **loading: Any,
    ) -> None:
        super().__init__(source, path, **loading)
        at_least_1(**{"data.image_size": image_size})
        if source == "scenes" and columns is not None:
            raise UserError("data.columns is of a table, but data.source is scenes: leave it out")
        self.columns = columns
        self.image_size = self.scenes.size if source == "scenes" else image_size
        self._table: Any = None

    @property
    def attributes(self) -> Columns:
        """Return the names of the attributes with the names of their numbers."""
        return scene_columns(self.scenes) if self.source == "scenes" else self._read()[1]

    @property
    def units(self) -> dict[str, str]:
        """Return the units of attributes that have one; a table says none."""
        return scene_units(self.scenes) if self.source == "scenes" else {}

    @property
    def dataset(self) -> str:
        """What records call the data, and which columns of a table a mean is over."""
        columns = f", columns {', '.join(self.attributes)}" if self.source == "folder" else ""
        return super().dataset + columns

    def contents(self) -> dict[str, str]:
        """Return what the data hold, and the attributes."""
        kinds = [f"{n} ({len(c)} kinds)" if len(c) > 3 else n for n, c in self.attributes.items()]
        return super().contents() | {"attributes": ", ".join(kinds)}

    def _read(self) -> Any:
        if self._table is None:
            root = existing_folder(self.path or "", "data.path")
            self._table = read_table(root, self.columns)
        return self._table

    def open(self, split: str) -> Samples:
        """Return the samples of a split; to predict, all images of the folder."""
        if self.source == "scenes":
            return SceneAttributes(split, self.scenes)
        root = existing_folder(self.path or "", "data.path")
        if split == "predict":
            return PlainImages(FolderSource(root), max_megapixels=self.max_megapixels)
        return TableAttributes(root, split, self._read(), self.max_megapixels)

    def prepare(self, sample: Sample) -> Sample:
        """Return the centre of the image."""
        return sample | {"image": centre(sample["image"], self.image_size)}
