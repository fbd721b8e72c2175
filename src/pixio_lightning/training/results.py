"""One line per evaluation in results.jsonl: what was measured, of what, and how."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pixio_lightning.files import add_line, write_text
from pixio_lightning.files.text import parse_json, read_text
from pixio_lightning.models.weights.shipped import SHIPPED
from pixio_lightning.models.weights.students import split_student

FILE = "results.jsonl"
# In what evaluations that are compared must agree.
COMPARED = ("task", "dataset", "split", "n", "protocol")
# What evaluations may differ in and yet be compared.
_TOLD = ("precision", "token_px", "input")
_SMALL = 1 << 20  # bytes of a file that is told by its content
# What a result may depend on besides this package.
_LIBRARIES = ("torch", "lightning", "timm", "torchmetrics")


@cache
def commit() -> str | None:
    """Return the commit of the checkout this code runs from, "+" behind it if files differ."""
    here = Path(__file__).resolve().parents[1]  # the package

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        # An installed package may lie inside the checkout of something else.
        if not git("ls-files", "__init__.py"):
            return None
        changed = git("status", "--porcelain", "-uno", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def versions() -> dict[str, str]:
    """Return the versions of this package, its main libraries and Python."""
    found = {name: version(name) for name in ("pixio-lightning", *_LIBRARIES)}
    return found | {"python": platform.python_version()}


def files_read(
    recipes: Iterable[str | os.PathLike[str]], weights: str | None, checkpoint: str | None
) -> dict[str, str]:
    """Return the state of each file that a result depends on, by its path.

    Args:
        recipes: Files of the recipes.
        weights: Of the backbone: a file, a folder, or something of no file.
        checkpoint: What was evaluated, if anything.
    """
    named = "" if not weights or weights in SHIPPED else split_student(weights)[0]
    paths = (Path(name).expanduser() for name in (*recipes, named, checkpoint) if name)
    return {str(path.resolve()): _state(path) for path in paths if path.exists()}


def changed_file(line: dict[str, Any], files: dict[str, str]) -> str | None:
    """Return a file that is another one now than when an evaluation read it; None if none is.

    Args:
        line: The evaluation.
        files: As `files_read` returns them now; they may lie elsewhere than they did.
    """
    then = line["files"].values()
    return next((path for path, state in files.items() if state not in then), None)


def _state(path: Path) -> str:
    """Return what changes with a small file's content, or with the size and time of a large one."""
    if not path.is_file():
        return " ".join(_state(file) for file in sorted(path.rglob("*")) if file.is_file())
    about = path.stat()
    if about.st_size < _SMALL:
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return f"{about.st_size} {about.st_mtime_ns}"


def at_last_step(trainer: Any) -> bool:
    """Whether a training has taken all of its steps, where it has a number of them."""
    return 0 < trainer.max_steps <= trainer.global_step


def summary(line: dict[str, Any]) -> dict[str, str]:
    """Return the metrics of a line as text, each beside its baselines."""
    facts = {}
    for name, value in line["metrics"].items():
        beside = [
            f"{baseline.replace('_', ' ')} {values[name]:.4g}"
            for baseline, values in line["baselines"].items()
            if name in values
        ]
        facts[name] = f"{value:.4g}" + (f"  ({', '.join(beside)})" if beside else "")
    what = f"{line['split']} of {line['dataset']}, {line['n']} samples, step {line['steps']}"
    if line["verb"] == "test" and line["split"] == "val":
        what += " (the same that are validated on: the data have no other part to test on)"
    return (
        {line["task"]: what} | facts | ({"protocol": line["protocol"]} if line["protocol"] else {})
    )


def append_best(folder: Path, last: dict[str, Any], monitor: tuple[str, str]) -> None:
    """Add the best of a run's evaluations once more, labelled as what it is.

    The split it is reported on is the one it was chosen on, so it is no fair result; papers that
    print one are compared with it.

    Args:
        folder: The run folder.
        last: The evaluation after the last step, not yet added.
        monitor: A metric as `val/abs_rel` or `val/loss`, and whether `min` or `max` is better.
    """
    name, mode = monitor[0].rpartition("/")[2], monitor[1]
    earlier = [line for line in read(folder) if line["verb"] == "fit"]
    lines = [line for line in earlier if line["checkpoint"] == "running"] + [last]
    known = [line for line in lines if math.isfinite(_value(line, name))]
    if not known:
        return
    choose = min if mode == "min" else max
    best = choose(known, key=lambda line: _value(line, name))
    chosen = f"of {len(lines)} evaluations, on the split it is reported on"
    append(folder, best | {"checkpoint": "best", "chosen_by": name, "chosen": chosen})


def _value(line: dict[str, Any], name: str) -> float:
    value = line["metrics"].get(name, line.get("loss") if name == "loss" else None)
    return math.nan if value is None else value


def best_of(lines: list[dict[str, Any]]) -> dict[str, str]:
    """Return the metric of a run's best evaluation as text, if it has ended."""
    best = [line for line in lines if line["verb"] == "fit" and "chosen_by" in line]
    if not best:
        return {}
    name = best[-1]["chosen_by"]
    value = f"{name} {_value(best[-1], name):.4g}"
    return {f"best, step {best[-1]['steps']}": f"{value}  ({best[-1].get('chosen', '')})"}


def differences(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return why evaluations may not be compared, one text for each thing in which they differ.

    Lines without any have one task, data set, split, number of samples and protocol; only what was
    measured differs, and nothing of how.
    """
    found = []
    for name in COMPARED:
        values = list(dict.fromkeys(line[name] for line in lines))
        if len(values) > 1:
            found.append(f"{name} is {' and '.join(map(repr, values))}")
    names = [line.get("samples") for line in lines]  # data of a plug-in may not name them
    if not found and None not in names and len(set(names)) > 1:
        found.append("the samples have other names, though they are as many")
    return found


def compared(line: dict[str, Any]) -> dict[str, Any]:
    """Return of a line what `differences` and `caveats` read."""
    return {name: line.get(name) for name in (*COMPARED, "samples", *_TOLD)}


def caveats(lines: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return what a part of the difference between evaluations may be of, one text for each thing.

    That is another precision, tokens of another size where heads read patches, and images that are
    normalised as may not be right.

    Args:
        lines: Names with evaluations; not every head reads tokens of one size.
    """
    found: list[str] = []
    lines = list(lines)
    for key, what in (("precision", "precision"), ("token_px", "pixels a side of a token")):
        names: dict[str, dict[str, None]] = {}
        for name, line in lines:
            if line.get(key) is not None:
                names.setdefault(str(line[key]), {})[name] = None
        if len(names) > 1:
            each = "; ".join(f"{value} of {', '.join(of)}" for value, of in names.items())
            found.append(f"{what} differs: {each}")
    inputs = ((name, line.get("input")) for name, line in lines)
    assumed = [name for name, said in inputs if isinstance(said, dict) and said.get("assumed")]
    if assumed:
        found.append(
            "mean and deviation of the input are what timm has for the name of the model, as the "
            f"weights say none: {', '.join(dict.fromkeys(assumed))}"
        )
    return found


def began(start: dict[str, Any] | None) -> str:
    """Return from what a training began, by what its records or its state say of it."""
    if not start:
        return "no checkpoint"
    return f"{start.get('path')} at step {start.get('step')}"


def starts(lines: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """Return which trainings began from which checkpoint; empty where all did from the same.

    Args:
        lines: Names with evaluations; those of a checkpoint are left out.
    """
    known = {n: line["start"] for n, line in lines if line["verb"] == "fit" and "start" in line}
    each = "; ".join(f"{name} from {began(start)}" for name, start in known.items())
    same = len({json.dumps(start, sort_keys=True) for start in known.values()}) < 2
    return "" if same else f"they began differently: {each}"


def append(folder: Path, line: dict[str, Any]) -> None:
    """Add an evaluation to the folder's results.jsonl, with the commit and the versions."""
    folder.mkdir(parents=True, exist_ok=True)
    add_line(folder / FILE, json.dumps(line | {"commit": commit(), "versions": versions()}))


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the evaluations of a folder in order.

    A line cut short by a kill is left out, and so is one that nothing here would have written.

    Raises:
        UserError: The file is no text, or no file.
    """
    path = folder / FILE
    if not path.exists():
        return []
    lines = []
    for text in read_text(path, limit=1 << 30).splitlines():
        with suppress(ValueError):
            line = parse_json(text)
            if _is_evaluation(line):
                lines.append(line)
    return lines


def _is_evaluation(line: Any) -> bool:
    """Whether a line has what is read of it, each of its kind."""
    if not isinstance(line, dict):
        return False
    words = (line.get(name) for name in ("task", "dataset", "split", "verb", "checkpoint"))
    tables = line.get("baselines")
    return (
        all(isinstance(word, str) for word in words)
        and isinstance(line.get("protocol"), str | None)
        and all(_is_count(line.get(name)) for name in ("n", "steps"))
        and isinstance(line.get("loss"), int | float | None)
        and isinstance(line.get("files"), dict)
        and isinstance(tables, dict)
        and all(_is_table(table) for table in (line.get("metrics"), *tables.values()))
        and all(isinstance(line.get(name, ""), str) for name in ("chosen_by", "chosen"))
        and all(isinstance(line.get(name), str | None) for name in ("samples", "precision"))
        and isinstance(line.get("start"), dict | None)
        and isinstance(line.get("token_px"), int | None)
        and isinstance(line.get("input"), dict | None)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 63


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, int | float) for v in value.values())


def rewind(folder: Path, step: int) -> None:
    """Forget what a run evaluated in training after `step`, so that going on adds it once."""
    lines = read(folder)
    # The best is chosen anew at the end.
    kept = [
        line
        for line in lines
        if line["verb"] != "fit" or (line["steps"] <= step and line["checkpoint"] != "best")
    ]
    if len(kept) < len(lines):
        write_text(folder / FILE, "".join(json.dumps(line) + "\n" for line in kept))
