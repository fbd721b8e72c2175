"""Clips in their real layouts, rendered clips, and every kind of broken clip."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clip_folders import SIZE, davis, frame, jhmdb, listed, mask, positions, vip
from PIL import Image

from pixio_heads.propagation import clip_samples
from pixio_heads.propagation.clip_samples import Look, object_masks
from pixio_heads.propagation.data import PropagationData
from pixio_lightning.data import BadImage, Scenes
from pixio_lightning.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "pixio-cache"))


def data(source: str, root: Path, **keys) -> PropagationData:
    keys = {"image_size": SIZE} | keys
    return PropagationData(source, str(root), num_workers=0, **keys)


# --- layouts ------------------------------------------------------------------------------------


def test_davis_is_read_with_its_palette(tmp_path: Path) -> None:
    """In the order of the list, of which a video that is not in it is no part."""
    davis(tmp_path, {"swan": 4, "bear": 3, "left-out": 3})
    listed(tmp_path / "ImageSets/2017/val.txt", ["swan", "bear"])
    samples = data("davis2017", tmp_path).samples_of("val")
    assert [samples.name(i) for i in range(len(samples))] == ["swan", "bear"]
    sample = samples.load(0)
    assert sample["image"].shape == (4, *SIZE, 3) and sample["target"].shape == (4, *SIZE)
    expected = mask(tmp_path / "x.png", 2, label=3)
    assert np.array_equal(sample["target"][2], expected)
    assert sample["stored"].tolist() == list(SIZE)


def test_frames_are_brought_to_the_protocol_s_size_and_masks_are_not(tmp_path: Path) -> None:
    davis(tmp_path, {"swan": 2})
    sample = PropagationData("davis2017", str(tmp_path)).samples_of("val").load(0)
    assert sample["image"].shape == (2, 480, 880, 3) and sample["target"].shape == (2, *SIZE)


def test_vip_pairs_frames_and_masks_by_name(tmp_path: Path) -> None:
    vip(tmp_path, {"videos1": 3})
    made = data("vip", tmp_path)
    assert (made.labels, made.num_labels) == ("classes", 20)
    sample = made.samples_of("val").load(0)
    assert sample["target"].shape == (3, *SIZE) and sorted({*sample["target"].flat}) == [0, 19, 255]


def test_jhmdb_reads_joints_of_its_test_clips(tmp_path: Path) -> None:
    """Counted from 0; frames behind the last joints are left out."""
    jhmdb(tmp_path, {"catch/one": 4, "golf/two": 3})
    frame(tmp_path / "Rename_Images/golf/two/00004.png", 3)
    made = data("jhmdb", tmp_path)
    assert (made.labels, made.num_labels) == ("joints", 15)
    samples = made.samples_of("val")
    assert [samples.name(i) for i in range(len(samples))] == ["catch/one", "golf/two"]
    sample = samples.load(1)
    assert sample["image"].shape[0] == 3 and sample["target"].shape == (3, 15, 2)
    assert sample["target"].dtype == np.float32
    assert sample["target"][2, 0] == pytest.approx([16 + 6 + 8, 24])


def test_to_predict_the_first_mask_is_enough(tmp_path: Path) -> None:
    davis(tmp_path, {"swan": 3, "bear": 3})
    for i in (1, 2):
        (tmp_path / f"Annotations/480p/swan/{i:05d}.png").unlink()
    made = data("davis2017", tmp_path)
    with pytest.raises(BadImage, match="mask 00001.png is not there"):
        made.samples_of("val").load(0)
    shapes = [made.samples_of("predict").load(i)["target"].shape for i in (0, 1)]
    assert shapes == [(1, *SIZE), (3, *SIZE)]


def test_every_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    davis(tmp_path, {"swan": 5})
    read, paths = clip_samples.read_file, []

    def noted(path: Path) -> bytes:
        paths.append(path)
        return read(path)

    monkeypatch.setattr(clip_samples, "read_file", noted)
    data("davis2017", tmp_path).samples_of("val").load(0)
    assert len(paths) == 10 and len({*paths}) == 10


def test_the_digest_changes_with_a_mask_and_with_grey(tmp_path: Path) -> None:
    davis(tmp_path, {"swan": 3})
    digests = [data("davis2017", tmp_path).digest("val")]
    digests += [data("davis2017", tmp_path, grey=True).digest("val")]
    mask(tmp_path / "Annotations/480p/swan/00001.png", 3)
    digests += [data("davis2017", tmp_path).digest("val")]
    assert len({*digests}) == 3


# --- clips that cannot be used ------------------------------------------------------------------


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def damage(path: Path) -> None:
    """Let the compressed pixels of a PNG be none."""
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT") + 4
    data[start : start + 8] = bytes(8)
    path.write_bytes(bytes(data))


_IMAGES, _MASKS = "JPEGImages/480p/swan", "Annotations/480p/swan"


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda r: (r / _IMAGES / "00002.jpg").unlink(), "mask 00002.png has no frame"),
        (lambda r: (r / _MASKS / "00002.png").unlink(), "mask 00002.png is not there"),
        (
            lambda r: frame(r / _IMAGES / "00001.jpg", 1, size=(48, 64)),
            "00001.jpg is 64x48, others are 80x48",
        ),
        (
            lambda r: mask(r / _MASKS / "00001.png", 1, size=(24, 40)),
            "mask 00001.png is 40x24, others are 80x48",
        ),
        (
            lambda r: [mask(r / _MASKS / f"{i:05d}.png", i, size=(24, 40)) for i in range(4)],
            "masks of 40x24 for frames of 80x48",
        ),
        (lambda r: mask(r / _MASKS / "00000.png", 0, label=0), "shows nothing to follow"),
        (lambda r: cut_short(r / _IMAGES / "00003.jpg"), "00003.jpg: truncated"),
        (lambda r: damage(r / _MASKS / "00003.png"), "mask 00003.png cannot be read"),
        (lambda r: frame(r / _MASKS / "00001.png", 1), "no picture of numbers"),
        (
            lambda r: [(r / _IMAGES / f"{i:05d}.jpg").unlink() for i in range(4)],
            "0 frames in JPEGImages/480p/swan; expected 2 at least",
        ),
    ],
)
def test_a_broken_clip_is_named_with_its_file(
    harm: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    davis(tmp_path, {"bear": 3, "swan": 4})
    harm(tmp_path)
    made = data("davis2017", tmp_path)
    batches = [batch for batch in made.val_dataloader() if batch["weight"][0] > 0]
    assert [batch["name"] for batch in batches] == [["bear"]]
    assert made.bad.keys() == {"swan"} and reason in made.bad["swan"]


def test_a_listed_video_without_a_folder_is_counted(tmp_path: Path) -> None:
    davis(tmp_path, {"bear": 3})
    listed(tmp_path / "ImageSets/2017/val.txt", ["bear", "swan", "../../bear"])
    made = data("davis2017", tmp_path)
    list(made.val_dataloader())
    assert made.bad == {
        name: f"0 frames in {_IMAGES.replace('swan', name)}; expected 2 at least"
        for name in ("swan",)
    }


def test_classes_beyond_those_of_vip_are_refused(tmp_path: Path) -> None:
    vip(tmp_path, {"videos1": 3})
    mask(tmp_path / "Annotations/Category_ids/videos1/000000000026.png", 1, label=20)
    with pytest.raises(BadImage, match="026.png stores 20; expected 0 to 19, or 255"):
        data("vip", tmp_path).samples_of("val").load(0)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (
            lambda r: (r / "Rename_Images/golf/two/00002.png").unlink(),
            "no frame between 00001.png and 00003.png",
        ),
        (
            lambda r: (r / "Rename_Images/golf/two/00004.png").unlink(),
            "3 frames, but joints of 4",
        ),
        (
            lambda r: (r / "joint_positions/golf/two/joint_positions.mat").unlink(),
            "joint_positions.mat is not there",
        ),
        (
            lambda r: cut_short(r / "joint_positions/golf/two/joint_positions.mat"),
            "joint_positions.mat cannot be read",
        ),
        (
            lambda r: positions(r, "golf/two", np.ones((2, 13, 4))),
            "pos_img is 2x13x4; expected 2x15xV",
        ),
        (
            lambda r: positions(r, "golf/two", np.full((2, 15, 4), np.nan)),
            "pos_img is not finite",
        ),
    ],
)
def test_broken_clips_of_jhmdb(harm: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    jhmdb(tmp_path, {"golf/two": 4})
    harm(tmp_path)
    with pytest.raises(BadImage, match=reason):
        data("jhmdb", tmp_path).samples_of("val").load(0)


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "made", "message"),
    [
        ("davis2017", "x", "has no JPEGImages/480p/, as DAVIS-2017 at 480p has"),
        ("davis2017", "JPEGImages/480p", "has no Annotations/480p/"),
        ("vip", "x", "has no Images/, as VIP_Fine has"),
        ("jhmdb", "x", "has no Rename_Images/, as JHMDB has"),
    ],
)
def test_another_folder_is_refused(source: str, made: str, message: str, tmp_path: Path) -> None:
    (tmp_path / made).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        data(source, tmp_path).samples_of("val")


def test_lists_that_say_nothing_are_refused(tmp_path: Path) -> None:
    davis(tmp_path / "davis", {"swan": 2})
    with pytest.raises(UserError, match=r"has no vall.txt, but val: set data.split, did you mean"):
        data("davis2017", tmp_path / "davis", split="vall").samples_of("val")
    listed(tmp_path / "davis/ImageSets/2017/val.txt", [])
    with pytest.raises(UserError, match="lists no video"):
        data("davis2017", tmp_path / "davis").samples_of("val")
    root = jhmdb(tmp_path / "jhmdb", {"golf/two": 2})
    listed(root / "splits/golf_test_split1.txt", ["two.avi 1"])
    with pytest.raises(UserError, match="lists no clip of value 2"):
        data("jhmdb", root).samples_of("val")
    listed(root / "splits/golf_test_split1.txt", ["two.avi 2", "one.avi"])
    with pytest.raises(UserError, match="line 2: expected a video and 0, 1 or 2"):
        data("jhmdb", root).samples_of("val")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scenes": Scenes(views=1)}, "data.scenes.views is 1, the frames of a clip"),
        ({"clip_seconds": 0.0}, "data.clip_seconds is 0"),
        ({"smallest": 1.0}, "data.smallest is 1.0"),
        ({"image_size": (0, 64)}, r"data.image_size is \[0, 64\]"),
    ],
)
def test_mistakes(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PropagationData(**keys)


def test_without_scipy_joints_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jhmdb(tmp_path, {"golf/two": 2})
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"SciPy: pip install 'pixio-lightning\[formats\]'"):
        data("jhmdb", tmp_path).samples_of("val")


# --- frames and rendered clips ------------------------------------------------------------------


def test_grey_is_what_pillow_makes_of_it() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    grey = Look(None, True).at(pixels)
    expected = np.asarray(Image.fromarray(pixels).convert("L")).astype(int)
    assert grey.shape == pixels.shape and np.ptp(grey, axis=2).max() == 0
    assert np.abs(grey[..., 0] - expected).max() <= 1


def test_objects_of_a_rendered_clip_are_those_of_its_first_frame() -> None:
    """A wall is none, nor what is too small, nor what comes later."""
    floor, box = clip_samples.SCENE_CLASSES.index("floor"), clip_samples.SCENE_CLASSES.index("box")
    ids = np.full((2, 10, 10), 1, np.int16)
    kinds = np.full((2, 10, 10), floor, np.uint8)
    for number, (rows, of) in {4: (3, (0, 1)), 7: (1, (0, 1)), 9: (4, (1,))}.items():
        for i in of:
            ids[i, number - 4 : number - 4 + rows, :5] = number
            kinds[i, number - 4 : number - 4 + rows, :5] = box
    masks = object_masks(ids, kinds, 0.06)
    assert sorted({*masks.flat}) == [0, 1]
    assert np.array_equal(masks == 1, ids == 4)


def test_rendered_clips() -> None:
    scenes = Scenes(held_out=2, views=3, size=32, places=("studio",))
    made = PropagationData(scenes=scenes, num_workers=0, smallest=0.0)
    made.prepare_data()
    (first, _) = list(made.val_dataloader())
    assert first["image"].shape == (1, 3, 3, 32, 32) and first["target"].shape == (1, 3, 32, 32)
    assert first["target"].max() > 0
    assert made.dataset == "scenes 2 clips of 3 frames of studio, 32 px, objects over 0"
    grey = PropagationData(scenes=scenes, num_workers=0, grey=True)
    assert (
        grey.dataset.endswith(", grey")
        and grey.samples_of("val").load(0)["image"].std(3).max() == 0
    )
    other = PropagationData(scenes=scenes, num_workers=0, smallest=0.1)
    assert made.digest("val") != other.digest("val")
