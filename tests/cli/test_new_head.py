"""The generated project: names that fit, and names that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixio_lightning.cli.new_head import create
from pixio_lightning.errors import UserError


def test_no_word_of_the_template_is_left(tmp_path: Path) -> None:
    project = create("surface_normals", tmp_path)
    assert project.name == "pixio-surface-normals"
    files = [path for path in project.rglob("*") if path.is_file()]
    assert len(files) == 7
    for path in files:
        assert "example" not in str(path.relative_to(tmp_path)).lower()
        assert "example" not in path.read_text().lower()
    head = (project / "src/pixio_surface_normals/head.py").read_text()
    assert "class SurfaceNormals(Head)" in head


@pytest.mark.parametrize("name", ["Depth", "2d", "my-head", "class", "depth"])
def test_names_that_do_not_fit(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot name a head|is taken by pixio-lightning"):
        create(name, tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    create("normals", tmp_path)
    with pytest.raises(UserError, match="exists and is not overwritten"):
        create("normals", tmp_path)
