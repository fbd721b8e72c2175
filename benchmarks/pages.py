"""Results kept line by line as JSON, and pages whose tables a script fills from them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_BEGIN, _END = "<!-- table -->\n", "<!-- /table -->\n"


def stored(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results; none if it is not there yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def fill(page: Path, lines: Iterable[str]) -> None:
    """Put lines between the marks of a page; one that is not there yet is begun with them."""
    text = page.read_text() if page.exists() else _BEGIN + _END
    before, after = text.split(_BEGIN)[0], text.split(_END)[1]
    page.write_text(before + _BEGIN + "".join(f"{line}\n" for line in lines) + _END + after)
