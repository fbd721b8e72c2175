"""Files that grow by lines, of which a kill or a full disk may have cut the last one short.

Nothing here imports torch.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO


def line_break(file: BinaryIO) -> bytes:
    """Return what ends the last line of a file open to read and add to: nothing if that is whole.

    The file is at its end then.
    """
    if not file.seek(0, os.SEEK_END):
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def add_line(path: Path, line: str) -> None:
    """Add a line to a file, which is begun where there is none; it is on the disk then."""
    with path.open("a+b") as file:
        file.write(line_break(file) + f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def add_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Add rows to a CSV file, which is begun with the names of its columns where there is none.

    A name in it need not be UTF-8, as file systems take any bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    with path.open("a+b") as file:
        if not file.seek(0, os.SEEK_END):
            table.writerow(columns)
        table.writerows(rows)
        file.write(line_break(file) + text.getvalue().encode(errors="surrogateescape"))
