"""Episodes to look at: contact sheets and videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixio_lightning.data import write_video
from pixio_lightning.training import Panel

if TYPE_CHECKING:
    from pixio_heads.policy.episode_log import Film

_COLUMNS = 8
_GREEN, _RED = (70, 150, 90), (190, 70, 60)
_SHOWN = 256  # least side of a video, in pixels: many players show less badly
_FPS = 10


def sheet(films: Sequence[Film]) -> Panel:
    """Draw each episode as a row of frames, evenly spread; success is framed green."""
    rows = []
    for film in films:
        assert film.frames is not None
        picked = np.linspace(0, len(film.frames) - 1, _COLUMNS).round().astype(int)
        colour = _GREEN if film.outcome.success else _RED
        rows.append([_framed(film.frames[i], colour) for i in picked])
    steps = ", ".join(f"{film.name} {film.outcome.steps}" for film in films)
    titles = ["first frame", *[""] * (_COLUMNS - 2), "last frame"]
    return Panel(rows, titles, caption=f"success green, failure red; steps: {steps}")


def _framed(image: NDArray[np.uint8], colour: tuple[int, int, int]) -> Tensor:
    border = max(1, len(image) // 32)
    found = np.empty_like(image)
    found[:] = colour
    inner = slice(border, -border)
    found[inner, inner] = image[inner, inner]
    return torch.from_numpy(found).movedim(-1, 0)


def film(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write frames `(T, H, W, 3)` as an mp4 file, small ones enlarged.

    Raises:
        UserError: PyAV is missing.
    """
    scale = -(-_SHOWN // min(frames.shape[1:3]))
    write_video(path, frames.repeat(scale, axis=1).repeat(scale, axis=2), fps=_FPS)
