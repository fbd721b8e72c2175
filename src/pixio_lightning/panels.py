"""Pictures of a run: rows of images under column titles, written as PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SIDE = 192  # smallest side a picture is shown at, in pixels
_GAP = 6
_HEAD = 24


def principal_components(features: Tensor, shape: Sequence[int]) -> Tensor:
    """Show feature maps as colours: their first three principal components over the batch.

    Args:
        features: `(B, C, h, w)`.
        shape: `(B, 3, H, W)` of the pictures wanted.

    Returns:
        uint8 `(B, 3, H, W)`.
    """
    tokens = features.float().permute(0, 2, 3, 1).flatten(0, 2)
    tokens = tokens - tokens.mean(dim=0)
    # Exact and deterministic, unlike torch.pca_lowrank, and small: C x C.
    _, directions = torch.linalg.eigh(tokens.T @ tokens)
    components = tokens @ directions[:, -3:].flip(1)
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    components = ((components - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    maps = components.view(len(features), *features.shape[-2:], 3).permute(0, 3, 1, 2)
    return (F.interpolate(maps, tuple(shape[-2:]), mode="nearest") * 255).to(torch.uint8)


def compose(
    rows: Sequence[Sequence[Tensor]], titles: Sequence[str], caption: str = ""
) -> Image.Image:
    """Lay pictures out in a grid.

    Args:
        rows: uint8 `(3, H, W)` pictures, as many in each row as there are titles.
        titles: One for each column.
        caption: A line below.
    """
    height, width = rows[0][0].shape[-2:]
    scale = max(1, -(-_SIDE // min(height, width)))
    height, width = height * scale, width * scale
    foot = _HEAD if caption else 0
    size = (len(titles) * (width + _GAP) + _GAP, len(rows) * (height + _GAP) + _HEAD + foot)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)
    for column, title in enumerate(titles):
        draw.text((_GAP + column * (width + _GAP), 4), title, "black", font)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            array = picture.permute(1, 2, 0).cpu().numpy().astype(np.uint8)
            # Nearest, so that a reader sees the pixels the model works on.
            image = Image.fromarray(array).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(image, (_GAP + j * (width + _GAP), _HEAD + i * (height + _GAP)))
    if caption:
        draw.text((_GAP, size[1] - foot + 2), caption, "dimgray", font)
    return canvas


def write(
    path: Path, rows: Sequence[Sequence[Tensor]], titles: Sequence[str], caption: str = ""
) -> Image.Image:
    """Compose the pictures and write them to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = compose(rows, titles, caption)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    image.save(aside, format="PNG")
    os.replace(aside, path)
    return image
