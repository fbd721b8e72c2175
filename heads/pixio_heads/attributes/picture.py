"""What is told of images: as text, and drawn beside the truth."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pixio_heads.attributes.samples import Columns

_WIDE, _LINE = 288, 17


def values(columns: Columns, row: Tensor) -> dict[str, str]:
    """Write what is told of an image: a number, three of a direction, or the likeliest kind.

    Args:
        columns: The attributes with their numbers' names.
        row: `(D,)`.
    """
    found, start = {}, 0
    for name, own in columns.items():
        part = row[start : start + len(own)].tolist()
        start += len(own)
        if len(own) == 1 or name == "light_direction":
            found[name] = " ".join(f"{number:.3g}" for number in part)
        else:
            found[name] = own[int(np.argmax(part))]
    return found


def told(columns: Columns, row: Tensor, truth: Tensor) -> Tensor:
    """Draw what is told of an image, each attribute with the truth behind it.

    Returns:
        uint8 `(3, H, 288)`.
    """
    found, true = values(columns, row), values(columns, truth)
    canvas = Image.new("RGB", (_WIDE, _LINE * len(found) + 8), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for line, (name, value) in enumerate(found.items()):
        text = f"{name.replace('_', ' ')}: {value} ({true[name]})"
        draw.text((4, 4 + line * _LINE), text, "black", font)
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)
