"""A table of means over seeds, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

ARROWS = {"min": " ↓", "max": " ↑", None: ""}  # by which end of a metric is better


class Row(NamedTuple):
    """A line of the table: what was run, and the metrics of each of its seeds, or of others."""

    name: str
    values: dict[str, list[float]]
    published: bool = False


def best_means(rows: list[Row], better: Mapping[str, str | None]) -> dict[str, float]:
    """Return the best mean over seeds of every metric that has a better end and several rows."""
    best = {}
    rows = [row for row in rows if not row.published]
    for metric, end in better.items():
        means = [statistics.mean(row.values[metric]) for row in rows if metric in row.values]
        means = [mean for mean in means if math.isfinite(mean)]
        if end and len(means) > 1:
            best[metric] = min(means) if end == "min" else max(means)
    return best


def spread(values: list[float]) -> float:
    """Return the standard deviation over seeds; NaN where a value is none or infinite."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def cell(row: Row, metric: str, sign: str = "+-") -> str:
    """Return the mean of a metric and its standard deviation; others' figures as stated."""
    values = row.values[metric]
    if row.published:
        return f"{values[0]:g}"
    deviation = f" {sign} {spread(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def seeds(row: Row) -> str:
    """Return the number of seeds of a row, nothing where others have measured it."""
    return "" if row.published else str(len(next(iter(row.values.values()), [])))


def _cells(
    rows: list[Row], better: Mapping[str, str | None], bold: str = "**{}**"
) -> list[list[str]]:
    """Return the cells of each row: mean over seeds and standard deviation, the best in bold."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.values))
    best = best_means(rows, better)
    found = []
    for row in rows:
        cells = [row.name]
        for metric in metrics:
            values = row.values.get(metric)
            if values is None:
                cells.append("")
                continue
            mean = statistics.mean(values)
            cells.append(cell(row, metric))
            if mean == best.get(metric) and not row.published:
                cells[-1] = bold.format(cells[-1])
        found.append([*cells, seeds(row)])
    return [["", *(m + ARROWS[better.get(m)] for m in metrics), "seeds"], *found]


def table(rows: list[Row], better: Mapping[str, str | None] = {}) -> str:  # noqa: B006 (read only)
    """Lay rows out as Markdown: the mean over seeds, and their standard deviation."""
    found = _cells(rows, better)
    head, *body = ["| " + " | ".join(cells) + " |" for cells in found]
    head = head.replace("|  |", "| |", 1)
    return "\n".join([head, "|---" * len(found[0]) + "|", *body])


def latex(rows: list[Row], better: Mapping[str, str | None]) -> str:
    """Lay rows out for the package booktabs."""
    signs = {"+-": "$\\pm$", "†": "$\\dagger$", "↓": "$\\downarrow$", "↑": "$\\uparrow$"}
    signs |= {c: f"\\{c}" for c in "_%&#"}
    found = _cells(rows, better, bold="\\textbf{{{}}}")
    texts = [" & ".join(_replaced(cell, signs) for cell in cells) for cells in found]
    lines = [f"{text} \\\\" for text in texts]
    columns = "l" + "r" * (len(found[0]) - 1)
    body = "\n".join([lines[0], "\\midrule", *lines[1:]])
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def _replaced(text: str, signs: Mapping[str, str]) -> str:
    for sign, written in signs.items():
        text = text.replace(sign, written)
    return text


def as_csv(rows: list[Row]) -> str:
    """Return a line for each value: row, metric, number of the seed in the suite, value."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["row", "metric", "seed", "value"])
    for row in (row for row in rows if not row.published):
        for metric, values in row.values.items():
            lines.writerows([row.name, metric, i, repr(value)] for i, value in enumerate(values))
    return file.getvalue()
