"""Depth as it lies in files: decoded to metres, or refused with a reason."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixio_lightning.data.decode import BadImage
from pixio_lightning.errors import UserError

# Packages that some suffixes need, all in the extra `formats`.
_PACKAGES = {".exr": "OpenEXR", ".h5": "h5py", ".hdf5": "h5py"}
# Of an EXR with several channels, the first of these: Z is the format's own name for depth.
_EXR_CHANNELS = ("Z", "Y", "V", "G", "R")
_PFM_HEADER = re.compile(rb"P([fF])\s+(\d{1,6})\s+(\d{1,6})\s+(-?)[\d.eE+-]+\s")
_DPT_TAG = 202021.25
_MOST_PIXELS = 1 << 28  # an HDF5 file may claim any size without holding it


def read_depth(data: bytes, suffix: str, *, scale: float) -> NDArray[np.float32]:
    """Decode a depth file to metres.

    Args:
        data: Its content.
        suffix: `.png` for integers of `scale` metres; `.npy`, `.exr`, `.pfm`, `.dpt` (Sintel),
            `.h5` or `.hdf5` for metres.
        scale: Metres per unit of an integer.

    Raises:
        BadImage: The file is damaged, has another form, or only 8 bits.
        UserError: Nothing reads the suffix, or a package for it is not installed.
    """
    require_reader(suffix)
    try:
        array = _READERS[suffix](data)
    except BadImage:
        raise
    except Exception:  # the libraries raise whatever the damaged bytes lead them to
        raise BadImage("depth cannot be read") from None
    return to_metres(array, scale=scale)


def require_reader(suffix: str) -> None:
    """Look for what reads a suffix; to be called before data workers are, which cannot tell.

    Raises:
        UserError: There is no reader, or its package is not installed.
    """
    if suffix not in _READERS:
        raise UserError(f"depth in '{suffix}' is not read; expected one of {', '.join(SUFFIXES)}")
    if suffix in _PACKAGES:
        try:
            import_module(_PACKAGES[suffix])
        except ImportError:
            raise UserError(
                f"{suffix} depth needs the package {_PACKAGES[suffix]}, which is not installed: "
                "pip install 'pixio-lightning[formats]'"
            ) from None


def to_metres(array: NDArray[Any], *, scale: float) -> NDArray[np.float32]:
    """Return a depth array `(H, W)` in metres; integers count in units of `scale`.

    Raises:
        BadImage: It has another shape, or only 8 bits.
    """
    array = np.squeeze(array)
    if array.ndim != 2:
        raise BadImage(f"depth of shape {array.shape}; expected one channel")
    if array.dtype in (np.uint8, np.int8, np.bool_):
        raise BadImage("8-bit depth; expected a 16-bit PNG, or npy in metres")
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(np.float32) * np.float32(scale)
    if not np.issubdtype(array.dtype, np.floating):
        raise BadImage(f"depth of type {array.dtype}; expected numbers")
    return array.astype(np.float32)


def _read_png(data: bytes) -> NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))


def _read_npy(data: bytes) -> NDArray[Any]:
    return np.load(io.BytesIO(data), allow_pickle=False)


def _read_exr(data: bytes) -> NDArray[Any]:
    """Read the only channel, or the one that is named as depth.

    Raises:
        BadImage: None of several channels is.
    """
    import OpenEXR

    with redirect_stdout(None):  # where it would print of what is damaged
        file: Any = OpenEXR.File(io.BytesIO(data), separate_channels=True, num_threads=0)
    channels = file.channels()
    named = [name for name in _EXR_CHANNELS if name in channels]
    name = next(iter(channels)) if len(channels) == 1 else named[0] if named else None
    if name is None:
        raise BadImage(f"EXR with the channels {', '.join(channels)}; expected one, or Z")
    return channels[name].pixels


def _read_pfm(data: bytes) -> NDArray[np.float32]:
    """Read a portable float map: one line for each number, then rows from the bottom up.

    The sign of its scale tells the byte order, negative for little-endian; its size is unused, as
    everywhere.
    """
    header = _PFM_HEADER.match(data)
    if header is None:
        raise BadImage("not a PFM file")
    kind, width, height, sign = header.groups()
    shape = (int(height), int(width), 3 if kind == b"F" else 1)
    values = np.frombuffer(data, "<f4" if sign else ">f4", int(np.prod(shape)), header.end())
    return values.reshape(shape)[::-1]


def _read_dpt(data: bytes) -> NDArray[np.float32]:
    """Read a depth file of Sintel: a tag that shows the byte order, width, height, values."""
    tag, width, height = struct.unpack_from("<fii", data)
    if tag != _DPT_TAG:
        raise BadImage("not a Sintel depth file")
    return np.frombuffer(data, "<f4", width * height, 12).reshape(height, width)


def _read_hdf5(data: bytes) -> NDArray[Any]:
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
            if found.external is None and not found.is_virtual and found.size <= _MOST_PIXELS:
                return found[()]
    raise BadImage("HDF5 without an array of floats")


_READERS: dict[str, Callable[[bytes], NDArray[Any]]] = {
    ".png": _read_png,
    ".npy": _read_npy,
    ".exr": _read_exr,
    ".pfm": _read_pfm,
    ".dpt": _read_dpt,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
}
SUFFIXES = tuple(_READERS)
