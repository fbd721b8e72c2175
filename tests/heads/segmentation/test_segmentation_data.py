"""Segmentation data in its real layouts, with shifted labels and every kind of broken sample."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixio_heads.segmentation import classes
from pixio_heads.segmentation.data import SegmentationData, random_crop
from pixio_heads.segmentation.layouts import Labels
from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.samples import RandomKey
from pixio_lightning.data.scenes import store as scene_store
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.errors import UserError

SIZE = (40, 56)


def picture(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    array = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, quality=95)
    return array


def mask(path: Path, stored: np.ndarray, *, palette: bool = False) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(stored)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
    image.save(path)
    return stored


def labels(low: int, high: int, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """Labels from `low` to `high` inclusive, both of which occur."""
    stored = np.random.default_rng(seed).integers(low, high + 1, size).astype(np.uint8)
    stored[0, :2] = low, high
    return stored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        picture(tmp_path / f"images/room/{i:02d}.png", seed=i)
        mask(tmp_path / f"masks/room/{i:02d}.png", labels(0, 3, seed=i))
    return tmp_path


def read_all(data: SegmentationData, split: str = "val") -> list[dict]:
    loader = {"val": data.val_dataloader, "predict": data.predict_dataloader}[split]
    return list(loader())


def test_a_folder_is_read_and_a_tenth_is_held_out(folder: Path) -> None:
    data = SegmentationData("folder", str(folder), num_classes=4)
    train, val = data.samples_of("train"), data.samples_of("val")
    names = {s.name(i) for s in (train, val) for i in range(len(s))}
    assert (len(train), len(val), len(names)) == (11, 1, 12)
    sample = train.load(0)
    number = int(Path(train.name(0)).stem)
    assert np.array_equal(sample["target"], labels(0, 3, seed=number))
    assert sample["target"].dtype == np.uint8 and sample["image"].shape == (*SIZE, 3)
    assert data.class_names == ["class 0", "class 1", "class 2", "class 3"]


def test_named_classes_need_no_number(folder: Path) -> None:
    names = ["wall", "door", "cat", "dog"]
    data = SegmentationData("folder", str(folder), classes=names)
    assert (data.num_classes, data.class_names) == (4, names)


def test_a_plain_folder_of_images_is_enough_to_predict(tmp_path: Path) -> None:
    picture(tmp_path / "a/b.jpg")
    data = SegmentationData("folder", str(tmp_path), num_workers=0)
    assert data.samples_of("predict").load(0).keys() == {"image"}
    (batch,) = read_all(data, "predict")
    assert batch["name"] == ["a/b.jpg"]
    with pytest.raises(UserError, match="give data.num_classes, or data.classes"):
        _ = data.num_classes
    with pytest.raises(UserError, match="expected images/ and masks/"):
        data.samples_of("train")


def test_255_and_with_a_shift_0_are_no_class(folder: Path) -> None:
    stored = labels(0, 4)
    mask(folder / "masks/room/00.png", stored)
    shifted = SegmentationData("folder", str(folder), num_classes=4, label_shift=-1)
    target = _target_of(shifted, "images/room/00.png")
    assert np.array_equal(target, np.where(stored == 0, 255, stored.astype(int) - 1))
    stored = np.where(labels(0, 4) == 4, 255, labels(0, 4)).astype(np.uint8)
    mask(folder / "masks/room/00.png", stored)
    plain = SegmentationData("folder", str(folder), num_classes=4)
    assert np.array_equal(_target_of(plain, "images/room/00.png"), stored)


def _target_of(data: SegmentationData, name: str) -> np.ndarray:
    for samples in map(data.samples_of, ("train", "val")):
        for i in range(len(samples)):
            if samples.name(i) == name:
                return samples.load(i)["target"]
    raise AssertionError(name)


@pytest.mark.parametrize("kind", ["palette", "16 bits", "two values"])
def test_masks_are_indices_in_whatever_png(kind: str, folder: Path) -> None:
    path, stored = folder / "masks/room/00.png", labels(0, 1)
    if kind == "palette":
        stored = mask(path, labels(0, 3, seed=9), palette=True)
        assert Image.open(path).mode == "P"
    elif kind == "16 bits":
        Image.fromarray(stored.astype(np.uint16)).save(path)
    else:
        Image.fromarray(stored.astype(bool)).save(path)
        assert Image.open(path).mode == "1"
    data = SegmentationData("folder", str(folder), num_classes=4)
    assert np.array_equal(_target_of(data, "images/room/00.png"), stored)


def test_masks_as_predictions_are_called_pair_too(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg", SIZE)
    picture(tmp_path / f"images/{'x' * 251}.jpg", SIZE)  # whose mask no file system could hold
    stored = labels(0, 3)
    mask(tmp_path / "masks/a.jpg.png", stored)
    (tmp_path / "train").symlink_to(tmp_path)
    (tmp_path / "val").symlink_to(tmp_path)
    data = SegmentationData("folder", str(tmp_path), num_classes=4)
    assert np.array_equal(_target_of(data, "images/a.jpg"), stored)
    with pytest.raises(BadImage, match="no mask"):
        data.samples_of("val").load(1)


def test_a_list_of_voc_names_no_file_elsewhere(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages/etc/a.jpg", SIZE)
    mask(tmp_path / "SegmentationClass/etc/a.png", labels(0, 20))
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("/etc/a\n")
    samples = SegmentationData("voc", str(tmp_path)).samples_of("val")
    assert samples.name(0) == "JPEGImages/etc/a.jpg"
    assert samples.load(0)["image"].shape == (*SIZE, 3)


def _in_train_and_val(root: Path) -> None:
    for name in ("train", "val"):
        for part in ("images", "masks"):
            (root / name).mkdir(exist_ok=True)
            (root / name / part).symlink_to(root / part)


def _spoil(kind: str, root: Path) -> None:
    image, stored = root / "images/room/00.png", root / "masks/room/00.png"
    if kind == "no mask: masks/room/NAME.png is not there":
        stored.unlink()
    elif kind == "mask of 10x10 for an image of 56x40":
        mask(stored, labels(0, 3, (10, 10)))
    elif kind == "no pixel with a class":
        mask(stored, np.full(SIZE, 255, np.uint8))
    elif kind == "mask cannot be read":
        stored.write_bytes(stored.read_bytes()[:100])
    else:
        assert kind == "empty file"
        image.write_bytes(b"")


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "no mask: masks/room/NAME.png is not there",
            "mask of 10x10 for an image of 56x40",
            "no pixel with a class",
        ),
        *("mask cannot be read", "empty file"),
    ],
)
def test_a_broken_sample_is_counted_and_skipped(kind: str, folder: Path) -> None:
    _in_train_and_val(folder)
    _spoil(kind, folder)
    data = SegmentationData(
        "folder", str(folder), num_classes=4, val_batch_size=5, num_workers=0, image_size=32
    )
    assert sum(float(batch["weight"].sum()) for batch in read_all(data)) == 11
    assert list(data.bad.values()) == [kind]
    views = [data.training_set()[i] for i in range(12)]
    assert all("image" in view for view in views)
    assert {reason for view in views for _, reason in view["bad"]} == {kind}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("stored", "keys", "message"),
    [
        (labels(0, 4), {}, "room/00.png: its mask stores 4; expected 0 to 3, or 255 for no class"),
        (
            labels(0, 5),
            {"label_shift": -1},
            "its mask stores 5; expected 1 to 4, or 0 for no class",
        ),
        (
            np.where(labels(0, 3) == 3, 255, 2).astype(np.uint8),
            {"label_shift": -1},
            "shifted already",
        ),
        (np.zeros((*SIZE, 3), np.uint8), {}, "has 3 channels; expected one"),
    ],
    ids=["beyond", "beyond a shift", "shifted already", "colours"],
)
def test_labels_of_other_classes_stop_the_run(
    workers: int, stored: np.ndarray, keys: dict, message: str, folder: Path
) -> None:
    """In one line, also where a worker found it."""
    _in_train_and_val(folder)
    mask(folder / "masks/room/00.png", stored)
    data = SegmentationData("folder", str(folder), num_classes=4, num_workers=workers, **keys)
    with pytest.raises(UserError, match=message) as error:
        read_all(data)
    assert "\n" not in str(error.value)


def test_ade20k_in_its_layout(tmp_path: Path) -> None:
    stored = labels(0, 150)
    for part, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        picture(tmp_path / f"images/{part}/{name}.jpg")
        mask(tmp_path / f"annotations/{part}/{name}.png", stored)
    data = SegmentationData("ade20k", str(tmp_path), num_workers=0)
    assert (data.num_classes, data.class_names[0], data.class_names[149]) == (150, "wall", "flag")
    train, val = data.samples_of("train"), data.samples_of("test")
    assert (train.name(0), val.name(0)) == (
        "images/training/ADE_train_00000001.jpg",
        "images/validation/ADE_val_00000001.jpg",
    )
    expected = (stored - 1).astype(np.uint8)  # 0 wraps to 255
    assert np.array_equal(train.load(0)["target"], expected)
    # The same masks, re-encoded by somebody else: refused as they are, read with a shift of 0.
    mask(tmp_path / "annotations/validation/ADE_val_00000001.png", expected)
    with pytest.raises(UserError, match="shifted already.*; set data.label_shift to 0"):
        read_all(data)
    again = SegmentationData("ade20k", str(tmp_path), label_shift=0, num_workers=0)
    assert np.array_equal(again.samples_of("val").load(0)["target"], expected)
    # And that key on the masks as they are distributed is refused too.
    mask(tmp_path / "annotations/validation/ADE_val_00000001.png", stored)
    with pytest.raises(UserError, match="its mask stores 150; expected 0 to 149"):
        read_all(SegmentationData("ade20k", str(tmp_path), label_shift=0, num_workers=0))
    with pytest.raises(UserError, match="has no annotations/training/"):
        (tmp_path / "annotations/training").rename(tmp_path / "elsewhere")
        SegmentationData("ade20k", str(tmp_path)).samples_of("train")


def test_voc_in_its_layout(tmp_path: Path) -> None:
    own = np.where(labels(0, 21) == 21, 255, labels(0, 20)).astype(np.uint8)
    added = labels(0, 20, seed=1)
    lists = tmp_path / "ImageSets/Segmentation"
    with pytest.raises(UserError, match="has no ImageSets/Segmentation/"):
        SegmentationData("voc", str(tmp_path)).samples_of("train")
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n")
    (lists / "val.txt").write_text("2007_000033\n")
    for name in ("2007_000032", "2007_000033", "2008_000001"):
        picture(tmp_path / f"JPEGImages/{name}.jpg")
    mask(tmp_path / "SegmentationClass/2007_000032.png", own, palette=True)
    mask(tmp_path / "SegmentationClass/2007_000033.png", own, palette=True)
    with pytest.raises(UserError, match="has no trainaug.txt, but train, val: set data.split"):
        SegmentationData("voc", str(tmp_path)).samples_of("train")
    data = SegmentationData("voc", str(tmp_path), split="train")
    assert len(data.samples_of("train")) == len(data.samples_of("val")) == 1
    assert np.array_equal(data.samples_of("val").load(0)["target"], own)
    (lists / "trainaug.txt").write_text("2007_000032\n2008_000001\n2008_000002\n")
    mask(tmp_path / "SegmentationClassAug/2007_000032.png", np.zeros(SIZE, np.uint8))
    mask(tmp_path / "SegmentationClassAug/2008_000001.png", added)
    more = SegmentationData("voc", str(tmp_path)).samples_of("train")
    assert np.array_equal(more.load(0)["target"], own)
    assert np.array_equal(more.load(1)["target"], added)
    with pytest.raises(OSError):
        more.load(2)


def test_a_list_of_voc_may_name_images_and_masks(tmp_path: Path) -> None:
    """The list of SBD's annotations that most others publish has two columns."""
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (tmp_path / "SegmentationClass").mkdir()
    pairs = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in "ab"]
    (lists / "trainaug.txt").write_text("\n".join(pairs) + "\n\n")
    for seed, name in enumerate("ab"):
        picture(tmp_path / f"JPEGImages/{name}.jpg")
        mask(tmp_path / f"SegmentationClassAug/{name}.png", labels(0, 20, seed=seed))
    samples = SegmentationData("voc", str(tmp_path)).samples_of("train")
    assert [samples.name(i) for i in range(2)] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]
    assert len(samples) == 2
    assert np.array_equal(samples.load(1)["target"], labels(0, 20, seed=1))
    (lists / "trainaug.txt").write_text("a\nb 1\n")  # as the lists of ImageSets/Main
    with pytest.raises(UserError, match="trainaug.txt, line 2: 'b 1'; expected \"NAME\" or "):
        SegmentationData("voc", str(tmp_path)).samples_of("train")


def test_a_list_of_voc_that_holds_out_what_is_trained_on_is_refused(tmp_path: Path) -> None:
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nb\nc\n")
    (lists / "val.txt").write_text("c\nd\nb\n")
    for name in "abcd":
        picture(tmp_path / f"JPEGImages/{name}.jpg")
        mask(tmp_path / f"SegmentationClass/{name}.png", labels(0, 20))
    shared = "2 of 3 held-out samples of '.*' are trained on as well, 'JPEGImages/c.jpg' for one"
    data = SegmentationData("voc", str(tmp_path), split="trainval")
    assert len(data.samples_of("train")) == len(data.samples_of("val")) == 3
    with pytest.raises(UserError, match=shared):
        data.training_set()


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """Encode grey `(H, W)` of 1, 2 or 4 bits, which Pillow does not write; W is whole bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = values.shape
    shifts = np.arange(8 // bits)[::-1] * bits
    packed = (values.reshape(height, -1, 8 // bits) << shifts).sum(axis=2).astype(np.uint8)
    lines = np.pad(packed, ((0, 0), (1, 0))).tobytes()
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_are_read_as_they_are_stored(bits: int) -> None:
    stored = labels(0, (1 << bits) - 1)
    found = Labels(1 << bits).read(grey_png(stored, bits), max_megapixels=1)
    assert np.array_equal(found, stored)


@pytest.mark.parametrize("nested", [False, True])
def test_loveda_in_its_layout(nested: bool, tmp_path: Path) -> None:
    stored = labels(0, 7)
    for part in ("Train", "Val"):
        root = tmp_path / part / part if nested else tmp_path / part
        for place in ("Rural", "Urban"):
            picture(root / place / "images_png/7.png")
            mask(root / place / "masks_png/7.png", stored)
    data = SegmentationData("loveda", str(tmp_path))
    train = data.samples_of("train")
    assert len(train) == len(data.samples_of("val")) == 2 and data.num_classes == 7
    assert len({train.name(0), train.name(1)}) == 2
    assert np.array_equal(train.load(0)["target"], (stored - 1).astype(np.uint8))
    with pytest.raises(UserError, match="has no Train/Rural/images_png"):
        SegmentationData("loveda", str(tmp_path / "Val")).samples_of("train")


def test_parquet_with_png_masks(tmp_path: Path) -> None:
    import datasets

    stored = labels(0, 3)
    paths = {"image": tmp_path / "i.png", "mask": tmp_path / "m.png"}
    picture(paths["image"])
    mask(paths["mask"], stored, palette=True)
    columns = {name: [{"bytes": p.read_bytes(), "path": None}] * 3 for name, p in paths.items()}
    columns["mask"][2] = None
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    (tmp_path / "set").mkdir()
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(tmp_path / "set/train-00000-of-00001.parquet")
    data = SegmentationData("hub", str(tmp_path / "set"), num_classes=4, val_split="train")
    assert np.array_equal(data.samples_of("train").load(1)["target"], stored)
    with pytest.raises(BadImage, match="no mask"):
        data.samples_of("train").load(2)
    assert data.samples_of("predict").load(2).keys() == {"image"}
    with pytest.raises(UserError, match="did you mean 'mask'"):
        SegmentationData(
            "hub", str(tmp_path / "set"), num_classes=4, mask_column="masks"
        ).samples_of("train")


def test_scenes_have_the_renderer_s_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    data = SegmentationData(scenes=Scenes(train=2, held_out=2, views=2, size=48))
    view = scene_store.render_scene(scene_store.scene_seed("train", 1), views=2, size=48).views[1]
    sample = data.samples_of("train").load(3)
    assert np.array_equal(sample["target"], view.class_id) and data.image_size == 48
    assert data.class_names[int(view.class_id[-1, 0])] in classes.SCENES


# --- training views ---------------------------------------------------------------------------


def pyramid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red and green are row and column, and labels by quadrant."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([255 * rows / height, 255 * columns / width, 0 * rows], axis=-1)
    return image.astype(np.uint8), ((rows >= height // 2) * 2 + (columns >= width // 2)).astype(
        np.uint8
    )


@pytest.mark.parametrize("kind", ["smooth", "noise", "checkerboard"])
@pytest.mark.parametrize("factor", [0.5, 0.77, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("at", [(0.0, 0.0), (0.4, 0.7), (0.999, 0.999)])
def test_a_crop_is_what_scaling_all_and_cutting_gives(
    kind: str, factor: float, at: tuple[float, float]
) -> None:
    image, target = pyramid(75, 120)
    if kind == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    elif kind == "checkerboard":
        image = (255 * (np.indices(image.shape).sum(0) % 2)).astype(np.uint8)
    if kind != "smooth":
        target = image[..., 0] // 2
    pixels, found = random_crop(image, target, 32, factor=factor, at=at)
    size = (round(120 * factor), round(75 * round(120 * factor) / 120))
    whole = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    marks = np.asarray(Image.fromarray(target).resize(size, Image.Resampling.NEAREST))
    top, left = int(at[0] * (size[1] - 31)), int(at[1] * (size[0] - 31))
    cut = (slice(top, top + 32), slice(left, left + 32))
    assert np.abs(pixels.astype(int) - whole[cut]).max() <= (1 if kind == "smooth" else 2)
    # A row and a column that lie halfway between two may have the other's.
    assert np.mean(found != marks[cut]) <= (0.001 if kind == "smooth" else 2 / 32)


def test_what_a_crop_lacks_is_black_and_has_no_class() -> None:
    image, target = np.full((20, 60, 3), 200, np.uint8), np.ones((20, 60), np.uint8)
    pixels, found = random_crop(image, target, 32, factor=0.8, at=(0.9, 0.9))
    assert (pixels[:16] == 200).all() and not pixels[16:].any()
    assert (found[:16] == 1).all() and (found[16:] == 255).all()


def test_views_are_keyed_and_move_labels_with_pixels(folder: Path) -> None:
    data = SegmentationData("folder", str(folder), num_classes=4, image_size=32)
    image, target = pyramid(60, 80)
    sample = {"image": image, "target": target}
    views = [data.augment(sample, RandomKey(3, 0, epoch)) for epoch in range(30)]
    again = data.augment(sample, RandomKey(3, 0, 5))
    assert all(np.array_equal(again[k], views[5][k]) for k in again)
    assert len({view["image"].tobytes() for view in views}) == 30
    mirrored = 0
    for view in views:
        assert view["image"].shape == (32, 32, 3) and view["target"].shape == (32, 32)
        inside = view["target"] != 255
        red, green = (view["image"][..., i][inside].astype(int) for i in (0, 1))
        # Away from where the quadrants meet, the colour says which one a pixel is of.
        clear = (abs(red - 127) > 12) & (abs(green - 127) > 12)
        quadrant = (red > 127) * 2 + (green > 127)
        assert np.array_equal(quadrant[clear], view["target"][inside][clear])
        across = np.diff(view["image"][0, :, 1].astype(int)[inside[0]])
        mirrored += across.mean() < 0
    assert 8 < mirrored < 22


def test_only_whole_unflipped_images_are_not_random() -> None:
    assert SegmentationData().random
    assert SegmentationData(image_size=None).random
    assert not SegmentationData(image_size=None, flip=False).random
    assert not SegmentationData(views=2).random


def test_the_digest_follows_files_labels_and_crops(folder: Path) -> None:
    def digest(**keys: object) -> str:
        keys = {"num_classes": 5} | keys
        return SegmentationData("folder", str(folder), **keys).digest("train")  # type: ignore[arg-type]

    first = digest()
    assert first == digest(batch_size=7, num_workers=0)
    changes = ({"image_size": 16}, {"label_shift": -1}, {"num_classes": 6}, {"scale": (1.0, 2.0)})
    assert len({first, *(digest(**change) for change in changes)}) == 5
    for path in (folder / "masks/room").iterdir():
        mask(path, labels(0, 4, (41, 56)))
    assert digest() != first


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "ade20"}, "did you mean 'ade20k'"),
        ({"source": "voc"}, "give data.path"),
        ({"source": "voc", "path": "x", "num_classes": 20}, "20 classes are given, but voc has 21"),
        ({"source": "voc", "path": "x", "label_shift": -1}, "voc stores classes from 0"),
        (
            {"source": "hub", "path": "x", "num_classes": 3, "classes": ["a", "b"]},
            "3 classes are given, but data.classes has 2",
        ),
        ({"source": "folder", "path": "x", "num_classes": 255}, "expected 2 to 254"),
        ({"scale": (2.0, 0.5)}, "0 < least <= greatest"),
        ({"image_size": 0}, "data.image_size is 0, but expected at least 1"),
    ],
)
def test_mistakes(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SegmentationData(**keys)


def test_the_scenes_have_classes_of_their_own_whatever_is_said_of_files() -> None:
    """An overlay puts them in place of a recipe's files."""
    plain = SegmentationData("scenes")
    given = SegmentationData("scenes", num_classes=2, label_shift=-1)
    assert given.num_classes == plain.num_classes > 2
    assert given.dataset == plain.dataset and given.identity() == plain.identity()
