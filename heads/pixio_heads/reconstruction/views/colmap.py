"""COLMAP's cameras and images, as text (`.txt`) or binary (`.bin`).

Poses are world-to-camera in the files, quaternions scalar-first, and pixels are counted from the
corner of the image, so that the principal point is moved by half a pixel.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_heads.reconstruction.views.frames import Found, camera_matrix, posed_frame
from pixio_lightning.data import DEPTH_SUFFIXES as SUFFIXES
from pixio_lightning.data import Partners
from pixio_lightning.errors import UserError
from pixio_lightning.files import open_regular, read_text

# Of COLMAP's models, in the order of their numbers: how many focal lengths, and parameters in all.
# The principal point follows on the focal lengths, and then distortion.
_MODELS = {
    **{"SIMPLE_PINHOLE": (1, 3), "PINHOLE": (2, 4), "SIMPLE_RADIAL": (1, 4), "RADIAL": (1, 5)},
    "OPENCV": (2, 8),
}
_LONGEST = 4096  # bytes of a name

Camera = tuple[str, str, str, tuple[int, int], list[float]]  # where, number, model, size, numbers
Image = tuple[str, list[float], str, str]  # where, quaternion and shift, camera's number, name


def colmap(root: Path) -> Found:
    """Read the model in `sparse/0`, text or binary, with `images/` and, if there is, `depth/`.

    Raises:
        UserError: A file is not what it should be, or images are distorted.
    """
    places = [f"{sparse}/cameras.{s}" for s in ("txt", "bin") for sparse in ("sparse/0", "sparse")]
    table = next(root / place for place in places if (root / place).is_file())
    if table.suffix == ".txt":
        found, posed = _text_cameras(table), _text_images(table.with_name("images.txt"))
    else:
        found, posed = _binary_cameras(table), _binary_images(table.with_name("images.bin"))
    cameras = {camera[1]: _camera(*camera) for camera in found}
    images = root / "images" if (root / "images").is_dir() else root
    depths = Partners(root / "depth", SUFFIXES)
    frames = []
    for where, (w, x, y, z, *shift), camera, name in posed:
        if camera not in cameras:
            raise UserError(f"{where}: camera '{camera}' is not in {table.name}")
        matrix, size = cameras[camera]
        pose, to_world = np.eye(4), _rotation(w, x, y, z).T
        # Not by inv: to it, a shift that is large enough makes the matrix singular.
        pose[:3, :3], pose[:3, 3] = to_world, -to_world @ np.asarray(shift)
        depth = depths.of(name)
        files = images / name, depth if isfile(depth) else None
        frames.append(posed_frame(where, name, files, matrix, pose, size))
    return Found(sorted(frames, key=lambda frame: frame.name))


def _camera(
    where: str, number: str, model: str, size: tuple[int, int], numbers: list[float]
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the intrinsics, and height and width."""
    focals, parameters = _MODELS.get(model, (0, 0))
    if not focals or any(numbers[focals + 2 :]):
        raise UserError(f"{where}: {undistort_first(model)}")
    if len(numbers) < focals + 2:
        raise UserError(f"{where}: {model} has {len(numbers)} parameters; expected {parameters}")
    cx, cy = numbers[focals : focals + 2]
    return camera_matrix(numbers[0], numbers[focals - 1], cx - 0.5, cy - 0.5), size


# --- text -------------------------------------------------------------------------------------


def _text_cameras(path: Path) -> Iterator[Camera]:
    for number, line in _content_lines(path):
        if not line.strip():
            continue
        where = f"'{path}', line {number}"
        try:
            camera, model, width, height, *rest = line.split()
            yield where, camera, model, (int(height), int(width)), [float(word) for word in rest]
        except ValueError:
            raise UserError(f"{where}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS") from None


def _text_images(path: Path) -> Iterator[Image]:
    # Every other line holds the points of an image, and may be empty.
    lines = list(_content_lines(path))
    for number, line in lines[1::2]:
        words = line.split()
        if len(words) % 3 or not all(map(_is_number, words)):
            raise UserError(
                f"'{path}', line {number}: expected the points of the image above, X Y POINT3D_ID "
                "each: put an empty line below every image that has none"
            )
    for number, line in lines[::2]:
        where = f"'{path}', line {number}"
        words = line.split(maxsplit=9)
        try:
            yield where, [float(word) for word in words[1:8]], words[8], words[9].strip()
        except (ValueError, IndexError):
            raise UserError(
                f"{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, and a line of "
                "points after it"
            ) from None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _content_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers, without comments and what stands before the first line."""
    try:
        lines = read_text(path, limit=1 << 31).splitlines()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read as text: {error}") from None
    begun = False
    for number, line in enumerate(lines, 1):
        begun = begun or bool(line.strip())
        if begun and not line.startswith("#"):
            yield number, line


# --- binary -----------------------------------------------------------------------------------

# Not by pycolmap: where a file ends within a name, its reader goes on until memory is full.


def _binary_cameras(path: Path) -> Iterator[Camera]:
    with _Binary(path) as file:
        for i in range(file.take("<Q")[0]):
            camera, model, width, height = file.take("<IiQQ")
            name = dict(enumerate(_MODELS)).get(model, f"model {model}")
            _, parameters = _MODELS.get(name, (0, 0))
            numbers = [*file.take(f"<{parameters}d")]
            yield f"'{path}', camera {i + 1}", str(camera), name, (height, width), numbers


def _binary_images(path: Path) -> Iterator[Image]:
    with _Binary(path) as file:
        for i in range(file.take("<Q")[0]):
            _, *pose, camera = file.take("<I7dI")
            name = file.name()
            file.skip(24 * file.take("<Q")[0])  # its points: x, y and the number of one in 3D
            yield f"'{path}', image {i + 1}", pose, str(camera), name


class _Binary:
    """A file that is read in order, and must not end before it says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file, size = open_regular(path)
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
        if size is None:
            raise UserError(f"'{path}' is no regular file; remove it")
        self.size = size

    def __enter__(self) -> _Binary:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def take(self, form: str) -> tuple[Any, ...]:
        data = self.file.read(struct.calcsize(form))
        if len(data) < struct.calcsize(form):
            raise self._damaged()
        return struct.unpack(form, data)

    def name(self) -> str:
        start = self.file.tell()
        name, end, _ = self.file.read(_LONGEST).partition(b"\0")
        self.file.seek(start + len(name) + 1)
        try:
            if end:
                return name.decode()
        except UnicodeDecodeError:
            pass
        raise self._damaged()

    def skip(self, count: int) -> None:
        if self.file.tell() + count > self.size:
            raise self._damaged()
        self.file.seek(count, os.SEEK_CUR)

    def _damaged(self) -> UserError:
        return UserError(f"'{self.path}' is damaged, or not COLMAP's: it ends before it says")


# --- both ------------------------------------------------------------------------------------


def _rotation(w: float, x: float, y: float, z: float) -> NDArray[np.float64]:
    """Return the matrix `(3, 3)` of a quaternion of any length."""
    turn = np.array([x, y, z])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    length = w * w + turn @ turn
    if not length:
        return np.zeros((3, 3))
    return np.eye(3) + (2 / length) * (w * cross + cross @ cross)


def undistort_first(model: str) -> str:
    return (
        f"the camera is {model} with distortion, but only pinhole images are read; undistort "
        "them first (colmap image_undistorter, or pycolmap.undistort_images)"
    )
