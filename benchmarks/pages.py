"""Results kept line by line as JSON, and pages whose tables a script fills from them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pixio_lightning.files import add_line

_BEGIN, _END = "<!-- table -->\n", "<!-- /table -->\n"


def stored(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results; none if it is not there yet.

    One that a kill has cut short is left out.
    """
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def keep(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a file of results."""
    add_line(path, json.dumps(line))


def grouped(
    lines: Iterable[dict[str, Any]], *names: str
) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return lines by their values under names, in the order in which these first come."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[name] for name in names), []).append(line)
    return groups


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Return the mean and the sample's deviation, which of one value is 0."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if values[1:] else 0.0


def said(values: list[float]) -> str:
    """Write values as a cell of a table: their mean, and the deviation of several."""
    mean, spread = mean_and_spread(values)
    return f"{mean:.3f} +- {spread:.3f}" if values[1:] else f"{mean:.3f}"


def fill(page: Path, lines: Iterable[str]) -> None:
    """Put lines between the marks of a page; one that is not there yet is begun with them."""
    text = page.read_text() if page.exists() else _BEGIN + _END
    before, after = text.split(_BEGIN)[0], text.split(_END)[1]
    page.write_text(before + _BEGIN + "".join(f"{line}\n" for line in lines) + _END + after)
