"""Clips with what was carried through them: pictures, videos, masks and tables.

Shapes: V frames, H x W pixels of the frames as they are seen, Ho x Wo as they are stored, J joints.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from pixio_heads.propagation.boundaries import boundary
from pixio_heads.propagation.metrics import UNKNOWN
from pixio_lightning.data import write_video
from pixio_lightning.files import output_path, written_aside
from pixio_lightning.training import Panel, visualize

# Whether there is what `film` needs.
WRITES_VIDEOS = importlib.util.find_spec("av") is not None
_COLUMNS = 6
_SHOWN = 256  # least side of a picture in a video, in pixels: many players show less badly
_GREATEST = 640  # and the greatest
_FPS = 7


def colours(count: int = 255) -> Tensor:
    """Return the colour of each label, uint8 `(count, 3)`; 0 is black."""
    found = visualize.class_colours(count)
    return torch.cat([torch.zeros_like(found[:1]), found[:-1]])


def drawn(frames: Tensor, labels: Tensor, stored: Sequence[int], *, joints: bool) -> Tensor:
    """Lay labels over frames, which are scaled to what a video shows.

    Args:
        frames: uint8 `(V, 3, H, W)`.
        labels: Masks uint8 `(V, Ho, Wo)`, or joints `(V, J, 2)`.
        stored: Height and width of the frames that joints are in.
        joints: Which of the two.

    Returns:
        uint8 `(V, 3, h, w)`, of even sides.
    """
    size = shown_size(stored[0], stored[1])
    larger = F.interpolate(frames, size, mode="nearest-exact" if _small(frames) else "bilinear")
    if joints:
        scale = torch.tensor([size[1] / stored[1], size[0] / stored[0]])
        places = (labels + 0.5) * scale - 0.5
        return torch.stack([_dots(*pair) for pair in zip(larger, places, strict=True)])
    masks = F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()
    tinted = colours()[masks.clamp_max(254)].movedim(-1, 1)
    known = (masks > 0) & (masks != UNKNOWN)
    laid = torch.where(known[:, None], larger // 2 + tinted // 2, larger)
    # Each label's outline, so that what is in shadow has one too.
    line = torch.zeros_like(known)
    for number in masks[known].unique():
        line |= boundary(masks == number)
    return torch.where((line & known)[:, None], tinted, laid)


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Return the even sides of a video of frames."""
    scale = max(1.0, -(-_SHOWN // min(height, width)))
    scale = min(scale, _GREATEST / max(height, width))
    tall, wide = (max(2, round(side * scale)) for side in (height, width))
    return tall - tall % 2, wide - wide % 2


def _small(frames: Tensor) -> bool:
    return min(frames.shape[-2:]) < _SHOWN


def _dots(frame: Tensor, joints: Tensor) -> Tensor:
    canvas = Image.fromarray(frame.permute(1, 2, 0).numpy())
    draw, radius = ImageDraw.Draw(canvas), max(3, min(canvas.size) // 50)
    for (x, y), colour in zip(joints.tolist(), colours()[1:].tolist(), strict=False):
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, tuple(colour), (255, 255, 255))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


def strip(rows: Sequence[Tensor]) -> Panel:
    """Return frames of a clip in a row, evenly spread from the first to the last.

    Args:
        rows: What was carried, uint8 `(V, 3, h, w)`; or the truth, and then that.
    """
    last = len(rows[0]) - 1
    chosen = sorted({round(i * last / (_COLUMNS - 1)) for i in range(_COLUMNS)})
    caption = "above the truth, below what was carried on from frame 0" if len(rows) > 1 else ""
    pictures = [[row[i] for i in chosen] for row in rows]
    return Panel(pictures, [_title(i) for i in chosen], caption=caption)


def _title(number: int) -> str:
    return f"frame {number}" if number else "frame 0, given"


def film(folder: Path, name: str, pictures: Tensor) -> None:
    """Write pictures `(V, 3, h, w)` as NAME.mp4."""
    write_video(output_path(folder, name, ".mp4"), pictures.movedim(1, -1).numpy(), fps=_FPS)


def write_masks(folder: Path, name: str, masks: Tensor) -> None:
    """Write NAME/00000.png and so on: numbers with a palette, as DAVIS has them."""
    palette = colours().flatten().tolist()
    for number, mask in enumerate(masks):
        picture = Image.fromarray(mask.numpy())
        picture.putpalette(palette)
        visualize.save(output_path(folder, f"{name}/{number:05d}", ".png"), picture)


def write_joints(folder: Path, name: str, joints: Tensor) -> None:
    """Write NAME.csv: frame, joint, x and y in pixels of the stored frame."""
    path = output_path(folder, name, ".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside, aside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["frame", "joint", "x", "y"])
        for frame, places in enumerate(joints.tolist()):
            for joint, (x, y) in enumerate(places):
                table.writerow([frame, joint, f"{x:.2f}", f"{y:.2f}"])
