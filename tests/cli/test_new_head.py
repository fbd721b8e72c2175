"""The generated project: names that fit, and names that do not."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from PIL import Image

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


@pytest.mark.parametrize("name", ["Depth", "2d", "my-head", "my_", "my__head", "class", "depth"])
def test_names_that_do_not_fit(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot name a head|is taken by pixio-lightning"):
        create(name, tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    create("normals", tmp_path)
    with pytest.raises(UserError, match="exists and is not overwritten"):
        create("normals", tmp_path)


def test_the_generated_data_reads_what_its_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables in DIR/train and DIR/val, and to predict a plain folder of images."""
    monkeypatch.syspath_prepend(create("gradient", tmp_path) / "src")
    module = importlib.import_module("pixio_gradient.data")
    for i, part in enumerate(("train", "val")):
        (tmp_path / "set" / part).mkdir(parents=True)
        Image.new("RGB", (40, 30), (9, 9, 9 * i)).save(tmp_path / f"set/{part}/{i}.png")
        (tmp_path / f"set/{part}/targets.csv").write_text(f"file,target\n{i}.png,{i}.5\n")
    data = module.GradientData("folder", str(tmp_path / "set"), image_size=32)
    for i, part in enumerate(("train", "val")):
        sample = data.prepare(data.samples_of(part).load(0))
        assert sample["target"] == i + 0.5 and sample["image"].shape == (32, 32, 3)
    plain = data.samples_of("predict")
    assert [plain.name(i) for i in range(len(plain))] == ["train/0.png", "val/1.png"]
    assert data.prepare(plain.load(1)).keys() == {"image"}
    readme = (tmp_path / "pixio-gradient/README.md").read_text()
    assert "`DIR/train` and `DIR/val` hold images, and each a `targets.csv`" in readme
