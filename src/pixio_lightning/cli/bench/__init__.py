"""`pixio bench`: suites of recipes, and two results side by side."""

from __future__ import annotations

import json
from pathlib import Path

from pixio_lightning.cli.bench.compare import compare
from pixio_lightning.cli.bench.page import page
from pixio_lightning.cli.bench.suite import (
    better_ends,
    incomparable,
    is_first,
    read_suite,
    run,
)
from pixio_lightning.cli.bench.tables import Row, as_csv, latex, table
from pixio_lightning.errors import visible_lines
from pixio_lightning.files import write_text

__all__ = [
    "Row",
    "as_csv",
    "compare",
    "incomparable",
    "latex",
    "main",
    "read_suite",
    "run",
    "table",
]


def main(words: list[str], *, suite: str, out: str | None) -> int:
    """Run a suite, print its table and write it beside the runs."""
    path = Path(suite)
    content = read_suite(path)
    folder = Path(out) if out else Path("runs") / "bench" / path.stem
    outcome = run(content, folder, words=words)
    if not is_first():
        return 0
    rows, better, title = outcome.rows, better_ends(content), str(content.get("title", path.stem))
    text = f"{title}\n\n{table(rows, better)}\n"
    text += "".join(f"\nEvaluated on {line}\n" for line in outcome.about)
    text += "".join(f"\nNot to be compared, {warning}\n" for warning in outcome.warnings)
    print(visible_lines("\n" + text))
    write_text(folder / "table.md", text)
    values = {row.name: row.values for row in rows}
    stored = {"better": better, "rows": values}
    write_text(folder / "table.json", json.dumps(stored, indent=1) + "\n")
    write_text(folder / "table.csv", as_csv(rows))
    write_text(folder / "table.tex", latex(rows, better))
    write_text(folder / "index.html", page(title, outcome, better, folder=folder))
    print(f"written: {folder / 'table.md'}, and {folder / 'index.html'} for a browser")
    return 0
