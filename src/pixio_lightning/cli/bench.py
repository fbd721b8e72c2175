"""`pixio bench SUITE`: runs of recipes, their results in one table; and two tables side by side.

A suite is a YAML file:

    title: What the table is called.
    metrics: [abs_rel, delta1]          # columns; a row without one of them leaves it empty
    baselines: [constant, median_map]   # rows of what predicts without looking
    rows:
      random-init backbone:
        fit: depth/demo                  # a recipe; `validate` evaluates it untrained
        set: {model.backbone.weights: random}
        seeds: [0, 1, 2]

A row's seeds set `seed_everything`, `data.seed` and `model.seed`, and stand for `{seed}` in what it
sets. Finished runs are not run again. The result is that of the last step, never the best; below
the table stands which rows of a column may not be compared, if any.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pixio_lightning.errors import UserError, nearest, visible_lines
from pixio_lightning.files import write_text
from pixio_lightning.files.text import parse_json, parse_yaml, read_text
from pixio_lightning.training import results
from pixio_lightning.training.run_folder import read_state

_KEYS = {"title", "metrics", "baselines", "rows"}
_VERBS = ("fit", "validate")
_ROW_KEYS = {*_VERBS, "set", "seeds"}


class Row(NamedTuple):
    """A line of the table: what was run, and the metrics of each of its seeds."""

    name: str
    values: dict[str, list[float]]


def read_suite(path: Path) -> dict[str, Any]:
    """Read a suite.

    Raises:
        UserError: The file is missing, or holds another key than a suite has.
    """
    if not path.is_file():
        names = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"no suite '{path}'{nearest(path.name, names)}")
    text = read_text(path)
    try:
        suite = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"suite '{path}' is not valid YAML: {error}") from None
    if not isinstance(suite, dict) or not isinstance(suite.get("rows"), dict):
        raise UserError(f"suite '{path}' has no rows; expected {', '.join(sorted(_KEYS))}")
    _check(suite, _KEYS, str(path))
    for name, row in suite["rows"].items():
        _check(row, _ROW_KEYS, f"{path}, row {name}")
        if len([verb for verb in _VERBS if verb in row]) != 1:
            raise UserError(f"suite '{path}', row {name}: give fit or validate, a recipe")
    return suite


def _check(values: dict[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"suite {where}: there is no key {key}{nearest(key, known)}")


def run(suite: dict[str, Any], folder: Path, *, words: list[str]) -> tuple[list[Row], list[str]]:
    """Run every row of a suite that has not finished, below `folder`.

    Args:
        suite: As `read_suite` returns it.
        folder: Where the run folders are made.
        words: Options added to every run.

    Returns:
        The table, and what forbids to compare its rows.

    Raises:
        UserError: A run has a mistake, or recorded nothing.
    """
    from pixio_lightning.cli import run as runs

    rows: list[Row] = []
    baselines: dict[str, dict[str, float]] = {}
    lines: list[tuple[str, dict[str, Any]]] = []
    for name, about in suite["rows"].items():
        found: dict[str, list[float]] = {}
        for seed in about.get("seeds", [0]):
            out = folder / f"{name.replace(' ', '-')}-{seed}"
            options = [f"--{k}={_word(v, seed)}" for k, v in about.get("set", {}).items()]
            options += [f"--{k}={seed}" for k in ("seed_everything", "data.seed", "model.seed")]
            if not _has_run(out):
                if _is_first():
                    print(f"{name}, seed {seed}: {out}", flush=True)
                verb = next(verb for verb in _VERBS if verb in about)
                if verb == "validate":
                    options += ["--ckpt_path", "none"]
                runs.main(verb, ["-c", about[verb], "--out", str(out), *options, *words])
            line = _last(out)
            lines.append((name, line))
            for baseline, values in line["baselines"].items():
                baselines[baseline] = baselines.get(baseline, {}) | values
            for metric in suite.get("metrics") or line["metrics"]:
                if metric in line["metrics"]:
                    found.setdefault(metric, []).append(line["metrics"][metric])
        if not found:
            others = ", ".join(lines[-1][1]["metrics"])
            raise UserError(f"row {name} has none of the suite's metrics; it has {others}")
        rows.append(Row(name, found))
    measured = list(dict.fromkeys(metric for row in rows for metric in row.values))
    for metric in suite.get("metrics") or []:
        if metric not in measured:
            known = {name for _, line in lines for name in line["metrics"]}
            raise UserError(f"no row has a metric {metric}{nearest(metric, known)}")
    measured = suite.get("metrics") or measured
    for name in suite.get("baselines", []):
        if name not in baselines:
            raise UserError(f"there is no baseline {name}{nearest(name, baselines)}")
    baseline_rows = [
        Row(
            name.replace("_", " "),
            {metric: [baselines[name][metric]] for metric in measured if metric in baselines[name]},
        )
        for name in suite.get("baselines", [])
    ]
    return [*baseline_rows, *rows], incomparable(lines, measured)


def incomparable(lines: list[tuple[str, dict[str, Any]]], metrics: Iterable[str]) -> list[str]:
    """Return what forbids to compare rows within a column, each thing once.

    Args:
        lines: Names of rows with their evaluations.
        metrics: The columns.
    """
    found = []
    for metric in metrics:
        column = [(name, line) for name, line in lines if metric in line["metrics"]]
        for name, line in column[1:]:
            for why in results.differences([column[0][1], line]):
                found.append(f"{column[0][0]} and {name}: {why}")
    return list(dict.fromkeys(found))


def _has_run(folder: Path) -> bool:
    """Whether a run has finished; one that trains nothing has, once it is evaluated."""
    return bool(read_state(folder).get("finished")) or any(
        line["checkpoint"] == "untrained" for line in results.read(folder)
    )


def _word(value: Any, seed: int) -> str:
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else json.dumps(value)


def _last(folder: Path) -> dict[str, Any]:
    lines = [line for line in results.read(folder) if line["checkpoint"] in ("last", "untrained")]
    if not lines:
        raise UserError(
            f"{folder} holds no result of its last step: data.steps_per_epoch must divide "
            "trainer.max_steps"
        )
    return lines[-1]


def table(rows: list[Row]) -> str:
    """Lay rows out as Markdown: the mean over seeds, and their standard deviation."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.values))
    lines = ["| | " + " | ".join(metrics) + " | seeds |", "|---|" + "---|" * (len(metrics) + 1)]
    for row in rows:
        cells = []
        for values in map(row.values.get, metrics):
            if values is None:
                cells.append("")
                continue
            spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}")
        count = len(next(iter(row.values.values())))
        lines.append(f"| {row.name} | " + " | ".join(cells) + f" | {count} |")
    return "\n".join(lines)


def _is_first() -> bool:
    """Whether this is the first process: all those of a run go through the whole suite."""
    from lightning.pytorch.utilities import rank_zero_only  # slow: after a suite's mistakes

    return rank_zero_only.rank == 0


def main(words: list[str], *, suite: str, out: str | None) -> int:
    """Run a suite, print its table and write it beside the runs."""
    path = Path(suite)
    content = read_suite(path)
    folder = Path(out) if out else Path("runs") / "bench" / path.stem
    rows, warnings = run(content, folder, words=words)
    if not _is_first():
        return 0
    text = f"{content.get('title', path.stem)}\n\n{table(rows)}\n"
    text += "".join(f"\nNot to be compared, {warning}\n" for warning in warnings)
    print(visible_lines("\n" + text))
    write_text(folder / "table.md", text)
    values = {row.name: row.values for row in rows}
    write_text(folder / "table.json", json.dumps(values, indent=1) + "\n")
    print(f"written: {folder / 'table.md'}")
    return 0


def _read_table(folder: Path) -> dict[str, dict[str, list[float]]]:
    path = folder / "table.json" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(
            f"'{folder}' holds no table.json; give the folders of two suites, or of two runs"
        )
    try:
        found = parse_json(read_text(path))
        for row in found.values():
            for values in row.values():
                statistics.mean(values)
    except (ValueError, AttributeError, TypeError):
        raise UserError(
            f"'{path}' is no table of a suite: expected numbers by row and metric, as "
            "`pixio bench` writes them"
        ) from None
    return found


def compare(first: Path, second: Path) -> str:
    """Return what differs between two tables, row by row, or between two runs.

    Raises:
        UserError: One of them is no folder of a suite or a run, or the runs may not be compared.
    """
    if all((folder / results.FILE).is_file() for folder in (first, second)):
        evaluations = [_last(folder) for folder in (first, second)]
        if why := results.differences(evaluations):
            raise UserError(f"{first} and {second} may not be compared: {'; '.join(why)}")
        a, b = ({"last": {k: [v] for k, v in e["metrics"].items()}} for e in evaluations)
    else:
        a, b = _read_table(first), _read_table(second)
    lines = []
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b:
            lines.append(f"{name}: only in {first if name in a else second}")
            continue
        for metric in (metric for metric in a[name] if metric in b[name]):
            before, after = statistics.mean(a[name][metric]), statistics.mean(b[name][metric])
            if before != after:
                lines.append(f"{name}, {metric}: {before:.4f} -> {after:.4f}")
    return "\n".join(lines) or "no difference"
