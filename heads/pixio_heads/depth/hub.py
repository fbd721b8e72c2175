"""Images with depth in the rows of a Hugging Face data set, or of local parquet."""

from __future__ import annotations

import numpy as np

from pixio_heads.depth.layouts import checked, read_mask
from pixio_lightning.data import (
    BadImage,
    HubRows,
    Orientation,
    Sample,
    content,
    decode_pixels,
    open_columns,
    read_depth,
    to_metres,
)


class HubSamples(HubRows):
    """Rows of a Hugging Face data set with an image and a depth column.

    Args:
        path: Hub id, or a local folder of parquet.
        split: Split to read.
        columns: Names of the image and the depth column.
        scale: Metres per unit of an integer depth image.
        insist: Whether a depth image that says another unit is refused, see `read_depth`.
        max_megapixels: Larger images, depth maps and masks are bad.
        orientation: How images are turned, see `decode_pixels`.
        images_only: Whether depth is not asked for.

    Raises:
        UserError: The data set or a column does not exist.
    """

    def __init__(
        self,
        path: str,
        split: str,
        *,
        columns: tuple[str, str],
        scale: float,
        max_megapixels: float,
        orientation: Orientation | None = None,
        insist: bool = False,
        images_only: bool = False,
    ) -> None:
        self.scale, self.max_megapixels = scale, max_megapixels
        self.orientation = orientation
        self.columns, self.images_only, self.insist = columns, images_only, insist
        needed = {"image_column": columns[0]}
        if not images_only:
            needed["depth_column"] = columns[1]
        optional = () if images_only else ("mask", "intrinsics")
        data = open_columns(path, split, needed, optional=optional)
        super().__init__(path, split, data)

    def load(self, index: int) -> Sample:
        row = self.data[index]
        data = content(row[self.columns[0]])
        image = decode_pixels(
            data, max_megapixels=self.max_megapixels, orientation=self.orientation
        )
        if self.images_only:
            return {"image": image}
        depth = row[self.columns[1]]
        if depth is None:
            raise BadImage("no depth")
        if isinstance(depth, (dict, bytes)):
            encoded = content(depth)
            suffix = ".npy" if encoded.startswith(b"\x93NUMPY") else ".png"
            metres = read_depth(
                encoded,
                suffix,
                scale=self.scale,
                insist=self.insist,
                max_megapixels=self.max_megapixels,
            )
        else:
            metres = to_metres(np.asarray(depth), scale=self.scale, stated=self.insist)
        mask = row.get("mask")
        found = read_mask(content(mask), max_megapixels=self.max_megapixels) if mask else None
        sample = checked(image, metres, found)
        if row.get("intrinsics") is not None:
            sample["intrinsics"] = np.asarray(row["intrinsics"], np.float32).reshape(3, 3)
        return sample

    def digest(self) -> str:
        return self.rows_digest(self.columns, self.scale)
