"""COLMAP's text files: cameras.txt and images.txt.

Poses are world-to-camera in the files, quaternions scalar-first, and pixels are counted from the
corner of the image, so that the principal point is moved by half a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_heads.reconstruction.views.frames import Found, camera_matrix, posed_frame
from pixio_lightning.data import DEPTH_SUFFIXES as SUFFIXES
from pixio_lightning.errors import UserError
from pixio_lightning.files import read_text

# Focal lengths of COLMAP's models; the principal point follows, and then distortion.
_FOCALS = {"SIMPLE_PINHOLE": 1, "PINHOLE": 2, "SIMPLE_RADIAL": 1, "RADIAL": 1, "OPENCV": 2}


def colmap(root: Path) -> Found:
    """Read `cameras.txt` and `images.txt` in `sparse/0`, with `images/` and, if there is, `depth/`.

    Raises:
        UserError: A file is not what it should be, or images are distorted.
    """
    model = next(folder for folder in _models(root) if (folder / "cameras.txt").is_file())
    cameras = dict(_colmap_cameras(model / "cameras.txt"))
    images = root / "images" if (root / "images").is_dir() else root
    frames = []
    path = model / "images.txt"
    # Every other line holds the points of an image, and may be empty.
    for number, line in list(_content_lines(path))[::2]:
        where = f"'{path}', line {number}"
        words = line.split(maxsplit=9)
        try:
            w, x, y, z, *shift = (float(word) for word in words[1:8])
            camera, name = words[8], words[9].strip()
            matrix, size = cameras[camera]
        except (ValueError, IndexError):
            raise UserError(
                f"{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, and a line of "
                "points after it"
            ) from None
        except KeyError as error:
            raise UserError(f"{where}: camera {error} is not in cameras.txt") from None
        world2cam = np.eye(4)
        world2cam[:3, :3], world2cam[:3, 3] = _rotation(w, x, y, z), shift
        pose = np.linalg.inv(world2cam)
        stem = root / "depth" / Path(name).with_suffix("")
        there = [p for s in SUFFIXES if (p := stem.with_name(stem.name + s)).is_file()]
        files = (images / name, there[0] if there else None)
        frames.append(posed_frame(where, name, files, matrix, pose, size))
    return Found(sorted(frames, key=lambda frame: frame.name))


def binary(root: Path) -> Found:
    """Say how a binary model becomes text."""
    model = next(folder for folder in _models(root) if (folder / "cameras.bin").is_file())
    raise UserError(
        f"'{model}' holds a binary model, and text is read; convert it: colmap model_converter "
        f"--input_path {model} --output_path {model} --output_type TXT"
    )


def _models(root: Path) -> tuple[Path, Path]:
    return root / "sparse" / "0", root / "sparse"


def _colmap_cameras(path: Path) -> Iterator[tuple[str, tuple[NDArray[np.float64], Any]]]:
    """Yield the intrinsics, and height and width, of every camera by its number."""
    for number, line in _content_lines(path):
        if not line.strip():
            continue
        where = f"'{path}', line {number}"
        try:
            camera, model, width, height, *rest = line.split()
            numbers = [float(word) for word in rest]
            focals = _FOCALS.get(model)
            if focals is None or any(numbers[focals + 2 :]):
                raise UserError(f"{where}: {undistort_first(model)}")
            fx, fy = numbers[0], numbers[focals - 1]
            cx, cy = numbers[focals : focals + 2]
            size = int(height), int(width)
        except UserError:
            raise
        except (ValueError, IndexError):
            raise UserError(f"{where}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS") from None
        yield camera, (camera_matrix(fx, fy, cx - 0.5, cy - 0.5), size)


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
        "them first (colmap image_undistorter)"
    )
