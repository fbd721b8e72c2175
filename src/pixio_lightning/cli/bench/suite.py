"""Suites of `pixio bench`: their rows run, each with its seeds, and what came of them.

All rows are parsed and planned before the first is run; finished runs are not run again. The
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

from pixio_lightning.cli import recipes
from pixio_lightning.cli.bench.finished import ended_early, has_run, last_result, refuse_stale
from pixio_lightning.cli.bench.given import of_all_rows
from pixio_lightning.cli.bench.suite_file import SOURCE_WORDS, VERBS, better_ends, columns_of
from pixio_lightning.cli.bench.tables import Row
from pixio_lightning.cli.config_tree import typed
from pixio_lightning.cli.options import parse_options
from pixio_lightning.errors import UnsuitedBackbone, UserError, causes, nearest
from pixio_lightning.training import results


def _words(about: dict[str, Any], seed: int, out: Path, words: list[str]) -> list[str]:
    """Return the command line of a row with one of its seeds, without the verb."""
    options = [f"--{k}={_word(v, seed)}" for k, v in about.get("set", {}).items()]
    own = about.get("set", {})  # a seed that the row sets stays
    seeds = (k for k in ("seed_everything", "data.seed", "model.seed") if k not in own)
    options += [f"--{k}={seed}" for k in seeds]
    recipe = next(about[verb] for verb in VERBS if verb in about)
    overlays = [word for name in about.get("with", []) for word in ("-c", name)]
    return ["-c", recipe, *overlays, "--out", str(out), *options, *words]


def check(suite: dict[str, Any], folder: Path, *, words: list[str]) -> dict[str, str]:
    """Plan every row that has not run, so that a mistake in the last shows before the first trains.

    Its seeds differ by what they read, so that is looked for with each of them. Where `--fresh` is
    among the words, no row has run.

    Returns:
        Rows that their backbone of `--backbones` cannot run, and why; not all of them are.

    Raises:
        UserError: A row has one, and is named; two share a folder; or none has one of the suite's
            metrics.
    """
    words, fresh = of_all_rows(words)
    taken: dict[Path, str] = {}
    for name, about in suite["rows"].items():
        for seed in about.get("seeds", [0]):
            if (other := taken.setdefault(out := _folder(folder, name, seed), name)) != name:
                raise UserError(
                    f"rows '{other}' and '{name}' would share the folder {out}, and the second be "
                    "scored by the run of the first: call one of them otherwise"
                )
    known: dict[str, set[str]] = {}
    unsuited: dict[str, str] = {}
    for name, about in suite["rows"].items():
        try:
            known[name] = _checked(name, about, folder, words, fresh)
        except UserError as error:
            if "group" in about and any(isinstance(e, UnsuitedBackbone) for e in causes(error)):
                unsuited[name] = str(error)
                if len(unsuited) < len(suite["rows"]):
                    continue
            raise UserError(f"row {name}: {error}") from error
    wanted = list(better_ends(suite))
    for name, names in known.items():
        if wanted and names and not names & set(wanted):
            raise UserError(
                f"row {name} has none of the suite's metrics {', '.join(wanted)}"
                f"{nearest(wanted[0], names)}; it has {', '.join(sorted(names))}"
            )
    every = set().union(*known.values())
    for metric in wanted if all(known.values()) and not unsuited else []:
        if metric not in every:
            raise UserError(f"no row has a metric {metric}{nearest(metric, every)}")
    return unsuited


def _without(suite: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a suite without some rows; what is published beside them stands with their group."""
    rows: dict[str, dict[str, Any]] = {}
    for name, row in suite["rows"].items():
        if name not in names:
            rows[name] = row
        elif "published" in row:
            for last in [n for n, r in rows.items() if r.get("group") == row["group"]][-1:]:
                rows[last] = rows[last] | {"published": row["published"]}
    return suite | {"rows": rows}


def _checked(
    name: str, about: dict[str, Any], folder: Path, words: list[str], fresh: bool
) -> set[str]:
    """Look at a row with each of its seeds; returns its metrics, if they are known."""
    verb = next(verb for verb in VERBS if verb in about)
    seen: dict[str, int] = {}
    waiting: list[int] = []
    metrics: set[str] = set()
    for seed in about.get("seeds", [0]):
        out, checkpoint = _folder(folder, name, seed), _checkpoint(about, seed)
        given = _words(about, seed, out, words)
        read = f"{typed(parse_options(given).rest)} {checkpoint}"
        if (other := seen.setdefault(read, seed)) != seed:
            raise UserError(
                f"its seeds {other} and {seed} have the same settings, so one run would count "
                "twice: let them set a seed, or give one"
            )
        if not fresh and has_run(out, verb):
            line = last_result(out, verb)
            refuse_stale(out, line, given, checkpoint)
            metrics = metrics or set(line["metrics"])
        elif checkpoint and not Path(checkpoint).exists():
            raise UserError(
                f"checkpoint '{checkpoint}' does not exist{recipes.made_by(checkpoint)}"
            )
        else:
            waiting.append(seed)
    if not any("{seed}" in str(value) for value in about.get("set", {}).values()):
        waiting = waiting[:1]  # the others read nothing else
    for seed in waiting:
        metrics = _planned(about, seed, _folder(folder, name, seed), words) or metrics
    return metrics


def _planned(about: dict[str, Any], seed: int, out: Path, words: list[str]) -> set[str]:
    """Plan a row; returns the names of its metrics, or none where they show by measuring alone."""
    from pixio_lightning.cli import run as runs
    from pixio_lightning.cli.class_lookup import import_named
    from pixio_lightning.cli.lightning_cli import PixioCLI

    options = parse_options(_words(about, seed, out, words))
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


class Stopped(Exception):
    """A signal has stopped a run, and with it the suite.

    Args:
        code: Exit code of the run.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Outcome(NamedTuple):
    """What came of a suite.

    Attributes:
        rows: The table, what predicts without looking first.
        baselines: How many of the first rows that are.
        about: What was evaluated.
        warnings: What forbids to compare rows.
        evaluations: The results themselves, in the order of the rows.
        notes: Which rows `--backbones` leaves as they are, or out; which trainings ended before
            their last step; what else differences may be of; where published figures are from, and
            what forbids to compare them.
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
    """Run every row of a suite that has not finished, or all with `--fresh`, below `folder`.

    Args:
        suite: As `read_suite` returns it.
        folder: Where the run folders are made.
        words: Options added to every run.

    Raises:
        UserError: A run has a mistake, or recorded nothing.
        Stopped: A signal has stopped a run, in every process.
    """
    from pixio_lightning.cli import run as runs

    unsuited = check(suite, folder, words=words)
    suite = _without(suite, unsuited)
    words, fresh = of_all_rows(words)
    rows: list[Row] = []
    baselines: dict[str, dict[str, Row]] = {}
    evaluations: list[Evaluation] = []
    notes = [*suite.get("notes", []), *(f"left out: {n}: {why}" for n, why in unsuited.items())]
    columns = columns_of(suite)
    for name, about in suite["rows"].items():
        found: dict[str, list[float]] = {}
        verb = next(verb for verb in VERBS if verb in about)
        for seed in about.get("seeds", [0]):
            out = _folder(folder, name, seed)
            given = _words(about, seed, out, words)
            if not fresh and has_run(out, verb):
                refuse_stale(out, last_result(out, verb), given, _checkpoint(about, seed))
            else:
                if runs.is_first():
                    print(f"{name}, seed {seed}: {out}", flush=True)
                taken = ["--fresh"] * fresh
                if verb != "fit":
                    taken = ["--ckpt_path", _checkpoint(about, seed) or "none"]
                if code := runs.main(verb, [*given, *taken]):
                    if runs.is_first():
                        line_again = "the same line" + ", without --fresh," * fresh
                        print(f"the suite stops with it and has no table: {line_again} goes on")
                    raise Stopped(code)
            line = last_result(out, verb)
            if early := ended_early(out, line):
                notes.append(f"{name}, seed {seed}: {early}")
            line |= {"metrics": _of_data(about, line["metrics"])}
            if path := about.get("data") and about.get("set", {}).get("data.path"):
                # They lie elsewhere on another machine, and are the same.
                line["dataset"] = line["dataset"].replace(str(path), about["data"])
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
            figures = {k: [float(v)] for k, v in entry.items() if k not in SOURCE_WORDS}
            mark = "" if entry["comparable"] == "yes" else " †"
            label = f"{entry['name']}, published{mark} ({about.get('group', name)})"
            rows.append(Row(label, _of_data(about, figures), published=True))
            why = "" if not mark else f"; not to be compared, {entry['comparable'][4:]}"
            notes.append(f"{label}: {entry['source']}{why}")
    measured = list(dict.fromkeys(m for row in rows if not row.published for m in row.values))
    for metric in better_ends(suite) if not unsuited else ():
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
    lines = [(one.row, one.line) for one in evaluations]
    shown = [line for _, line in lines if any(metric in line["metrics"] for metric in measured)]
    about = [
        f"{line['split']} of {line['dataset']}, {line['n']} samples"
        + (f"; {line['protocol']}" if line["protocol"] else "")
        for line in shown
    ]
    return Outcome(
        [*baseline_rows, *rows],
        len(baseline_rows),
        list(dict.fromkeys(about)),
        incomparable(lines, measured),
        evaluations,
        [*notes, *caveats(lines, measured)],
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


def caveats(lines: list[tuple[str, dict[str, Any]]], metrics: Iterable[str]) -> list[str]:
    """Return what else differences within a column may be of, each once; arguments as above."""
    columns = ([one for one in lines if metric in one[1]["metrics"]] for metric in metrics)
    return list(dict.fromkeys(text for column in columns for text in results.caveats(column)))


def _checkpoint(about: dict[str, Any], seed: int) -> str | None:
    """Return what a row evaluates; None for a model as it is initialised, and a training."""
    return about["checkpoint"].replace("{seed}", str(seed)) if "checkpoint" in about else None


def _word(value: Any, seed: int) -> str:
    return value.replace("{seed}", str(seed)) if isinstance(value, str) else json.dumps(value)
