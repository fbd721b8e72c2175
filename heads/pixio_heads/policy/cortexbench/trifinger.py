"""Demonstrations of CortexBench's TriFinger tasks: a folder for each, with a downsample.pth.

The robot's state is `ft_pos_cur`, where the three fingertips are; the action is `delta_ftpos`, how
they move next; the pictures are `image_60`. All are taken as they are stored.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixio_heads.policy.cortexbench.arrays import Array, Refused, load
from pixio_heads.policy.cortexbench.suites import assembled, numbers, pictures
from pixio_heads.policy.demonstrations import Demonstration
from pixio_lightning.errors import UserError

FILE = "downsample.pth"
_STATE, _ACTION, _PICTURES = "ft_pos_cur", "delta_ftpos", "image_60"
_MOST = 4 << 30  # bytes of a file


def read(folder: Path, *, limit: int | None = None) -> list[Demonstration]:
    """Read the demonstrations below a folder, in the order of their folders' names.

    Args:
        folder: Holds the folders of the demonstrations, at any depth.
        limit: Demonstrations, at most; None for all.

    Raises:
        UserError: There is none, or a file is damaged or holds more than arrays.
    """
    files = sorted(folder.rglob(FILE))[:limit]
    if not files:
        raise UserError(f"'{folder}' holds no {FILE}; expected one in the folder of each demo")
    return [_demonstration(file, file.parent.relative_to(folder).as_posix()) for file in files]


def _demonstration(file: Path, name: str) -> Demonstration:
    content = _content(file)
    if not isinstance(content, dict):
        raise UserError(f"'{file}' holds no dict, so it is no demonstration of TriFinger")
    named = {key: _stacked(content[key]) for key in (_STATE, _ACTION, _PICTURES) if key in content}
    actions = numbers(named, _ACTION, f"'{file}'")
    steps = len(actions)
    # After the last action there may be another state, from which nothing follows.
    proprio = numbers(named, _STATE, f"'{file}'")
    images = pictures(named, _PICTURES, f"'{file}'")
    last = {len(proprio), len(images)} == {steps + 1}
    return assembled(
        name, proprio[: steps + 1 - last], actions, images[: steps + 1 - last], f"'{file}'"
    )


def _content(file: Path) -> Any:
    """Return what a file holds: tensors as torch reads them, arrays as our own reader does."""
    try:
        if file.stat().st_size > _MOST:
            raise UserError(f"'{file}' is larger than {_MOST >> 30} GiB: not read")
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            with zipfile.ZipFile(file) as archive:
                entry = next(i for i in archive.infolist() if i.filename.endswith("/data.pkl"))
                if entry.file_size > file.stat().st_size:
                    raise Refused("compressed parts") from None
                return load(io.BytesIO(archive.read(entry)), entry.file_size)
    except Refused as error:
        raise UserError(
            f"'{file}' holds more than arrays, or tensors alone ({error}): refused, and nothing "
            "of it was executed"
        ) from None
    except UserError:
        raise
    except Exception as error:  # damaged bytes lead the readers anywhere
        raise UserError(f"'{file}' cannot be read: damaged ({type(error).__name__})") from None


def _stacked(value: Any) -> Any:
    """Return tensors, arrays, or lists of them as one array; anything else as it is."""
    if isinstance(value, list) and value:
        parts = [_stacked(part) for part in value]
        same = {(part.shape, part.dtype) for part in parts if isinstance(part, np.ndarray)}
        return np.stack(parts) if len(same) == 1 and len(parts) == len(value) else value
    if isinstance(value, torch.Tensor):
        return value.numpy()
    return value.values if isinstance(value, Array) else value
