"""The folder of a run: what was asked, how far it got, and whether the same line goes on.

Nothing here imports torch.
"""

from __future__ import annotations

import csv
import json
import os
from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pixio_lightning.errors import UserError

# Changing these does not change what is computed.
_FREE = (
    "data.init_args.num_workers",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text)
    os.replace(aside, path)


def set_aside(folder: Path) -> Path | None:
    """Rename an earlier run's folder out of the way; returns where it went."""
    if not folder.exists():
        return None
    old = folder.with_name(f"{folder.name}.{datetime.now():%Y%m%d-%H%M%S-%f}")
    os.rename(folder, old)
    return old


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dicts under dotted keys."""
    if isinstance(config, dict) and config:
        for key, value in config.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, config


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one `key: old -> new` for every leaf that differs and matters."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [
        f"{key.replace('.init_args', '')}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in _FREE
    ]


def check_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to go on with another configuration.

    Raises:
        UserError: A key differs; all of them are named.
    """
    changed = differences(old, new)
    if changed:
        raise UserError(
            f"{folder} holds a run with another configuration ({'; '.join(changed)}): "
            "run the same line to go on, give another --out, or --fresh to start anew "
            "(the old folder is kept under another name)"
        )


def read_state(folder: Path) -> dict[str, Any]:
    """Return how far the run got: `step`, `finished`; empty for a new folder."""
    path = folder / "state.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_state(folder: Path, *, step: int, finished: bool) -> None:
    """Record how far the run got."""
    write_atomically(folder / "state.json", json.dumps({"step": step, "finished": finished}))


class Metrics:
    """A CSV file with one row per logged step, in order, whose columns may grow.

    A run that goes on from an earlier step drops the rows after it, so the file reads as if the
    run had never been interrupted.

    Args:
        path: The file; what it holds is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [
                    {k: float(v) for k, v in row.items() if v not in ("", None)}
                    for row in csv.DictReader(file)
                ]

    def rewind(self, step: int) -> None:
        """Forget the rows after `step`, in the file too; -1 forgets all."""
        kept = [row for row in self.rows if row["step"] <= step]
        if len(kept) < len(self.rows):
            self.rows = kept
            self._write()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add values to the row of a step, and write the file."""
        columns = self._columns()
        # What is logged after a step and before the next may come out of order.
        at = bisect_left(self.rows, step, key=lambda row: row["step"])
        if at == len(self.rows) and values.keys() <= set(columns) and self.path.exists():
            self.rows.append({"step": step} | values)
            with self.path.open("a") as file:
                file.write(self._line(self.rows[-1], columns))
            return
        if at == len(self.rows) or self.rows[at]["step"] != step:
            self.rows.insert(at, {"step": step})
        self.rows[at] |= values
        self._write()

    def _write(self) -> None:
        if not self.rows:
            self.path.unlink(missing_ok=True)
            return
        columns = self._columns()
        lines = [self._line(row, columns) for row in self.rows]
        write_atomically(self.path, "".join([",".join(columns) + "\n", *lines]))

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(key for row in self.rows for key in row))

    @staticmethod
    def _line(row: dict[str, Any], columns: list[str]) -> str:
        return ",".join(_number(row.get(key)) for key in columns) + "\n"

    def first_and_last(self, key: str) -> tuple[float, float] | None:
        """Return a metric's first and last value, None if it was never logged."""
        values = [row[key] for row in self.rows if key in row]
        return (values[0], values[-1]) if values else None


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() else f"{value:.8g}"
