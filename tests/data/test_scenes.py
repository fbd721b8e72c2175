"""The embedded scenes: exact geometry, overlapping views, and a store that survives anything."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fork_server
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixio_lightning.data.scenes import store as scene_store
from pixio_lightning.data.scenes.raycast import Bundle, interval, nearest_hit
from pixio_lightning.data.scenes.render import MAX_DEPTH, SCENE_CLASSES, Scene, View, render_scene
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.data.scenes.textures import PATTERNS, Shape, pulse_train, square_wave
from pixio_lightning.data.scenes.worlds import PLACES, build_world
from pixio_lightning.errors import UserError

SIZE = 48
OPEN = ("street", "plaza", "park")
ROOMS = tuple(name for name in PLACES if name not in OPEN)
FLAT = [SCENE_CLASSES.index(name) for name in ("floor", "wall", "ceiling", "ground", "box")]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed, size=SIZE, places=(ROOMS, OPEN)[seed % 3 == 0]) for seed in range(9)]


def camera_points(view: View) -> np.ndarray:
    """Unproject to `(H, W, 3)` in the camera."""
    v, u = np.indices(view.depth.shape)
    pixel = np.stack([u, v, np.ones_like(u)], axis=-1)
    return (pixel @ np.linalg.inv(view.intrinsics).T) * view.depth[..., None].astype(np.float64)


def world_points(view: View) -> np.ndarray:
    return camera_points(view) @ view.cam2world[:3, :3].T + view.cam2world[:3, 3]


def all_views(scenes: list[Scene]) -> list[View]:
    return [view for scene in scenes for view in scene.views]


@pytest.mark.parametrize("shape", Shape)
def test_interval_is_where_a_ray_is_inside(shape: Shape) -> None:
    rng = np.random.default_rng(0)
    origin, direction = rng.normal(size=(2, 3, 2000)) * [[[3]], [[1]]]
    enter, leave = interval(shape, origin, direction)

    def inside(t: np.ndarray) -> np.ndarray:
        x, y, z = np.abs(origin + t * direction)
        return {
            Shape.BOX: np.maximum(np.maximum(x, y), z) <= 1,
            Shape.SPHERE: x**2 + y**2 + z**2 <= 1,
            Shape.CYLINDER: (x**2 + y**2 <= 1) & (z <= 1),
        }[shape]

    hit = enter <= leave
    assert 50 < hit.sum() < 1950
    ends = np.where(hit, enter, 0), np.where(hit, leave, 0)
    for share in (0.001, 0.5, 0.999):
        assert inside(ends[0] + share * (ends[1] - ends[0]))[hit].all()
    assert not inside(ends[0] - 1e-6)[hit].any()
    assert not inside(ends[1] + 1e-6)[hit].any()
    assert not any(inside(np.full(2000, t))[~hit].any() for t in np.linspace(-9, 9, 400))


@pytest.mark.parametrize("room_type", PLACES)
def test_bundles_lose_no_hit(room_type: str) -> None:
    rng = np.random.default_rng(0)
    world, low, high = build_world(rng, room_type)
    apex = (low + high) / 2
    unit = rng.normal(size=(3, 20_000))
    unit /= np.linalg.norm(unit, axis=0)
    origin = np.repeat(apex[:, None], 20_000, axis=1)
    bundles = [Bundle(i, apex, unit[:, i : i + 10_000], 0.0) for i in (0, 10_000)]
    t, part = nearest_hit(world, origin, unit)
    culled_t, culled_part = nearest_hit(world, origin, unit, bundles=bundles)
    np.testing.assert_array_equal(culled_t, t)
    np.testing.assert_array_equal(culled_part, part)


def test_textures_are_means_over_the_pixel() -> None:
    x = np.linspace(-2, 2, 41)
    for width in (0.05, 0.4, 3.3):
        samples = x[:, None] + width * ((np.arange(4000) + 0.5) / 4000 - 0.5)
        square = np.where(samples % 1 < 0.5, 1.0, -1.0).mean(axis=1)
        pulse = (samples % 1 < 0.3).mean(axis=1)
        np.testing.assert_allclose(square_wave(x, np.full(41, width)), square, atol=2e-3)
        np.testing.assert_allclose(pulse_train(x, np.full(41, width), 0.3), pulse, atol=2e-3)
    rng = np.random.default_rng(0)
    u, v = rng.uniform(-50, 50, (2, 500))
    for name, (pattern, _, _) in PATTERNS.items():
        fine, coarse = (pattern(u, v, *np.full((2, 500), d)) for d in (0.01, 40.0))
        assert coarse.std() < 0.05, name
        assert name == "plain" or fine.std() > 3 * coarse.std(), name


def test_depth_labels_and_image_agree(scenes: list[Scene]) -> None:
    for view in all_views(scenes):
        assert np.array_equal(view.depth > 0, view.valid)
        assert view.depth.max() <= MAX_DEPTH
        sky = view.class_id == SCENE_CLASSES.index("sky")
        assert np.array_equal(sky, view.object_id == 0)
        assert not view.valid[sky].any()
        assert not view.normal[sky].any()
        pairs = np.unique(np.stack([view.object_id, view.class_id]).reshape(2, -1), axis=1)
        assert len(np.unique(pairs[0])) == pairs.shape[1]
        assert view.camera_height == view.cam2world[2, 3]
        assert np.linalg.norm(view.cam2world[:3, :3].T @ view.cam2world[:3, :3] - np.eye(3)) < 1e-12
        assert np.linalg.det(view.cam2world[:3, :3]) > 0


def test_scenes_are_lit_and_full_of_things(scenes: list[Scene]) -> None:
    views = all_views(scenes)
    brightness = np.array([view.image.mean() for view in views])
    assert brightness.min() > 50 and brightness.max() < 220
    assert min(view.image.std() for view in views) > 10
    assert np.mean([len(np.unique(view.object_id)) for view in views]) > 6
    assert len({scene.room_type for scene in scenes}) >= 4
    for scene in scenes:
        seen = np.unique([view.class_id for view in scene.views])
        sky = SCENE_CLASSES.index("sky") in seen
        assert scene.outdoor == (PLACES[scene.room_type].height[1] == 0) == sky


def test_cameras_keep_their_distance(scenes: list[Scene]) -> None:
    for view in all_views(scenes):
        assert np.linalg.norm(camera_points(view), axis=-1)[view.valid].min() > 0.5
        assert view.camera_height > 0.5


def test_glancing_cameras_stand_side_by_side_and_turn() -> None:
    """In a den: what a model compares two views by, and rooms from outside of all things."""
    pairs = [render_scene(seed, views=2, size=16, places=["den"]).views for seed in range(60)]
    turns, baselines = [], []
    for first, second in pairs:
        difference = first.cam2world[:3, :3].T @ second.cam2world[:3, :3]
        turns.append(np.degrees(np.arccos((np.trace(difference) - 1) / 2)))
        baselines.append(np.linalg.norm(first.cam2world[:3, 3] - second.cam2world[:3, 3]))
        for view in (first, second):
            assert view.intrinsics[0, 0] == pytest.approx(0.8 * 16)
            assert view.valid.all() and view.depth.min() > 0.1
    assert min(turns) < 8 and 28 < max(turns) < 42
    assert min(baselines) > 0.08 and max(baselines) < 0.6
    assert "den" not in {render_scene(seed, views=1, size=8).room_type for seed in range(60)}


def test_unprojected_depth_lies_on_the_surfaces(scenes: list[Scene]) -> None:
    for view in all_views(scenes):
        points = world_points(view)
        floor = np.isin(view.class_id, FLAT[::3]) & view.valid
        assert np.abs(points[floor][:, 2]).max(initial=0) < 1e-5
        normal = view.normal @ view.cam2world[:3, :3].T
        for number in np.unique(view.object_id[np.isin(view.class_id, FLAT)]):
            own = (view.object_id == number) & view.valid
            for axis in np.unique(normal[own].round(3), axis=0):
                face = own & (np.abs(normal - axis).max(axis=-1) < 1e-3)
                along = points[face] @ normal[face].mean(axis=0)
                assert np.ptp(along) < 2e-5


def test_normals_face_the_camera_and_fit_the_depth(scenes: list[Scene]) -> None:
    compared = 0
    for view in all_views(scenes):
        points = camera_points(view)
        length = np.linalg.norm(view.normal, axis=-1)[view.object_id > 0]
        np.testing.assert_allclose(length, 1, atol=1e-6)
        assert ((view.normal * points).sum(axis=-1)[view.valid] < 0).all()
        here, right, below = np.s_[:-1, :-1], np.s_[:-1, 1:], np.s_[1:, :-1]
        flat = np.isin(view.class_id, FLAT)[here] & view.valid[here]
        for other in (right, below):
            flat &= (view.object_id[other] == view.object_id[here]) & view.valid[other]
            flat &= (view.normal[other] * view.normal[here]).sum(axis=-1) > 0.9999
        measured = np.cross(points[below] - points[here], points[right] - points[here])[flat]
        measured /= np.linalg.norm(measured, axis=-1, keepdims=True)
        assert ((measured * view.normal[here][flat]).sum(axis=-1) > 0.9999).all()
        compared += flat.sum()
    assert compared > 10_000


def seen_by(a: View, b: View) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels of `a` fall into `b`, and on which of its pixels."""
    points = (world_points(a) - b.cam2world[:3, 3]) @ b.cam2world[:3, :3]
    pixel = points @ b.intrinsics.T / np.maximum(points[..., 2:], 1e-3)
    at = np.rint(pixel[..., :2]).astype(int)
    inside = a.valid & (points[..., 2] > 0.04) & ((at >= 0) & (at < SIZE)).all(axis=-1)
    return inside, np.where(inside[..., None], at, 0)


def test_views_agree_on_the_surfaces_they_share(scenes: list[Scene]) -> None:
    compared = 0
    for scene in scenes:
        a, b = scene.views[:2]
        inside, at = seen_by(a, b)
        u, v = at[..., 0], at[..., 1]
        same = inside & (a.object_id == b.object_id[v, u]) & np.isin(a.class_id, FLAT)
        normal = b.normal[v, u] @ b.cam2world[:3, :3].T
        same &= ((a.normal @ a.cam2world[:3, :3].T) * normal).sum(axis=-1) > 1 - 1e-6
        off = ((world_points(a) - world_points(b)[v, u]) * normal).sum(axis=-1)[same]
        # What a pixel of `a` meets in `b` may be a parallel face of the same thing, in front of it.
        off = off[np.abs(off) < 0.01]
        # The floats of normals and depths leave 1e-7 of up to 80 m.
        assert np.abs(off).max() < 2e-5
        compared += len(off)
    assert compared > 4000


def test_views_overlap(scenes: list[Scene]) -> None:
    shares = []
    for scene in scenes:
        for a in scene.views:
            for b in scene.views:
                inside, at = seen_by(a, b)
                z = ((world_points(a) - b.cam2world[:3, 3]) @ b.cam2world[:3, 2])[inside]
                other = b.depth[at[inside][:, 1], at[inside][:, 0]]
                shares.append((np.abs(z - other) < 0.17 + 0.005 * z).sum() / a.valid.sum())
    apart = np.array(shares)[np.array(shares) < 1 - 1e-9]
    assert np.mean(apart > 0.25) > 0.9
    assert apart.min() < 0.9


def test_a_seed_is_a_scene() -> None:
    first, again, other = (render_scene(seed, views=2, size=32) for seed in (5, 5, 6))
    for a, b in zip(first.views, again.views, strict=True):
        for x, y in zip(a, b, strict=True):
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    assert first.views[0].image.tobytes() != other.views[0].image.tobytes()
    large = render_scene(5, views=2, size=64)
    assert np.array_equal(large.views[1].cam2world, first.views[1].cam2world)
    with pytest.raises(UserError, match="views >= 1"):
        render_scene(0, views=0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, which is filled by one process, but for where there are more."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    monkeypatch.setattr(scene_store, "available_cores", lambda: 1)
    return tmp_path


def test_store_returns_what_was_rendered(cache: Path) -> None:
    stored_scenes = Scenes(held_out=2, views=2, size=32)
    (shard,) = stored_scenes.shards("val")
    rows = pq.read_table(shard).to_pylist()
    assert pq.ParquetFile(shard).num_row_groups == 2
    assert [row["key"] for row in rows] == [f"val/00000{i}/{j}" for i in (0, 1) for j in (0, 1)]
    for index in (0, 1):
        scene = render_scene(scene_store.scene_seed("val", index), views=2, size=32)
        for view, row in zip(scene.views, rows[2 * index :][:2], strict=True):
            assert (row["outdoor"], row["room_type"]) == (scene.outdoor, scene.room_type)
            fields = {name: scene_store.decode_field(name, row) for name in View._fields}
            stored = View(**fields)
            assert (len(row["depth"]), len(row["normal"])) == (32 * 32 * 4, 32 * 32 * 3 * 2)
            np.testing.assert_allclose(stored.normal, view.normal, atol=5e-4)
            for name in set(View._fields) - {"normal"}:
                want, got = np.asarray(getattr(view, name)), np.asarray(getattr(stored, name))
                assert (want.dtype, want.tobytes()) == (got.dtype, got.tobytes()), name
    columns = scene_store.read_columns([shard, shard], ["key", "image"])
    assert columns["key"].to_pylist() == 2 * [row["key"] for row in rows]
    assert columns["image"].num_chunks == 1  # of a chunk a scene, a look-up walks through them
    written = shard.stat().st_mtime_ns
    assert stored_scenes.shards("val") == [shard]
    assert shard.stat().st_mtime_ns == written


def test_pool_renders_what_one_process_renders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene_store, "SHARD_SCENES", 2)

    def tables(folder: Path, workers: int) -> list[pa.Table]:
        monkeypatch.setenv("PIXIO_CACHE", str(folder))
        monkeypatch.setattr(scene_store, "available_cores", lambda: workers)
        shards = Scenes(train=3, views=1, size=32).shards("train")
        return [pq.read_table(shard) for shard in shards]

    assert tables(tmp_path / "pool", 2) == tables(tmp_path / "one", 1)


def start(folder: Path, scenes: int) -> subprocess.Popen[str]:
    code = (
        "from pixio_lightning.data.scenes import store as s;"
        "s.SHARD_SCENES = 2; s.available_cores = lambda: 1;"
        f"print(*s.Scenes(train={scenes}, views=1, size=32).shards('train'))"
    )
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [fork_server.python(), "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "PIXIO_CACHE": str(folder)},
    )


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    pair = [start(tmp_path, 6), start(tmp_path, 6)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in pair]
    printed = [lines[-1].split() for lines in said]
    assert [process.returncode for process in pair] == [0, 0]
    assert printed[0] == printed[1] and len(printed[0]) == 3
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        *(Path(p).name for p in printed[0]),
    }
    assert sum(pq.read_metadata(path).num_rows for path in printed[0]) == 6


def test_without_locks_the_files_of_others_are_left_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def render() -> list[Path]:
        return Scenes(train=1, views=1, size=32).shards("train")

    (shard,) = render()
    half = shard.with_name(f".{shard.name}.99-0123abcd.tmp")
    for locks in (False, True):
        shard.unlink()
        half.touch()
        with monkeypatch.context() as patch:
            if not locks:
                patch.setattr(fcntl, "flock", no_locks)
            assert render() == [shard]
        assert pq.read_metadata(shard).num_rows == 1
        assert half.exists() != locks


def test_no_renderer_outlives_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "render.py"
    script.write_text(
        "from pixio_lightning.data.scenes import store\n"
        "if __name__ == '__main__':\n"
        "    store.available_cores = lambda: 2\n"
        "    store.Scenes(train=10_000).shards('train')\n"
    )
    env = os.environ | {"PIXIO_CACHE": str(tmp_path / "cache")}
    parent = subprocess.Popen([sys.executable, str(script)], env=env, start_new_session=True)
    table = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    try:
        while not list(tmp_path.glob("cache/*/.*.tmp")):  # a worker is at its first scene
            assert parent.poll() is None
            time.sleep(0.01)
        workers = [int(word) for word in table.read_text().split()]
    finally:
        parent.kill()
        parent.wait()
    assert len(workers) >= 2
    with contextlib.suppress(ProcessLookupError):  # the whole group is gone
        while True:
            os.killpg(parent.pid, 0)
            time.sleep(0.01)


@pytest.mark.slow  # three imports of torch
def test_a_script_without_a_main_part_ends_with_one_line(tmp_path: Path) -> None:
    """Its pool imports the script anew, which would wait for the lock of its own parent."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pixio_lightning.data.scenes import store\nstore.available_cores = lambda: 2\n"
        "store.Scenes(train=65, views=1, size=8).shards('train')\n"
    )
    env = os.environ | {"PIXIO_CACHE": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith("run under `if __name__ == '__main__':`")


def test_a_killed_build_is_completed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, tmp_path = start(cache, 60), cache
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/0*.parquet")}
    assert 0 < len(done) < 30
    monkeypatch.setattr(scene_store, "SHARD_SCENES", 2)
    shards = Scenes(train=60, views=1, size=32).shards("train")
    keys = pa.concat_tables(pq.read_table(shard, columns=["key"]) for shard in shards)["key"]
    assert keys.to_pylist() == [f"train/{i:06d}/0" for i in range(60)]
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())
    assert not list(tmp_path.glob("*/.*.parquet.*"))


def test_splits_never_share_a_seed() -> None:
    seeds = [
        (scene_store.scene_seed(split, 0), scene_store.scene_seed(split, 10**12))
        for split in ("train", "val", "test")
    ]
    for i, (low, high) in enumerate(seeds):
        assert all(high < a or b < low for a, b in seeds[:i] + seeds[i + 1 :])
    with pytest.raises(UserError, match="did you mean 'train'"):
        Scenes().shards("trian")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 0}, "data.scenes.train is 0, but expected at least 1"),
        ({"held_out": 0}, "data.scenes.held_out is 0, but expected at least 1"),
        ({"views": 0}, "data.scenes.views is 0, but expected at least 1"),
        ({"size": 4}, "data.scenes.size is 4, but expected at least 8"),
        ({"places": ("studo",)}, "did you mean 'studio'"),
    ],
)
def test_scenes_that_are_none_are_told_before_any_is_rendered(wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Scenes(**wrong)


def test_sets_are_kept_in_the_cache_by_their_names(cache: Path) -> None:
    (shard,) = Scenes(held_out=1, views=1, size=32).shards("test")
    folder = cache / f"scenes-v{scene_store.VERSION}-test-1x1-32px"
    assert shard.parent == folder
    places = ("studio", "office")
    (calm,) = Scenes(held_out=3, views=1, size=32, places=places).shards("test")
    assert calm.parent == cache / f"scenes-v{scene_store.VERSION}-test-3x1-32px-studio+office"
    kinds = pq.read_table(calm, columns=["room_type"])["room_type"].to_pylist()
    assert set(kinds) <= {"studio", "office"}
