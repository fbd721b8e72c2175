"""The generated project: names that fit, and names that do not."""

from __future__ import annotations

import importlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixio_lightning.cli.class_lookup import CORE_CLASSES
from pixio_lightning.cli.new_head import create
from pixio_lightning.errors import UserError
from pixio_lightning.testing import HeadContract


@pytest.fixture(scope="module")
def generated_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The data module of a generated head."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(create("ascent", tmp_path_factory.mktemp("ascent")) / "src")
        yield importlib.import_module("pixio_ascent.data")


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lightning", "the distribution pixio-lightning, of which .* would be replaced: choose"),
        ("heads", "the package pixio_heads, which is there already"),
        ("pretrain", "recipes called pretrain/..., as pixio-lightning does: choose another name"),
    ],
)
def test_a_project_that_would_replace_what_is_installed_is_refused(
    name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        create(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "a class called None, a name that Python has already: choose another"),
        ("true", "a class called True, a name that Python"),
        ("head", "Head, a name that pixio-lightning"),
        ("sample", "Sample, a name that pixio-lightning has"),
        ("dense_head", "DenseHead, a name that pixio-lightning has"),
        ("tensor", "Tensor, a name that its own code has"),
        ("metric_collection", "MetricCollection, a name that its own code has"),
        ("k_n_n", "KNN, a name that pixio-lightning .* has"),
    ],
)
def test_names_whose_classes_are_taken(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        create(name, tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("cls", [*CORE_CLASSES["model"], *CORE_CLASSES["data"]])
def test_no_head_has_a_class_that_recipes_call_by_its_name(cls: type, tmp_path: Path) -> None:
    name = re.sub("(?<=.)(?=[A-Z])", "_", cls.__name__).lower()
    with pytest.raises(UserError, match=f"a class called {cls.__name__}, a name that pixio-light"):
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


def test_a_generated_head_sees_a_picture_as_its_data_does_and_the_contract_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = create("incline", tmp_path) / "src"
    monkeypatch.syspath_prepend(source)
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    head = importlib.import_module("pixio_incline").Incline

    class Contract(HeadContract):
        recipe = str(source / "pixio_incline/recipes/incline/demo.yaml")
        overrides = (
            *("--model", "pixio_incline.head.Incline", "--data", "pixio_incline.data.InclineData"),
            *("--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}"),
        )

    contract, run = Contract(), tmp_path / "run"
    contract.run("fit", run, model__backbone__tune="frozen")

    def ask(name: str) -> None:
        (tmp_path / name).mkdir()
        copied = Path(shutil.copytree(run, tmp_path / name / "run"))
        contract.test_a_picture_is_seen_as_evaluation_sees_it(copied, tmp_path, monkeypatch)

    ask("as it is")
    monkeypatch.delattr(head, "prepared")
    with pytest.raises(AssertionError, match="Let `prepared` do what"):
        ask("without")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"name,target\na.png,1\n", "line 1: there is no column .file.; expected file,target"),
        (b"file,angle\na.png,1\n", "line 1: there is no column .target.; expected"),
        (b"file,target\na.png,1\nb.png,high\n", "line 3: .*'high'; expected .* a number"),
        (b"file,target\na.png,1\nb.png\n", "line 3: .* a number in target"),
        (b"file,target\na.png,1\n\xff.png,2\n", "expected file,target"),
        (b"file,target\n", "lists no image"),
        (b"", "lists no image"),
    ],
)
def test_mistakes_of_the_generated_table_are_one_line(
    table: bytes, message: str, generated_data: Any, tmp_path: Path
) -> None:
    (tmp_path / "targets.csv").write_bytes(table)
    with pytest.raises(UserError, match=message) as caught:
        generated_data.TableSamples(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_generated_table_may_come_from_excel(generated_data: Any, tmp_path: Path) -> None:
    text = "file,target\r\nä.png,1.5\r\n".encode("utf-8-sig")
    (tmp_path / "targets.csv").write_bytes(text)
    assert generated_data.TableSamples(tmp_path).rows == [("ä.png", 1.5)]
