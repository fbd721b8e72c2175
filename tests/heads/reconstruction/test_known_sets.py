"""MapAnything's data sets: which depth counts, how often each is seen, which scenes judge."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scene_folders
from PIL import Image
from scene_folders import SIDE, rendered

from pixio_heads.reconstruction.data import ReconstructionData
from pixio_heads.reconstruction.geometry import truth_of
from pixio_heads.reconstruction.views.known_sets import SetFlags
from pixio_heads.reconstruction.views.wai.mixture import in_turns, numbered
from pixio_lightning.data.batches import collate
from pixio_lightning.data.samples import to_tensors
from pixio_lightning.errors import UserError

PIXELS = SIDE * SIDE  # 2304
USABLE = "pred_mask/moge2"
# Every pixel farther than the one before: the 95th percentile is 1 + 0.95 * 2303 = 2188.85.
RISING = np.arange(1, PIXELS + 1, dtype=np.float32).reshape(SIDE, SIDE)
UPPER = np.arange(SIDE)[:, None] < np.full((1, SIDE), 36)  # 1728 pixels, the nearest of RISING


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))


def of(path: Path, **keys: Any) -> ReconstructionData:
    keys = {"image_size": (SIDE, SIDE), "num_workers": 0, "min_views": 2, "max_views": 2} | keys
    return ReconstructionData("wai", str(path), **keys)


def write(root: Path, depth: np.ndarray, masks: dict[str, np.ndarray], **about: Any) -> None:
    views = [
        view._replace(depth=depth, class_id=np.ones_like(view.class_id)) for view in rendered()
    ]
    scene_folders.wai(root, views[:2], masks=masks, scores=np.ones((2, 2)), **about)


def sample(root: Path, **keys: Any) -> dict[str, np.ndarray]:
    return of(root, hold_out=1.0, **keys).samples_of("val").load(0)


# --- which depth counts -----------------------------------------------------------------------


def test_sky_of_a_benchmark_is_no_geometry(tmp_path: Path) -> None:
    sky = np.zeros((SIDE, SIDE), dtype=bool)
    sky[:15] = True  # 31 % at 10 km
    depth = np.where(sky, 10_000, 5).astype(np.float32)
    write(tmp_path / "tav2_wb/P000", depth, {USABLE: ~sky})

    def distance(**keys: Any) -> float:
        found = sample(tmp_path, **keys)
        truth = truth_of(collate([to_tensors(found) | {"key": 0, "name": "", "bad": []}]))
        points = truth.points[0, 0][..., :].norm(dim=-1)
        return float(points[found["valid"][0]].mean())

    assert 5 < distance() < 6.5 and distance(masks=False) > 3000
    found = sample(tmp_path)
    assert np.array_equal(found["valid"][0], ~sky)
    assert np.array_equal(found["non_ambiguous"][0], ~sky)
    assert not found["depth"][0][sky].any()


def test_each_set_has_its_own_rule(tmp_path: Path) -> None:
    sky = np.zeros_like(UPPER)
    sky[0, :10] = True
    zeros = RISING.copy()
    zeros[0, :10] = 0
    masks = {USABLE: UPPER, "skymask": sky}
    everywhere = np.ones_like(UPPER)
    cases = {
        # The percentile is of the whole image, what the mask takes out as well.
        "tav2_wb": (RISING, UPPER, UPPER),
        "mpsd": (RISING, UPPER, UPPER),
        "blendedmvs": (RISING, UPPER, UPPER),
        "spring": (RISING, UPPER & ~sky, UPPER),
        "unrealstereo4k": (zeros, (RISING <= 2188) & ~sky, ~sky),
        "scannetppv2": (RISING, everywhere, everywhere),
        "ETH3D": (zeros, ~sky, everywhere),
        # Of one that is not known, the masks that it has.
        "lab": (RISING, UPPER & ~sky, UPPER),
    }
    for name, (depth, valid, non_ambiguous) in cases.items():
        write(tmp_path / name / name / "a", depth, masks)
        lab = {"lab": SetFlags(metric=True, synthetic=False)} if name == "lab" else None
        found = sample(tmp_path / name, sets=lab)
        assert np.array_equal(found["valid"][0], valid), name
        assert np.array_equal(found["non_ambiguous"][0], non_ambiguous), name
    write(tmp_path / "far/tav2_wb/a", RISING, {USABLE: everywhere})
    assert np.array_equal(sample(tmp_path / "far")["valid"][0], RISING <= 2188)


def test_a_set_is_known_by_its_folder_or_by_the_file_of_a_scene(tmp_path: Path) -> None:
    write(tmp_path / "TartanAirV2-WB/a", RISING, {USABLE: UPPER})
    write(tmp_path / "scenes/a", RISING, {USABLE: UPPER, "skymask": ~UPPER}, dataset_name="mpsd")
    assert sample(tmp_path / "TartanAirV2-WB")["synthetic"]
    (mpsd,) = of(tmp_path / "scenes", hold_out=1.0).samples_of("val").scenes
    assert (mpsd.set_name, mpsd.metric, mpsd.synthetic) == ("mpsd", True, False)
    expected = {"tav2_wb": SetFlags()}
    of(tmp_path / "TartanAirV2-WB", hold_out=1.0, sets=expected).samples_of("val")
    with pytest.raises(UserError, match="data.sets names 'tav2_wb', but .* holds the sets mpsd"):
        of(tmp_path / "scenes", hold_out=1.0, sets=expected).samples_of("val")


def test_a_set_without_its_mask_is_refused_or_goes_without_and_says_so(tmp_path: Path) -> None:
    write(tmp_path / "spring/0001", RISING, {USABLE: UPPER})
    message = "0001' of the set spring has no skymask in frame_modalities.* --data.masks false"
    with pytest.raises(UserError, match=message):
        of(tmp_path).samples_of("train")
    assert sample(tmp_path, masks=False)["valid"].all()
    assert "depth within masks" in of(tmp_path).dataset
    assert "depth without masks" in of(tmp_path, masks=False).dataset


def test_masks_of_another_size_and_masks_that_are_damaged(tmp_path: Path) -> None:
    write(tmp_path / "mpsd/a", RISING, {USABLE: UPPER[::2, ::2]})
    assert np.array_equal(sample(tmp_path)["valid"][0], UPPER)
    path = tmp_path / "mpsd/a/masks/moge2/000.png"
    for mask, reason in (
        (np.ones((48, 20), np.uint8), "mask of 20x48 for depth of 48x48"),
        (np.ones((48, 48, 3), np.uint8), "several channels"),
        (None, "cannot be read"),
    ):
        if mask is None:
            path.unlink()
        else:
            Image.fromarray(mask).save(path)
        held_out = of(tmp_path, hold_out=1.0, sets_per_scene=1).evaluation_set("val")
        (bad,) = held_out[0]["bad"][:1]
        assert bad[0] == "mpsd/a/images/000.png" and reason in bad[1]


def test_the_digest_follows_masks_and_scores_do_not(tmp_path: Path) -> None:
    write(tmp_path / "mpsd/a", RISING, {USABLE: UPPER})

    def found() -> tuple[str, Any]:
        data = of(tmp_path, hold_out=1.0)
        (scene,) = data.samples_of("val").scenes
        scene.given = None
        return data.digest("val"), scene.score_file().path

    before = found()
    os.utime(tmp_path / "mpsd/a/masks/moge2/000.png", (1, 1))
    after = found()
    assert before[0] != after[0] and before[1] == after[1]


# --- how often each is seen -------------------------------------------------------------------


def rooms(root: Path, **scenes: int) -> None:
    for name, count in scenes.items():
        for i in range(count):
            views = rendered(i, views=4)
            scene_folders.wai(root / name / f"s{i}", views, scores=np.ones((4, 4)))


WEIGHTS = {
    "a": SetFlags(True, False, weight=1.0),
    "b": SetFlags(True, False, weight=3.0, covisibility=0.5),
}


def test_sets_are_trained_on_by_their_weights_whatever_the_number_of_scenes(tmp_path: Path) -> None:
    rooms(tmp_path, a=4, b=1)
    (tmp_path / "val").mkdir()
    (tmp_path / "train").mkdir()
    for name in "ab":
        (tmp_path / name).rename(tmp_path / "train" / name)
    rooms(tmp_path / "val", a=1)
    sets = {"a": WEIGHTS["a"], "b": WEIGHTS["b"]}
    with pytest.raises(UserError, match="data.sets names 'b'"):
        of(tmp_path, sets=sets).samples_of("val")
    rooms(tmp_path / "val", b=1)
    data = of(tmp_path, sets=sets, sets_per_scene=2)
    trained = data.samples_of("train")
    # 4 scenes of 2 for a weight of 1, so 24 for one of 3.
    names = [trained.name(i) for i in range(len(trained))]
    assert len(names) == len({*names}) == 32
    assert Counter(name.rpartition("/")[0] for name in names) == {
        **{f"a/s{i}": 2 for i in range(4)},
        "b/s0": 24,
    }
    # A pass of the stream sees each of them once, from anywhere.
    stream = data.training_set()
    passed = [stream.sets.name(index) for index in range(32)]
    assert sorted(passed) == sorted(names)
    assert data.contents()["data sets"] == "a 25.0 %, b 75.0 %"
    assert "splits" not in data.contents()
    assert trained.load(31)["image"].shape == (2, SIDE, SIDE, 3)


def test_quotas_that_do_not_divide_give_some_scenes_one_more() -> None:
    # a: 3 scenes of 2. b: 0.9 of these 6, rounded, are 5 of 2 scenes.
    starts = numbered([*"aaabb"], {"a": 1.0, "b": 0.9}, per_scene=2)
    assert starts.tolist() == [0, 2, 4, 6, 9, 11]
    # No scene is left out, however little its set weighs.
    starts = numbered([*"abbbb"], {"a": 1.0, "b": 0.01}, per_scene=1)
    assert np.diff(starts).tolist() == [400, 1, 1, 1, 1]
    assert numbered([*"aaa"], {"a": 0.1}, per_scene=2).tolist() == [0, 2, 4, 6]
    assert numbered([], {}, per_scene=2).tolist() == [0]


def test_known_sets_weigh_as_in_mapanything(tmp_path: Path) -> None:
    rooms(tmp_path, mpsd=3, spring=2, unrealstereo4k=2, lab=2)
    lab = {"lab": SetFlags(metric=True, synthetic=False)}
    data = of(tmp_path, sets=lab, masks=False, hold_out=0.01, sets_per_scene=32)
    counts = data.samples_of("train").of_data_sets()
    # 16,000 and 44,000 of 420,000, of one that is not known as many as of most.
    assert counts["mpsd"] == counts["lab"]
    assert counts["spring"] / counts["mpsd"] == pytest.approx(16 / 420, rel=0.01)
    assert counts["unrealstereo4k"] / counts["mpsd"] == pytest.approx(44 / 420, rel=0.01)
    assert data.contents()["splits"].startswith("by names")


def test_covisibility_is_the_user_s_else_the_set_s(tmp_path: Path) -> None:
    rooms(tmp_path, a=1, b=1, mpsd=1, eth3d=1)

    def found(**keys: Any) -> dict[str, float | None]:
        data = of(tmp_path, sets=WEIGHTS, masks=False, hold_out=1.0, **keys)
        return {s.set_name: s.covisibility for s in data.samples_of("val").scenes}

    assert found() == {"a": None, "b": 0.5, "mpsd": 0.15, "eth3d": 0.025}
    assert found(covisibility=0.3) == {"a": 0.3, "b": 0.5, "mpsd": 0.3, "eth3d": 0.3}
    assert "covisibility of each data set" in of(tmp_path).dataset
    # Views of which each sees a fifth of the next are neighbours in one set and not in another.
    for name in ("mpsd", "b"):
        (path,) = (tmp_path / name / "s0/covisibility/v0").iterdir()
        np.save(path, np.where(np.eye(4), 1, 0.2).astype(np.float32))
    held_out = of(tmp_path, sets=WEIGHTS, masks=False, hold_out=1.0).samples_of("val")
    views = {held_out.name(i)[:-6]: held_out.load(i)["cam2world"] for i in range(0, 40, 10)}
    assert not np.array_equal(*views["mpsd"]) and np.array_equal(*views["b"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weight": 0.0}, "a weight in data.sets is 0"),
        ({"covisibility": 2}, "covisibility in data"),
    ],
)
def test_numbers_of_a_set_out_of_range(keys: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SetFlags(**keys)


def test_what_is_validated_on_is_of_all_data_sets_alike(tmp_path: Path) -> None:
    rooms(tmp_path, a=4, b=1)
    data = of(tmp_path, sets=WEIGHTS, hold_out=1.0, val_images=16, covisibility=0.1)
    names = [data.samples_of("val").name(i) for i in data.evaluation_set("val").indices]
    assert Counter(name[0] for name in names) == {"a": 8, "b": 8} and len({*names}) == 16
    # A benchmark's sets are all tested, as many of each scene.
    assert len(data.evaluation_set("test").indices) == 50
    assert in_turns([range(0, 2), range(2, 20)], 8) == [0, 1, 2, 5, 8, 11, 14, 17]
    assert in_turns([range(5)], 3) == [0, 1, 3]


# --- which scenes judge -----------------------------------------------------------------------


def lists(root: Path, name: str, **splits: list[str]) -> Path:
    for split, scenes in splits.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        text = "\n".join(scenes) + "\n"
        (root / split / f"{name}_scene_list_{split}.txt").write_text(text)
    return root


def test_lists_tell_what_is_trained_on_validated_and_tested(tmp_path: Path) -> None:
    rooms(tmp_path / "data", a=4, tav2_wb=4)
    found = lists(tmp_path / "lists", "a", train=["s0", "s1"], val=["s3", "elsewhere"])
    lists(found, "tav2_wb", train=["s0"], val=["s1"], test=["s2", "s3"])
    lab = {"a": SetFlags(metric=True, synthetic=False)}
    keys: dict[str, Any] = {"sets": lab, "masks": False, "scene_lists": str(found)}
    data = of(tmp_path / "data", **keys)
    assert data.names_of("train") == ["a/s0", "a/s1", "tav2_wb/s0"]
    assert data.names_of("val") == ["a/s3", "tav2_wb/s1"]
    assert data.names_of("test") == ["tav2_wb/s2", "tav2_wb/s3"]
    assert data.names_anywhere("train") == ["tav2_wb/s0"]  # there is but one TartanAir
    assert "scenes of lists" in data.dataset and "splits" not in data.contents()
    # The folder of one set; and without a list to test on, val is what is tested.
    alone = of(tmp_path / "data/tav2_wb", masks=False, scene_lists=str(found))
    assert alone.names_of("test") == ["s2", "s3"]
    (found / "test/tav2_wb_scene_list_test.txt").unlink()
    alone = of(tmp_path / "data/tav2_wb", masks=False, scene_lists=str(found))
    assert alone.names_of("test") == ["s1"] and alone.part_of("test") == "val"


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_lists_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rooms(tmp_path / "data", mpsd=2)
    found = tmp_path / "lists"
    (found / "train").mkdir(parents=True)
    path = found / "train/mpsd_scene_list_train.npy"

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            of(tmp_path / "data", masks=False, scene_lists=str(found)).samples_of("train")

    refused("has no list of the set 'mpsd'; expected train/mpsd_scene_list_train.txt")
    # As MapAnything writes them, and as another may.
    np.save(path, np.array(["s0", Runs()], dtype=object), allow_pickle=True)
    refused(r"as a pickle could run anything.*write it as text once: python -c .*\.txt'$")
    assert not (tmp_path / "ran").exists()
    path.unlink()
    lists(found, "mpsd", train=["s9"])
    refused("no scene on the lists of train in .* is there, of the sets mpsd")
    lists(found, "mpsd", train=["s0"], test=["s0", "s1"])
    refused("lists of train and test of 'mpsd' in .* share 's0'")
    with pytest.raises(UserError, match="data.scene_lists"):
        ReconstructionData("folder", str(tmp_path), scene_lists=str(found))


def test_frames_of_one_scene_are_no_scene_of_a_set(tmp_path: Path) -> None:
    scene_folders.wai(tmp_path / "mpsd", rendered(1, views=8), scores=np.ones((8, 8)))
    write(tmp_path / "spring/0001", RISING, {})
    data = of(tmp_path / "mpsd", masks=False)
    assert len(data.samples_of("train").scenes) == 1 and data.names_anywhere("val") == []
    alone = of(tmp_path / "spring/0001", masks=False, hold_out=1.0)
    assert alone.names_anywhere("val") == ["spring/0001"]
