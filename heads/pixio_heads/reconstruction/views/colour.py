"""Colours of training views changed at random, most of them in every view of a set on its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from numpy.typing import NDArray

from pixio_lightning.data import RandomKey
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Purpose

_DRAWS = 12  # numbers for each view
_BLUR = (0.1, 1.0)  # pixels of standard deviation


@dataclass(frozen=True)
class Colour:
    """What may happen to the colours of a view; the numbers are MapAnything's.

    Attributes:
        brightness: Factor within 1 - x to 1 + x.
        contrast: Likewise.
        saturation: Likewise.
        hue: Shift within -x to x of a turn, at most 0.5.
        jitter: How often all four are drawn, in random order.
        grey: How often a view loses its colour.
        blur: How often it is blurred, 5x5 pixels.
        permute: How often red, green and blue change places, in all views of a set alike: for small
            sets of rendered scenes, whose colours mean nothing.
    """

    brightness: float = 0.3
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter: float = 0.75
    grey: float = 0.05
    blur: float = 0.05
    permute: float = 0.0

    def __post_init__(self) -> None:
        most = {"hue": 0.5}
        for name, value in vars(self).items():
            if not 0 <= value <= most.get(name, 1.0):
                raise UserError(
                    f"data.colour.{name} is {value}; expected 0 to {most.get(name, 1.0):g}"
                )


def recoloured(
    images: NDArray[np.uint8], colour: Colour, random_key: RandomKey
) -> NDArray[np.uint8]:
    """Return the views of a set with other colours; the same key gives the same ones.

    Args:
        images: uint8 `(V, H, W, 3)`.
        colour: What may happen.
        random_key: Where random numbers come from.
    """
    drawn = random_key.uniform(len(images) * _DRAWS + 4, Purpose.COLOUR)
    numbers, (whether, *order) = np.reshape(drawn[:-4], (-1, _DRAWS)), drawn[-4:]
    views = torch.from_numpy(np.array(images)).movedim(-1, 1)
    if whether < colour.permute:
        views = views[:, np.argsort(order)]
    changed = [_changed(view, colour, own) for view, own in zip(views, numbers, strict=True)]
    return torch.stack(changed).movedim(1, -1).numpy()


def _changed(image: torch.Tensor, colour: Colour, numbers: NDArray[np.float64]) -> torch.Tensor:
    """Change one view, uint8 `(3, H, W)`."""
    whether, signed, order, sigma = numbers[:3], 2 * numbers[3:7] - 1, numbers[7:11], numbers[11]
    if whether[0] < colour.jitter:
        steps = (
            lambda x: F.adjust_brightness(x, 1 + colour.brightness * signed[0]),
            lambda x: F.adjust_contrast(x, 1 + colour.contrast * signed[1]),
            lambda x: F.adjust_saturation(x, 1 + colour.saturation * signed[2]),
            lambda x: F.adjust_hue(x, colour.hue * signed[3]),
        )
        for step in np.argsort(order):
            image = steps[step](image)
    if whether[1] < colour.grey:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if whether[2] < colour.blur:
        image = F.gaussian_blur(image, [5, 5], [_BLUR[0] + (_BLUR[1] - _BLUR[0]) * sigma])
    return image
