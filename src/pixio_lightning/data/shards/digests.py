"""The digests of shards that are being written, for which each is read once.

A folder of terabytes takes hours to read: packing that goes on after a kill finds in the file
`.digests` what it has read before.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from threading import Lock

from pixio_lightning.files import add_line, parse_json, read_text

FILE = ".digests"
_MAX_BYTES = 1 << 30


class Digests:
    """The sha256 of each file of a folder, as long as its size and its time stay what they are.

    Several threads may ask.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._adding = Lock()
        self._known: dict[str, str] = {}
        text = read_text(self.path, limit=_MAX_BYTES) if self.path.exists() else ""
        for line in text.splitlines():
            with suppress(ValueError, TypeError):  # cut short by a kill
                state, digest = parse_json(line)
                self._known[state] = digest

    def of(self, path: Path) -> str:
        """Return the sha256 of a file in the folder, which is read where it is not known."""
        about = path.stat()
        state = f"{path.name} {about.st_size} {about.st_mtime_ns}"
        if state not in self._known:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            with self._adding:
                self._known[state] = digest
                add_line(self.path, json.dumps([state, digest]))
        return self._known[state]
