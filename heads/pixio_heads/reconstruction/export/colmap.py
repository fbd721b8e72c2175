"""A reconstruction as a model of COLMAP: cameras, images and points.

The form is that of https://colmap.github.io/format.html, with one PINHOLE camera for each original
picture. The centre of the first pixel is at (0.5, 0.5): half a pixel more than here, where it is
at (0, 0). Every point is seen in its own view alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pixio_heads.reconstruction.export.cloud import Cloud
from pixio_heads.reconstruction.geometry import quaternion_of
from pixio_heads.reconstruction.reconstructed import (
    Array,
    Reconstructed,
    original_intrinsics,
    to_original,
)

_ABOUT = (
    "# Poses are world-to-camera in OpenCV axes (x right, y down, z forward), in metres; the world "
    "is the camera of the first view; pixel centres are at (0.5, 0.5).\n"
)
_PINHOLE = 1  # number of the camera model


class Model(NamedTuple):
    """What the three files say; numbers of cameras, images and points are from 1 on.

    Attributes:
        names: Names of the pictures.
        sizes: Width and height `(V, 2)`.
        cameras: fx, fy, cx, cy `(V, 4)`, pixels.
        poses: World to camera `(V, 7)`: quaternion w, x, y, z with w >= 0, and translation.
        points: float32 `(N, 3)`, metres, in the order of the views that saw them.
        colours: uint8 `(N, 3)`.
        view: The view `(N,)` that saw each.
        pixels: Where, `(N, 2)`.
        errors: How far from there each point is projected, `(N,)`, pixels.
    """

    names: list[str]
    sizes: NDArray[np.int64]
    cameras: Array
    poses: Array
    points: NDArray[np.float32]
    colours: NDArray[np.uint8]
    view: NDArray[np.int64]
    pixels: Array
    errors: Array

    def seen_by(self, view: int) -> slice:
        """Return which points a view saw."""
        first, last = np.searchsorted(self.view, [view, view + 1])
        return slice(int(first), int(last))


def colmap(found: Reconstructed, cloud: Cloud) -> dict[str, bytes]:
    """Return the files of a model by name.

    They are text, or binary where a name holds a space, at which the text form cuts it off.
    """
    model = _model(found, cloud)
    return _binary(model) if any(len(n.split()) > 1 for n in found.names) else _text(model)


def _model(found: Reconstructed, cloud: Cloud) -> Model:
    intrinsics = original_intrinsics(found)
    world2cam = np.linalg.inv(found.cam2world.astype(np.float64))
    quaternions = quaternion_of(torch.from_numpy(world2cam)).numpy()
    own = world2cam[cloud.view]
    camera = np.einsum("nij,nj->ni", own[:, :3, :3], cloud.points) + own[:, :3, 3]
    projected = np.einsum("nij,nj->ni", intrinsics[cloud.view], camera)
    pixels = to_original(found.placement[cloud.view], cloud.pixel)
    return Model(
        names=found.names,
        sizes=found.original_size[:, ::-1],
        cameras=np.concatenate([intrinsics[:, [0, 1], [0, 1]], intrinsics[:, :2, 2] + 0.5], axis=1),
        poses=np.concatenate([quaternions, world2cam[:, :3, 3]], axis=1),
        points=cloud.points,
        colours=cloud.colours,
        view=cloud.view,
        pixels=pixels + 0.5,
        errors=np.linalg.norm(projected[:, :2] / projected[:, 2:] - pixels, axis=1),
    )


def _text(model: Model) -> dict[str, bytes]:
    files = {"cameras": _cameras, "images": _images, "points3D": _points}
    # A name need not be UTF-8: file systems take any bytes.
    return {
        f"{name}.txt": "".join([_ABOUT, *lines(model)]).encode(errors="surrogateescape")
        for name, lines in files.items()
    }


def _cameras(model: Model) -> Iterator[str]:
    yield "# CAMERA_ID, MODEL, WIDTH, HEIGHT, FX, FY, CX, CY\n"
    for view, (width, height) in enumerate(model.sizes):
        yield f"{view + 1} PINHOLE {width} {height} {_numbers(model.cameras[view])}\n"


def _images(model: Model) -> Iterator[str]:
    yield "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n"
    yield "# POINTS2D[] as (X, Y, POINT3D_ID)\n"
    for view, name in enumerate(model.names):
        yield f"{view + 1} {_numbers(model.poses[view])} {view + 1} {name}\n"
        own = model.seen_by(view)
        pixels = enumerate(model.pixels[own].tolist(), own.start + 1)
        yield " ".join(f"{x:.7g} {y:.7g} {number}" for number, (x, y) in pixels) + "\n"


def _points(model: Model) -> Iterator[str]:
    yield "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)\n"
    for view in range(len(model.names)):
        own = model.seen_by(view)
        columns = (model.points, model.colours, model.errors)
        rows = zip(*(column[own].tolist() for column in columns), strict=True)
        for place, ((x, y, z), (r, g, b), error) in enumerate(rows):
            number = own.start + place + 1
            yield (f"{number} {x:.9g} {y:.9g} {z:.9g} {r} {g} {b} {error:.4g} {view + 1} {place}\n")


def _numbers(values: Array) -> str:
    return " ".join(f"{value:.12g}" for value in values)


def _binary(model: Model) -> dict[str, bytes]:
    """Return the three files as little-endian records."""
    views, count = len(model.names), len(model.points)
    cameras = np.zeros(views, [("ids", "<i4", 2), ("size", "<u8", 2), ("numbers", "<f8", 4)])
    cameras["ids"] = np.stack([np.arange(1, views + 1), np.full(views, _PINHOLE)], axis=1)
    cameras["size"], cameras["numbers"] = model.sizes, model.cameras
    images = []
    for view, name in enumerate(model.names):
        own = model.seen_by(view)
        seen = np.zeros(own.stop - own.start, [("pixel", "<f8", 2), ("point", "<i8")])
        seen["pixel"], seen["point"] = model.pixels[own], np.arange(own.start, own.stop) + 1
        head = np.zeros(1, [("image", "<u4"), ("pose", "<f8", 7), ("camera", "<u4")])
        head["image"], head["pose"], head["camera"] = view + 1, model.poses[view], view + 1
        encoded = name.encode(errors="surrogateescape") + b"\0"
        images.append(head.tobytes() + encoded + _count(len(seen)) + seen.tobytes())
    points = np.zeros(
        count,
        [("id", "<u8"), ("at", "<f8", 3), ("colour", "u1", 3), ("error", "<f8")]
        + [("tracks", "<u8"), ("track", "<u4", 2)],
    )
    starts = np.searchsorted(model.view, model.view)
    points["id"], points["at"] = np.arange(1, count + 1), model.points
    points["colour"], points["error"], points["tracks"] = model.colours, model.errors, 1
    points["track"] = np.stack([model.view + 1, np.arange(count) - starts], axis=1)
    return {
        "cameras.bin": _count(views) + cameras.tobytes(),
        "images.bin": _count(views) + b"".join(images),
        "points3D.bin": _count(count) + points.tobytes(),
    }


def _count(number: int) -> bytes:
    return number.to_bytes(8, "little")
