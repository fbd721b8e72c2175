"""`pixio bench SUITE`: runs of recipes, their results in one table; and two tables side by side.

A suite is a YAML file:

    title: What the table is called.
    metrics: [abs_rel, delta1]          # columns
    baselines: [constant, median_map]   # rows of what predicts without looking
    rows:
      random-init backbone:
        fit: depth/demo                  # a recipe
        set: {model.backbone.weights: random}
        seeds: [0, 1, 2]

A row's seeds set `seed_everything`, `data.seed` and `model.seed`, and stand for `{seed}` in what it
sets. Finished runs are not run again.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pixio_lightning import record
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.run_folder import read_state, write_atomically

_KEYS = {"title", "metrics", "baselines", "rows"}
_ROW_KEYS = {"fit", "set", "seeds"}


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
    try:
        suite = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(
            f"suite '{path}' is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(suite, dict) or not isinstance(suite.get("rows"), dict):
        raise UserError(f"suite '{path}' has no rows; expected {', '.join(sorted(_KEYS))}")
    _check(suite, _KEYS, str(path))
    for name, row in suite["rows"].items():
        _check(row, _ROW_KEYS, f"{path}, row {name}")
        if "fit" not in row:
            raise UserError(f"suite '{path}', row {name}: give fit, a recipe")
    return suite


def _check(values: dict[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"suite {where}: there is no key {key}{nearest(key, known)}")


def run(suite: dict[str, Any], folder: Path, *, words: list[str]) -> list[Row]:
    """Run every row of a suite that has not finished, below `folder`; return the table.

    Args:
        suite: As `read_suite` returns it.
        folder: Where the run folders are made.
        words: Options added to every run.

    Raises:
        UserError: A run has a mistake, or recorded nothing.
    """
    from pixio_lightning import run as runs

    rows, cheap = [], {}
    for name, about in suite["rows"].items():
        found: dict[str, list[float]] = {}
        for seed in about.get("seeds", [0]):
            out = folder / f"{name.replace(' ', '-')}-{seed}"
            options = [f"--{k}={_word(v, seed)}" for k, v in about.get("set", {}).items()]
            options += [f"--{k}={seed}" for k in ("seed_everything", "data.seed", "model.seed")]
            if not read_state(out).get("finished"):
                print(f"{name}, seed {seed}: {out}", flush=True)
                runs.main("fit", ["-c", about["fit"], "--out", str(out), *options, *words])
            line = _last(out)
            cheap = line["cheap_baselines"]
            for metric in suite.get("metrics") or line["metrics"]:
                if metric not in line["metrics"]:
                    hint = nearest(metric, line["metrics"])
                    raise UserError(f"{out} has no metric {metric}{hint}")
                found.setdefault(metric, []).append(line["metrics"][metric])
        rows.append(Row(name, found))
    for name in suite.get("baselines", []):
        if name not in cheap:
            raise UserError(f"there is no baseline {name}{nearest(name, cheap)}")
    looks_not = [
        Row(name.replace("_", " "), {metric: [cheap[name][metric]] for metric in rows[0].values})
        for name in suite.get("baselines", [])
    ]
    return [*looks_not, *rows]


def _word(value: Any, seed: int) -> str:
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else json.dumps(value)


def _last(folder: Path) -> dict[str, Any]:
    lines = [line for line in record.read(folder) if line["checkpoint"] == "last"]
    if not lines:
        raise UserError(
            f"{folder} holds no result of its last step: data.steps_per_epoch must divide "
            "trainer.max_steps"
        )
    return lines[-1]


def table(rows: list[Row]) -> str:
    """Lay rows out as Markdown: the mean over seeds, and their standard deviation."""
    metrics = list(rows[0].values)
    lines = ["| | " + " | ".join(metrics) + " | seeds |", "|---|" + "---|" * (len(metrics) + 1)]
    for row in rows:
        cells = []
        for values in row.values.values():
            spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}")
        count = len(next(iter(row.values.values())))
        lines.append(f"| {row.name} | " + " | ".join(cells) + f" | {count} |")
    return "\n".join(lines)


def main(words: list[str], *, suite: str, out: str | None) -> int:
    """Run a suite, print its table and write it beside the runs."""
    path = Path(suite)
    content = read_suite(path)
    folder = Path(out) if out else Path("runs") / "bench" / path.stem
    rows = run(content, folder, words=words)
    text = f"{content.get('title', path.stem)}\n\n{table(rows)}\n"
    print("\n" + text)
    write_atomically(folder / "table.md", text)
    results = {row.name: row.values for row in rows}
    write_atomically(folder / "table.json", json.dumps(results, indent=1) + "\n")
    print(f"written: {folder / 'table.md'}")
    return 0


def compare(first: Path, second: Path) -> str:
    """Return what differs between two tables, row by row.

    Raises:
        UserError: One of them is no folder of a suite.
    """
    tables = []
    for folder in (first, second):
        path = folder / "table.json" if folder.is_dir() else folder
        if not path.is_file():
            raise UserError(f"'{folder}' holds no table.json; give the folders of two suites")
        tables.append(json.loads(path.read_text()))
    a, b = tables
    lines = []
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b:
            lines.append(f"{name}: only in {first if name in a else second}")
            continue
        for metric in a[name].keys() & b[name].keys():
            before, after = statistics.mean(a[name][metric]), statistics.mean(b[name][metric])
            if before != after:
                lines.append(f"{name}, {metric}: {before:.4f} -> {after:.4f}")
    return "\n".join(lines) or "no difference"
