"""A set of views seen in a mirror: other pictures of a world that could as well exist."""

from __future__ import annotations

import numpy as np

from pixio_lightning.data import Sample

_MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
_MAPS = ("image", "depth", "valid", "non_ambiguous")


def mirrored(sample: Sample) -> Sample:
    """Return a set in which left and right are swapped, of the views and of the world.

    With ``M = diag(-1, 1, 1, 1)`` the poses become ``M T M``; pixel centres are at integer
    coordinates, so column u becomes ``W - 1 - u``.

    Args:
        sample: `image (V, H, W, 3)`, maps `(V, H, W)`, `intrinsics (V, 3, 3)` and `cam2world
            (V, 4, 4)`; anything else stays.
    """
    width = sample["image"].shape[2]
    intrinsics = sample["intrinsics"].copy()
    intrinsics[:, 0, 2] = width - 1 - intrinsics[:, 0, 2]
    cam2world = (_MIRROR @ sample["cam2world"] @ _MIRROR).astype(sample["cam2world"].dtype)
    maps = {name: sample[name][:, :, ::-1] for name in _MAPS}
    return sample | maps | {"intrinsics": intrinsics, "cam2world": cam2world}
