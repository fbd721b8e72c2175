"""joint_positions.mat of JHMDB: where the joints of a person are in each frame."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data import BadImage, read_file
from pixio_lightning.errors import UserError

JOINTS = 15
_MOST_FRAMES = 100_000  # an hour


def require_scipy() -> None:
    """Look for what reads MATLAB files; to be called before data workers are.

    Raises:
        UserError: It is not installed.
    """
    try:
        import scipy.io  # noqa: F401
    except ImportError:
        raise UserError(
            "JHMDB's joints are MATLAB files, which need SciPy: pip install "
            "'pixio-lightning[formats]'"
        ) from None


def read_joints(path: Path) -> NDArray[np.float32]:
    """Return joints `(V, 15, 2)`, x and y in pixels, whose centres are whole numbers from 0.

    Args:
        path: A MATLAB file (level 5) with `pos_img` `(2, 15, V)`, which counts from 1.

    Raises:
        BadImage: It is damaged, or holds something else.
        OSError: It is not there.
    """
    import scipy.io

    data = read_file(path)
    try:
        # Its header first: no size is allocated that it has no business to have.
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(io.BytesIO(data))}
    except Exception:  # the library raises whatever the damaged bytes lead it to
        raise BadImage(f"{path.name} cannot be read") from None
    if "pos_img" not in shapes:
        raise BadImage(f"{path.name} has no pos_img")
    shape = shapes["pos_img"]
    if shape[:2] != (2, JOINTS) or len(shape) > 3 or shape[2:] > (_MOST_FRAMES,):
        sides = "x".join(map(str, shape))
        raise BadImage(f"{path.name}: pos_img is {sides}; expected 2x{JOINTS}xV")
    try:
        stored = scipy.io.loadmat(io.BytesIO(data), variable_names=["pos_img"])["pos_img"]
        joints = np.asarray(stored, np.float64).reshape(2, JOINTS, -1)
    except Exception:
        raise BadImage(f"{path.name} cannot be read") from None
    if not np.isfinite(joints).all():
        raise BadImage(f"{path.name}: pos_img is not finite")
    return np.ascontiguousarray(joints.transpose(2, 1, 0), np.float32) - 1
