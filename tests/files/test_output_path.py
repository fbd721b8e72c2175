"""What is written for a sample lies below its folder, and for no two samples in one place."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from pixio_lightning.errors import UserError
from pixio_lightning.files.naming import output_path

SUFFIXES = (".png", "_colour.png", ".npy", ".txt", "")
USUAL = ["a.jpg", "a.jpg.png", "a.png", "room/01/b c.jpg", "train/00000001", "é.png", "..a", "a..b"]
ODD = [
    *("../a.jpg", "../../../etc/passwd", "/etc/passwd", "x/../../y.png", "..", ".", "", "/", "a/"),
    *("a//b.jpg", "./a.jpg", "..\\..\\a.jpg", "C:\\a.jpg", "a\0b.jpg", "a\nb.jpg", "a\x1b[2J.jpg"),
    *("x" * 300 + ".jpg", "é" * 200, "é" * 127 + "x", "/".join(["d" * 200] * 30) + "/a.jpg"),
    *("x" * 256 + "/a.jpg", "half \ud800 a pair.jpg", "a.jpg_colour", "a~0123456789abcdef"),
    *("a.png/b.jpg", "a.PNG/b.jpg", "../a.jpg~0123456789abcdef"),
]


@pytest.mark.parametrize("name", [*USUAL, *ODD, os.fsdecode(b"\xff\xe9.jpg")])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_path_can_be_written_and_lies_below_its_folder(
    name: str, suffix: str, tmp_path: Path
) -> None:
    folder = tmp_path / "below" / "predictions"
    path = output_path(folder, name, suffix)
    assert path.is_relative_to(folder) and path != folder and ".." not in path.parts
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    assert folder in path.resolve().parents


@pytest.mark.parametrize("name", [*USUAL, os.fsdecode(b"\xff\xe9.jpg")])
def test_usual_names_stay_as_they_are(name: str, tmp_path: Path) -> None:
    assert output_path(tmp_path, name, ".png") == tmp_path / f"{name}.png"


def test_different_names_have_different_paths(tmp_path: Path) -> None:
    """Also names that are made to meet those that others become, and folders that meet files."""
    random_key = random.Random(0)
    pieces = ["a", "b.jpg", "b.jpg.png", "..", ".", "", "\\", "\0", "_", "_colour", "x" * 250]
    made = {"/".join(random_key.choices(pieces, k=random_key.randint(1, 4))) for _ in range(3000)}
    made |= {*USUAL, *ODD, "a.jpg_colour.png", "a.jpg_colour"}
    for _ in range(2):
        made |= {str(output_path(tmp_path, n).relative_to(tmp_path)) for n in made}
    suffixes = (".png", "_colour.png", ".npy")
    paths = [output_path(tmp_path, name, suffix) for name in made for suffix in suffixes]
    assert len({*paths}) == len(paths) > 9000
    assert not {*paths} & {parent for path in paths for parent in path.parents}


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "predictions", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "room").symlink_to(outside)
    (folder / "b.jpg.png").symlink_to(outside / "b.png")
    (folder / "loop").symlink_to("loop")
    for name in ("room/a.jpg", "b.jpg", "loop/a.jpg"):
        with pytest.raises(UserError, match="remove"):
            output_path(folder, name, ".png")
    (folder / "other").symlink_to(folder)  # one that stays inside harms nobody
    assert output_path(folder, "other/a.jpg", ".png") == folder / "other/a.jpg.png"


def test_a_folder_that_is_a_link_itself_is_the_user_s_choice(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "predictions").symlink_to(tmp_path / "disk")
    path = output_path(tmp_path / "predictions", "a.jpg", ".png")
    path.write_text("x")
    assert (tmp_path / "disk/a.jpg.png").exists()
