"""Suites of `pixio bench`: runs of recipes, whose results stand in one table.

A suite is a YAML file:

    title: What the table is called.
    metrics: {abs_rel: min, delta1: max}  # columns, and which end is better (null: neither); a row
                                        # without one of them leaves it empty
    baselines: [constant, median_map]   # rows of what predicts without looking
    rows:
      random-init backbone:
        fit: depth/demo                  # a recipe; `validate` and `test` evaluate it untrained,
                                         # or with a `checkpoint: FILE`
        with: [with/finetune]            # overlays
        set: {model.backbone.weights: random}
        seeds: [0, 1, 2]
        data: nyuv2                      # its path is given by `--data nyuv2=DIR`
        published:                       # stand beside it, marked where protocols differ
        - {name: Pixio ViT-H, abs_rel: 0.1, source: "arXiv ..., table 1", comparable: "no: why"}
    data: {nyuv2: what it is}

A row's seeds set `seed_everything`, `data.seed` and `model.seed`, and stand for `{seed}` in what it
sets. All rows are parsed and planned before the first is run; finished runs are not run again. The
result is that of the last step, never the best. Below the table stands what was evaluated and how,
and which rows of a column may not be compared, if any; beside it lie CSV and LaTeX.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pixio_lightning.cli.bench.finished import has_run, last_result, refuse_stale
from pixio_lightning.cli.bench.tables import Row
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files.text import parse_yaml, read_text
from pixio_lightning.training import results

_KEYS = {"title", "metrics", "baselines", "rows", "data"}
_VERBS = ("fit", "validate", "test")
_ROW_KEYS = {*_VERBS, "checkpoint", "with", "set", "seeds", "data", "published"}
_WORDS = ("name", "source", "comparable")  # of a published figure


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
    _check(suite, _KEYS, f"suite '{path}'")
    named = suite.get("baselines") or [], suite.get("metrics") or []
    if not all(isinstance(names, dict | list) for names in named) or not all(
        isinstance(name, str) for names in named for name in names
    ):
        raise UserError(f"suite '{path}': metrics and baselines are no lists of names")
    for metric, end in better_ends(suite).items():
        if end is not None and (not isinstance(end, str) or end not in ("min", "max")):
            raise UserError(
                f"suite '{path}': metric {metric} is {end!r}; expected min, max or null"
            )
    if not isinstance(suite.get("data") or {}, dict):
        raise UserError(f"suite '{path}': data is no table of names, each with what it is")
    for name, row in suite["rows"].items():
        where = f"suite '{path}', row {name}"
        _check_row(row, name, where)
        if "data" in row and row["data"] not in (suite.get("data") or {}):
            raise UserError(f"{where}: data {row['data']!r} is not among the suite's data")
    return suite


def _check_row(row: Any, name: Any, where: str) -> None:
    if not isinstance(name, str) or not isinstance(row, dict):
        raise UserError(f"{where}: expected a name, and below it {', '.join(sorted(_ROW_KEYS))}")
    _check(row, _ROW_KEYS, where)
    recipes = [row[verb] for verb in _VERBS if verb in row]
    if len(recipes) != 1 or not isinstance(recipes[0], str):
        raise UserError(f"{where}: give fit or validate or test, a recipe")
    if "checkpoint" in row and (not isinstance(row["checkpoint"], str) or "fit" in row):
        raise UserError(f"{where}: checkpoint is the file that validate or test evaluates")
    if not isinstance(row.get("set", {}), dict):
        raise UserError(f"{where}: set is no table of keys with their values")
    overlays = row.get("with", [])
    if not isinstance(overlays, list) or not all(isinstance(name, str) for name in overlays):
        raise UserError(f"{where}: with is no list of overlays, such as [with/finetune]")
    _check_published(row.get("published", []), where)
    seeds = row.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{where}: seeds is no list of whole numbers, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds is {seeds}, but one run would count twice: each once")


def _check_published(entries: Any, where: str) -> None:
    """Refuse figures of others that do not say whose they are, and whether they may be compared."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where}: published is no list of tables")
    for entry in entries:
        said = [str(entry.get(word, "")) for word in _WORDS]
        figures = {key: value for key, value in entry.items() if key not in _WORDS}
        if (
            not all(said)
            or not (said[2] == "yes" or said[2].startswith("no: "))
            or not figures
            or not all(type(value) in (int, float) for value in figures.values())
        ):
            raise UserError(
                f"{where}: published has {entry}; expected name, source, comparable ('yes' or "
                "'no: WHY'), and figures by metric"
            )


def better_ends(suite: dict[str, Any]) -> dict[str, str | None]:
    """Return the columns of a suite, each with the end that is better, where it says so."""
    found = suite.get("metrics") or {}
    return found if isinstance(found, dict) else dict.fromkeys(found)


def columns_of(suite: dict[str, Any]) -> dict[str, str | None]:
    """Return the same for each of the suite's data, where its rows name any."""
    data = dict.fromkeys(row.get("data") for row in suite["rows"].values())
    ends = better_ends(suite)
    return {
        f"{name} {metric}" if name else metric: ends[metric] for name in data for metric in ends
    }


def _check(values: dict[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"{where}: there is no key {key}{nearest(key, known)}")


def _words(about: dict[str, Any], seed: int, out: Path, words: list[str]) -> list[str]:
    """Return the command line of a row with one of its seeds, without the verb."""
    options = [f"--{k}={_word(v, seed)}" for k, v in about.get("set", {}).items()]
    own = about.get("set", {})  # a seed that the row sets stays
    seeds = (k for k in ("seed_everything", "data.seed", "model.seed") if k not in own)
    options += [f"--{k}={seed}" for k in seeds]
    recipe = next(about[verb] for verb in _VERBS if verb in about)
    overlays = [word for name in about.get("with", []) for word in ("-c", name)]
    return ["-c", recipe, *overlays, "--out", str(out), *options, *words]


def check(suite: dict[str, Any], folder: Path, *, words: list[str]) -> None:
    """Plan every row that has not run, so that a mistake in the last shows before the first trains.

    Raises:
        UserError: A row has one, and is named; two share a folder; or none has one of the suite's
            metrics.
    """
    taken: dict[Path, str] = {}
    for name, about in suite["rows"].items():
        for seed in about.get("seeds", [0]):
            if (other := taken.setdefault(out := _folder(folder, name, seed), name)) != name:
                raise UserError(
                    f"rows '{other}' and '{name}' would share the folder {out}, and the second be "
                    "scored by the run of the first: call one of them otherwise"
                )
    known: dict[str, set[str]] = {}
    for name, about in suite["rows"].items():
        seed = about.get("seeds", [0])[0]
        out, verb = _folder(folder, name, seed), next(verb for verb in _VERBS if verb in about)
        try:
            if has_run(out, verb):
                line = last_result(out, verb)
                given = _words(about, seed, out, words)
                refuse_stale(out, line, given, _checkpoint(about, seed))
                known[name] = set(line["metrics"])
                continue
            checkpoint = _checkpoint(about, seed)
            if checkpoint and not Path(checkpoint).exists():
                raise UserError(f"checkpoint '{checkpoint}' does not exist")
            known[name] = _planned(about, out, words)
        except UserError as error:
            raise UserError(f"row {name}: {error}") from error
    wanted = list(better_ends(suite))
    for name, names in known.items():
        if wanted and names and not names & set(wanted):
            raise UserError(
                f"row {name} has none of the suite's metrics {', '.join(wanted)}"
                f"{nearest(wanted[0], names)}; it has {', '.join(sorted(names))}"
            )
    every = set().union(*known.values())
    for metric in wanted if all(known.values()) else []:
        if metric not in every:
            raise UserError(f"no row has a metric {metric}{nearest(metric, every)}")


def _planned(about: dict[str, Any], out: Path, words: list[str]) -> set[str]:
    """Plan a row; returns the names of its metrics, or none where they show by measuring alone."""
    from pixio_lightning.cli import run as runs
    from pixio_lightning.cli.class_lookup import import_named
    from pixio_lightning.cli.lightning_cli import PixioCLI
    from pixio_lightning.cli.options import parse_options

    options = parse_options(_words(about, about.get("seeds", [0])[0], out, words))
    import_named(options.configs, options.rest)
    with redirect_stdout(io.StringIO()):
        cli = PixioCLI(options, "check")
        runs.check(cli)
    with warnings.catch_warnings(), suppress(Exception):  # of what has not seen a sample
        warnings.simplefilter("ignore")
        return set(cli.model.metrics().compute())
    return set()


def _folder(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(' ', '-').replace('/', '_')}-{seed}"


class Evaluation(NamedTuple):
    """The result of a row with one of its seeds."""

    row: str
    folder: Path
    line: dict[str, Any]


class Outcome(NamedTuple):
    """What came of a suite.

    Attributes:
        rows: The table, what predicts without looking first.
        baselines: How many of the first rows that are.
        about: What was evaluated.
        warnings: What forbids to compare rows.
        evaluations: The results themselves, in the order of the rows.
        notes: Where published figures are from, and what forbids to compare them.
    """

    rows: list[Row]
    baselines: int
    about: list[str]
    warnings: list[str]
    evaluations: list[Evaluation]
    notes: Sequence[str] = ()


def joined(name: str, rows: list[Row], metrics: list[str]) -> list[Row]:
    """Return a baseline as one row where it is the same beside all rows, else one beside each.

    What looks at nothing is the same on the same data or seeds; what depends on a backbone is not.
    """
    of_all = {m: [v for row in rows for v in row.values.get(m, [])] for m in metrics}
    of_all = {metric: values for metric, values in of_all.items() if values}
    if all(_same(value, values[0]) for values in of_all.values() for value in values):
        return [Row(name, {metric: values[-1:] for metric, values in of_all.items()})]
    each = [Row(row.name, {m: row.values[m] for m in metrics if m in row.values}) for row in rows]
    each = [row for row in each if row.values]
    return [Row(name, each[0].values)] if all(_alike(row, each[0]) for row in each) else each


def _alike(one: Row, other: Row) -> bool:
    """Whether two rows are the same in every metric and seed."""
    pairs = [(values, other.values.get(metric, [])) for metric, values in one.values.items()]
    return all(len(a) == len(b) and all(map(_same, a, b)) for a, b in pairs)


def _same(one: float, other: float) -> bool:
    """Whether two figures are, but for rounding."""
    return math.isclose(one, other, rel_tol=1e-3) or (math.isnan(one) and math.isnan(other))


def run(suite: dict[str, Any], folder: Path, *, words: list[str]) -> Outcome:
    """Run every row of a suite that has not finished, below `folder`.

    Args:
        suite: As `read_suite` returns it.
        folder: Where the run folders are made.
        words: Options added to every run.

    Raises:
        UserError: A run has a mistake, or recorded nothing.
    """
    from pixio_lightning.cli import run as runs

    check(suite, folder, words=words)
    rows: list[Row] = []
    baselines: dict[str, dict[str, Row]] = {}
    evaluations: list[Evaluation] = []
    notes: list[str] = []
    columns = columns_of(suite)
    for name, about in suite["rows"].items():
        found: dict[str, list[float]] = {}
        verb = next(verb for verb in _VERBS if verb in about)
        for seed in about.get("seeds", [0]):
            out = _folder(folder, name, seed)
            given = _words(about, seed, out, words)
            if has_run(out, verb):
                refuse_stale(out, last_result(out, verb), given, _checkpoint(about, seed))
            else:
                if is_first():
                    print(f"{name}, seed {seed}: {out}", flush=True)
                taken = [] if verb == "fit" else ["--ckpt_path", _checkpoint(about, seed) or "none"]
                runs.main(verb, [*given, *taken])
            line = last_result(out, verb)
            line |= {"metrics": _of_data(about, line["metrics"])}
            evaluations.append(Evaluation(name, out, line))
            for baseline, values in line["baselines"].items():
                label = f"{baseline.replace('_', ' ')} of {name}"
                known = baselines.setdefault(baseline, {}).setdefault(name, Row(label, {}))
                for metric, value in _of_data(about, values).items():
                    known.values.setdefault(metric, []).append(value)
            for metric in columns or line["metrics"]:
                if metric in line["metrics"]:
                    found.setdefault(metric, []).append(line["metrics"][metric])
        if not found:
            others = ", ".join(evaluations[-1].line["metrics"])
            raise UserError(f"row {name} has none of the suite's metrics; it has {others}")
        rows.append(Row(name, found))
        for entry in about.get("published", []):
            figures = {k: [float(v)] for k, v in entry.items() if k not in _WORDS}
            mark = "" if entry["comparable"] == "yes" else " †"
            label = f"{entry['name']}, published{mark} ({about.get('group', name)})"
            rows.append(Row(label, _of_data(about, figures), published=True))
            why = "" if not mark else f"; not to be compared, {entry['comparable'][4:]}"
            notes.append(f"{label}: {entry['source']}{why}")
    measured = list(dict.fromkeys(m for row in rows if not row.published for m in row.values))
    for metric in better_ends(suite):
        if not any(metric == name.rpartition(" ")[2] for name in measured):
            known_names = {name for one in evaluations for name in one.line["metrics"]}
            raise UserError(f"no row has a metric {metric}{nearest(metric, known_names)}")
    measured = [metric for metric in columns if metric in measured] or measured
    for name in suite.get("baselines", []):
        if name not in baselines:
            raise UserError(f"there is no baseline {name}{nearest(name, baselines)}")
    baseline_rows = [
        row
        for name in suite.get("baselines", [])
        for row in joined(name.replace("_", " "), list(baselines[name].values()), measured)
    ]
    lines = [one.line for one in evaluations]
    shown = [line for line in lines if any(metric in line["metrics"] for metric in measured)]
    about = [
        f"{line['split']} of {line['dataset']}, {line['n']} samples"
        + (f"; {line['protocol']}" if line["protocol"] else "")
        for line in shown
    ]
    return Outcome(
        [*baseline_rows, *rows],
        len(baseline_rows),
        list(dict.fromkeys(about)),
        incomparable([(one.row, one.line) for one in evaluations], measured),
        evaluations,
        notes,
    )


def _of_data(about: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a row under the columns of its data, as figures of two sets differ."""
    return {f"{about['data']} {k}": v for k, v in values.items()} if "data" in about else values


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


def _checkpoint(about: dict[str, Any], seed: int) -> str | None:
    """Return what a row evaluates; None for a model as it is initialised, and a training."""
    return about["checkpoint"].replace("{seed}", str(seed)) if "checkpoint" in about else None


def _word(value: Any, seed: int) -> str:
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else json.dumps(value)


def is_first() -> bool:
    """Whether this is the first process: all those of a run go through the whole suite."""
    from lightning.pytorch.utilities import rank_zero_only  # slow: after a suite's mistakes

    return rank_zero_only.rank == 0
