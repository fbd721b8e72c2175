"""A chart of lines with their spread, over a logarithmic axis, as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from pages import mean_and_spread
from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 960, 500, 70, 60, 40, 300
# Told apart by those who see no red or green, too (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


class Line(NamedTuple):
    """Points of a line: where, how high, and how far seeds differ."""

    x: list[float]
    y: list[float]
    spread: list[float]

    def add(self, x: float, values: list[float]) -> None:
        """Add the point of what seeds gave."""
        for part, number in zip(self, (x, *mean_and_spread(values)), strict=True):
            part.append(number)


def draw(path: Path, lines: Mapping[str, Line], *, x: str, y: str) -> None:
    """Draw lines with bars of their spread, and their names at the height where they end.

    Colours go by the order of the lines, so that one has the same in several charts.

    Args:
        path: The picture.
        lines: By name.
        x: What the logarithmic axis is.
        y: What the other one is.
    """
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    xs = sorted({value for line in lines.values() for value in line.x})
    low = min(v - s for line in lines.values() for v, s in zip(line.y, line.spread, strict=True))
    high = max(v + s for line in lines.values() for v, s in zip(line.y, line.spread, strict=True))
    step = _step((high - low) / 5 or 1.0)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    first, last = math.log(xs[0]), math.log(xs[-1])

    def at(value: float, number: float) -> tuple[float, float]:
        share = (math.log(value) - first) / (last - first or 1)
        height = (number - low) / (high - low)
        width = _WIDTH - _LEFT - _RIGHT
        return _LEFT + share * width, _HEIGHT - _BOTTOM - height * (_HEIGHT - _BOTTOM - _TOP)

    for i in range(round((high - low) / step) + 1):
        left, top = at(xs[0], low + i * step)
        pen.line((left, top, _WIDTH - _RIGHT, top), "#dddddd")
        pen.text((left - 8, top), f"{low + i * step:.3g}", "#444444", font, anchor="rm")
    for value in xs:
        left, top = at(value, low)
        pen.text((left, top + 8), f"{value:g}", "#444444", font, anchor="mt")
    pen.text((_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _HEIGHT - 16), x, "black", font, anchor="ms")
    pen.text((6, 4), y, "black", font)
    ends: list[float] = []
    colours = dict(zip(lines, cycle(_COLOURS), strict=False))
    for name, line in sorted(lines.items(), key=lambda item: -item[1].y[-1]):
        colour = colours[name]
        points = [at(value, height) for value, height in zip(line.x, line.y, strict=True)]
        pen.line(points, colour, 3)
        for (left, top), value, height, spread in zip(points, *line, strict=True):
            upper, lower = at(value, height + spread)[1], at(value, height - spread)[1]
            pen.line((left, upper, left, lower), colour, 1)
            pen.ellipse((left - 4, top - 4, left + 4, top + 4), colour)
        end = max(points[-1][1], ends[-1] + 18 if ends else 0)  # names do not lie on each other
        ends.append(end)
        pen.text((_WIDTH - _RIGHT + 16, end), name, colour, font, anchor="lm")
    canvas.save(path)


def _step(least: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least so much."""
    power = 10 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * 0.999)
