"""Files that grow by lines go on after one that was cut short."""

from __future__ import annotations

from pathlib import Path

from pixio_lightning.data.datamodule import _BadList
from pixio_lightning.files import add_line, add_rows


def test_a_line_is_begun_where_the_last_one_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    add_line(path, "one")
    with path.open("a") as file:
        file.write("tw")
    add_line(path, "three")
    add_line(path, "four")
    assert path.read_text() == "one\ntw\nthree\nfour\n"


def test_rows_are_begun_where_the_last_one_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    add_rows(path, ["name", "x"], [["a,b", 1]])
    with path.open("a") as file:
        file.write("c")
    add_rows(path, ["name", "x"], [["\udcff.png", 2]])
    add_rows(path, ["name", "x"], [])
    assert path.read_bytes().splitlines() == [b"name,x", b'"a,b",1', b"c", b"\xff.png,2"]


def test_a_bad_file_is_listed_after_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "bad_files.txt"
    path.write_text("one.png\tbroken\ntwo.p")
    bad_list = _BadList(path)
    bad_list.add({"one.png": "broken", "two.png": "broken"})
    bad_list.add({"three.png": "broken"})
    whole = [f"{name}.png\tbroken" for name in ("one", "two", "three")]
    assert path.read_text().splitlines() == [whole[0], "two.p", *whole[1:]]
