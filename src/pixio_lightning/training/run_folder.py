"""The folder of a run: what was asked, how far it got, and whether the same line goes on.

Nothing here imports torch.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import socket
import struct
import sys
from argparse import Namespace  # from which jsonargparse derives its own
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pixio_lightning.errors import UserError
from pixio_lightning.files import lock, move, write_text
from pixio_lightning.files.atomic import previous_folder, sweep
from pixio_lightning.files.text import is_regular, parse_json, parse_yaml, read_text

LOCK = ".lock"
# Files of which any one tells that a folder is a run's.
_FILES = (LOCK, "config.yaml", "state.json", "metrics.csv", "results.jsonl", "bad_files.txt")
# Keys by which a configuration says which backbone it is.
OF_BACKBONE = ("name", "weights", "model_args")
_TRACES = ("state.json", "last.ckpt", "best.ckpt", "results.jsonl")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder, which is made if need be, so that no second run writes into it.

    The lock is a POSIX record lock on the file `.lock`. The kernel releases it however this process
    ends; data workers, which are forks, do not inherit it and cannot hold it beyond that; and
    network file systems pass it on to other machines. Only the first process of a run takes it:
    the others of the same run, started by it or beside it, ask for none. Evaluations take none
    either: they read, and add whole lines to results.jsonl.

    Raises:
        UserError: Another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Not through a link: what is locked is emptied and written.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    check_files(folder)
    with open(os.open(folder / LOCK, flags, 0o666), "r+") as file:
        try:
            reason = lock(file, wait=False, by_process=True)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{folder} is in use by another run ({holder}): wait for its end or stop it, "
                "or give another --out"
            ) from None
        if reason:
            print(
                f"pixio: note: no lock on {folder} ({reason}): start no second run in it",
                file=sys.stderr,
            )
            yield
            return
        sweep(folder)  # first: it may be what fills the disk
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def is_held(folder: Path) -> bool | None:
    """Whether a run is in a folder now; None where the system cannot be asked without locking."""
    if sys.platform != "linux" or not is_regular(folder / LOCK):
        return None if is_regular(folder / LOCK) else False
    layout = "hhllhh"  # struct flock of Linux with 64-bit offsets: type, whence, start, length, pid
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0, 0)
    with (folder / LOCK).open() as file:
        try:
            found = fcntl.fcntl(file, fcntl.F_GETLK, asked)
        except OSError:
            return None
    return struct.unpack(layout, found)[0] != fcntl.F_UNLCK


def check_files(folder: Path) -> None:
    """Refuse a folder whose small files are none, before any of them is read or written.

    Somebody else may have made it: a link would lead what is written out of the folder, and a
    pipe would be waited for. The folders in it may be links, as may the run folder itself.

    Raises:
        UserError: One of them is a link, a pipe, a device or a folder.
    """
    for name in _FILES:
        path = folder / name
        if os.path.lexists(path) and not is_regular(path):
            raise UserError(
                f"'{path}' is a link or no regular file, and is neither read nor written: remove "
                "it, or give another --out"
            )


def check_ours(folder: Path, *, fresh: bool) -> None:
    """Refuse a folder in which a run would overwrite, or move away, what no run has written.

    Args:
        folder: Where a run is to be.
        fresh: Whether what is there would be moved aside.

    Raises:
        UserError: It holds files of something else, cannot be moved, or is a link to nothing.
    """
    if folder.is_symlink() and not folder.exists():
        raise UserError(
            f"'{folder}' is a link to '{os.readlink(folder)}', which does not exist: make that "
            "folder, remove the link, or give another --out"
        )
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if not fresh:
        if stored_config(folder) is None and "metrics.csv" in found and not checkpoints(folder):
            raise UserError(
                f"'{folder / 'metrics.csv'}' is of no run, as there is no config.yaml beside it, "
                "and is not overwritten; give another --out"
            )
        return
    if not set(found) - {LOCK}:
        return
    if not any(name in _TRACES for name in found) and stored_config(folder) is None:
        raise UserError(
            f"{folder} holds files but no run, so --fresh does not move it; give another --out"
        )
    target = folder.resolve()
    for true, what in (
        (Path.cwd().is_relative_to(target), "this command runs in it"),
        (target.is_mount(), "it is a mount point"),
    ):
        if true:
            raise UserError(f"--fresh cannot rename '{target}': {what}; give another --out")


def set_aside(folder: Path) -> Path | None:
    """Rename an earlier run's folder out of the way; returns where it went.

    Of a link, the folder it leads to is renamed where it lies, and an empty one takes its place.

    Raises:
        UserError: It cannot be renamed; nothing is changed then.
    """
    target = folder.resolve()
    if not target.exists() or not any(path.name != LOCK for path in target.iterdir()):
        return None
    old = target.with_name(f"{target.name}.{datetime.now():%Y%m%d-%H%M%S-%f}")
    try:
        move(target, old)
    except OSError as error:
        raise UserError(
            f"--fresh cannot rename '{target}' ({error.strerror}); give another --out"
        ) from None
    if folder.is_symlink():
        target.mkdir()
    return old


def stored_config(folder: Path) -> dict[str, Any] | None:
    """Return the configuration of the run in a folder, None where there is none.

    Raises:
        UserError: config.yaml is none of a run.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return None
    try:
        content = parse_yaml(read_text(path))
    except ValueError:
        content = None
    parts = ("model", "data", "trainer")
    if not isinstance(content, dict) or not all(isinstance(content.get(p), dict) for p in parts):
        raise UserError(
            f"'{path}' is no configuration of a run: it is damaged or another program's, and is "
            "not overwritten; give another --out"
        )
    return content


def nested(config: Any, *, having: Sequence[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield those of nested dicts and namespaces that have some keys, under dotted keys."""
    inside = vars(config) if isinstance(config, Namespace) else config
    if not isinstance(inside, dict):
        return
    if all(key in inside for key in having):
        yield prefix, config
    for key, value in inside.items():
        below = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        yield from nested(value, having=having, prefix=below)


def backbones(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of the backbones in a configuration, under dotted keys."""
    return nested(config, having=OF_BACKBONE)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints a run left, the last one before the best one.

    It must come out equal in all processes while the first one calls `files.recover_folder`, which
    renames a folder that a kill left under its temporary name: so that name is looked for first.
    """
    paths = [folder / name for name in ("last.ckpt", "best.ckpt")]
    return [p for p in paths if previous_folder(p).exists() or p.exists()]


def chosen_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of a run that is evaluated and loaded: the best one, else the last."""
    paths = (folder / name for name in ("best.ckpt", "last.ckpt"))
    return next((path for path in paths if path.exists()), None)


def read_state(folder: Path) -> dict[str, Any]:
    """Return how far the run got, `step` and `finished`, and what it runs on; empty if new.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / "state.json"
    if not path.exists():
        return {}
    try:
        state = parse_json(read_text(path))
    except ValueError:
        state = None
    if not isinstance(state, dict) or not _is_state(state):
        raise UserError(
            f"'{path}' is damaged: remove it, and the run goes on from its last checkpoint"
        )
    return state


def _is_state(state: dict[str, Any]) -> bool:
    """Whether all that is read of a state is of its kind."""
    start = state.get("start") or {}  # the checkpoint that it was begun from
    if not isinstance(start, dict):
        return False
    step = state.get("step", 0)
    is_count = isinstance(step, int) and 0 <= step < 1 << 63
    is_text = isinstance(state.get("precision", ""), str) and isinstance(start.get("path", ""), str)
    names = ("held_out", "trained_on", "trained_anywhere")
    lists = [about.get(name) or [] for about in (state, start) for name in names]
    is_list = all(isinstance(names, list) for names in lists) and all(
        isinstance(name, str) for names in lists for name in names
    )
    is_count &= isinstance(start.get("step", 0), int)
    return is_count and is_text and is_list and (not state.get("finished") or "step" in state)


def write_state(folder: Path, **facts: Any) -> None:
    """Record how far the run got, and what it runs on; what was recorded otherwise stays."""
    write_text(folder / "state.json", json.dumps(read_state(folder) | facts))


def earlier_predictions(folder: Path) -> str:
    """Return a line on what `predict` wrote before, if it did: it stays where it is."""
    predictions = folder / "predictions"
    count = sum(len(files) for _, _, files in os.walk(predictions))
    if not count:
        return ""
    return f"{predictions} holds {count:,} files from before: what is not written again stays"


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
        self._columns, self._cut = {"step": None}, ""
        if path.exists():
            text, _, self._cut = read_text(path, limit=1 << 30).rpartition("\n")
            try:
                table = csv.DictReader(io.StringIO(text))
                self.rows = [
                    {"step": float(row["step"])}
                    | {k: float(v) for k, v in row.items() if v not in ("", None)}
                    for row in table
                ]
                self._columns |= dict.fromkeys(table.fieldnames or ())
            except (ValueError, TypeError, KeyError, csv.Error):
                raise UserError(
                    f"'{path}' is damaged, or no table of numbers by step: remove it, and the run "
                    "goes on with a new one"
                ) from None

    def rewind(self, step: int) -> None:
        """Forget the rows after `step` and one that a kill cut short, in the file too; -1: all."""
        kept = [row for row in self.rows if row["step"] <= step]
        if len(kept) < len(self.rows) or self._cut:
            self.rows, self._cut = kept, ""
            self._columns = self._named()
            self._write()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add values to the row of a step, and write the file."""
        complete = values.keys() <= self._columns.keys()
        self._columns |= dict.fromkeys(values)
        # What is logged after a step and before the next may come out of order.
        at = bisect_left(self.rows, step, key=lambda row: row["step"])
        if at == len(self.rows) and complete and self.path.exists():
            self.rows.append({"step": step} | values)
            with self.path.open("a") as file:
                file.write(self._line(self.rows[-1]))
            return
        if at == len(self.rows) or self.rows[at]["step"] != step:
            self.rows.insert(at, {"step": step})
        self.rows[at] |= values
        self._write()

    def _write(self) -> None:
        if not self.rows:
            self.path.unlink(missing_ok=True)
            return
        lines = [",".join(self._columns) + "\n", *map(self._line, self.rows)]
        write_text(self.path, "".join(lines))

    def _named(self) -> dict[str, None]:
        """Return the columns in order; step is the first."""
        return dict.fromkeys(["step", *(key for row in self.rows for key in row)])

    def _line(self, row: dict[str, Any]) -> str:
        return ",".join(_number(row.get(key)) for key in self._columns) + "\n"

    def first_and_last(self, key: str) -> tuple[float, float] | None:
        """Return a metric's first and last value, None if it was never logged."""
        values = [row[key] for row in self.rows if key in row]
        return (values[0], values[-1]) if values else None


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() else f"{value:.8g}"
