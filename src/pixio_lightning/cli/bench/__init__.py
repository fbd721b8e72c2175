"""`pixio bench`: suites of recipes, and two results side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pixio_lightning.cli.bench.compare import compare, stored
from pixio_lightning.cli.bench.given import over_backbones, read_places, with_data
from pixio_lightning.cli.bench.page import page
from pixio_lightning.cli.bench.suite import Stopped, incomparable, run
from pixio_lightning.cli.bench.suite_file import columns_of, find_suite, read_suite
from pixio_lightning.cli.bench.tables import Row, as_csv, latex, table
from pixio_lightning.errors import visible_lines
from pixio_lightning.files import write_text

__all__ = [
    "Row",
    "as_csv",
    "compare",
    "find_suite",
    "incomparable",
    "latex",
    "main",
    "read_suite",
    "run",
    "table",
]


def main(
    words: list[str],
    *,
    suite: str,
    out: str | None,
    data: Sequence[str] = (),
    backbones: str | None = None,
) -> int:
    """Run a suite, print its table and write it beside the runs; returns the exit code."""
    path = find_suite(suite)
    content = with_data(read_suite(path), read_places(data))
    if backbones is not None:
        content = over_backbones(content, backbones.split(","))
    folder = Path(out) if out else Path("runs") / "bench" / path.stem
    try:
        outcome = run(content, folder, words=words)
    except Stopped as stop:
        return stop.code
    from pixio_lightning.cli.run import is_first  # slow: after a suite's mistakes

    if not is_first():  # all processes of a run go through the whole suite
        return 0
    rows, better, title = outcome.rows, columns_of(content), str(content.get("title", path.stem))
    text = f"{title}\n\n{table(rows, better)}\n"
    text += "".join(f"\n{note}\n" for note in outcome.notes)
    text += "".join(f"\nEvaluated on {line}\n" for line in outcome.about)
    text += "".join(f"\nNot to be compared, {warning}\n" for warning in outcome.warnings)
    print(visible_lines("\n" + text))
    write_text(folder / "table.md", text)
    write_text(folder / "table.json", stored(outcome, better, title))
    write_text(folder / "table.csv", as_csv(rows))
    write_text(folder / "table.tex", latex(rows, better))
    write_text(folder / "index.html", page(title, outcome, better, folder=folder))
    print(f"written: {folder / 'table.md'}, and {folder / 'index.html'} for a browser")
    return 0
