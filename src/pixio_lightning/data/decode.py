"""From the bytes of an image file to a tensor, or to a reason why not."""

from __future__ import annotations

import io
import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from pixio_lightning.keyed import Stream, uniform

FORMATS = ("JPEG", "PNG", "WEBP")
_MIN_SIDE = 16  # a thinner image has no content at any crop size
# By EXIF orientation (Exif 2.32, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """An image that cannot be used; the text is the reason, short enough to count by."""


class Crop(NamedTuple):
    """A box in pixels of the decoded image."""

    left: int
    top: int
    width: int
    height: int


def decode(data: bytes, *, max_megapixels: float) -> Image.Image:
    """Decode an image, upright and in RGB.

    Args:
        data: Content of a JPEG, PNG or WebP file.
        max_megapixels: Larger images are refused by their header, before any pixel is allocated.

    Raises:
        BadImage: The file is empty, truncated, corrupt, of another format, too small or too large.
    """
    if not data:
        raise BadImage("empty file")
    with warnings.catch_warnings():
        # Pillow only warns of large images, which are refused here, and of odd metadata.
        warnings.simplefilter("ignore")
        image = _open(data, max_megapixels)
        try:
            image.load()
            return _to_rgb(_upright(image))
        except Exception as error:  # Pillow raises whatever the damaged bytes lead it to
            reason = "truncated" if "truncated" in str(error) else "corrupt data"
            raise BadImage(reason) from None


def _open(data: bytes, max_megapixels: float) -> Image.Image:
    """Read the header and refuse what it shows to be unusable."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage("not a JPEG, PNG or WebP image") from None
    except Image.DecompressionBombError:
        limit = min(max_megapixels, 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6)  # Pillow's own
        raise BadImage(f"over {limit:g} megapixels") from None
    except Exception as error:
        raise BadImage(f"corrupt header ({type(error).__name__})") from None
    if image.width * image.height > max_megapixels * 1e6:
        raise BadImage(f"over {max_megapixels:g} megapixels")
    if min(image.size) < _MIN_SIDE:
        raise BadImage(f"a side under {_MIN_SIDE} pixels")
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Turn a loaded image as its EXIF orientation says; unreadable metadata turns nothing.

    Not `ImageOps.exif_transpose`: it writes the metadata anew, which fails on odd entries.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as above; the pixels are as good as any
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("RGB")


def random_crop(
    width: int,
    height: int,
    *,
    key: int,
    seed: int,
    turn: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Crop:
    """Draw the box of a random resized crop (the law of torchvision's RandomResizedCrop).

    Args:
        width: Width of the image in pixels.
        height: Its height.
        key: Whom to draw for.
        seed: The run's seed.
        turn: The pass over the data.
        scale: Range of the box's share of the area.
        ratio: Range of its width over its height, log-uniform.
    """
    tries = 10
    numbers = iter(uniform(key, 4 * tries, seed=seed, turn=turn, stream=Stream.CROP))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, aspect, x, y in zip(numbers, numbers, numbers, numbers, strict=True):
        target = width * height * (scale[0] + area * (scale[1] - scale[0]))
        aspect = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(x * (width - w + 1)), int(y * (height - h + 1)), w, h)
    # None fits, so the image is very elongated: the largest centred box of an allowed ratio.
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return Crop((width - w) // 2, (height - h) // 2, w, h)


def centre_crop(width: int, height: int) -> Crop:
    """Return the largest centred square."""
    side = min(width, height)
    return Crop((width - side) // 2, (height - side) // 2, side, side)


def to_tensor(image: Image.Image, crop: Crop, size: int) -> Tensor:
    """Cut out a box and scale it, bicubic: uint8 `(3, size, size)`."""
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
