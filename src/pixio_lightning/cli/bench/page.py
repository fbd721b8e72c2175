"""A suite's result as one page for a browser, which needs no other file and no network."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from pixio_lightning.cli.bench.suite import Outcome
from pixio_lightning.cli.bench.tables import ARROWS, Row, best_means, cell, seeds, spread

_ENDS = {"min": "lower is better", "max": "higher is better", None: ""}
_PUBLISHED = " In italics, hatched: figures of others; † marks what was not measured alike."
_HATCH = (
    '<svg width="0" height="0" aria-hidden="true"><defs><pattern id="hatch" width="6" height="6" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect class="hatch" width="3" '
    'height="6"/></pattern></defs></svg>'
)
_BAR, _GAP, _LEFT, _WIDTH = 22, 10, 250, 420  # of a chart, in pixels


def page(title: str, outcome: Outcome, better: Mapping[str, str | None], *, folder: Path) -> str:
    """Return the page: a table that sorts, a chart of every metric, and what was evaluated.

    Args:
        title: Of the suite.
        outcome: What came of it.
        better: Which end of a metric is better, where one is.
        folder: Where the page will lie; pictures and curves are linked from there.
    """
    rows = outcome.rows
    published = any(row.published for row in rows)
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.values))
    charts = [_chart(m, better.get(m), outcome) for m in metrics]
    warnings = [f'<p class="warn">Not to be compared, {escape(w)}</p>' for w in outcome.warnings]
    licences = {
        str(one.line["backbone"].get("licence"))
        for one in outcome.evaluations
        if isinstance(one.line.get("backbone"), dict)
    }
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<p class="soft">Mean over seeds, and their standard deviation. '
        "Grey: what predicts without looking. A heading sorts."
        f"{_PUBLISHED if published else ''}</p>",
        *warnings,
        f'<div class="scroll">{_table(rows, metrics, better, outcome.baselines)}</div>',
        *(f'<p class="soft">{escape(note)}</p>' for note in outcome.notes),
        *charts,
        "<h2>What was evaluated</h2>",
        *(f"<p>{escape(text)}</p>" for text in outcome.about),
        f"<p>Licence of the weights: {escape('; '.join(sorted(licences)) or 'not known')}</p>",
        "<h2>Runs</h2>",
        f'<div class="scroll">{_runs(outcome, folder)}</div>',
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_file('page.css')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join([*([_HATCH] if published else []), *parts])
        + f"\n</main>\n<script>\n{_file('page.js')}</script>\n</body>\n</html>\n"
    )


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _table(
    rows: list[Row], metrics: list[str], better: Mapping[str, str | None], baselines: int
) -> str:
    names = ["row", *(m + ARROWS[better.get(m)] for m in metrics), "seeds"]
    heads = [f'<th scope="col"><button>{escape(name)}</button></th>' for name in names]
    best = best_means(rows, better)
    lines = []
    for number, row in enumerate(rows):
        cells = [f"<td>{escape(row.name)}</td>"]
        for metric in metrics:
            values = row.values.get(metric)
            if values is None:
                cells.append('<td data-value=""></td>')
                continue
            mean = statistics.mean(values)
            kind = ' class="best"' if mean == best.get(metric) and not row.published else ""
            cells.append(f'<td{kind} data-value="{mean!r}">{cell(row, metric, "±")}</td>')
        cells.append(f'<td data-value="{seeds(row)}">{seeds(row)}</td>')
        lines.append(f'<tr class="{_kind(row, number, baselines)}">{"".join(cells)}</tr>')
    return f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _kind(row: Row, number: int, baselines: int) -> str:
    return "paper" if row.published else "base" if number < baselines else "ours"


def _interval(row: Row, metric: str, outcome: Outcome) -> tuple[float, float] | None:
    """Return the ends of a bar's whisker: over seeds, or that the evaluation itself gives."""
    values = row.values[metric]
    mean = statistics.mean(values)
    if len(values) > 1:
        deviation = spread(values)
        return (mean - deviation, mean + deviation) if math.isfinite(deviation) else None
    for one in outcome.evaluations:
        if one.row == row.name:
            ends = [one.line["metrics"].get(f"{metric}_{end}") for end in ("low", "high")]
            return (ends[0], ends[1]) if None not in ends else None
    return None


def _chart(metric: str, end: str | None, outcome: Outcome) -> str:
    """Draw a bar for each row that has a metric, from zero, with every seed as a dot."""
    rows = [
        (number, row, [v for v in row.values[metric] if math.isfinite(v)])
        for number, row in enumerate(outcome.rows)
        if metric in row.values
    ]
    rows = [entry for entry in rows if entry[2]]
    if not rows:
        return ""
    ends = {number: _interval(row, metric, outcome) for number, row, _ in rows}
    reach = [v for _, _, values in rows for v in values]
    reach += [v for pair in ends.values() if pair for v in pair if math.isfinite(v)]
    low, high = min(0.0, *reach), max(0.0, *reach)
    scale = _WIDTH / ((high - low) or 1)
    zero = _LEFT - low * scale
    shapes = []
    for line, (number, row, values) in enumerate(rows):
        mean, y = statistics.mean(values), line * (_BAR + _GAP) + _GAP
        middle, right = y + _BAR / 2, zero + mean * scale
        kind = _kind(row, number, outcome.baselines)
        label, width = escape(_short(row.name)), abs(right - zero)
        shapes += [
            f'<text x="{_LEFT - 10}" y="{middle + 5:.1f}" text-anchor="end">{label}</text>',
            f'<rect class="{kind}" x="{min(zero, right):.1f}" y="{y}" height="{_BAR}" '
            f'width="{width:.1f}"/>',
        ]
        shown = [right]
        if pair := ends[number]:
            a, b = (zero + v * scale for v in pair)
            shapes.append(
                f'<line class="mark" x1="{a:.1f}" x2="{b:.1f}" y1="{middle}" y2="{middle}"/>'
            )
            shown += [a, b]
        if len(values) > 1:
            shapes += [
                f'<circle class="dot" cx="{zero + v * scale:.1f}" cy="{middle}" r="2.5"/>'
                for v in values
            ]
        shapes.append(f'<text x="{max(shown) + 8:.1f}" y="{middle + 5:.1f}">{mean:.4g}</text>')
    height = len(rows) * (_BAR + _GAP) + _GAP
    name = f"{metric} of every row{', ' + _ENDS[end] if end else ''}"
    return (
        f'<h2>{escape(metric)} <span class="soft">{_ENDS[end]}</span></h2>'
        f'<svg role="img" aria-label="{escape(name)}" viewBox="0 0 {_LEFT + _WIDTH + 80} {height}" '
        f'width="{_LEFT + _WIDTH + 80}">{"".join(shapes)}</svg>'
    )


def _short(name: str) -> str:
    return name if len(name) < 34 else name[:32] + "…"


def _runs(outcome: Outcome, folder: Path) -> str:
    """List the runs, with links to their last pictures and their metrics."""
    lines = []
    for one in outcome.evaluations:
        pictures = sorted((one.folder / "panels").glob("*.png"))[-1:]
        files = [*pictures, *(one.folder / n for n in ("metrics.csv", "config.yaml"))]
        links = [
            f'<a href="{escape(_relative(path, folder))}">{escape(path.name)}</a>'
            for path in files
            if path.exists()
        ]
        seed, commit = one.line.get("seed") or {}, one.line.get("commit") or ""
        cells = [one.row, str(seed.get("everything", "")), str(one.line["steps"]), str(commit)]
        cells = [f"<td>{escape(cell)}</td>" for cell in cells] + [f"<td>{' '.join(links)}</td>"]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    names = ("row", "seed", "steps", "commit", "files")
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _relative(path: Path, folder: Path) -> str:
    return quote(os.path.relpath(path, folder).replace(os.sep, "/"))
