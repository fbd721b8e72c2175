"""Two tables of suites, or two runs, side by side."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from pixio_lightning.cli.bench.suite import last_result
from pixio_lightning.errors import UserError
from pixio_lightning.files.text import parse_json, read_text
from pixio_lightning.training import results


def _read_table(folder: Path) -> tuple[dict[str, dict[str, list[float]]], dict[str, str | None]]:
    path = folder / "table.json" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(
            f"'{folder}' holds no table.json; give the folders of two suites, or of two runs"
        )
    try:
        found, better = parse_json(read_text(path)), {}
        if found.keys() == {"better", "rows"}:  # earlier versions wrote the rows alone
            found, better = found["rows"], dict(found["better"])
        for row in found.values():
            for values in row.values():
                statistics.mean(values)
    except (ValueError, AttributeError, TypeError, OverflowError):
        raise UserError(
            f"'{path}' is no table of a suite: expected numbers by row and metric, as "
            "`pixio bench` writes them"
        ) from None
    return found, better


def _verdict(before: list[float], after: list[float], end: str | None) -> str:
    """Say which is better, and how far they are apart beside what seeds alone do."""
    difference = statistics.mean(after) - statistics.mean(before)
    words = []
    if end is not None:
        words.append("better" if (difference < 0) == (end == "min") else "worse")
    if len(before) > 1 and len(after) > 1:
        error = math.sqrt(sum(statistics.variance(v) / len(v) for v in (before, after)))
        if error:
            count = abs(difference) / error
            words.append(f"{count:.1f} standard errors over seeds{', may be chance' * (count < 2)}")
    return f" ({'; '.join(words)})" if words else ""


def compare(first: Path, second: Path) -> str:
    """Return what differs between two tables, row by row, or between two runs.

    Of tables, also which is better, and by how many standard errors over the seeds.

    Raises:
        UserError: One of them is no folder of a suite or a run, or the runs may not be compared.
    """
    if all((folder / results.FILE).is_file() for folder in (first, second)):
        evaluations = [last_result(folder) for folder in (first, second)]
        if why := results.differences(evaluations):
            raise UserError(f"{first} and {second} may not be compared: {'; '.join(why)}")
        a, b = ({"last": {k: [v] for k, v in e["metrics"].items()}} for e in evaluations)
        better: dict[str, str | None] = {}
    else:
        (a, _), (b, better) = _read_table(first), _read_table(second)
    lines = []
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b:
            lines.append(f"{name}: only in {first if name in a else second}")
            continue
        for metric in (metric for metric in a[name] if metric in b[name]):
            before, after = statistics.mean(a[name][metric]), statistics.mean(b[name][metric])
            if before != after:
                verdict = _verdict(a[name][metric], b[name][metric], better.get(metric))
                lines.append(f"{name}, {metric}: {before:.4f} -> {after:.4f}{verdict}")
    return "\n".join(lines) or "no difference"
