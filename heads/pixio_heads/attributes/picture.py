"""What is told of images: as text beside the truth, as a table, and as a map of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pixio_heads.attributes.samples import Columns

_WIDE, _LINE = 288, 17
_CELL, _LEFT, _TOP = 64, 150, 30


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


def heat_map(shares: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Draw shares of variance as a table whose cells are the darker the more is explained.

    Args:
        shares: `(rows, columns)`; what is below 0 is white.
        rows: Their names, such as tokens.
        columns: Their names, such as attributes.

    Returns:
        uint8 `(3, H, W)`.
    """
    size = (_LEFT + _CELL * len(columns) + 4, _TOP + _LINE * 2 * len(rows) + 4)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    small = ImageFont.load_default(10)
    for number, name in enumerate(columns):
        words = name.replace("_", "\n", 1)
        at = (_LEFT + _CELL * number + 4, 2)
        draw.multiline_text(at, words, "black", small, spacing=1)
    for line, name in enumerate(rows):
        top = _TOP + 2 * _LINE * line
        draw.text((4, top + 9), name, "black", font)
        for number, share in enumerate(shares[line].tolist()):
            left = _LEFT + _CELL * number
            depth = min(max(share, 0.0), 1.0)
            colour = tuple(round(255 - depth * (255 - c)) for c in (24, 78, 140))
            box = (left, top, left + _CELL - 2, top + 2 * _LINE - 2)
            draw.rectangle(box, colour)
            draw.text(
                (left + 16, top + 9), f"{share:.2f}", "white" if depth > 0.5 else "black", font
            )
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)
