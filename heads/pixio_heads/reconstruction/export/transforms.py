"""Cameras as Nerfstudio's transforms.json.

It names the original pictures and gives intrinsics at their resolution, with the centre of the
first pixel at (0.5, 0.5): half a pixel more than here, where it is at (0, 0).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pixio_heads.reconstruction.reconstructed import Reconstructed, original_intrinsics

_ABOUT = (
    "poses are camera-to-world in OpenGL axes (x right, y up, z backward), in metres; the world is "
    "the camera of the first view in OpenCV axes; pixel centres are at (0.5, 0.5)"
)
# From a camera's OpenCV axes to its OpenGL axes.
_TO_OPENGL = np.diag([1.0, -1, -1, 1])


def transforms(
    found: Reconstructed,
    *,
    files: Sequence[Path] | None = None,
    depths: list[str] | None,
    cloud: str | None,
) -> bytes:
    """Return transforms.json in Nerfstudio's form.

    Args:
        found: The reconstruction.
        files: The pictures, which are named by their whole paths, so that the file may lie
            anywhere; None names them as `found` does, for the folder that holds them.
        depths: Files of depth in metres at the original resolution, if they are exported.
        cloud: File of the points, if it is exported.
    """
    frames = []
    for view, matrix in enumerate(original_intrinsics(found)):
        height, width = found.original_size[view].tolist()
        frame = {
            "file_path": str(files[view].resolve()) if files else found.names[view],
            "fl_x": matrix[0, 0],
            "fl_y": matrix[1, 1],
            "cx": matrix[0, 2] + 0.5,
            "cy": matrix[1, 2] + 0.5,
            "w": width,
            "h": height,
            "transform_matrix": (found.cam2world[view].astype(np.float64) @ _TO_OPENGL).tolist(),
        }
        frames.append(frame | ({"depth_file_path": depths[view]} if depths else {}))
    about: dict[str, Any] = {
        "camera_model": "PINHOLE",
        "camera_convention": "opengl",
        "comment": _ABOUT,
    }
    # Nerfstudio takes depth files for millimetres unless it is told the unit.
    about |= {"depth_unit_scale_factor": 1.0} if depths else {}
    about |= {"ply_file_path": cloud} if cloud else {}
    return (json.dumps(about | {"frames": frames}, indent=1) + "\n").encode()


def depth_names(names: list[str]) -> list[str]:
    """Return a file name for each picture's depth: its own with .npy for a suffix, if unique."""
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    return [
        f"depth/{stem if stems.count(stem) == 1 else name}.npy"
        for stem, name in zip(stems, names, strict=True)
    ]
