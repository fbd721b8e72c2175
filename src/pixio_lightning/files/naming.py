"""Where the output for a sample is written: strictly below a folder, whatever the sample's name.

Names come from data: members of archives, lines of lists, cells of tables, files of any spelling.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from pixio_lightning.errors import UserError

# Control characters, backslashes, and what no file system can be asked for: half a UTF-16 pair.
# Bytes that are not UTF-8 (U+DC80 to U+DCFF, as Python spells them in names of files) may stay.
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\\\\\ud800-\udc7f\udd00-\udfff]")
_LONGEST = 255 - 31  # bytes of a component, with room for the suffix
_DEEPEST = 1024  # bytes of a name, of the 4096 that a path may have
# Endings that a name may not have by itself, because others are given them here.
_TAKEN = re.compile(r"(_colour|~[0-9a-f]{16})\Z")
# Suffixes of files that are written: a folder of such a name would stand in a file's place.
_WRITTEN = (".png", ".npy", ".txt")


def output_path(folder: Path, name: str, suffix: str = "") -> Path:
    """Return where to write the output for a sample; nothing is made.

    A usual name stays as it is, with the suffix behind it: `room/a.jpg` becomes `room/a.jpg.png`,
    so that `a.jpg` and `a.png` do not meet. Of any other name (absolute, with `..`, a backslash or
    a control character, longer than a file system takes, or as outputs are called) a readable rest
    stays, and a hash of the whole that keeps it apart: different names have different paths.

    Args:
        folder: What the path lies below.
        name: The sample's name, a relative path with slashes.
        suffix: Added to the last component; begins with a dot, or is `_colour` and a suffix.

    Raises:
        UserError: A link inside of the folder leads out of it.
    """
    path = folder / output_name(name, suffix)
    if not _real(path).is_relative_to(_real(folder)):
        raise UserError(
            f"'{path}' is not written: a link in '{folder}' leads out of it; remove the link"
        )
    return path


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        raise UserError(f"'{path}' is not written: a link in it leads nowhere; remove it") from None


def output_name(name: str, suffix: str = "") -> str:
    """Return the path below its folder that `output_path` gives to a sample; links are not seen."""
    parts = [_ODD.sub("_", part) for part in name.split("/") if part not in ("", ".", "..")]
    parts = [_shortened(part) for part in parts or ["unnamed"]]
    folders = [f"{p}_" if p.lower().endswith(_WRITTEN) else p for p in parts[:-1]]
    plain = "/".join([*folders, parts[-1]])
    if plain != name or _TAKEN.search(name) or len(os.fsencode(plain)) > _DEEPEST:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        folders = folders if len(os.fsencode(plain)) <= _DEEPEST else []
        plain = "/".join([*folders, f"{_shortened(parts[-1], 17)}~{digest}"])
    return plain + suffix


def _shortened(part: str, room: int = 0) -> str:
    """Return the beginning of a component that leaves room for so many bytes."""
    encoded = os.fsencode(part)
    most = _LONGEST - room
    return part if len(encoded) <= most else encoded[:most].decode("utf-8", "ignore")
