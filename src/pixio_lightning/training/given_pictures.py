"""Pictures as a user of Python holds them: files, PIL images, arrays and tensors."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from pixio_lightning.data.decode import BadImage, decode_pixels, read_file
from pixio_lightning.errors import UserError

_MAX_MEGAPIXELS = 200.0
# What PNG holds as it is.
_MODES = {"1", "L", "LA", "P", "I", "I;16", "RGB", "RGBA"}


def pixels_of(picture: Any, *, channels: int = 3) -> NDArray[np.uint8]:
    """Return a picture upright, uint8 `(H, W, C)`.

    Args:
        picture: A path, a PIL image, or an array `(H, W, C)` or `(H, W)`: bytes, or floats of 0 to
            1. Of four channels that should be three, the last is taken for opacity and left out.
        channels: C.

    Raises:
        UserError: It is something else, or cannot be read.
    """
    if isinstance(picture, (str, os.PathLike)):
        try:
            return decode_pixels(read_file(picture), max_megapixels=_MAX_MEGAPIXELS)
        except BadImage as error:
            raise UserError(f"picture '{picture}': {error}") from None
        except OSError as error:
            raise UserError(f"picture '{picture}' cannot be read: {error.strerror}") from None
    if isinstance(picture, Image.Image):
        upright = ImageOps.exif_transpose(picture)
        if upright.mode == "F":  # numbers of whatever range, as an array of them is
            return pixels_of(np.asarray(upright), channels=channels)
        if upright.mode not in _MODES:
            try:
                wide = upright.mode.startswith("I;16")  # of another order of bytes
                upright = upright.convert("I" if wide else "RGB")
            except ValueError:
                raise UserError(
                    f"a PIL image of mode {upright.mode} is not read: convert it to RGB"
                ) from None
        # As a file, so that depth, palettes and opacity are taken as those of files are.
        file = io.BytesIO()
        upright.save(file, "PNG", compress_level=0)
        return decode_pixels(file.getvalue(), max_megapixels=_MAX_MEGAPIXELS)
    if not isinstance(picture, np.ndarray):
        raise UserError(
            f"{type(picture).__name__} is no picture; expected a path, a PIL image, an array "
            "(H, W, 3), a list of these, or a uint8 tensor (B, 3, H, W)"
        )
    array = picture[..., None] if picture.ndim == 2 else picture
    if array.ndim == 3 and array.shape[2] == 1 != channels:
        array = array.repeat(channels, axis=2)
    if array.ndim == 3 and (array.shape[2], channels) == (4, 3):
        array = array[..., :3]
    if array.ndim != 3 or array.shape[2] != channels:
        raise UserError(
            f"an array of shape {picture.shape} is no picture; expected (H, W, {channels}), "
            "channels last, or (H, W)"
        )
    return bytes_of(torch.from_numpy(np.array(array, order="C"))).numpy()


def images_of(images: Tensor, *, channels: int = 3) -> Tensor:
    """Return images `(B, C, H, W)` or `(B, V, C, H, W)` as bytes.

    Args:
        images: Of that shape: bytes, or floats of 0 to 1.
        channels: C.

    Raises:
        UserError: They are something else.
    """
    if images.ndim not in (4, 5) or images.shape[-3] != channels:
        hint = "; of a single image give image[None]" if images.ndim == 3 else ""
        raise UserError(
            f"a tensor of shape {tuple(images.shape)} is no batch of images; expected "
            f"(B, {channels}, H, W), or (B, V, {channels}, H, W) of V views{hint}"
        )
    return bytes_of(images)


def bytes_of(values: Tensor) -> Tensor:
    """Return bytes of bytes, or of floats of 0 to 1.

    Raises:
        UserError: They are of another kind or range.
    """
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise UserError(f"images are {values.dtype}; expected uint8, or floats of 0 to 1")
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:
        raise UserError(
            f"images are floats of {low:g} to {high:g}; expected 0 to 1, or uint8: what the model "
            "is used to is subtracted here"
        )
    return (values * 255).round().to(torch.uint8)
