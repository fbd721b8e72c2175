"""Pictures of a run: rows of images under column titles, with colour scales, written as PNG."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pixio_lightning.errors import visible
from pixio_lightning.files import written_aside
from pixio_lightning.training.precision import full_precision

_SIDE = 192  # smallest side a picture is shown at, in pixels
_MOST = 512  # greatest side
ON_A_SHEET = 24  # pictures on a contact sheet, at most
_SAMPLED = 1 << 20  # values that a quantile is taken of, at most; torch refuses 16 million
_GAP = 6
_HEAD = 24
_BAR = 120  # length of a colour scale
_CELL = 704  # width of a picture on a contact sheet
_SWATCH = 12  # side of a colour beside its name

# Colours from low to high, even steps apart; lightness rises or falls throughout, so that the
# order shows in grey too.
_PALETTES: dict[str, list[tuple[int, int, int]]] = {
    "depth": [
        (255, 244, 168),
        (253, 174, 97),
        (221, 81, 90),
        (140, 42, 128),
        (62, 28, 110),
        (13, 11, 48),
    ],
    "error": [
        (0, 0, 0),
        (78, 18, 60),
        (170, 42, 52),
        (236, 116, 36),
        (252, 200, 72),
        (255, 255, 230),
    ],
}


class Legend(NamedTuple):
    """A colour scale: what it shows, its ends and unit, and the name of its palette."""

    title: str
    low: float
    high: float
    unit: str
    palette: str


class Swatch(NamedTuple):
    """A colour that stands for something, and its name."""

    name: str
    colour: tuple[int, int, int]


class Panel(NamedTuple):
    """Pictures in rows.

    Attributes:
        rows: uint8 `(3, H, W)` pictures, as many in each row as there are titles.
        titles: One for each column.
        caption: A line below.
        legends: Colour scales below.
        swatches: Colours with their names below, in as many lines as they need.
    """

    rows: list[list[Tensor]]
    titles: list[str]
    caption: str = ""
    legends: tuple[Legend, ...] = ()
    swatches: tuple[Swatch, ...] = ()


def colour(values: Tensor, palette: str) -> Tensor:
    """Show numbers as colours.

    Args:
        values: `(H, W)`, 0 for the first colour of the palette to 1 for its last; NaN is grey.
        palette: "depth" (near is light) or "error" (none is black).

    Returns:
        uint8 `(3, H, W)`.
    """
    anchors = torch.tensor(_PALETTES[palette], dtype=torch.float32)
    at = values.detach().float().cpu().nan_to_num(0).clamp(0, 1) * (len(anchors) - 1)
    low = at.floor().long().clamp_max(len(anchors) - 2)
    share = (at - low)[..., None]
    colours = anchors[low] * (1 - share) + anchors[low + 1] * share
    colours[values.isnan().cpu()] = 128
    return colours.round().to(torch.uint8).movedim(-1, 0)


def class_colours(count: int) -> Tensor:
    """Return a colour for each of `count` classes, uint8 `(count, 3)`; a class keeps its colour.

    Hues are a golden section of the circle apart. Where one comes near an earlier one, 8 or 13
    indices on, it is of another of three tones: vivid, dark and pale.
    """
    tones = ((0.75, 0.95), (1.0, 0.55), (0.35, 1.0))
    colours = [colorsys.hsv_to_rgb(i * 0.618034 % 1, *tones[i % len(tones)]) for i in range(count)]
    return (torch.tensor(colours) * 255).round().to(torch.uint8)


def paint(labels: Tensor, colours: Tensor) -> Tensor:
    """Show class indices as colours.

    Args:
        labels: `(H, W)`; an index beyond the colours is grey.
        colours: uint8 `(K, 3)`.

    Returns:
        uint8 `(3, H, W)`.
    """
    grey = torch.full_like(colours[:1], 128)
    indices = labels.detach().cpu().long().clamp_max(len(colours))
    return torch.cat([colours, grey])[indices].movedim(-1, 0)


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
    with full_precision(tokens.device):
        # Exact and deterministic, unlike torch.pca_lowrank, and small: C x C.
        _, directions = torch.linalg.eigh(tokens.T @ tokens)
        directions = directions[:, -3:].flip(1)
        # An eigenvector may point either way: its largest entry up, or colours flip between runs.
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        components = tokens @ (directions * largest.sign())
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    components = ((components - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    maps = components.view(len(features), *features.shape[-2:], 3).permute(0, 3, 1, 2)
    return (F.interpolate(maps, tuple(shape[-2:]), mode="nearest") * 255).to(torch.uint8)


def quantile(values: Tensor, share: float) -> float:
    """Return a quantile of numbers of any shape, of evenly spread ones where there are many."""
    flat = values.detach().float().flatten()
    return float(flat[:: -(-len(flat) // _SAMPLED)].quantile(share))


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Return the size that a picture is drawn at: a small one a whole number of times as large."""
    room = _MOST / max(height, width)
    scale = min(-(-_SIDE // min(height, width)), int(room)) if room >= 1 else room
    return max(1, round(height * scale)), max(1, round(width * scale))


def as_shown(picture: Tensor) -> Tensor:
    """Return a picture uint8 `(3, H, W)` on the CPU, a large one at the size that is drawn.

    What is laid over a photograph of 24 megapixels would otherwise take gigabytes.
    """
    size = shown_size(*picture.shape[-2:])
    if size[0] >= picture.shape[-2]:
        return picture.cpu()
    return F.interpolate(picture[None].cpu(), size, mode="bilinear", antialias=True)[0]


def compose(panel: Panel) -> Image.Image:
    """Lay pictures out in a grid; each row has the height of its first picture."""
    sizes = [shown_size(*row[0].shape[-2:]) for row in panel.rows]
    column_width = max(width for _, width in sizes)
    font = ImageFont.load_default(13)
    needed = len(panel.legends) * (_BAR + 220)
    canvas_width = max(len(panel.titles) * (column_width + _GAP) + _GAP, needed)
    lines = _wrapped(panel.swatches, canvas_width, font)
    foot = _HEAD * (bool(panel.caption) + bool(panel.legends) + len(lines))
    canvas_height = sum(height + _GAP for height, _ in sizes) + _HEAD + foot
    canvas = Image.new("RGB", (canvas_width, canvas_height), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(panel.titles):
        draw.text((_GAP + column * (column_width + _GAP), 4), title, "black", font)
    top = _HEAD
    for row, (height, width) in zip(panel.rows, sizes, strict=True):
        for column, picture in enumerate(row):
            array = picture.permute(1, 2, 0).cpu().numpy().astype(np.uint8)
            # Nearest, so that a reader sees the pixels the model works on; a large picture would
            # only glitter.
            larger = array.shape[0] > height
            way = Image.Resampling.BOX if larger else Image.Resampling.NEAREST
            image = Image.fromarray(array).resize((width, height), way)
            canvas.paste(image, (_GAP + column * (column_width + _GAP), top))
        top += height + _GAP
    left = _GAP
    for legend in panel.legends:
        left = _draw_legend(canvas, legend, left, top + 2, font) + 4 * _GAP
    top += _HEAD * bool(panel.legends)
    for line in lines:
        for left, swatch in line:
            draw.rectangle((left, top + 4, left + _SWATCH, top + 4 + _SWATCH), swatch.colour)
            draw.text((left + _SWATCH + _GAP, top + 2), swatch.name, "black", font)
        top += _HEAD
    if panel.caption:
        draw.text((_GAP, canvas_height - _HEAD + 2), panel.caption, "dimgray", font)
    return canvas


def _draw_legend(canvas: Image.Image, legend: Legend, left: int, top: int, font: Any) -> int:
    """Draw a colour scale between its two numbers; return where it ends."""
    draw = ImageDraw.Draw(canvas)
    ramp = colour(torch.linspace(0, 1, _BAR).expand(12, -1), legend.palette)
    bar = Image.fromarray(ramp.permute(1, 2, 0).numpy())
    for piece in (f"{legend.title}  {legend.low:g}", bar, f"{legend.high:g} {legend.unit}"):
        if isinstance(piece, str):
            draw.text((left, top), piece, "black", font)
            left += int(draw.textlength(piece, font)) + _GAP
        else:
            canvas.paste(piece, (left, top + 2))
            left += _BAR + _GAP
    return left


def _wrapped(swatches: Sequence[Swatch], width: int, font: Any) -> list[list[tuple[int, Swatch]]]:
    """Return lines of swatches, each with where it begins, that fit a width."""
    lines: list[list[tuple[int, Swatch]]] = []
    left = width
    for swatch in swatches:
        length = _SWATCH + int(font.getlength(swatch.name)) + 3 * _GAP
        if left + length > width:
            lines.append([])
            left = _GAP
        lines[-1].append((left, swatch))
        left += length
    return lines


def contact_sheet(pictures: Mapping[str, Path]) -> Image.Image:
    """Lay pictures in files out in rows of up to three, each below its label."""
    columns, font = min(3, len(pictures)), ImageFont.load_default(13)
    cells = []
    for label, path in pictures.items():
        with Image.open(path, formats=("PNG",)) as picture:
            picture.thumbnail((_CELL, 2 * _SIDE))
            cells.append((label, picture.copy()))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [_HEAD + _GAP + max(picture.height for _, picture in row) for row in rows]
    sheet = Image.new("RGB", (columns * (_CELL + _GAP), sum(heights)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for row, height in zip(rows, heights, strict=True):
        for column, (label, cell) in enumerate(row):
            left = column * (_CELL + _GAP)
            draw.text((left + _GAP, top + 4), visible(label), "black", font)
            sheet.paste(cell, (left, top + _HEAD))
        top += height
    return sheet


def write(path: Path, panel: Panel) -> Image.Image:
    """Compose the pictures and write them to `path`, whole or not at all."""
    image = compose(panel)
    save(path, image)
    return image


def save(path: Path, image: Image.Image) -> None:
    """Write an image as PNG, whole or not at all."""
    with written_aside(path) as aside:
        image.save(aside, format="PNG")
