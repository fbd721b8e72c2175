"""Two tables of suites, or two runs, side by side."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixio_lightning.cli.bench.finished import ended_early, last_result
from pixio_lightning.cli.bench.suite import Outcome
from pixio_lightning.cli.bench.tables import spread
from pixio_lightning.errors import UserError
from pixio_lightning.files.text import parse_json, read_text
from pixio_lightning.training import results


def stored(outcome: Outcome, better: Mapping[str, str | None], title: str) -> str:
    """Return the text of table.json: the table, and what has to agree in rows to be compared."""
    content = {
        "title": title,
        "better": better,
        "rows": {row.name: row.values for row in outcome.rows if not row.published},
        "compared": {one.row: results.compared(one.line) for one in outcome.evaluations},
    }
    return json.dumps(content, indent=1) + "\n"


def _read_table(folder: Path) -> dict[str, Any]:
    path = folder / "table.json" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(
            f"'{folder}' holds no table.json; give the folders of two suites, or of two runs"
        )
    try:
        found = {"better": {}, "compared": {}} | parse_json(read_text(path))
        for row in found["rows"].values():
            for values in row.values():
                statistics.mean(values)
        for facts in dict(found["compared"]).values():
            if not facts.keys() >= {*results.COMPARED}:
                raise TypeError
        found["better"] = dict(found["better"])
    except (ValueError, AttributeError, TypeError, KeyError, OverflowError):
        raise UserError(
            f"'{path}' is no table of a suite: expected numbers by row and metric, as "
            "`pixio bench` writes them"
        ) from None
    return found


def _verdict(before: list[float], after: list[float], end: str | None) -> str:
    """Say which is better, and how far they are apart beside what seeds alone do."""
    difference = statistics.mean(after) - statistics.mean(before)
    if not math.isfinite(difference):
        return " (not both are numbers)"
    words = []
    if end is not None:
        words.append("better" if (difference < 0) == (end == "min") else "worse")
    if len(before) > 1 and len(after) > 1:
        error = math.sqrt(sum(spread(v) ** 2 / len(v) for v in (before, after)))
        if error and math.isfinite(error):
            count = abs(difference) / error
            words.append(f"{count:.1f} standard errors over seeds{', may be chance' * (count < 2)}")
    return f" ({'; '.join(words)})" if words else ""


def compare(first: Path, second: Path) -> str:
    """Return what differs between two tables, row by row, or between two runs.

    Of tables, also which is better, and by how many standard errors over the seeds; but not of rows
    that were evaluated on other data or in another way.

    Raises:
        UserError: One of them is no folder of a suite or a run, or the runs may not be compared, or
            one of them was stopped.
    """
    notes: list[str] = []
    if all((folder / results.FILE).is_file() for folder in (first, second)):
        evaluations = [last_result(folder) for folder in (first, second)]
        if why := results.differences(evaluations):
            raise UserError(f"{first} and {second} may not be compared: {'; '.join(why)}")
        a, b = ({"last": {k: [v] for k, v in e["metrics"].items()}} for e in evaluations)
        better: dict[str, str | None] = {}
        refused: dict[str, list[str]] = {}
        for folder, evaluation in zip((first, second), evaluations, strict=True):
            if early := ended_early(folder, evaluation):
                notes.append(f"{folder}: {early}")
        if apart := results.starts(zip((str(first), str(second)), evaluations, strict=True)):
            notes.append(apart)
        pairs = {"last": evaluations}
    else:
        one, two = _read_table(first), _read_table(second)
        a, b, better = one["rows"], two["rows"], two["better"]
        then, now = one["compared"], two["compared"]
        pairs = {name: [then[name], now[name]] for name in then if name in now}
        refused = {name: why for name, pair in pairs.items() if (why := results.differences(pair))}
    for name, pair in pairs.items():
        told = results.caveats(zip((str(first), str(second)), pair, strict=True))
        notes += [f"{name}: {text}" for text in told]
    lines = []
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b:
            lines.append(f"{name}: only in {first if name in a else second}")
            continue
        if name in refused:
            lines.append(f"{name}: not to be compared: {'; '.join(refused[name])}")
        for metric in (metric for metric in a[name] if metric in b[name]):
            before, after = statistics.mean(a[name][metric]), statistics.mean(b[name][metric])
            if before == after or (math.isnan(before) and math.isnan(after)):
                continue
            verdict = ""
            if name not in refused:
                verdict = _verdict(a[name][metric], b[name][metric], better.get(metric))
            lines.append(f"{name}, {metric}: {before:.4f} -> {after:.4f}{verdict}")
    return "\n".join([*(lines or ["no difference"]), *notes])
