"""Files of a folder, or of a zip that is read as it is."""

from __future__ import annotations

import errno
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

from pixio_lightning.data.decode import BadImage, read_file
from pixio_lightning.data.sources import digest_of
from pixio_lightning.errors import UserError, nearest

_MOST_BYTES = 1 << 29  # of a file in a zip, unpacked: what 64 megapixels of float64 need


class Archive:
    """Files by their path below a folder or inside a zip.

    Args:
        path: The folder or zip.
        key: What the path is called in the configuration.

    Raises:
        UserError: It is neither.
    """

    def __init__(self, path: str | Path, key: str) -> None:
        self.path = Path(path).expanduser()
        self.is_folder = self.path.is_dir()
        self._zip: zipfile.ZipFile | None = None
        self._owner = 0
        if self.is_folder:
            found = (p for p in self.path.rglob("*") if p.is_file())
            self.names = sorted(p.relative_to(self.path).as_posix() for p in found)
            self._known = frozenset(self.names)
            return
        if not self.path.is_file():
            siblings = [p.name for p in self.path.parent.glob("*")]
            raise UserError(
                f"{key} '{path}' is no folder and no zip{nearest(self.path.name, siblings)}"
            )
        try:
            infos = self._opened().infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise UserError(
                f"{key} '{path}' is no zip, or only part of one; give the zip or its unpacked "
                "folder"
            ) from None
        self.names = sorted(i.filename for i in infos if i.filename and not i.is_dir())
        self._known = frozenset(self.names)

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            BadImage: It is not there, or damaged or too large inside the zip.
        """
        if name not in self._known:
            raise BadImage(f"no {name.rpartition('/')[2]}")
        if self.is_folder:
            return read_file(self.path / name)
        try:
            opened = self._opened()
            if opened.getinfo(name).file_size > _MOST_BYTES:  # zeros pack a thousandfold
                raise BadImage(f"over {_MOST_BYTES >> 20} MiB in the zip")
            return opened.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError):
            raise BadImage("damaged in the zip") from None
        except OSError as error:
            if error.errno != errno.EINVAL:  # of a place before the file's beginning
                raise
            raise BadImage("damaged in the zip") from None

    def digest(self) -> str:
        """Return a short hash that changes when the files do."""
        paths = [self.path / name for name in self.names] if self.is_folder else [self.path]
        stats = [path.stat() for path in paths]
        return digest_of(self.names, [(s.st_size, s.st_mtime_ns) for s in stats])

    def _opened(self) -> zipfile.ZipFile:
        # Processes that share a handle would move each other's position in the file.
        if self._zip is None or self._owner != os.getpid():
            self._zip, self._owner = zipfile.ZipFile(self.path), os.getpid()
        return self._zip

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_zip": None}
