"""Pages of results whose tables are written by the script that measured them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_BEGIN, _END = "<!-- table -->\n", "<!-- /table -->\n"


def fill(page: Path, lines: Iterable[str]) -> None:
    """Put lines between the marks of a page; one that is not there yet is begun with them."""
    text = page.read_text() if page.exists() else _BEGIN + _END
    before, after = text.split(_BEGIN)[0], text.split(_END)[1]
    page.write_text(before + _BEGIN + "".join(f"{line}\n" for line in lines) + _END + after)
