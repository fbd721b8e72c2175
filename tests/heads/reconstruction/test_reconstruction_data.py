"""Sets of views: what a sample holds, and that the stream depends on its positions alone."""

from __future__ import annotations

import itertools
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scene_folders
import torch
from scene_folders import rendered

from pixio_heads.reconstruction.data import ReconstructionData, dealt
from pixio_heads.reconstruction.geometry import truth_of
from pixio_heads.reconstruction.views.colour import Colour, recoloured
from pixio_heads.reconstruction.views.covisibility import Neighbours
from pixio_heads.reconstruction.views.known_sets import SetFlags
from pixio_heads.reconstruction.views.sets import SetPositions, Shapes
from pixio_lightning.cli.main import main
from pixio_lightning.data.samples import RandomKey
from pixio_lightning.data.scenes import store as scene_store
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.errors import UserError

ROOMS = Scenes(train=3, held_out=2, views=4, size=48, places=("studio",))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        scene_folders.nerfstudio(tmp_path / f"room{i}", rendered(i, views=4))
    return tmp_path


def of(source: str = "scenes", path: Path | None = None, **keys: Any) -> ReconstructionData:
    keys = {"image_size": (48, 48), "scenes": ROOMS, "num_workers": 0} | keys
    return ReconstructionData(source, None if path is None else str(path), **keys)


def attached(data: ReconstructionData, rank: int = 0, world_size: int = 1) -> ReconstructionData:
    """Give it the little of a trainer that its training loader asks."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=world_size, strategy=strategy, accumulate_grad_batches=1,
        limit_train_batches=1.0, fast_dev_run=False, callbacks=[], overfit_batches=0,
        reload_dataloaders_every_n_epochs=0,
        global_step=0, default_root_dir="unused", state=SimpleNamespace(fn="fit"),
    )  # fmt: skip
    return data


def batches(data: ReconstructionData, n: int) -> list[dict[str, torch.Tensor]]:
    loader = data.train_dataloader()
    found = list(islice(loader, n))
    loader.close()
    return found


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


# --- one set ----------------------------------------------------------------------------------


def test_a_set_of_a_rendered_scene_is_the_renderer_s() -> None:
    data = of(sets_per_scene=2)
    sets = data.samples_of("train")
    assert len(sets) == 6 and sets.name(3) == "train/000001/01"
    sample = sets.load(3)
    shapes = {name: (array.dtype.name, array.shape) for name, array in sample.items()}
    assert shapes == {
        "image": ("uint8", (2, 48, 48, 3)),
        "depth": ("float32", (2, 48, 48)),
        "valid": ("bool", (2, 48, 48)),
        "non_ambiguous": ("bool", (2, 48, 48)),
        "intrinsics": ("float32", (2, 3, 3)),
        "cam2world": ("float32", (2, 4, 4)),
        "metric": ("bool", ()),
        "synthetic": ("bool", ()),
    }
    assert sample["metric"] and sample["synthetic"]
    scene = scene_store.render_scene(
        scene_store.scene_seed("train", 1), views=4, size=48, places=("studio",)
    )
    poses = [view.cam2world.astype(np.float32) for view in scene.views]
    turns = [pose[:3, :3] for pose in poses]
    found = []
    for i in range(2):
        (index,) = [
            j
            for j, epoch in enumerate(turns)
            if np.array_equal(epoch, sample["cam2world"][i, :3, :3])
        ]
        found.append(index)
        view = scene.views[index]
        assert np.array_equal(sample["image"][i], view.image)
        assert np.array_equal(sample["depth"][i], view.depth)
        assert np.array_equal(sample["valid"][i], view.valid)
        assert np.allclose(sample["intrinsics"][i], view.intrinsics)
        assert np.array_equal(sample["non_ambiguous"][i], view.class_id != 0)
    # The world's origin is the first camera, its axes are the scene's.
    first, second = (scene.views[index].cam2world[:3, 3] for index in found)
    assert not sample["cam2world"][0, :3, 3].any()
    assert np.allclose(sample["cam2world"][1, :3, 3], second - first, atol=1e-6)


def test_the_sky_is_ambiguous_and_what_is_too_far_is_not() -> None:
    data = of(scenes=Scenes(train=6, held_out=1, views=2, size=32, places=("street",)))
    sets = data.samples_of("train")
    samples = [sets.load(i) for i in range(0, len(sets), 10)]
    sky = np.concatenate([~s["non_ambiguous"].ravel() for s in samples])
    valid = np.concatenate([s["valid"].ravel() for s in samples])
    depth = np.concatenate([s["depth"].ravel() for s in samples])
    assert 0.02 < sky.mean() < 0.8 and not (sky & valid).any() and not depth[~valid].any()


def test_points_of_two_views_coincide_where_both_see_them() -> None:
    """Through the head's own geometry, in the frame of view 0."""
    loader = of(val_batch_size=2, sets_per_scene=1).val_dataloader()
    (batch,) = list(loader)
    truth = truth_of(batch)
    for b in range(2):
        first, second = (truth.points[b, v][batch["valid"][b, v]] for v in range(2))
        distance = torch.cdist(second[::7], first).min(dim=1).values
        assert (distance < 0.1).float().mean() > 0.25


def test_a_set_is_connected_and_differs_from_set_to_set(folder: Path) -> None:
    data = of("folder", folder, val_views=3, hold_out=0.25)
    sets = data.samples_of("train")
    assert len(sets) == 30 and len(data.samples_of("val")) == 10
    seen = set()
    for index in range(0, 30, 3):
        scene = sets.scenes[index // 10]
        turns = np.stack([f.cam2world[:3, :3] for f in scene.frames])
        poses = sets.load(index)["cam2world"]
        views = [int(np.abs(turns - pose[:3, :3]).sum((1, 2)).argmin()) for pose in poses]
        near = Neighbours(scene.scores(), threshold=0.25)
        assert len(set(views)) == 3
        assert all(any(near[v][views[i]] for v in views[:i]) for i in (1, 2))
        seen.add((index // 10, *views))
    assert len(seen) > 5


def test_flags_are_what_the_layout_knows_or_the_user_says(tmp_path: Path) -> None:
    for name, write in scene_folders.WRITERS.items():
        write(tmp_path / name / "a", rendered(1, views=4))

    def flags(source: str, **keys: Any) -> tuple[bool, bool]:
        data = of(source, tmp_path / source, min_views=2, max_views=2, hold_out=1.0, **keys)
        sample = data.samples_of("val").load(0)
        return bool(sample["metric"]), bool(sample["synthetic"])

    assert flags("folder") == flags("blendedmvs") == (False, False)
    assert flags("folder", metric=True, synthetic=True) == (True, True)
    assert flags("wai") == (True, False) and flags("wai", metric=False) == (False, False)
    with pytest.raises(UserError, match="data.metric is True, but of blendedmvs it is known"):
        flags("blendedmvs", metric=True)
    assert of(metric=False, synthetic=False).samples_of("val").load(0)["metric"]


def test_sets_beside_each_other_are_known_by_their_folders(tmp_path: Path) -> None:
    for name in ("blendedmvs", "ScanNet++v2", "tav2_wb", "lab"):
        for room in (1, 2):
            # What the file says of itself does not count where the set is known.
            scale = "up_to_scale" if name == "tav2_wb" else "metric"
            root = tmp_path / name / f"room{room}"
            scene_folders.wai(root, rendered(room, views=4), scale_type=scale)
    keys: dict[str, Any] = {"min_views": 2, "max_views": 2, "hold_out": 1.0, "masks": False}

    def flags(**more: Any) -> dict[str, tuple[bool, bool]]:
        sets = of("wai", tmp_path, **keys, **more).samples_of("val")
        samples = {sets.name(i).split("/")[0]: sets.load(i) for i in range(0, len(sets), 10)}
        assert len(sets) == 80 and sets.name(79).endswith("/room2/09")
        return {k: (bool(v["metric"]), bool(v["synthetic"])) for k, v in samples.items()}

    with pytest.raises(UserError, match=r"a set 'lab'.*--data.sets '\{lab: \{metric: true, synth"):
        flags()
    expected = {
        "ScanNet++v2": (True, False),
        "blendedmvs": (False, False),
        "lab": (False, True),
        "tav2_wb": (True, True),
    }
    lab = SetFlags(metric=False, synthetic=True)
    assert flags(sets={"lab": lab}) == expected
    assert flags(sets={"lab": lab, "tav2_wb": lab}) == expected | {"tav2_wb": (False, True)}
    assert set(flags(metric=True, synthetic=False).values()) == {(True, False)}
    with pytest.raises(UserError, match="names 'labs'.* holds the sets .*, did you mean 'lab'"):
        flags(metric=True, synthetic=False, sets={"labs": lab})
    (tmp_path / "tav2_wb").rename(tmp_path / "tav_wb")
    with pytest.raises(UserError, match="a set 'tav_wb'.*, did you mean 'tav2_wb'"):
        flags(sets={"lab": lab})
    with pytest.raises(UserError, match="data.sets is of folders in the layout wai, but.* folder"):
        of("folder", tmp_path, sets={"lab": lab})


def test_sets_are_in_train_and_val_folders_too(tmp_path: Path) -> None:
    for split, name in (("train", "spring"), ("train", "mpsd"), ("val", "mpsd")):
        scene_folders.wai(tmp_path / split / name / "a", rendered(1, views=4))
    data = of("wai", tmp_path, masks=False)
    found = {scene.name: scene.synthetic for scene in data.samples_of("train").scenes}
    assert found == {"mpsd/a": False, "spring/a": True}
    assert [scene.name for scene in data.samples_of("val").scenes] == ["mpsd/a"]


def test_train_and_val_folders_are_what_they_say(folder: Path) -> None:
    for name in ("train", "val"):
        (folder / name).mkdir()
    for i in range(3):
        (folder / f"room{i}").rename(folder / f"train/room{i}")
    (folder / "room3").rename(folder / "val/room3")
    data = of("folder", folder)
    assert [s.name for s in data.samples_of("train").scenes] == ["room0", "room1", "room2"]
    assert [s.name for s in data.samples_of("test").scenes] == ["room3"]


def test_holding_all_out_leaves_nothing_to_train_on(folder: Path) -> None:
    data = of("folder", folder, hold_out=1.0)
    assert len(data.samples_of("test")) == 40
    with pytest.raises(UserError, match="data.hold_out is 1"):
        data.samples_of("train")


def test_scenes_are_scaled_to_fit() -> None:
    data = of(image_size=[(336, 512), (512, 512), (512, 384)])
    assert data.sizes == [(32, 48), (48, 48), (48, 32)]
    assert data.samples_of("val").load(0)["image"].shape == (2, 32, 48, 3)


# --- the stream -------------------------------------------------------------------------------

MIXED: dict[str, Any] = {"image_size": [(48, 48), (32, 48)], "batch_size": 4, "sets_per_scene": 4}


def test_all_sets_of_a_batch_agree_and_more_views_mean_fewer_sets() -> None:
    found = batches(attached(of(**MIXED)), 24)
    kinds = Counter(tuple(batch["image"].shape[:2]) for batch in found)
    assert kinds.keys() == {(4, 2), (2, 3), (2, 4)}
    assert {tuple(batch["size"]) for batch in found} == {(48, 48), (32, 48)}
    for batch in found:
        n, v, _, h, w = batch["image"].shape
        assert batch["depth"].shape == (n, v, h, w) and batch["cam2world"].shape == (n, v, 4, 4)


def test_the_stream_is_independent_of_workers() -> None:
    one = batches(attached(of(**MIXED)), 6)
    two = batches(attached(of(**MIXED | {"num_workers": 2})), 6)
    assert all(equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_stream_goes_on_from_its_batch_number() -> None:
    whole = batches(attached(of(**MIXED)), 7)
    data = attached(of(**MIXED))
    data.trainer.global_step = 4  # type: ignore[misc,union-attr]
    rest = batches(data, 3)
    assert all(equal(a, b) for a, b in zip(whole[4:], rest, strict=True))


def test_processes_share_a_batch_of_one_shape() -> None:
    """Two of 4 sets read, batch by batch, what one of 8 does."""
    one = batches(attached(of(**MIXED | {"batch_size": 8})), 6)
    parts = [batches(attached(of(**MIXED), rank, 2), 6) for rank in (0, 1)]
    for whole, *shares in zip(one, *parts, strict=True):
        assert len(shares[0]["key"]) == len(shares[1]["key"])
        names = [name for share in shares for name in share["name"]]
        assert names == whole["name"][: len(names)] and len(names) >= len(whole["name"]) - 1
        image = torch.cat([share["image"] for share in shares])
        assert torch.equal(image, whole["image"][: len(image)])


def test_positions_of_ranks_never_overlap_and_stay_in_their_stride() -> None:
    shapes = Shapes(views=(2, 4), sizes=((16, 16),), batch_size=4, parts=3, seed=1)
    ranks = [list(islice(SetPositions(shapes, rank=r, world_size=3), 30)) for r in range(3)]
    for batch, shares in enumerate(zip(*ranks, strict=True)):
        positions = [p for share in shares for p in share]
        assert positions == list(range(12 * batch, 12 * batch + len(positions)))
        assert {shapes.at(p) for p in positions} == {shapes.of(batch)}
        assert len(positions) == 3 * shapes.sets_of(shapes.of(batch)[0]) <= 12


@pytest.mark.parametrize(("batch_size", "world_size", "accumulate"), [(12, 1, 2), (12, 2, 1)])
def test_a_step_has_the_same_sets_however_it_is_divided(
    batch_size: int, world_size: int, accumulate: int
) -> None:
    """As of one process and one batch a step, in numbers of sets that all of them can share."""

    def steps(batch_size: int, world_size: int, accumulate: int) -> list[tuple[Any, list[int]]]:
        about = {"views": (2, 4), "sizes": ((16, 16), (16, 32)), "seed": 0}
        parts = world_size * accumulate
        shapes = Shapes(**about, batch_size=batch_size, parts=parts)  # type: ignore[arg-type]
        each = [SetPositions(shapes, rank=r, world_size=world_size) for r in range(world_size)]
        batches = zip(*(islice(positions, 20 * accumulate) for positions in each), strict=True)
        read = [[p for share in shares for p in share] for shares in batches]
        found = [sum(read[i : i + accumulate], []) for i in range(0, len(read), accumulate)]
        return [(shapes.at(positions[0]), positions) for positions in found]

    whole = steps(24, 1, 1)
    assert steps(batch_size, world_size, accumulate) == whole
    assert {len(positions) for _, positions in whole} == {24, 16, 12}
    assert len({shape for shape, _ in whole}) > 4


def test_a_run_goes_on_with_a_division_that_makes_the_same_steps_and_with_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    line = ["fit", "-c", "reconstruction/demo", "-c", "with/debug", "--out", str(tmp_path / "run")]
    line += ["--data.scenes", "{train: 4, held_out: 4, views: 5, size: 48, places: [den]}"]
    line += ["--data.max_views", "4", "--panels.every_n_steps", "0", "--trainer.max_steps", "1"]
    assert main([*line, "--data.batch_size", "4"]) == 0
    divided = ["--data.batch_size", "1", "--trainer.accumulate_grad_batches", "4"]
    assert main([*line, *divided]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "steps of 4 or 2 or 2 samples" in error
    assert "in steps of 4 or 4 or 4" in error and "divide it as it was" in error
    divided = ["--data.batch_size", "2", "--trainer.accumulate_grad_batches", "2"]
    assert main([*line, *divided]) == 0
    assert "global batch as before" in capsys.readouterr().out


def test_every_pass_draws_other_sets_and_fixed_ones_come_again() -> None:
    keys: dict[str, Any] = {"min_views": 2, "max_views": 2, "sets_per_scene": 1, "batch_size": 3}
    fresh = batches(attached(of(**keys)), 6)
    drawn = {pose.numpy().tobytes() for batch in fresh for pose in batch["cam2world"]}
    assert len(drawn) > 9
    data = attached(of(**keys, views=1))
    assert not data.random and of(**keys).random
    fixed = batches(data, 6)
    assert len({pose.numpy().tobytes() for batch in fixed for pose in batch["cam2world"]}) == 3
    jobs = data.training_set().fixed_views()  # type: ignore[union-attr]
    assert [name for name, _ in jobs] == [f"train/{i:06d}/00#0" for i in range(3)]
    cached = {name: data.training_set().view(*where) for name, where in jobs}  # type: ignore[union-attr]
    assert cached[jobs[0][0]]["image"].shape == (2, 3, 48, 48)


def test_a_broken_frame_is_counted_and_its_set_replaced(folder: Path) -> None:
    path = folder / "room1/images/002.png"
    path.write_bytes(path.read_bytes()[:300])
    (folder / "room2/depth/001.png").write_bytes(b"")
    keys: dict[str, Any] = {"hold_out": 0.25, "min_views": 2, "max_views": 2, "batch_size": 5}
    data = of("folder", folder, **keys)
    held_out = {scene.name for scene in data.samples_of("val").scenes}
    assert not held_out & {"room1", "room2"}  # as the hash of their names falls
    data = attached(data)
    data.trainer.default_root_dir = str(folder)  # type: ignore[misc,union-attr]
    assert all(len(batch["key"]) == 5 for batch in batches(data, 30))
    assert data.bad == {
        "room1/images/002.png": "truncated",
        "room2/images/001.png": "depth: no PNG",
    }
    listed = (folder / "bad_files.txt").read_text()
    assert "room1/images/002.png\ttruncated" in listed


def test_evaluation_is_the_same_every_time_and_for_every_seed(folder: Path) -> None:
    def poses(**keys: Any) -> torch.Tensor:
        loader = of("folder", folder, hold_out=0.5, val_batch_size=20, **keys).val_dataloader()
        (batch,) = list(loader)
        assert batch["image"].shape[:2] == (20, 2) and batch["weight"].sum() == 20
        return batch["cam2world"]

    first = poses()
    assert torch.equal(first, poses(batch_size=9, num_workers=1))
    assert torch.equal(first, poses(seed=777))


def test_training_stays_within_one_small_scene(tmp_path: Path) -> None:
    scene_folders.colmap(tmp_path / "flat", rendered(2, views=6))
    data = of("folder", tmp_path / "flat", max_views=3, hold_out=0.4)
    assert len(data.samples_of("train").scenes[0]) == 3
    found = batches(attached(data), 8)
    poses = torch.cat([batch["cam2world"].flatten(0, 1) for batch in found])
    turns = {pose.numpy().tobytes() for pose in poses[:, :3, :3]}
    held_out = data.samples_of("val").load(0)["cam2world"][:, :3, :3]
    assert len(turns) == 3 and not turns & {turn.tobytes() for turn in held_out}


# --- covisibility -----------------------------------------------------------------------------


def kept(root: Path) -> int:
    """Return of how many scenes the covisibility is on disk."""
    return len(list((root / "covisibility").glob("*.npy")))


def prepared(data: ReconstructionData, stage: str) -> ReconstructionData:
    attached(data)
    data.trainer.state = SimpleNamespace(fn=stage)  # type: ignore[union-attr]
    data.prepare_data()
    return data


def test_what_sees_what_is_known_before_workers_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of the scenes of the stage, and of a few sets only of theirs."""
    for stage, scenes in (("fit", 4), ("validate", 2), ("test", 2), ("predict", 0)):
        cache = tmp_path_factory.mktemp(stage)
        monkeypatch.setenv("PIXIO_CACHE", str(cache))
        prepared(of("folder", folder, hold_out=0.5), stage)
        assert kept(cache) == scenes, stage
    cache = tmp_path_factory.mktemp("few")
    monkeypatch.setenv("PIXIO_CACHE", str(cache))
    data = prepared(of("folder", folder, hold_out=0.75, val_images=1), "validate")
    assert kept(cache) == 1
    data.samples(2)
    assert kept(cache) == 2
    # The statistics of a head that has none yet: one scene is trained on.
    data.statistics_dataloader(5)
    assert kept(cache) == 3
    (batch,) = list(
        of("folder", folder, hold_out=0.75, val_images=1, num_workers=1).val_dataloader()
    )
    assert len(batch["key"]) == 1 and kept(cache) == 3


def sparse(views: list[Any]) -> list[Any]:
    """Leave depth at every twentieth pixel, at random."""
    kept = np.random.default_rng(0).random((len(views), 48, 48)) < 0.05
    return [v._replace(depth=np.where(k, v.depth, 0)) for v, k in zip(views, kept, strict=True)]


def test_sets_of_one_picture_again_and_again_are_refused_and_told_of(tmp_path: Path) -> None:
    for i in range(4):
        views = rendered(i, views=4)
        scene_folders.nerfstudio(tmp_path / f"all/room{i}", sparse(views))
        scene_folders.nerfstudio(tmp_path / f"some/room{i}", views if i else sparse(views))
        scene_folders.nerfstudio(tmp_path / f"none/room{i}", views)
    with pytest.raises(UserError, match=r"100 % of the frames see too little .* lower than 0.25"):
        prepared(of("folder", tmp_path / "all", hold_out=1.0), "test")
    few = prepared(of("folder", tmp_path / "all", hold_out=1.0, covisibility=0.002), "test")
    assert "see too little" not in few.contents()["samples"]
    for name, said in (("some", True), ("none", False)):
        data = prepared(of("folder", tmp_path / name, hold_out=1.0), "test")
        told = data.contents()["samples"]
        assert ("40 test (25 % of the frames see too little of any other)" in told) == said, told
    # Where all frames make a set, none is taken twice.
    whole = prepared(of("folder", tmp_path / "all", hold_out=1.0, val_views=4), "test")
    assert len({*map(bytes, whole.samples_of("test").load(0)["image"])}) == 4


def test_given_scores_and_few_rendered_views_are_not_computed_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    scene_folders.wai(tmp_path / "wai/a", rendered(1, views=4), scores=np.ones((4, 4)))
    data = prepared(of("wai", tmp_path / "wai", hold_out=1.0), "test")
    assert len(data.samples_of("test").load(0)["image"]) == 2
    many = Scenes(train=1, held_out=1, views=20, size=16, places=("studio",))
    for scenes, expected in ((ROOMS, 0), (many, 2)):
        data = prepared(of(scenes=scenes, image_size=(16, 16)), "fit")
        data.samples_of("train").load(0)
        assert kept(tmp_path / "cache") == expected


# --- colours ----------------------------------------------------------------------------------


def test_colours_are_keyed_and_each_view_s_own() -> None:
    images = np.stack([rendered(1)[0].image] * 4)
    always = Colour(jitter=1.0)
    first = recoloured(images, always, RandomKey(1, 0, 0))
    assert np.array_equal(first, recoloured(images, always, RandomKey(1, 0, 0)))
    assert not np.array_equal(first, recoloured(images, always, RandomKey(1, 0, 1)))
    assert len({view.tobytes() for view in first}) == 4
    never = Colour(jitter=0, grey=0, blur=0)
    assert np.array_equal(recoloured(images, never, RandomKey(1, 0, 0)), images)
    grey = recoloured(images, Colour(jitter=0, grey=1, blur=0), RandomKey(1, 0, 0))
    assert np.ptp(grey.astype(int), axis=-1).max() == 0
    blurred = recoloured(images, Colour(jitter=0, grey=0, blur=1), RandomKey(1, 0, 0))
    assert (
        np.abs(np.diff(blurred.astype(int), axis=2)).sum()
        < np.abs(np.diff(images.astype(int), axis=2)).sum()
    )


def test_colours_change_in_training_on_files_only(folder: Path) -> None:
    vivid = Colour(jitter=1.0)
    for data, changes in (
        (of("folder", folder, colour=vivid), True),
        (of("folder", folder, colour=vivid, augment=False), False),
        (of(colour=vivid), False),
        (of(colour=vivid, augment=True), True),
    ):
        sample = data.samples_of("train").load(0)
        after = data.augment(sample, RandomKey(1, 0, 0))
        assert np.array_equal(after["image"], sample["image"]) != changes
        assert data.prepare(sample) is sample


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "wia"}, "did you mean 'wai'"),
        ({"source": "folder"}, "give data.path"),
        ({"image_size": (50, 48)}, r"data.image_size \[50, 48\]: expected.* multiples of 16"),
        ({"image_size": []}, "data.image_size is empty"),
        ({"min_views": 1}, "2 <= min_views <= max_views"),
        ({"min_views": 4, "max_views": 3}, "2 <= min_views <= max_views"),
        ({"val_views": 1}, "data.val_views is 1, but expected at least 2"),
        ({"sets_per_scene": 0}, "data.sets_per_scene is 0"),
        ({"covisibility": 0.0}, "data.covisibility is 0.0; expected over 0"),
        ({"hold_out": 1.5}, "data.hold_out is 1.5"),
        ({"views": 2}, "data.views fixes the training sets"),
        ({"depth_scale": 0.0}, "data.depth_scale is 0, but expected metres above 0"),
        ({"depth_scale": -1.0}, "data.depth_scale is -1, but expected metres above 0"),
    ],
)
def test_mistakes(keys: dict[str, Any], message: str) -> None:
    path = "somewhere" if keys.get("image_size") == (50, 48) else None
    source = "folder" if path else "scenes"
    with pytest.raises(UserError, match=message):
        ReconstructionData(**{"source": source, "path": path} | keys)


def test_colours_out_of_range() -> None:
    with pytest.raises(UserError, match="data.colour.hue is 0.7; expected 0 to 0.5"):
        Colour(hue=0.7)


def test_records_tell_how_sets_are_made() -> None:
    data = of(val_views=3, covisibility=0.025, sets_per_scene=5)
    assert data.dataset == (
        "scenes 2x4 views of studio, 48 px, 3 views of 48x48, covisibility 0.025, 5 sets a scene"
    )
    files = of("folder", Path("somewhere"), hold_out=0.5, depth_scale=0.01).dataset
    assert files.endswith("sets a scene, hold_out 0.5, depth_scale 0.01")


def test_what_is_held_out_is_said_and_depends_on_the_share_alone(
    tmp_path: Path, folder: Path
) -> None:
    names = of("folder", folder, hold_out=0.5).names_of("val")
    assert names is not None and len(names) == 2 and names[0].startswith("room")
    assert of("folder", folder, hold_out=1.0).names_of("val") == [f"room{i}" for i in range(4)]
    scene_folders.nerfstudio(tmp_path / "one" / "hall", rendered(1, views=12))
    (alone,) = (tmp_path / "one").iterdir()
    found = [
        of("folder", alone.parent, max_views=views, val_views=evaluated).names_of("val")
        for views, evaluated in ((2, 2), (8, 2), (4, 4))
    ]
    assert found[0] == found[1] == found[2] and len(found[0] or ()) == 4
    trained_on = of("folder", alone.parent, max_views=2).names_of("train") or []
    everything = of("folder", alone.parent, hold_out=1.0).names_of("test") or []
    assert sorted(everything) == sorted([*trained_on, *(found[0] or ())])
    more = of("folder", alone.parent, hold_out=0.5).names_of("val") or []
    assert len(more) == 6 and {*more} > {*(found[0] or ())}
    for part in ("train", "val"):
        scene_folders.nerfstudio(tmp_path / "parts" / part / "room", rendered(1, views=4))
    assert of("folder", tmp_path / "parts").names_of("val") == []


def test_the_cameras_of_a_folder_are_read_once(folder: Path) -> None:
    data = of("folder", folder, hold_out=0.5)
    train = {scene.name for scene in data.samples_of("train").scenes}  # type: ignore[attr-defined]
    for path in folder.glob("*/transforms.json"):
        path.write_text("not any more")
    val = {scene.name for scene in data.samples_of("val").scenes}  # type: ignore[attr-defined]
    assert len(train) == len(val) == 2 and not train & val


def test_two_scenes_have_the_same_names_whatever_is_held_out(tmp_path: Path) -> None:
    for room in ("a", "b"):
        scene_folders.nerfstudio(tmp_path / room, rendered(1, views=4))
    data = of("folder", tmp_path, hold_out=0.5)
    apart = [*(data.names_of("train") or ()), *(data.names_of("val") or ())]
    assert sorted(apart) == of("folder", tmp_path, hold_out=1.0).names_of("test") == ["a", "b"]


def test_evaluated_sets_are_the_same_for_all_seeds_and_trained_ones_are_not() -> None:
    for split, same in (("train", False), ("val", True), ("test", True)):
        one, other = (
            of(sets_per_scene=4, seed=seed, scenes=Scenes(train=2, held_out=2, views=8, size=48))
            for seed in (0, 1)
        )
        sets = (one.samples_of(split), other.samples_of(split))
        views = [[samples.load(i)["cam2world"] for i in range(len(samples))] for samples in sets]
        assert np.array_equal(*views) is same


def test_evaluated_sets_beside_each_other_are_of_different_scenes() -> None:
    sets = of(sets_per_scene=3).evaluation_set("val")
    names = [sets[i]["name"] for i in range(len(sets))]
    scenes = [name.rpartition("/")[0] for name in names]
    assert len(set(names)) == 6 and all(a != b for a, b in itertools.pairwise(scenes))


def test_the_digest_follows_files_and_shapes(folder: Path) -> None:
    def digest(**keys: Any) -> str:
        return of("folder", folder, **keys).digest("val")

    first = digest()
    assert first == digest(batch_size=9)
    assert len({first, digest(image_size=(32, 48)), digest(val_views=3), digest(seed=1)}) == 4
    for root in folder.iterdir():
        scene_folders.save_millimetres(root / "depth/000.png", rendered(9)[0].depth)
    assert digest() != first


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5])
def test_each_process_s_sets_beside_each_other_are_of_different_scenes(processes: int) -> None:
    scenes = [0, 1] * 10  # of sets in turns
    order = dealt(list(range(20)), processes)
    assert sorted(order) == list(range(20))
    for rank in range(processes):
        own = [scenes[i] for i in order[rank::processes]]
        assert all(a != b for a, b in pairwise(own))
