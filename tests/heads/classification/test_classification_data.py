"""Images with classes in their real layouts, with every kind of broken sample."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from pixio_heads.classification.data import ClassificationData
from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.samples import RandomKey
from pixio_lightning.data.scenes import store as scene_store
from pixio_lightning.data.scenes.render import SCENE_CLASSES
from pixio_lightning.data.scenes.samples import SceneSamples
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.data.scenes.worlds import known_places
from pixio_lightning.errors import UserError

SCENES = Scenes(train=6, held_out=2, views=2, size=64)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "pixio-cache"))


def picture(path: Path, size: tuple[int, int] = (40, 56), seed: int = 0) -> np.ndarray:
    array = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, one of them with folders of its own."""
    for i in range(12):
        picture(tmp_path / "animals" / ("cat", "dog", "owl/barn")[i % 3] / f"{i:02d}.png", seed=i)
    return tmp_path / "animals"


def test_classes_of_one_folder_and_a_tenth_held_out(folder: Path) -> None:
    data = ClassificationData("folder", str(folder), image_size=32)
    assert data.class_names == ["cat", "dog", "owl"] and data.num_classes == 3
    assert not data.multilabel
    train, val = data.samples_of("train"), data.samples_of("val")
    names = {s.name(i) for s in (train, val) for i in range(len(s))}
    assert (len(train), len(val), len(names)) == (11, 1, 12)
    for i in range(len(train)):
        sample, number = train.load(i), int(Path(train.name(i)).stem)
        assert sample["target"] == number % 3
        assert np.array_equal(
            sample["image"][0, 0], picture(folder.parent / "x.png", seed=number)[0, 0]
        )
    assert train.digest() == ClassificationData("folder", str(folder)).samples_of("train").digest()


def test_the_digest_follows_files_and_takes_a_link_to_nowhere(folder: Path) -> None:
    def digest() -> str:
        return ClassificationData("folder", str(folder)).digest("train")

    found = [digest()]
    (folder / "cat" / "nowhere.png").symlink_to("nothing.png")  # a bad image like any other
    found.append(digest())
    assert digest() == found[-1]
    picture(folder / "dog" / "01.png", size=(41, 56))
    found.append(digest())
    assert len(set(found)) == 3


def test_train_val_and_test_folders(folder: Path) -> None:
    root = folder.parent / "split"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for name in ("cat", "dog", "owl"):
            (root / split / name).symlink_to(folder / name)
    data = ClassificationData("folder", str(root))
    assert data.class_names == ["cat", "dog", "owl"]
    assert [len(data.samples_of(s)) for s in ("train", "val", "test")] == [12, 12, 12]
    picture(root / "test/owl/a.png")
    data = ClassificationData("folder", str(root))
    assert len(data.samples_of("test")) == 1 and data.samples_of("test").load(0)["target"] == 2
    picture(root / "val/owls/a.png")
    with pytest.raises(UserError, match="val' holds owls, but train/ has no such class"):
        ClassificationData("folder", str(root)).samples_of("val")
    for name in ("cat", "dog", "owl"):
        (root / "val" / name).unlink()
    (root / "val/owls/a.png").unlink()
    (root / "val/owls").rmdir()
    (root / "val").rmdir()
    data = ClassificationData("folder", str(root))
    assert [len(data.samples_of(s)) for s in ("train", "val")] == [11, 1]


def test_a_plain_folder_of_images_is_enough_to_predict(tmp_path: Path) -> None:
    picture(tmp_path / "in/b.jpg")
    data = ClassificationData("folder", str(tmp_path / "in"))
    samples = data.samples_of("predict")
    assert samples.name(0) == "b.jpg" and samples.load(0).keys() == {"image"}
    with pytest.raises(UserError, match="images in no folder; expected a folder of images"):
        _ = data.class_names


def test_one_class_is_a_mistake(folder: Path) -> None:
    with pytest.raises(UserError, match="images in barn; expected a folder"):
        _ = ClassificationData("folder", str(folder / "owl")).num_classes
    with pytest.raises(UserError, match="did you mean 'animals'"):
        _ = ClassificationData("folder", str(folder.parent / "animlas")).num_classes


@pytest.mark.parametrize(
    "kind",
    [
        "empty file",
        "truncated",
        "no JPEG, PNG, WebP, TIFF or BMP",
        "in no folder of a class",
    ],
)
def test_a_broken_sample_is_counted_and_skipped(kind: str, folder: Path) -> None:
    path = folder / "cat/00.png"
    if kind == "empty file":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "in no folder of a class":
        picture(folder / "loose.png")
    else:
        path.write_text("no picture")
    total = 13 if kind == "in no folder of a class" else 12
    data = ClassificationData("folder", str(folder), image_size=32, num_workers=0, batch_size=5)
    batches = list(data.statistics_dataloader()) + list(data.val_dataloader())
    assert sum(float(batch["weight"].sum()) for batch in batches) == total - 1
    assert list(data.bad.values()) == [kind]


def hub(folder: Path, **columns: tuple[list, object]) -> str:
    """Write a data set of eight images with other columns: their values and type."""
    images = [{"bytes": _png(i), "path": None} for i in range(8)]
    types: dict = {"image": datasets.Image()}
    values: dict = {"image": images}
    for name, (column, kind) in columns.items():
        values[name], types[name] = column, kind
    table = datasets.Dataset.from_dict(values, features=datasets.Features(types))
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(str(folder))
    return str(folder)


def _png(seed: int) -> bytes:
    import io

    buffer = io.BytesIO()
    array = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_hub_column_of_classes(tmp_path: Path) -> None:
    kind = datasets.ClassLabel(names=["zebra", "ant"])
    path = hub(tmp_path / "hub", label=([0, 1, 0, 1, 0, 1, -1, None], kind))
    data = ClassificationData("hub", path)
    assert data.class_names == ["zebra", "ant"] and not data.multilabel
    samples = data.samples_of("val")
    assert [int(samples.load(i)["target"]) for i in range(6)] == [0, 1, 0, 1, 0, 1]
    for secret in (6, 7):
        with pytest.raises(BadImage, match="no class"):
            samples.load(secret)
    assert data.samples_of("predict").load(6).keys() == {"image"}
    with pytest.raises(UserError, match="data.label_column is 'lable'.*did you mean 'label'"):
        _ = ClassificationData("hub", path, label_column="lable").num_classes
    with pytest.raises(UserError, match="data.label_column image holds .*, but expected names"):
        _ = ClassificationData("hub", path, label_column="image").num_classes
    with pytest.raises(UserError, match="data.image_size is 0, but expected at least 1"):
        ClassificationData("hub", path, image_size=0)
    for ratio in ((0, 1), (-1, 1), (2, 1)):
        with pytest.raises(UserError, match="data.crop_ratio is .* expected 0 < least"):
            ClassificationData("hub", path, crop_ratio=ratio)


def test_a_hub_column_of_words_and_one_of_lists(tmp_path: Path) -> None:
    words = (["b", "a", "c", "a", "b", "a", "c", None], datasets.Value("string"))
    inner = datasets.Sequence(datasets.ClassLabel(names=["x", "y", "z"]))
    lists = ([[0], [0, 2], [], [1], [1], [1], [2], [0, 1, 2]], inner)
    path = hub(tmp_path / "hub", word=words, several=lists)
    data = ClassificationData("hub", path, label_column="word")
    assert data.class_names == ["a", "b", "c"]
    assert [int(data.samples_of("train").load(i)["target"]) for i in range(3)] == [1, 0, 2]
    data = ClassificationData("hub", path, label_column="several")
    assert data.multilabel and data.class_names == ["x", "y", "z"]
    found = [data.samples_of("train").load(i)["target"].tolist() for i in range(3)]
    assert found == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]


def test_parts_of_a_split_share_no_row_between_training_and_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = [{"bytes": _png(i), "path": None} for i in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": images, "label": [i % 2 for i in range(20)]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(tmp_path / "rows/train.parquet")
    table.select(range(4)).to_parquet(tmp_path / "rows/test.parquet")
    table.save_to_disk(tmp_path / "saved")

    def data(train: str, val: str, path: str = "rows") -> ClassificationData:
        return ClassificationData("hub", str(tmp_path / path), split=train, val_split=val)

    for train, val, shared in (
        ("train", "train[:50%]", "10 of 10 .* 'train/00000000'"),
        ("train", "train[10:]", "10 of 10 .* 'train/00000010'"),
        ("train[:60%]", "train[-10:]", "2 of 10 .* 'train/00000010'"),
        ("train[:2]+train[8:]", "test+train[5:9]", "1 of 8 .* 'train/00000008'"),
        ("all", "test", "4 of 4 .* 'test/00000000'"),
    ):
        refused = data(train, val)
        assert len(refused.samples_of("val")) > 0  # it may be looked at
        with pytest.raises(UserError, match=f"^{shared} for one: give another data.split"):
            refused.training_set()
    for train, val in (("train[:90%]", "train[90%:]"), ("train", "test"), ("train[4:]", "test")):
        assert data(train, val).training_set() is not None
    parts = data("train[18:]+test[:1]", "test").samples_of("train")
    names = [parts.name(i) for i in range(len(parts))]
    assert names == ["train/00000018", "train/00000019", "test/00000000"]
    assert all(int(parts.load(i)["target"]) == i % 2 for i in range(3))
    # What was saved as one is read as any split, all of it.
    with pytest.raises(UserError, match="20 of 20 held-out samples"):
        data("train", "validation", "saved").training_set()
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "splits")
    for saved in ("saved", "splits"):
        held_out = data("train[:9]", "train[15:]", saved).samples_of("val")
        names = [held_out.name(i) for i in range(len(held_out))]
        assert names == [f"train/{i:08d}" for i in range(15, 20)]
        assert [int(held_out.load(i)["target"]) for i in range(5)] == [1, 0, 1, 0, 1]
        assert data("train[:9]", "train[9:]", saved).training_set() is not None
        with pytest.raises(UserError, match="^1 of 11 held-out samples .* 'train/00000009'"):
            data("train[:10]", "train[9:]", saved).training_set()
        with pytest.raises(UserError, match='Unknown split "validation"'):
            data("train", "validation[:9]", saved).samples_of("val")
    assert data("train", "test", "splits").training_set() is not None
    # Features are kept by this: one half's are not taken for the other's.
    for path in ("rows", "saved", "splits"):
        halves = data("train[:50%]", "train[50%:]", path)
        assert halves.digest("train") != halves.digest("val")
        again = data("train", "train[10:]", path)
        assert halves.samples_of("val").digest() == again.samples_of("val").digest()


@pytest.mark.parametrize("target", ["room_type", "outdoor", "objects"])
def test_targets_of_scenes_are_what_was_rendered(target: str) -> None:
    data = ClassificationData(target=target, scenes=SCENES, image_size=64)
    samples = data.samples_of("train")
    views = SceneSamples("train", SCENES, ("image", "class_id", "room_type", "outdoor"))
    assert len(samples) == len(views) == 12
    for i in range(len(samples)):
        sample, view = samples.load(i), views.load(i)
        assert np.array_equal(sample["image"], view["image"])
        if target == "room_type":
            assert data.class_names[int(sample["target"])] == str(view["room_type"])
        elif target == "outdoor":
            assert data.class_names[int(sample["target"])] == (
                "outdoor" if view["outdoor"] else "indoor"
            )
        else:
            shown = {n for n, hit in zip(SCENE_CLASSES, sample["target"], strict=True) if hit}
            ids, counts = np.unique(view["class_id"], return_counts=True)
            assert shown == {SCENE_CLASSES[i] for i, c in zip(ids, counts, strict=True) if c >= 9}
    assert data.multilabel == (target == "objects")
    assert data.dataset.startswith("scenes ") and data.dataset.endswith(f" ({target})")
    if target == "room_type":
        assert data.class_names == list(known_places(None))


def test_evaluation_sees_the_centre_and_training_a_crop_that_its_key_draws(folder: Path) -> None:
    data = ClassificationData("folder", str(folder), image_size=20, crop_pct=0.5)
    image = picture(folder.parent / "x.png", (40, 60))
    seen = data.prepare({"image": image, "target": np.array(1)})
    # Half of the short side of 40 is 20 pixels: a crop without any scaling.
    assert np.array_equal(seen["image"], image[10:30, 20:40]) and seen["target"] == 1
    views = [
        data.augment({"image": image}, RandomKey(7, 0, epoch))["image"] for epoch in (0, 0, 1, 2)
    ]
    assert np.array_equal(views[0], views[1]) and not np.array_equal(views[0], views[2])
    assert all(view.shape == (20, 20, 3) for view in views)
    plain = ClassificationData("folder", str(folder), image_size=20, crop_scale=None, flip=False)
    assert not plain.random and data.random
    same = plain.augment({"image": image}, RandomKey(7, 0, 0))["image"]
    assert np.array_equal(same, plain.prepare({"image": image})["image"])
    mirrored = ClassificationData("folder", str(folder), image_size=20, crop_scale=None)
    flips = [mirrored.augment({"image": image}, RandomKey(k, 0, 0))["image"] for k in range(20)]
    kinds = [np.array_equal(f, same) or (np.array_equal(f, same[:, ::-1]) and 2) for f in flips]
    assert set(map(int, kinds)) == {1, 2}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"target": "room"}, "data.target 'room' is none of room_type, objects, outdoor"),
        ({"crop_pct": 0.0}, "data.crop_pct is 0.0, but expected a share"),
        ({"crop_scale": (0.5, 0.2)}, r"data.crop_scale is \[0.5, 0.2\], but expected two shares"),
        ({"source": "floder", "path": "x"}, "did you mean 'folder'"),
    ],
)
def test_mistakes(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassificationData(**keys)


def test_one_kind_of_place_is_no_classification() -> None:
    scenes = Scenes(train=2, held_out=2, places=("studio",))
    with pytest.raises(UserError, match="data.scenes.places is studio alone"):
        _ = ClassificationData(scenes=scenes).num_classes
    assert ClassificationData(scenes=scenes, target="objects").num_classes == len(SCENE_CLASSES)


def test_scenes_are_no_larger_than_they_were_rendered() -> None:
    assert ClassificationData(scenes=SCENES, image_size=256).image_size == 64
    assert ClassificationData(scenes=SCENES).centre_crop == (64, 1.0)
    assert scene_store.default_cache().name == "pixio-cache"
