"""The picture of a curation: histograms, and the hardest and easiest images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pixio_lightning.data.decode import BadImage, decode_pixels
from pixio_lightning.data.shards.keep_rule import BINS, MAX_LOSS

_WIDTH, _THUMB, _COLUMNS, _PAD = 1086, 84, 12, 6
_GREY, _BLUE, _RED = (205, 205, 205), (52, 101, 164), (200, 60, 50)


def draw(
    path: Path,
    *,
    losses: NDArray[np.int64],
    kept: NDArray[np.int64],
    entropies: NDArray[np.int64],
    min_entropy: float,
    hardest: list[tuple[bytes, str]],
    easiest: list[tuple[bytes, str]],
) -> None:
    """Write the picture as PNG.

    Args:
        path: The file.
        losses: Eligible images by loss, `(BINS,)` over [0, MAX_LOSS].
        kept: Those of them that one pass keeps.
        entropies: Images by entropy, 80 bins over 0 to 8 bits.
        min_entropy: The threshold.
        hardest: Encoded images and what to write under them.
        easiest: The same.
    """
    rows = [-(-max(1, len(images)) // _COLUMNS) for images in (hardest, easiest)]
    height = 300 + sum(30 + count * (_THUMB + 20) for count in rows) + 20
    sheet = Image.new("RGB", (_WIDTH, height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    small = ImageFont.load_default(11)

    # To the bin that holds the 99.9th percentile: a few outliers must not squeeze the rest.
    total = np.cumsum(losses)
    last = int(np.searchsorted(total, 0.999 * total[-1])) + 1
    width = max(1, -(-last // 64))
    top = width * 64 / BINS * MAX_LOSS
    grouped = [_regroup(values, width) for values in (losses, kept)]
    box = (50, 40, _WIDTH // 2 - 20, 250)
    _bars(pen, box, grouped[0], _GREY, scale=grouped[0].max())
    _bars(pen, box, grouped[1], _BLUE, scale=grouped[0].max())
    _axis(pen, box, small, top, "reconstruction loss")
    pen.text((50, 12), "eligible images by loss", "black", font)
    pen.text((250, 12), "kept in one pass", _BLUE, font)
    box = (_WIDTH // 2 + 40, 40, _WIDTH - 20, 250)
    _bars(pen, box, entropies, _GREY, scale=max(1, entropies.max()))
    _axis(pen, box, small, 8.0, "entropy of the colours, bits")
    pen.text((box[0], 12), "all images by entropy", "black", font)
    pen.text((box[0] + 180, 12), f"dropped up to {min_entropy:g}", _RED, font)
    x = box[0] + (box[2] - box[0]) * min(1.0, max(0.0, min_entropy / 8))
    pen.line([(x, box[1]), (x, box[3])], _RED, 2)

    y = 300
    for title, images, count in (
        ("hardest", hardest, rows[0]),
        ("easiest", easiest, rows[1]),
    ):
        pen.text((_PAD, y), f"{title} (loss)", "black", font)
        y += 24
        for at, (data, text) in enumerate(images):
            place = (_PAD + at % _COLUMNS * (_THUMB + _PAD), y + at // _COLUMNS * (_THUMB + 20))
            sheet.paste(_thumbnail(data), place)
            pen.text((place[0], place[1] + _THUMB + 2), text, "black", small)
        y += count * (_THUMB + 20) + 6
    sheet.save(path)


def _regroup(values: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    padded = np.zeros(-(-len(values) // width) * width, np.int64)
    padded[: len(values)] = values
    return padded.reshape(-1, width).sum(axis=1)[:64]


def _bars(
    pen: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    values: NDArray[np.int64],
    colour: tuple[int, int, int],
    *,
    scale: int,
) -> None:
    left, top, right, bottom = box
    step = (right - left) / len(values)
    for at, value in enumerate(values):
        if value:
            high = bottom - (bottom - top) * float(value) / scale
            pen.rectangle([left + at * step, high, left + (at + 1) * step - 1, bottom], colour)


def _axis(
    pen: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    end: float,
    title: str,
) -> None:
    left, _, right, bottom = box
    pen.line([(left, bottom), (right, bottom)], "black")
    for part in range(5):
        x = left + (right - left) * part / 4
        pen.line([(x, bottom), (x, bottom + 4)], "black")
        pen.text((x, bottom + 6), f"{end * part / 4:.2g}", "black", font, anchor="ma")
    pen.text(((left + right) / 2, bottom + 24), title, "black", font, anchor="ma")


def _thumbnail(data: bytes) -> Image.Image:
    try:
        image = Image.fromarray(decode_pixels(data, max_megapixels=math.inf))
    except BadImage:  # it was readable when it was scored
        return Image.new("RGB", (_THUMB, _THUMB), _GREY)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((_THUMB, _THUMB), box=(left, top, left + side, top + side))
