"""The page of a suite says what the table says, and escapes what others wrote."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pixio_lightning.cli.bench import Row
from pixio_lightning.cli.bench.page import page
from pixio_lightning.cli.bench.suite import Evaluation, Outcome


class Pieces(HTMLParser):
    """Tags with their attributes, and the text of cells by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def outcome(folder: Path, *, name: str = "pretrained") -> Outcome:
    (folder / "run" / "panels").mkdir(parents=True)
    (folder / "run" / "panels" / "step 2.png").write_bytes(b"")
    (folder / "run" / "metrics.csv").write_text("step\n")
    line: dict[str, Any] = {
        "metrics": {"abs_rel": 0.3, "success": 0.8, "success_low": 0.6, "success_high": 0.9},
        "backbone": {"licence": "Apache-2.0"},
        "seed": {"everything": 0},
        "steps": 7,
        "commit": "abc",
    }
    rows = [
        Row("constant", {"abs_rel": [0.5]}),
        Row(name, {"abs_rel": [0.3, 0.4], "success": [0.8]}),
        Row("none", {"abs_rel": [float("nan")]}),
    ]
    evaluations = [Evaluation(name, folder / "run", line)]
    return Outcome(rows, 1, ["val of <den>, 8 samples"], ["a and b: n is 1 and 2"], evaluations)


def test_the_page_has_the_table_the_charts_and_where_they_come_from(tmp_path: Path) -> None:
    out = tmp_path / "suite"
    text = page("Depth & more", outcome(tmp_path), {"abs_rel": "min", "success": "max"}, folder=out)
    found = Pieces(text)
    assert found.rows[0] == ["row", "abs_rel ↓", "success ↑", "seeds"]
    assert found.rows[1] == ["constant", "0.5000", "", "1"]
    assert found.rows[2] == ["pretrained", "0.3500 ± 0.0707", "0.8000", "2"]
    best = [attrs for tag, attrs in found.tags if tag == "td" and attrs.get("class") == "best"]
    assert [attrs["data-value"] for attrs in best] == ["0.35"]  # of one row alone nothing is best
    links = [attrs["href"] for tag, attrs in found.tags if tag == "a"]
    assert links == ["../run/panels/step%202.png", "../run/metrics.csv"]
    for said in ("Depth &amp; more", "val of &lt;den&gt;, 8", "Apache-2.0", "n is 1 and 2"):
        assert said in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text)  # nothing is fetched


def test_bars_are_as_long_as_their_values_and_whiskers_reach_the_interval(tmp_path: Path) -> None:
    text = page("t", outcome(tmp_path), {"abs_rel": "min"}, folder=tmp_path)
    charts = text.split("<svg")[1:]
    widths = [float(w) for w in re.findall(r'<rect[^>]* width="([\d.]+)"', charts[0])]
    assert widths[0] / widths[1] == pytest.approx(0.5 / 0.35, rel=1e-3) and len(widths) == 2
    assert charts[0].count("<circle") == 2 and charts[0].count('class="base"') == 1
    ((zero, bar),) = re.findall(r'<rect class="ours" x="([\d.]+)"[^>]* width="([\d.]+)"', charts[1])
    ((low, high),) = re.findall(r'<line class="mark" x1="([\d.]+)" x2="([\d.]+)"', charts[1])
    scale = float(bar) / 0.8
    ends = [(float(end) - float(zero)) / scale for end in (low, high)]
    assert ends == pytest.approx([0.6, 0.9], abs=1e-3)


def test_names_are_text_and_no_markup(tmp_path: Path) -> None:
    text = page("t", outcome(tmp_path, name='<script>"x"</script>'), {}, folder=tmp_path)
    assert sum(tag == "script" for tag, _ in Pieces(text).tags) == 1  # the page's own
