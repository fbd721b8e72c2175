"""`pixio runs`: what `pixio fit` began below a folder, and what differs between two of them.

Nothing here imports torch: two hundred runs are listed while it would still be loading.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pixio_lightning.cli.config_tree import differences
from pixio_lightning.errors import UserError, nearest, visible
from pixio_lightning.files.text import read_text
from pixio_lightning.training import results, run_folder

_MOST_METRICS = 1 << 24  # bytes of a metrics.csv that are read here
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Run(NamedTuple):
    """A row of the list.

    Attributes:
        folder: Of the run.
        recipe: As it was given; empty where it is not known.
        state: `running`, `finished` or `stopped`; `not begun` where a start came to nothing before
            a first step was kept; `damaged`, or `unknown` where the system does not say whether it
            runs.
        step: How far it got, and of how many steps, where it has a number of them.
        metric: What best.ckpt is chosen by: its last value, and the best; where nothing is trained,
            its value in the last evaluation.
        changed: When anything in it was written last.
        size: Bytes of all its files.
    """

    folder: Path
    recipe: str
    state: str
    step: str
    metric: str
    changed: float
    size: int


def find(root: Path) -> Iterator[Path]:
    """Yield the run folders below a folder, itself included; links are not followed."""
    for folder, below, files in os.walk(root):
        if "state.json" in files:
            below.clear()
            yield Path(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))


def look_at(folder: Path) -> Run:
    """Read what a run folder says of its run."""
    changed, size = 0.0, 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                about = os.stat(os.path.join(place, name), follow_symlinks=False)
            except FileNotFoundError:  # renamed since by the run that writes it
                continue
            changed, size = max(changed, about.st_mtime), size + about.st_size
    try:
        state = run_folder.read_state(folder)
        trains = state.get("trains") is not False
        metric = _metric(folder, state) if trains else _evaluated(folder, state)
    except UserError:
        return Run(folder, "", "damaged", "", "", changed, size)
    kind = {True: "running", False: "stopped", None: "unknown"}[run_folder.is_held(folder)]
    done = state.get("finished") if trains else metric
    if done and kind != "running":
        kind = "finished"
    elif kind == "stopped" and not state.get("step") and not (folder / "metrics.csv").exists():
        kind = "not begun"
    step, steps = state.get("step", 0), state.get("steps")
    text = f"{step}/{steps}" if isinstance(steps, int) and steps > 0 else str(step)
    text = text if trains else ""
    recipe = state.get("recipe")
    return Run(folder, recipe if isinstance(recipe, str) else "", kind, text, metric, changed, size)


def _metric(folder: Path, state: dict[str, Any]) -> str:
    """Return the last value of what best.ckpt is chosen by, and the best."""
    path, monitor = folder / "metrics.csv", state.get("monitor")
    if not isinstance(monitor, list) or len(monitor) != 2 or not path.exists():
        return ""
    name, mode = map(str, monitor)
    lines = csv.DictReader(io.StringIO(read_text(path, limit=_MOST_METRICS)))
    try:
        values = [float(line[name]) for line in lines if line.get(name)]
    except (ValueError, csv.Error):
        return ""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    best = min(finite) if mode == "min" else max(finite)
    return f"{name.rpartition('/')[2]} {values[-1]:.4g} (best {best:.4g})"


def _evaluated(folder: Path, state: dict[str, Any]) -> str:
    """Return the metric of the last evaluation of what trains nothing; the first one of many."""
    lines = results.read(folder)
    if not lines:
        return ""
    metrics, monitor = lines[-1]["metrics"], state.get("monitor")
    named = str(monitor[0]).rpartition("/")[2] if isinstance(monitor, list) and monitor else ""
    name = named if named in metrics else next(iter(metrics), "")
    return f"{name} {metrics[name]:.4g}" if name else "evaluated"


def listed(root: Path) -> str:
    """Return the table of all runs below a folder, the newest first.

    Raises:
        UserError: It is no folder, or holds no run.
    """
    if not root.is_dir():
        names = [path.name for path in root.parent.glob("*/")] if root.parent.is_dir() else []
        raise UserError(f"'{root}' is no folder{nearest(root.name, names)}")
    runs = sorted(map(look_at, find(root)), key=lambda run: -run.changed)
    if not runs:
        raise UserError(f"no run below '{root}': `pixio fit -c pretrain/demo` makes one")
    rows = [("folder", "recipe", "state", "step", "metric", "changed", "size")]
    rows += [
        (
            *(visible(str(run.folder)), visible(run.recipe), run.state, run.step, run.metric),
            f"{datetime.fromtimestamp(run.changed):%Y-%m-%d %H:%M}",
            _size(run.size),
        )
        for run in runs
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _size(count: float) -> str:
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"


def difference(first: Path, second: Path) -> str:
    """Return the keys in which the configurations of two runs differ, one a line.

    And from which checkpoints they began, where that differs.

    Raises:
        UserError: One of them holds no configuration.
    """
    configs = []
    for folder in (first, second):
        config = run_folder.stored_config(folder)
        if config is None:
            raise UserError(f"'{folder}' holds no config.yaml, so it is no run folder")
        configs.append(config)
    found = differences(*configs)
    states = (run_folder.read_state(folder) for folder in (first, second))
    then, now = (results.began(state.get("start")) for state in states)
    if then != now:
        found["--ckpt_path"] = f"{then} -> {now}"
    return "\n".join(f"{key}: {change}" for key, change in found.items()) or "no difference"
