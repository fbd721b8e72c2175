"""What a classifier thinks of an image, as bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 224  # of a picture, in pixels
_LINES = 6
_TRUE, _OTHER = (70, 150, 90), (150, 150, 150)


def shown(image: Tensor) -> Tensor:
    """Scale an image `(3, H, W)` to `(3, SIDE, SIDE)`; nearest, to show what the model sees."""
    return F.interpolate(image[None], (SIDE, SIDE), mode="nearest-exact")[0]


def bars(names: Sequence[str], probabilities: Tensor, truth: Sequence[int]) -> Tensor:
    """Draw the likeliest classes with their probabilities, the true ones in green.

    Args:
        names: Of all C classes.
        probabilities: `(C,)`.
        truth: Indices of the true classes.

    Returns:
        uint8 `(3, SIDE, SIDE)`.
    """
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    likeliest = probabilities.topk(min(_LINES, len(names)))
    height = SIDE // _LINES
    for line, (share, index) in enumerate(zip(*map(Tensor.tolist, likeliest), strict=True)):
        top, colour = line * height, _TRUE if index in truth else _OTHER
        draw.text((4, top), f"{names[index]}  {share:.0%}", colour, font)
        draw.rectangle((4, top + 18, 4 + share * (SIDE - 8), top + height - 8), colour)
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)
