"""Depth data in its real layouts, with every kind of broken sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixio_heads.depth.data import DepthData
from pixio_heads.depth.views import moved
from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.samples import RandomKey
from pixio_lightning.data.scenes import store as scene_store
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.errors import UserError


def picture(path: Path, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    array = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, quality=95)
    return array


def depth_png(path: Path, units: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(units).save(path)


def millimetres(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(500, 9000, size).astype(np.uint16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        picture(tmp_path / f"images/room/{i:02d}.png", (40, 56), i)
        depth_png(tmp_path / f"depth/room/{i:02d}.png", millimetres((40, 56), i))
    (tmp_path / "intrinsics.json").write_text(json.dumps([[50, 0, 28], [0, 50, 20], [0, 0, 1]]))
    return tmp_path


def test_a_folder_is_read_in_metres_and_a_tenth_is_held_out(folder: Path) -> None:
    data = DepthData("folder", str(folder), image_size=32)
    train, val = data.samples_of("train"), data.samples_of("val")
    names = {s.name(i) for s in (train, val) for i in range(len(s))}
    assert (len(train), len(val), len(names)) == (11, 1, 12)
    sample = train.load(0)
    number = int(Path(train.name(0)).stem)
    assert np.allclose(sample["depth"], millimetres((40, 56), number) / 1000)
    assert sample["valid"].all() and sample["intrinsics"].shape == (3, 3)
    assert sample["depth"].dtype == np.float32 and sample["image"].shape == (40, 56, 3)


def test_masks_of_every_form_count_and_none_may_lack(tmp_path: Path) -> None:
    known = np.zeros((40, 56), np.uint8)
    known[:4] = 255
    for part in ("train", "val"):
        for i in range(5):
            picture(tmp_path / f"{part}/images/{i}.png", (40, 56), i)
            depth_png(tmp_path / f"{part}/depth/{i}.png", millimetres((40, 56), i))
    plain = DepthData("folder", str(tmp_path)).dataset
    for name in ("0.png", "1.WEBP", "2.bmp", "3_mask.png"):
        depth_png(tmp_path / "val/mask" / name, known)
    np.save(tmp_path / "val/mask/4.npy", known > 0)
    data = DepthData("folder", str(tmp_path), num_workers=0)
    val = data.samples_of("val")
    for i in (0, 1, 2, 4):
        assert np.array_equal(val.load(i)["valid"], known > 0)
    with pytest.raises(BadImage, match=r"no mask: mask/NAME\.png is not there$"):
        val.load(3)
    data.samples_of("train")
    assert data.contents() == {"samples": "5 val in val/ with masks, 5 train in train/"}
    assert data.dataset == f"{plain}, masks"


def test_two_depth_files_for_one_image_are_refused(folder: Path) -> None:
    np.save(folder / "depth/room/03.npy", np.ones((40, 56), np.float32))
    both = r"depth' holds 'room/03\.png' and 'room/03\.npy' for one image: keep one"
    with pytest.raises(UserError, match=both):
        DepthData("folder", str(folder)).samples_of("val")


def test_a_scale_that_is_stated_is_that_of_floats_too(tmp_path: Path) -> None:
    for i in range(12):
        picture(tmp_path / f"images/{i:02d}.png", (16, 16), i)
        (tmp_path / "depth").mkdir(exist_ok=True)
        np.save(tmp_path / f"depth/{i:02d}.npy", np.full((16, 16), 250, np.float32))
    for scale, metres in ((None, 250), (0.01, 2.5)):
        samples = DepthData("folder", str(tmp_path), depth_scale=scale).samples_of("train")
        assert np.allclose(samples.load(0)["depth"], metres)


def test_a_plain_folder_of_images_is_enough_to_predict(tmp_path: Path) -> None:
    picture(tmp_path / "a/b.jpg", (20, 30))
    data = DepthData("folder", str(tmp_path))
    assert data.samples_of("predict").load(0).keys() == {"image"}
    with pytest.raises(UserError, match="expected images/ and depth/"):
        data.samples_of("train")


def _spoil(kind: str, root: Path) -> None:
    image, depth = root / "images/room/00.png", root / "depth/room/00.png"
    if kind == "no depth: depth/room/NAME.png is not there":
        depth.unlink()
    elif kind == "depth of 10x10 for an image of 56x40":
        depth_png(depth, millimetres((10, 10)))
    elif kind == "no valid depth":
        depth_png(depth, np.zeros((40, 56), np.uint16))
    elif kind == "8-bit depth":
        depth_png(depth, np.full((40, 56), 7, np.uint8))
    elif kind == "depth cannot be read":
        depth.write_bytes(depth.read_bytes()[:100])
    elif kind == "empty file":
        image.write_bytes(b"")
    elif kind == "depth of shape":
        depth.unlink()
        np.save(depth.with_suffix(".npy"), np.ones((40, 56, 3), np.float32))
    else:
        assert kind == "pickled"
        depth.unlink()
        np.save(depth.with_suffix(".npy"), np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "no depth: depth/room/NAME.png is not there",
            "depth of 10x10 for an image of 56x40",
            "no valid depth",
        ),
        *("8-bit depth", "depth cannot be read", "empty file", "depth of shape", "pickled"),
    ],
)
def test_a_broken_sample_is_counted_and_skipped(kind: str, folder: Path) -> None:
    for name in ("train", "val"):
        for part in ("images", "depth"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / part).symlink_to(folder / part)
    _spoil(kind, folder)
    data = DepthData("folder", str(folder), val_batch_size=5, num_workers=0)
    batches = list(data.val_dataloader())
    assert sum(float(batch["weight"].sum()) for batch in batches) == 11
    expected = "depth cannot be read" if kind == "pickled" else kind
    assert [reason.startswith(expected) for reason in data.bad.values()] == [True]


def test_nan_and_infinity_are_invalid_pixels(folder: Path) -> None:
    depth = np.full((40, 56), 2.0, np.float32)
    depth[0, :3] = np.nan, np.inf, -1
    (folder / "depth/room/00.png").unlink()
    np.save(folder / "depth/room/00.npy", depth)
    data = DepthData("folder", str(folder))
    samples = [s.load(i) for s in map(data.samples_of, ("train", "val")) for i in range(len(s))]
    (found,) = [s for s in samples if (s["depth"] == 2).mean() > 0.5]
    assert found["valid"].sum() == 40 * 56 - 3 and not found["depth"][~found["valid"]].any()


def test_nyuv2_in_its_layout(tmp_path: Path) -> None:
    units = millimetres((480, 640))
    picture(tmp_path / "sync/kitchen_0001/rgb_00001.jpg", (480, 640))
    depth_png(tmp_path / "sync/kitchen_0001/sync_depth_00001.png", units)
    picture(tmp_path / "official_splits/test/bathroom/rgb_00045.jpg", (480, 640))
    depth_png(tmp_path / "official_splits/test/bathroom/sync_depth_00045.png", units)
    picture(tmp_path / "official_splits/test/bathroom/rgb_00046.jpg", (240, 320))
    depth_png(
        tmp_path / "official_splits/test/bathroom/sync_depth_00046.png", millimetres((240, 320))
    )
    data = DepthData("nyuv2", str(tmp_path))
    sample = data.samples_of("train").load(0)
    assert sample["image"].shape == (426, 560, 3)
    assert np.allclose(sample["depth"], units[45:471, 41:601] / 1000)
    assert len(data.samples_of("test")) == 2
    with pytest.raises(BadImage, match="320x240 pixels; expected 640x480"):
        data.samples_of("test").load(1)
    (tmp_path / "nyu_test.txt").write_text(
        "/bathroom/rgb_00045.jpg /bathroom/sync_depth_00045.png 518.8579\n"
    )
    assert len(DepthData("nyuv2", str(tmp_path)).samples_of("test")) == 1
    with pytest.raises(UserError, match="stores units of 0.001 m"):
        DepthData("nyuv2", str(tmp_path), depth_scale=0.5)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_unit_without_length_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="data.depth_scale is .*, but expected metres above 0"):
        DepthData("folder", "anywhere", depth_scale=scale)
    with pytest.raises(UserError, match="expected 0 < min_depth < max_depth"):
        DepthData("folder", "anywhere", max_depth=float("inf"))


def test_kitti_in_its_layout(tmp_path: Path) -> None:
    image = "2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png"
    depth = "2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png"
    units = millimetres((375, 1242))
    units[:100] = 0
    picture(tmp_path / "images" / image, (375, 1242))
    with pytest.raises(UserError, match="has no kitti_train.txt"):
        DepthData("kitti", str(tmp_path)).samples_of("train")
    depth_png(tmp_path / "annotations" / depth, units)
    (tmp_path / "kitti_train.txt").write_text(f"{image} {depth}\n")
    (tmp_path / "kitti_test.txt").write_text(f"{image} {depth} 721.5\n{image} None 721.5\n")
    data = DepthData("kitti", str(tmp_path), max_depth=80.0)
    sample = data.samples_of("train").load(0)
    assert np.allclose(sample["depth"], units / 256) and sample["image"].shape == (375, 1242, 3)
    assert not sample["valid"][:100].any() and sample["valid"][100:].all()
    with pytest.raises(BadImage, match="no depth is listed"):
        DepthData("kitti", str(tmp_path)).samples_of("test").load(1)
    shared = rf"2 of 2 held-out samples of '.*' are trained on as well, 'images/{image}' for one"
    with pytest.raises(UserError, match=shared):
        data.training_set()


def test_parquet_with_16_bit_png(tmp_path: Path) -> None:
    import datasets

    units = millimetres((20, 30))
    paths = {"image": tmp_path / "i.png", "depth": tmp_path / "d.png"}
    picture(paths["image"], (20, 30))
    depth_png(paths["depth"], units)
    columns = {name: [{"bytes": p.read_bytes(), "path": None}] * 3 for name, p in paths.items()}
    features = datasets.Features(image=datasets.Image(), depth=datasets.Image())
    (tmp_path / "set").mkdir()
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(tmp_path / "set/train-00000-of-00001.parquet")
    data = DepthData("hub", str(tmp_path / "set"), val_split="train")
    assert np.allclose(data.samples_of("train").load(2)["depth"], units / 1000)
    with pytest.raises(UserError, match="did you mean 'depth'"):
        DepthData("hub", str(tmp_path / "set"), depth_column="dept").samples_of("train")


def test_a_scale_that_is_stated_is_that_of_lists_too(tmp_path: Path) -> None:
    import datasets

    picture(tmp_path / "i.png", (20, 30))
    image = [{"bytes": (tmp_path / "i.png").read_bytes(), "path": None}]
    columns = {"image": image, "depth": [[[250.0] * 30] * 20]}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set/train-00000-of-00001.parquet")
    for scale, metres in ((None, 250), (0.01, 2.5)):
        data = DepthData("hub", str(tmp_path / "set"), val_split="train", depth_scale=scale)
        assert np.allclose(data.samples_of("train").load(0)["depth"], metres)


def test_a_row_is_not_judged_by_columns_that_are_not_read(tmp_path: Path) -> None:
    import datasets

    picture(tmp_path / "i.png", (20, 30))
    depth_png(tmp_path / "d.png", millimetres((20, 30)))
    depth_png(tmp_path / "m.png", np.eye(20, 30, dtype=np.uint8) * 255)
    paths = {"image": "i.png", "depth": "d.png", "mask": "m.png"}
    columns = {n: [{"bytes": (tmp_path / p).read_bytes(), "path": None}] for n, p in paths.items()}
    columns["neighbours"] = [[{"bytes": b"no picture", "path": None}]]
    columns["intrinsics"] = [[[50.0, 0, 15], [0, 50, 10], [0, 0, 1]]]
    features = dict.fromkeys(paths, datasets.Image()) | {
        "neighbours": datasets.List(datasets.Image()),
        "intrinsics": datasets.List(datasets.List(datasets.Value("float32"))),
    }
    (tmp_path / "set").mkdir()
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(tmp_path / "set/train-00000-of-00001.parquet")
    data = DepthData("hub", str(tmp_path / "set"), val_split="train")
    sample = data.samples_of("train").load(0)
    assert sample["valid"].sum() == 20 and sample["intrinsics"].shape == (3, 3)
    assert data.samples_of("predict").load(0).keys() == {"image"}
    # It may be looked at, but not while the same is trained on.
    assert len(data.samples_of("val")) == 1
    with pytest.raises(UserError, match="1 of 1 held-out samples .* trained on .*data.val_split, "):
        data.training_set()


def test_crops_and_flips_are_keyed_and_move_the_camera(folder: Path) -> None:
    data = DepthData("folder", str(folder), image_size=32)
    sample = data.samples_of("train").load(0)
    views = [data.augment(sample, RandomKey(3, 0, epoch)) for epoch in range(8)]
    again = data.augment(sample, RandomKey(3, 0, 5))
    assert all(np.array_equal(again[k], views[5][k]) for k in again)
    assert len({v["depth"].tobytes() for v in views}) > 4
    for view in views:
        assert view["image"].shape == (32, 32, 3) and view["depth"].shape == (32, 32)
        # A point in front of the camera projects to the pixel that shows it.
        row, column = 11, 7
        where = np.argwhere(sample["depth"] == view["depth"][row, column])
        before = [
            (r, c) for r, c in where if (sample["image"][r, c] == view["image"][row, column]).all()
        ]
        assert before
        ray = np.linalg.inv(sample["intrinsics"]) @ [before[0][1], before[0][0], 1]
        u, v, w = view["intrinsics"] @ ray
        assert (u / w, v / w) == pytest.approx((column, row), abs=1e-3)
    with pytest.raises(BadImage, match="smaller than data.image_size 64"):
        DepthData("folder", str(folder), image_size=64).augment(sample, RandomKey(3, 0, 0))


def test_mirroring_twice_is_nothing() -> None:
    matrix = np.array([[50, 0, 20], [0, 50, 16], [0, 0, 1.0]])
    once = moved(matrix, 0, 0, 40, mirror=True)
    assert np.allclose(moved(once, 0, 0, 40, mirror=True), matrix)


def test_scenes_have_the_renderer_s_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    scenes = Scenes(train=2, held_out=2, views=2, size=48)
    data = DepthData(scenes=scenes, max_depth=80.0)
    view = scene_store.render_scene(scene_store.scene_seed("train", 1), views=2, size=48).views[1]
    sample = data.samples_of("train").load(3)
    assert np.array_equal(sample["depth"], view.depth) and np.array_equal(
        sample["valid"], view.valid
    )
    assert data.image_size == 48


def test_the_digest_follows_files_crops_and_flips(folder: Path) -> None:
    def digest(**keys: object) -> str:
        return DepthData("folder", str(folder), **keys).digest("train")  # type: ignore[arg-type]

    first = digest()
    assert first == digest(batch_size=7, num_workers=0)
    assert len({first, digest(image_size=16), digest(flip=False), digest(max_depth=5.0)}) == 4
    for path in (folder / "images/room").iterdir():
        picture(path, (40, 56), 99)
    assert digest() != first


@pytest.mark.parametrize(
    ("scale", "depth", "reason"),
    [
        # Units in a metre, as other tools count, for metres of a unit.
        (1000.0, 2.0, "all depth is beyond 10 m; data.depth_scale is 1000 m of one unit"),
        (1e-6, 2.0, "all depth is nearer than 0.001 m; data.depth_scale is 1e-06 m of one unit"),
        (None, 20.0, "all depth is beyond 10 m"),
        (None, 0.0, "no depth is measured"),
    ],
)
def test_what_has_no_depth_in_range_says_why(
    scale: float | None, depth: float, reason: str
) -> None:
    data = DepthData("folder", "anywhere", depth_scale=scale, max_depth=10.0)
    array = np.full((2, 3), depth * (scale or 1), np.float32)
    sample = {"image": np.zeros((2, 3, 3), np.uint8), "depth": array, "valid": array > 0}
    with pytest.raises(BadImage) as caught:
        data.prepare(sample)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "scene"}, "did you mean 'scenes'"),
        ({"source": "kitti"}, "give data.path"),
        ({"path": "x"}, "data.source is scenes"),
        ({"min_depth": 5.0, "max_depth": 2.0}, "0 < min_depth < max_depth"),
        ({"views": 0}, "data.views is 0"),
        ({"image_size": -16}, "data.image_size is -16, but expected at least 1"),
        ({"image_size": None, "short_side": 0}, "data.short_side is 0, but expected at least 1"),
    ],
)
def test_mistakes(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DepthData(**keys)
