"""Which samples are of which split, by the names of folders and shards; what is unclear stops."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from pixio_heads.classification.data import ClassificationData
from pixio_heads.depth.data import DepthData
from pixio_heads.reconstruction.data import ReconstructionData
from pixio_heads.segmentation.data import SegmentationData
from pixio_lightning.data.sample_data import SampleData
from pixio_lightning.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 1).save(root / name)
    return root


def classes(root: Path, *splits: str, names: Iterable[str] = ("ant", "bee")) -> Path:
    for split in splits:
        touch(root, *(f"{split}/{name}/{i}.png" for name in names for i in range(5)))
    return root


def names_of(data: SampleData, split: str) -> set[str]:
    samples = data.samples_of(split)
    root = samples.root.relative_to(data.path)  # type: ignore[attr-defined]
    return {(root / samples.name(i)).as_posix() for i in range(len(samples))}


def folders_of(data: SampleData, split: str) -> set[str]:
    return {name.partition("/")[0] for name in names_of(data, split)}


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "valid"),
        ("train", "validation"),
        ("Train", "Val"),
        ("TRAINING", "Validation"),
        ("train", "dev"),
    ],
)
@pytest.mark.parametrize("task", ["classification", "segmentation", "depth"])
def test_the_usual_names_in_any_case(task: str, train: str, val: str, tmp_path: Path) -> None:
    if task == "classification":
        data: SampleData = ClassificationData("folder", str(classes(tmp_path, train, val)))
        assert data.class_names == ["ant", "bee"]  # type: ignore[attr-defined]
    else:
        other = "masks" if task == "segmentation" else "depth"
        for split in (train, val):
            touch(tmp_path, *(f"{split}/{f}/{i}.png" for f in ("images", other) for i in range(3)))
        data = (
            DepthData("folder", str(tmp_path))
            if task == "depth"
            else SegmentationData("folder", str(tmp_path), num_classes=2)
        )
    for split, folder in (("train", train), ("val", val), ("test", val)):
        assert folders_of(data, split) == {folder}, split
    count = 10 if task == "classification" else 3
    assert [len(data.samples_of(split)) for split in ("train", "val")] == [count, count]


def test_a_test_split_and_none_to_validate_on(tmp_path: Path) -> None:
    data = ClassificationData("folder", str(classes(tmp_path, "train", "testing")))
    assert folders_of(data, "test") == {"testing"} and len(data.samples_of("test")) == 10
    train, val = names_of(data, "train"), names_of(data, "val")
    assert (len(train), len(val), len(train | val)) == (9, 1, 10)
    assert folders_of(data, "val") == {"train"}


def test_what_is_no_class(tmp_path: Path) -> None:
    classes(tmp_path, ".")
    touch(tmp_path, "__MACOSX/ant/._0.png", ".thumbnails/0.png", "ant/.ipynb_checkpoints/0.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/read me.txt").touch()
    data = ClassificationData("folder", str(tmp_path))
    assert data.class_names == ["ant", "bee"]
    assert len(names_of(data, "train") | names_of(data, "val")) == 10


def test_a_class_of_the_name_of_a_split(tmp_path: Path) -> None:
    data = ClassificationData("folder", str(classes(tmp_path, ".", names=("bus", "car", "train"))))
    assert data.class_names == ["bus", "car", "train"]
    assert len(data.samples_of("train")) == 14


@pytest.mark.parametrize(
    ("splits", "files", "message"),
    [
        (("train", "val", "valid"), (), r"val/ and valid/, which are both of the split val"),
        (("Train", "train"), (), r"Train/ and train/, which are both of the split train"),
        (("train", "old"), (), r"train/ beside .old/., so it cannot be told"),
        (("val", "test"), (), r"holds test/, val/ but no folder for train"),
        ((), ("train/0.png", "val/0.png"), r"train' holds images in no folder"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    splits: tuple[str, ...], files: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    touch(classes(tmp_path, *splits), *files)
    with pytest.raises(UserError, match=message) as error:
        _ = ClassificationData("folder", str(tmp_path)).class_names
    assert "\n" not in str(error.value)


def test_test_images_without_classes_are_predicted_and_not_scored(tmp_path: Path) -> None:
    touch(classes(tmp_path, "train", "val"), "test/0.png", "test/1.png")
    data = ClassificationData("folder", str(tmp_path))
    assert names_of(data, "predict") == {"test/0.png", "test/1.png"}
    with pytest.raises(BaseException, match=r"in no folder of a class|not laid out"):
        data.samples_of("test").load(0)


def test_a_scene_of_the_name_of_a_split(tmp_path: Path) -> None:
    """One of Tanks and Temples is called Train."""
    for name in ("Barn", "Train", "Truck"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "transforms.json").write_text('{"frames": []}')
    with pytest.raises(UserError, match="scene '.*Barn' has 0 frames"):
        ReconstructionData("folder", str(tmp_path)).samples_of("train")
