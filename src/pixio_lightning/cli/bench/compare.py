"""Two tables of suites, or two runs, side by side."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pixio_lightning.cli.bench.finished import ended_early, last_result
from pixio_lightning.cli.bench.suite import Evaluation, Outcome, caveats, incomparable
from pixio_lightning.cli.bench.tables import Row, spread
from pixio_lightning.errors import UserError
from pixio_lightning.files.text import parse_json, read_text
from pixio_lightning.training import results


def stored(outcome: Outcome, better: Mapping[str, str | None], title: str, *, folder: Path) -> str:
    """Return the text of table.json: the table, and from which runs it is, below `folder`."""
    rows = [row for row in outcome.rows if not row.published]
    content = {
        "title": title,
        "better": better,
        "rows": {row.name: row.values for row in rows},
        "published": {row.name: row.values for row in outcome.rows if row.published},
        "baselines": outcome.baselines,
        "about": outcome.about,
        "notes": list(outcome.notes),
        "runs": [[one.row, os.path.relpath(one.folder, folder)] for one in outcome.evaluations],
        # Stays where the folders of the runs do not.
        "compared": {one.row: results.compared(one.line) for one in outcome.evaluations},
    }
    return json.dumps(content, indent=1) + "\n"


def _read_table(folder: Path) -> dict[str, Any]:
    path = folder / "table.json" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(
            f"'{folder}' holds no table.json; give the folders of two suites, or of two runs"
        )
    defaults = {"better": {}, "published": {}, "baselines": 0, "about": [], "notes": [], "runs": []}
    defaults["compared"] = {}
    try:
        found = parse_json(read_text(path))
        found = defaults | found
        for row in [*found["rows"].values(), *found["published"].values()]:
            for values in row.values():
                statistics.mean(values)
        for name, run in found["runs"]:
            if not (isinstance(name, str) and isinstance(run, str)):
                raise TypeError
        if not all(isinstance(text, str) for text in [*found["about"], *found["notes"]]):
            raise TypeError
        for facts in dict(found["compared"]).values():
            if not facts.keys() >= {*results.COMPARED}:
                raise TypeError
        found |= {"better": dict(found["better"]), "baselines": int(found["baselines"])}
    except (ValueError, AttributeError, TypeError, KeyError, OverflowError):
        raise UserError(
            f"'{path}' is no table of a suite: expected numbers by row and metric, as "
            "`pixio bench` writes them"
        ) from None
    return found


def together(first: Path, second: Path) -> tuple[str, Outcome, dict[str, str | None]] | None:
    """Return title, outcome and columns of two suites as one; None of two runs.

    Each row stands there as of the first and as of the second, unless it is the same in both, as
    baselines are.
    """
    if not all((folder / "table.json").is_file() for folder in (first, second)):
        return None
    tables = [_read_table(folder) for folder in (first, second)]
    labels = [str(folder) for folder in (first, second)]
    heads: list[Row] = []
    rows: list[Row] = []
    evaluations: list[Evaluation] = []
    names = list(dict.fromkeys(name for table in tables for name in table["rows"]))
    counts = [list(table["rows"])[: table["baselines"]] for table in tables]
    for name in names:
        held = [(label, t) for label, t in zip(labels, tables, strict=True) if name in t["rows"]]
        same = len(held) == 2 and held[0][1]["rows"][name] == held[1][1]["rows"][name]
        into = heads if any(name in count for count in counts) else rows
        if same:
            into.append(Row(name, held[0][1]["rows"][name]))
            continue
        into += [Row(f"{name} ({label})", t["rows"][name]) for label, t in held]
    for label, folder, table in zip(labels, (first, second), tables, strict=True):
        for name, run in table["runs"]:
            with suppress(UserError, OSError):  # of a run that is gone
                line = _as_in_table(last_result(folder / run), table["rows"].get(name, {}))
                shown = next((r.name for r in rows if r.name == f"{name} ({label})"), name)
                evaluations.append(Evaluation(shown, folder / run, line))
    published = {n: v for table in tables for n, v in table["published"].items()}
    rows += [Row(name, values, published=True) for name, values in published.items()]
    about, notes = (
        list(dict.fromkeys(x for t in tables for x in t[k])) for k in ("about", "notes")
    )
    better = tables[0]["better"] | tables[1]["better"]
    metrics = list(better) or list(dict.fromkeys(m for row in rows for m in row.values))
    lines = [(one.row, one.line) for one in evaluations]
    notes += [text for text in caveats(lines, metrics) if text not in notes]
    outcome = Outcome(
        [*heads, *rows], len(heads), about, incomparable(lines, metrics), evaluations, notes
    )
    return f"{labels[0]} beside {labels[1]}", outcome, better


def _as_in_table(line: dict[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result with its figures under the columns `DATA METRIC` of its row, if it has some.

    As figures of two sets of data differ, a suite's columns say whose they are.
    """
    data = next((column.rpartition(" ")[0] for column in row if column not in line["metrics"]), "")
    return line | {"metrics": {f"{data} {k}".lstrip(): v for k, v in line["metrics"].items()}}


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
