"""A reconstruction as exporters and viewers take it: pictures with points, depth and cameras.

Shapes: V views, H x W pixels the model saw, h x w pixels of an original picture.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.errors import UserError

Array = NDArray[np.float64]

# Every file that holds poses says so in these words.
CONVENTION = (
    "poses are camera-to-world in OpenCV axes (x right, y down, z forward), in metres; the world "
    "is the camera of the first view; pixel centres are at integer coordinates"
)

# Between neighbours that differ more lies an edge, across which nothing is interpolated.
_EDGE = 0.03
# An export is at most so many times as large as its file.
_MOST_UNPACKING = 64


class Reconstructed(NamedTuple):
    """The views of one set, all in the frame of view 0; see `CONVENTION`.

    Attributes:
        names: Names of the original pictures, relative paths where they are files.
        image: uint8 `(V, H, W, 3)`.
        points: float32 `(V, H, W, 3)`, metres.
        depth: float32 `(V, H, W)`, z-depth in the view's own camera, metres.
        confidence: float32 `(V, H, W)`, higher is surer.
        mask: bool `(V, H, W)`, false where there is no surface, such as in the sky.
        intrinsics: float32 `(V, 3, 3)` of the pictures as the model saw them.
        cam2world: float32 `(V, 4, 4)`.
        original_size: int64 `(V, 2)`, height and width of the original pictures.
        placement: float32 `(V, 4)`: scale_x, scale_y, left, top. Pixel (u0, v0) of the original is
            ``((u0 + .5) * scale_x - .5 - left, (v0 + .5) * scale_y - .5 - top)`` of the model's.
    """

    names: list[str]
    image: NDArray[np.uint8]
    points: NDArray[np.float32]
    depth: NDArray[np.float32]
    confidence: NDArray[np.float32]
    mask: NDArray[np.bool_]
    intrinsics: NDArray[np.float32]
    cam2world: NDArray[np.float32]
    original_size: NDArray[np.int64]
    placement: NDArray[np.float32]


def to_original(placement: NDArray[np.float32], pixels: NDArray[Any]) -> Array:
    """Return where pixels of the model `(..., 2)`, as (u, v), lie in the original picture.

    Args:
        placement: `(4,)` or `(..., 4)`, see `Reconstructed`.
        pixels: Pixels of the model, centres at integers.
    """
    scale, corner = np.split(placement.astype(np.float64), 2, axis=-1)
    return (pixels + 0.5 + corner) / scale - 0.5


def original_intrinsics(found: Reconstructed) -> Array:
    """Return intrinsics `(V, 3, 3)` of the original pictures, pixel centres at integers."""
    intrinsics = found.intrinsics.astype(np.float64)
    intrinsics[:, [0, 1], [0, 1]] /= found.placement[:, :2].astype(np.float64)
    intrinsics[:, :2, 2] = to_original(found.placement, found.intrinsics[:, :2, 2])
    return intrinsics


def original_depth(found: Reconstructed, view: int) -> NDArray[np.float32]:
    """Return z-depth `(h, w)` of an original picture in metres, 0 where the model saw nothing.

    Disparity is interpolated, in which planes are linear; across an edge the nearest pixel counts.
    """
    height, width = found.original_size[view]
    scale_x, scale_y, left, top = found.placement[view].astype(np.float64)
    model_height, model_width = found.depth.shape[1:]
    x = (np.arange(width) + 0.5) * scale_x - 0.5 - left
    y = (np.arange(height) + 0.5) * scale_y - 0.5 - top
    # Half a pixel beyond the outermost centres is still inside the picture.
    inside_x = (x >= -0.5) & (x < model_width - 0.5)
    inside_y = (y >= -0.5) & (y < model_height - 0.5)
    known = found.mask[view] & (found.depth[view] > 0)
    disparity = np.where(known, 1 / np.where(known, found.depth[view], 1), 0).astype(np.float32)
    original = np.zeros((height, width), np.float32)
    columns = _Neighbours.of(x[inside_x], model_width)
    # By rows, because an original may have a hundred times the pixels of the model's.
    for row, v in zip(np.flatnonzero(inside_y), y[inside_y], strict=True):
        lines = _Neighbours.of(np.array([v]), model_height)
        corners = [disparity[i, j] for i in lines.ends for j in columns.ends]
        nearest = disparity[lines.nearest, columns.nearest]
        upper = corners[0] * (1 - columns.share) + corners[1] * columns.share
        lower = corners[2] * (1 - columns.share) + corners[3] * columns.share
        smooth = upper * (1 - lines.share) + lower * lines.share
        low, high = np.min(corners, axis=0), np.max(corners, axis=0)
        found_here = np.where(high <= low * (1 + _EDGE), smooth, nearest)
        seen = (nearest > 0) & (found_here > 0)
        original[row, inside_x] = np.where(seen, 1 / np.where(seen, found_here, 1), 0)
    return original


class _Neighbours(NamedTuple):
    """The two pixels beside each coordinate, the share of the second, and the nearer one."""

    ends: tuple[NDArray[np.int64], NDArray[np.int64]]
    share: NDArray[np.float32]
    nearest: NDArray[np.int64]

    @classmethod
    def of(cls, at: Array, length: int) -> _Neighbours:
        at = np.clip(at, 0, length - 1)
        low = np.minimum(np.floor(at).astype(np.int64), max(length - 2, 0))
        high = np.minimum(low + 1, length - 1)
        nearest = np.minimum(np.floor(at + 0.5).astype(np.int64), length - 1)
        return cls((low, high), (at - low).astype(np.float32), nearest)


def _refuse_packed(path: Path) -> None:
    """Refuse an archive of far more than its size: zeros pack a thousandfold, depth tenfold."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > _MOST_UNPACKING * size + (1 << 26):
        raise UserError(
            f"'{path}' has {size:,} bytes, but unpacks to {unpacked:,}: refused, no export does"
        )


def _check_shapes(found: dict[str, NDArray[Any]], path: Path) -> None:
    """Refuse arrays that do not belong together."""
    views, (height, width) = len(found["names"]), found["image"].shape[1:3]
    inner = {
        "image": (height, width, 3),
        "points": (height, width, 3),
        **dict.fromkeys(("depth", "confidence", "mask"), (height, width)),
        "intrinsics": (3, 3),
        "cam2world": (4, 4),
        "original_size": (2,),
        "placement": (4,),
    }
    for name, shape in inner.items():
        if found[name].shape != (views, *shape):
            raise UserError(
                f"'{path}' is no reconstruction: {name} of {views} views has the shape "
                f"{found[name].shape}, expected {(views, *shape)}"
            )


def read(path: str | Path) -> Reconstructed:
    """Read the `reconstruction.npz` of an export.

    Raises:
        UserError: It does not exist or is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"'{path}' is not a file; expected the reconstruction.npz of an export")
    try:
        _refuse_packed(path)
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in Reconstructed._fields}
        _check_shapes(found, path)
    except UserError:
        raise
    except Exception:  # numpy and zipfile raise whatever the bytes lead them to
        raise UserError(
            f"'{path}' is no reconstruction: expected the reconstruction.npz of an export, which "
            f"holds {', '.join(Reconstructed._fields)}"
        ) from None
    return Reconstructed(**found | {"names": [str(name) for name in found["names"]]})
