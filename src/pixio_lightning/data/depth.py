"""Depth as it lies in files: decoded to metres, or refused with a reason."""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pixio_lightning.data.decode import STOPS, BadImage, open_picture
from pixio_lightning.errors import UserError

# Packages that some suffixes need, all in the extra `formats`.
_PACKAGES = {".exr": "OpenEXR", ".h5": "h5py", ".hdf5": "h5py"}
# Of an EXR with several channels, the first of these: Z is the format's own name for depth.
_EXR_CHANNELS = ("Z", "Y", "V", "G", "R")
_PFM_HEADER = re.compile(rb"P([fF])\s+(\d{1,6})\s+(\d{1,6})\s+(-?)[\d.eE+-]+\s")
_DPT_TAG = 202021.25
# The text field of our own PNG that says what one of its integers stands for.
UNIT_FIELD = "metres_per_unit"
_GREATEST = (1 << 16) - 1


def read_depth(
    data: bytes,
    suffix: str,
    *,
    scale: float,
    insist: bool = False,
    max_megapixels: float = 64.0,
) -> NDArray[np.float32]:
    """Decode a depth file to metres.

    Args:
        data: Its content.
        suffix: `.png` for integers of `scale` metres; `.npy`, `.exr`, `.pfm`, `.dpt` (Sintel),
            `.h5` or `.hdf5` for metres.
        scale: Metres per unit of an integer, where a PNG does not say it itself, as those of
            `encode_png` do.
        insist: Whether `scale` is stated, and so is that of floats too, and a PNG that says another
            unit is refused; otherwise floats are metres, and a PNG's own unit counts.
        max_megapixels: Larger maps are refused, before they are decoded.

    Raises:
        BadImage: The file is damaged, too large, has another form, or only 8 bits; or it says
            another unit, and the reason then begins with `STOPS`.
        UserError: Nothing reads the suffix, or a package for it is not installed.
    """
    require_reader(suffix)
    try:
        if suffix == ".png":
            array, stated = _read_png(data, max_megapixels)
            if insist and stated not in (None, scale):
                raise BadImage(
                    f"{STOPS}its depth file counts in {stated:g} m, not in {scale:g} m of "
                    "data.depth_scale; leave data.depth_scale out"
                )
            scale = stated or scale
        else:
            array = _READERS[suffix](data, max_megapixels)
    except BadImage:
        raise
    except Exception:  # the libraries raise whatever the damaged bytes lead them to
        raise BadImage("depth cannot be read") from None
    return to_metres(array, scale=scale, stated=insist)


def unit_of(max_depth: float) -> float:
    """Return the metres per unit of a 16-bit PNG that depth up to `max_depth` metres fits in.

    A millimetre up to 65.535 m, and 1/256 m, as KITTI has it, up to 255.996 m.

    Raises:
        UserError: Neither is enough.
    """
    for unit in (1e-3, 1 / 256):
        if max_depth <= _GREATEST * unit:
            return unit
    raise UserError(
        f"depth to {max_depth:g} m does not fit into a 16-bit PNG, which ends at "
        f"{_GREATEST / 256:.6g} m: write float32 npy instead (model.files npy)"
    )


def encode_png(depth: NDArray[np.floating], *, unit: float) -> bytes:
    """Encode a depth map `(H, W)` in metres as a 16-bit PNG that says its unit.

    Args:
        depth: Metres; what is no number becomes 0, no depth.
        unit: Metres per unit, see `unit_of`.

    Raises:
        ValueError: A depth is negative, or more than the format can hold.
    """
    units = np.rint(np.nan_to_num(depth, nan=0.0) / unit)
    if units.size and not 0 <= units.min() <= units.max() <= _GREATEST:
        raise ValueError(
            f"depth of {depth.min():g} to {depth.max():g} m does not fit into 16 bits of {unit:g} m"
        )
    about = PngImagePlugin.PngInfo()
    about.add_text(UNIT_FIELD, repr(unit))
    file = io.BytesIO()
    Image.fromarray(units.astype(np.uint16)).save(file, "PNG", pnginfo=about)
    return file.getvalue()


def require_reader(suffix: str) -> None:
    """Look for what reads a suffix; to be called before data workers are, which cannot tell.

    Raises:
        UserError: There is no reader, or its package is not installed.
    """
    if suffix not in DEPTH_SUFFIXES:
        raise UserError(
            f"depth in '{suffix}' is not read; expected one of {', '.join(DEPTH_SUFFIXES)}"
        )
    if suffix in _PACKAGES:
        try:
            import_module(_PACKAGES[suffix])
        except ImportError:
            raise UserError(
                f"{suffix} depth needs the package {_PACKAGES[suffix]}, which is not installed: "
                "pip install 'pixio-lightning[formats]'"
            ) from None


def to_metres(array: NDArray[Any], *, scale: float, stated: bool = False) -> NDArray[np.float32]:
    """Return a depth array `(H, W)` in metres; integers count in units of `scale`.

    Args:
        array: `(H, W)`, or with axes of one more.
        scale: Metres per unit.
        stated: Whether it is that of floats too, which are metres otherwise.

    Raises:
        BadImage: It has another shape, or only 8 bits.
    """
    array = np.squeeze(array)
    if array.ndim != 2:
        raise BadImage(f"depth of shape {array.shape}; expected one channel")
    if array.dtype in (np.uint8, np.int8, np.bool_):
        raise BadImage("8-bit depth; expected a 16-bit PNG, or npy in metres")
    integers = np.issubdtype(array.dtype, np.integer)
    if not integers and not np.issubdtype(array.dtype, np.floating):
        raise BadImage(f"depth of type {array.dtype}; expected numbers")
    metres = array.astype(np.float32)
    return metres * np.float32(scale) if integers or stated else metres


def _read_png(data: bytes, max_megapixels: float) -> tuple[NDArray[Any], float | None]:
    """Read a PNG, and the metres per unit where it says them.

    Raises:
        BadImage: It is no PNG or too large, or says something that is no unit.
    """
    try:
        image = open_picture(data, max_megapixels=max_megapixels, formats=("PNG",))
    except BadImage as error:
        raise BadImage(f"depth: {error}") from None
    array = np.asarray(image)
    text = image.info.get(UNIT_FIELD)
    if text is None:
        return array, None
    with suppress(ValueError):
        if 0 < (unit := float(text)) < math.inf:
            return array, unit
    raise BadImage(f"the field {UNIT_FIELD} is {text[:20]!r}; expected a number above 0")


def _check_size(count: float, max_megapixels: float) -> None:
    if count > max_megapixels * 1e6:
        raise BadImage(f"array over {max_megapixels:g} megapixels")


def read_npy(data: bytes, max_megapixels: float) -> NDArray[Any]:
    """Read an npy array of numbers; its header may claim any size, so that is looked at first.

    Raises:
        BadImage: It is too large.
        Exception: It is damaged, or of objects: whatever numpy raises.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    _check_size(math.prod(read_header(file)[0]), max_megapixels)
    return np.load(io.BytesIO(data), allow_pickle=False)


def _read_exr(data: bytes, max_megapixels: float) -> NDArray[Any]:
    """Read the only channel, or the one that is named as depth.

    Raises:
        BadImage: None of several channels is.
    """
    import OpenEXR

    with redirect_stdout(None):  # where it would print of what is damaged
        corners = OpenEXR.File(io.BytesIO(data), header_only=True).header()["dataWindow"]
        width, height = (float(b) - float(a) + 1 for a, b in zip(*corners, strict=True))
        _check_size(width * height, max_megapixels)
        file: Any = OpenEXR.File(io.BytesIO(data), separate_channels=True, num_threads=0)
    channels = file.channels()
    named = [name for name in _EXR_CHANNELS if name in channels]
    name = next(iter(channels)) if len(channels) == 1 else named[0] if named else None
    if name is None:
        raise BadImage(f"EXR with the channels {', '.join(channels)}; expected one, or Z")
    return channels[name].pixels


def _read_pfm(data: bytes, max_megapixels: float) -> NDArray[np.float32]:
    """Read a portable float map: one line for each number, then rows from the bottom up.

    The sign of its scale tells the byte order, negative for little-endian; its size is unused, as
    everywhere.
    """
    header = _PFM_HEADER.match(data)
    if header is None:
        raise BadImage("not a PFM file")
    kind, width, height, sign = header.groups()
    shape = (int(height), int(width), 3 if kind == b"F" else 1)
    _check_size(shape[0] * shape[1], max_megapixels)
    values = np.frombuffer(data, "<f4" if sign else ">f4", int(np.prod(shape)), header.end())
    return values.reshape(shape)[::-1]


def _read_dpt(data: bytes, max_megapixels: float) -> NDArray[np.float32]:
    """Read a depth file of Sintel: a tag that shows the byte order, width, height, values."""
    tag, width, height = struct.unpack_from("<fii", data)
    if tag != _DPT_TAG:
        raise BadImage("not a Sintel depth file")
    _check_size(width * height, max_megapixels)
    return np.frombuffer(data, "<f4", width * height, 12).reshape(height, width)


def _read_hdf5(data: bytes, max_megapixels: float) -> NDArray[Any]:
    """Read the array called `dataset`, or the first one of floats.

    Nothing outside of the file is read: not what it links to, nor arrays stored elsewhere.

    Raises:
        BadImage: There is no such array.
    """
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        for name in sorted(file, key=lambda name: name != "dataset"):
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                continue
            found = file[name]
            if not isinstance(found, h5py.Dataset) or found.dtype.kind != "f":
                continue
            if found.external is None and not found.is_virtual:
                # It may claim any size without holding it.
                _check_size(found.size, max_megapixels)
                return found[()]
    raise BadImage("HDF5 without an array of floats")


# What reads the bytes of a file, given the limit in megapixels.
_READERS: dict[str, Callable[[bytes, float], NDArray[Any]]] = {
    ".npy": read_npy,
    ".exr": _read_exr,
    ".pfm": _read_pfm,
    ".dpt": _read_dpt,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
}
DEPTH_SUFFIXES = (".png", *_READERS)
