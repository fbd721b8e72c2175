"""Views of a sample: cut out, mirrored, scaled, with the camera that would have taken them.

Maps are `(H, W)` or `(H, W, 3)`, intrinsics `(3, 3)` with pixel centres at integer coordinates.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from pixio_lightning.data import Sample, resampled, rescaled


def cropped(
    sample: Sample, top: int, left: int, height: int, width: int, *, mirror: bool
) -> Sample:
    """Return a box of a sample, in pixels, mirrored or not."""
    views = {}
    for name, array in sample.items():
        if name == "intrinsics":
            views[name] = moved(array, top, left, width, mirror=mirror)
            continue
        piece = array[top : top + height, left : left + width]
        views[name] = piece[:, ::-1] if mirror else piece
    return views


def moved(intrinsics: np.ndarray, top: int, left: int, width: int, *, mirror: bool) -> np.ndarray:
    """Return the intrinsics `(3, 3)` of a crop `width` pixels wide, mirrored or not.

    Pixel centres are at integer coordinates, so column u of a mirrored crop is width - 1 - u; the
    focal length along it changes its sign.
    """
    shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]])
    turn = np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1.0]]) if mirror else np.eye(3)
    return (turn @ shift @ intrinsics).astype(np.float32)


def resized(sample: Sample, short_side: int) -> Sample:
    """Return a sample whose short side has so many pixels, its intrinsics scaled along."""
    height, width = sample["image"].shape[:2]
    scale = short_side / min(height, width)
    size = (round(height * scale), round(width * scale))
    # A copy: decoded pixels may be a read-only view of what a decoder owns.
    image = torch.from_numpy(np.array(sample["image"])).movedim(-1, 0)[None]
    scaled = F.interpolate(image, size, mode="bicubic", antialias=True)
    views = {"image": scaled[0].movedim(0, -1).numpy()}
    views |= {name: resampled(sample[name], size) for name in ("depth", "valid")}
    if "intrinsics" in sample:
        matrix = rescaled(sample["intrinsics"], size[1] / width, size[0] / height)
        views["intrinsics"] = matrix.astype(np.float32)
    return views
