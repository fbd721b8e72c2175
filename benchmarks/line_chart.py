"""A chart of lines with their spread, over a logarithmic axis, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from pages import mean_and_spread

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
    """Draw lines with bars of their spread, and a legend in the order in which they end.

    Colours go by the order of the lines, so that one has the same in several charts.

    Args:
        path: The picture.
        lines: By name.
        x: What the logarithmic axis is.
        y: What the other one is.
    """
    figure = Figure(figsize=(9.6, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=_COLOURS)
    bars = [
        axes.errorbar(*line[:2], line.spread, label=name, marker="o", capsize=3)
        for name, line in lines.items()
    ]
    ticks = sorted({value for line in lines.values() for value in line.x})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    ends = sorted(zip(bars, lines.values(), strict=True), key=lambda pair: -pair[1].y[-1])
    figure.legend(handles=[bar for bar, _ in ends], loc="outside right upper", frameon=False)
    figure.savefig(path)
