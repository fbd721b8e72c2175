"""LeRobot folders: each version, written here by hand, is read; what we write is read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pixio_heads.policy.demonstrations import Demonstration, DemonstrationSamples
from pixio_heads.policy.lerobot import frames, read, write
from pixio_heads.policy.rollout.pictures import encode_png
from pixio_lightning.data import BadImage, parquet
from pixio_lightning.data.samples import SampleViews
from pixio_lightning.errors import UserError

FPS = 10
LENGTHS = (7, 4, 5)
CAMERA = "observation.images.top"
V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def picture(episode: int, step: int) -> NDArray[np.uint8]:
    """A ramp whose brightness says which step of which episode it is."""
    ramp = np.linspace(0, 60, 32)[:, None, None] + np.array([0, 20, 40])
    return np.broadcast_to(ramp + 60 * episode + 4 * step, (32, 48, 3)).astype(np.uint8)


def episode(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    length = LENGTHS[number]
    return {
        "pictures": [picture(number, step) for step in range(length)],
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
    }


def encode_film(path: Path, pictures: list[NDArray[np.uint8]], gop: int, rate: int = FPS) -> None:
    """As other recorders do: any distance of key frames, B-frames between them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.options = {"g": str(gop), "bf": "2", "crf": "10"}
        for pixels in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def rows(number: int, first: int, video: bool) -> dict[str, Any]:
    content = episode(number)
    length = LENGTHS[number]
    columns = {
        "observation.state": pa.array(
            content["observation.state"].tolist(), pa.list_(pa.float32())
        ),
        "action": pa.array(content["action"].tolist(), pa.list_(pa.float32())),
        "timestamp": pa.array(np.arange(length) / FPS, pa.float32()),
        "frame_index": list(range(length)),
        "episode_index": [number] * length,
        "index": list(range(first, first + length)),
        "task_index": [0] * length,
    }
    if not video:
        columns[CAMERA] = [{"bytes": encode_png(p), "path": None} for p in content["pictures"]]
    return columns


def by_hand(root: Path, version: str, video: bool) -> Path:
    """Write a data set of a version, as its format says."""
    meta = root / "meta"
    meta.mkdir(parents=True)
    info = {
        "codebase_version": version,
        "fps": FPS,
        "chunks_size": 2,
        "total_episodes": len(LENGTHS),
        "data_path": V3_DATA if version == "v3.0" else V2_DATA,
        "video_path": V3_VIDEO if version == "v3.0" else V2_VIDEO,
        "features": {
            CAMERA: {"dtype": "video" if video else "image", "shape": [32, 48, 3]},
            "observation.state": {"dtype": "float32", "shape": [3]},
            "action": {"dtype": "float32", "shape": [2]},
            "timestamp": {"dtype": "float32", "shape": [1]},
        },
    }
    (meta / "info.json").write_text(json.dumps(info))
    starts = np.cumsum([0, *LENGTHS]).tolist()
    if version == "v3.0":
        # Two files: the first two episodes in one, the third in another.
        listed = []
        for file, numbers in enumerate([(0, 1), (2,)]):
            tables = [pa.table(rows(n, starts[n], video)) for n in numbers]
            data = root / V3_DATA.format(chunk_index=0, file_index=file)
            data.parent.mkdir(parents=True, exist_ok=True)
            # Row groups of three rows cut across the episodes.
            pq.write_table(pa.concat_tables(tables), data, row_group_size=3)
            if video:
                film = V3_VIDEO.format(video_key=CAMERA, chunk_index=0, file_index=file)
                pictures = [p for n in numbers for p in episode(n)["pictures"]]
                encode_film(root / film, pictures, gop=250)
            for n in numbers:
                start = (starts[n] - starts[numbers[0]]) / FPS
                about = {
                    "episode_index": n,
                    "tasks": ["lift"],
                    "length": LENGTHS[n],
                    "data/chunk_index": 0,
                    "data/file_index": file,
                    "dataset_from_index": starts[n],
                    "dataset_to_index": starts[n + 1],
                }
                if video:
                    about |= {
                        f"videos/{CAMERA}/chunk_index": 0,
                        f"videos/{CAMERA}/file_index": file,
                        f"videos/{CAMERA}/from_timestamp": start,
                        f"videos/{CAMERA}/to_timestamp": start + LENGTHS[n] / FPS,
                    }
                listed.append(about)
        path = meta / "episodes" / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(listed), path)
        return root
    lines = [{"episode_index": n, "tasks": ["lift"], "length": x} for n, x in enumerate(LENGTHS)]
    (meta / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for n in range(len(LENGTHS)):
        where = {"episode_chunk": n // 2, "episode_index": n}
        data = root / V2_DATA.format(**where)
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows(n, starts[n], video)), data)
        if video:
            film = root / V2_VIDEO.format(video_key=CAMERA, **where)
            encode_film(film, episode(n)["pictures"], gop=3)
    return root


def off(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(int) - b).max())


def check_equal(found: list[Demonstration], most_off: int) -> None:
    for number, demo in enumerate(found):
        content = episode(number)
        assert np.array_equal(demo.proprio, content["observation.state"])
        assert np.array_equal(demo.actions, content["action"])
        assert demo.actions.dtype == demo.proprio.dtype == np.float32
        for step, expected in enumerate(content["pictures"]):
            assert off(demo.frame(step), expected) <= most_off, (number, step)


@pytest.mark.parametrize("video", [False, True], ids=["png", "mp4"])
@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_each_version_is_read(tmp_path: Path, version: str, video: bool) -> None:
    found, digest = read(by_hand(tmp_path / "set", version, video), limit=None)
    assert [len(demo) for demo in found] == list(LENGTHS)
    # A step changes brightness by 4, so a frame that is one off would fail.
    check_equal(found, 3 if video else 0)
    first, other = read(tmp_path / "set", limit=2)
    assert [demo.name for demo in first] == ["episode_000000", "episode_000001"]
    assert other != digest and read(tmp_path / "set", limit=None)[1] == digest


@pytest.mark.parametrize("video", [False, True], ids=["png", "mp4"])
def test_frames_without_room_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: bool
) -> None:
    """Each is then decoded by itself, in any order."""
    root = by_hand(tmp_path / "set", "v3.0", video)
    kept = [demo.frame(step) for demo in read(root, limit=None)[0] for step in range(len(demo))]
    monkeypatch.setattr(frames, "_KEPT", 0)
    found = read(root, limit=None)[0]
    places = [(demo, step) for demo in found for step in range(len(demo))]
    for i in reversed(range(len(places))):
        demo, step = places[i]
        assert np.array_equal(demo.frame(step), kept[i])
        assert demo.frame.kept is None


def test_frames_without_room_read_a_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = by_hand(tmp_path / "set", "v3.0", False)
    monkeypatch.setattr(frames, "_KEPT", 0)
    found = read(root, limit=None)[0]
    taken = []
    read_groups = frames.read_groups
    monkeypatch.setattr(
        frames,
        "read_groups",
        lambda file, groups, names: taken.append([*groups]) or read_groups(file, groups, names),
    )
    check_equal(found, 0)
    files = map(pq.ParquetFile, sorted((root / "data").rglob("*.parquet")))
    assert taken == [[group] for file in files for group in range(file.num_row_groups)]


def numbered(number: int, taken: list[int]) -> Callable[[int, int], Iterator[np.ndarray]]:
    """Return what decodes pictures of a number and their step, and notes how many."""

    def decode(start: int, stop: int) -> Iterator[np.ndarray]:
        taken.append(stop - start)
        yield from (np.full((8, 8, 3), 50 * number + step, np.uint8) for step in range(start, stop))

    return decode


def test_episodes_that_are_read_in_order_take_the_place_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that hardly a frame is sought and decoded by itself, however large the data set."""
    length, size = 40, 40 * 8 * 8 * 3
    monkeypatch.setattr(frames, "_KEPT", 2 * size + 1)
    room, taken = frames.Room(), []
    episodes = [
        frames.EpisodeFrames(length, numbered(i, taken), size=8, room=room) for i in range(4)
    ]
    for i, episode in enumerate(episodes):
        for step in range(length):
            assert (episode(step) == 50 * i + step).all()
    assert [episode.kept is not None for episode in episodes] == [False, False, True, True]
    assert room.left == 1 and taken.count(length) == 4 and len(taken) < 2 * length
    # Where they are asked for at random, no episode is decoded whole for a frame.
    taken.clear()
    for step in range(length):
        for i in (0, 1, 2):
            assert (episodes[i](step) == 50 * i + step).all()
    assert taken == [1] * 2 * length
    # The one that was not asked for makes room.
    for step in range(length):
        episodes[0](step)
    assert [episode.kept is not None for episode in episodes] == [True, False, True, False]


def test_an_episode_that_fails_to_decode_takes_no_room() -> None:
    """Else what was tried often enough would leave none for the others."""

    def decode(start: int, stop: int) -> Iterator[np.ndarray]:
        yield np.zeros((8, 8, 3), np.uint8)
        if stop - start > 1:
            raise OSError("the disk is gone")

    room = frames.Room()
    for _ in range(3):
        with pytest.raises(OSError, match="gone"):
            frames.EpisodeFrames(40, decode, size=8, room=room)(0)
    assert room.left == room.total


def test_what_keeps_its_frames_is_not_kept_twice(tmp_path: Path) -> None:
    root = by_hand(tmp_path / "set", "v2.1", False)
    for size, count in ((16, 0), (None, 2)):
        found = read(root, limit=1, size=size)[0]
        samples = DemonstrationSamples(found, history=2, size=16, digest="")
        SampleViews(samples, None).load(5, 0)
        assert len(samples._frames) == count


def test_frames_are_kept_at_the_size_that_is_asked_for(tmp_path: Path) -> None:
    root = by_hand(tmp_path / "set", "v2.1", True)
    (scaled, *_), (whole, *_) = read(root, limit=1, size=16)[0], read(root, limit=1)[0]
    samples = [
        DemonstrationSamples([demo], history=2, size=16, digest="") for demo in (scaled, whole)
    ]
    assert scaled.frame(3).shape == (16, 16, 3)
    one, other = (SampleViews(of, None).load(5, 0)["image"] for of in samples)
    assert np.array_equal(one, other) and one.shape == (2, 16, 16, 3)


@pytest.mark.parametrize("video", [False, True], ids=["png", "mp4"])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_what_we_write_is_read_back(tmp_path: Path, version: str, video: bool) -> None:
    ours = read(by_hand(tmp_path / "hand", "v2.1", False), limit=None)[0]
    write(tmp_path / "ours", ours, fps=FPS, task="lift", version=version, video=video)
    check_equal(read(tmp_path / "ours", limit=None)[0], 3 if video else 0)
    assert not list(tmp_path.glob(".*"))
    info = json.loads((tmp_path / "ours" / "meta" / "info.json").read_text())
    required = {
        *("codebase_version", "robot_type", "total_episodes", "total_frames", "total_tasks"),
        *("chunks_size", "fps", "splits", "data_path", "video_path", "features"),
        *(("total_videos", "total_chunks") if version == "v2.1" else ()),
    }
    assert required <= info.keys()
    assert info["total_frames"] == sum(LENGTHS) and info["splits"] == {"train": "0:3"}
    columns = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
    assert columns | {"action", "observation.state"} <= info["features"].keys()
    tables = [pq.read_table(p) for p in sorted((tmp_path / "ours" / "data").rglob("*.parquet"))]
    table = pa.concat_tables(tables)
    assert table["index"].to_pylist() == list(range(sum(LENGTHS)))
    assert len(tables) == (3 if version == "v2.1" else 1)


def test_the_datasets_library_takes_our_columns(tmp_path: Path) -> None:
    """LeRobot opens the data with it, and with these features."""
    ours = read(by_hand(tmp_path / "hand", "v2.1", False), limit=None)[0]
    write(tmp_path / "ours", ours, fps=FPS, task="lift")
    numbers = datasets.Sequence(datasets.Value("float32"), length=2)
    features = datasets.Features(
        {
            "observation.image": datasets.Image(),
            "observation.state": datasets.Sequence(datasets.Value("float32"), length=3),
            "action": numbers,
            "timestamp": datasets.Value("float32"),
            **{
                name: datasets.Value("int64")
                for name in ("frame_index", "episode_index", "index", "task_index")
            },
        }
    )
    file = str(tmp_path / "ours" / V3_DATA.format(chunk_index=0, file_index=0))
    table = datasets.Dataset.from_parquet(
        file, features=features, cache_dir=str(tmp_path / "cache")
    )
    assert np.array_equal(np.asarray(table[8]["observation.image"]), picture(1, 1))


def test_statistics_are_those_of_the_values(tmp_path: Path) -> None:
    ours = read(by_hand(tmp_path / "hand", "v2.1", False), limit=None)[0]
    write(tmp_path / "v3", ours, fps=FPS, task="lift")
    stats = json.loads((tmp_path / "v3" / "meta" / "stats.json").read_text())
    actions = np.concatenate([episode(n)["action"] for n in range(3)]).astype(np.float64)
    pictures = np.stack([p for n in range(3) for p in episode(n)["pictures"]]) / 255
    for kind in ("min", "max", "mean", "std"):
        assert np.allclose(stats["action"][kind], getattr(actions, kind)(axis=0))
        channels = getattr(pictures, kind)(axis=(0, 1, 2)).reshape(3, 1, 1)
        assert np.allclose(stats["observation.image"][kind], channels)
    assert stats["action"]["count"] == [sum(LENGTHS)]
    tasks = pd.read_parquet(tmp_path / "v3" / "meta" / "tasks.parquet")
    assert tasks.loc["lift", "task_index"] == 0
    listed = pq.read_table(tmp_path / "v3" / "meta" / "episodes")
    second = listed.slice(1, 1).to_pylist()[0]
    assert np.allclose(second["stats/action/mean"], episode(1)["action"].mean(axis=0))
    assert second["dataset_from_index"] == LENGTHS[0]
    write(tmp_path / "v2", ours, fps=FPS, task="lift", version="v2.1")
    lines = (tmp_path / "v2" / "meta" / "episodes_stats.jsonl").read_text().splitlines()
    last = json.loads(lines[2])
    assert last["episode_index"] == 2 and last["stats"]["timestamp"]["count"] == [LENGTHS[2]]


def test_version_3_begins_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixio_heads.policy.lerobot.writer._FILE", 0)
    ours = read(by_hand(tmp_path / "hand", "v3.0", False), limit=None)[0]
    write(tmp_path / "ours", ours, fps=FPS, task="lift", video=True)
    assert len(list((tmp_path / "ours" / "videos").rglob("*.mp4"))) == 3
    check_equal(read(tmp_path / "ours", limit=None)[0], 3)


def test_one_action_and_no_state(tmp_path: Path) -> None:
    steps = np.arange(4, dtype=np.float32)[:, None]
    none = np.empty((4, 0), np.float32)
    demo = Demonstration("a", none, steps, lambda step: picture(0, step))
    write(tmp_path / "set", [demo], fps=2.5, task="lift")
    (found,), _ = read(tmp_path / "set", limit=None)
    assert np.array_equal(found.actions, steps) and found.proprio.shape == (4, 0)


@pytest.mark.parametrize("what", ["folder", "version", "shape", "none"])
def test_what_is_not_written(tmp_path: Path, what: str) -> None:
    ours = read(by_hand(tmp_path / "hand", "v2.1", False), limit=None)[0]
    settings = {"fps": FPS, "task": "lift", "version": "v4.0" if what == "version" else "v3.0"}
    folder = tmp_path / ("hand" if what == "folder" else "new")
    if what == "shape":
        ours[1].actions = ours[1].actions[:, :1]
    with pytest.raises(UserError, match="exists already|not written; expected v3.0|of one shape"):
        write(folder, [] if what == "none" else ours, **settings)
    assert not (tmp_path / "new").exists()


def change_info(root: Path, **changes: Any) -> None:
    file = root / "meta" / "info.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | changes))


def features(root: Path, *, without: str = "", **more: Any) -> dict[str, Any]:
    info = json.loads((root / "meta" / "info.json").read_text())
    return {k: v for k, v in info["features"].items() if k != without} | more


def rewrite(file: Path, change: Any) -> None:
    pq.write_table(change(pq.read_table(file)), file)


def relist(root: Path, change: Any) -> None:
    file = root / "meta" / "episodes.jsonl"
    file.write_text("\n".join(change(file.read_text().splitlines())))


def renumbered(table: pa.Table, first: Any) -> pa.Table:
    """Give the steps of the first episode, whose rows stay where they are, other numbers."""
    numbers = [*first, *table["frame_index"].to_pylist()[len(first) :]]
    at = table.column_names.index("frame_index")
    return table.set_column(at, "frame_index", pa.array(numbers))


E0 = V2_DATA.format(episode_chunk=0, episode_index=0)
F0 = V2_VIDEO.format(video_key=CAMERA, episode_chunk=0, episode_index=0)
WRIST = "observation.images.wrist"
CAMERAS = {WRIST: {"dtype": "video", "shape": [32, 48, 3]}}
MISTAKES: dict[str, tuple[Any, str]] = {
    "no info": (lambda r: (r / "meta" / "info.json").unlink(), "no LeRobot data set"),
    "no json": (lambda r: (r / "meta" / "info.json").write_text("{"), "info.json' is no JSON"),
    "version": (lambda r: change_info(r, codebase_version="v1.6"), "'v1.6', but expected v2.0"),
    "fps": (lambda r: change_info(r, fps=0), "fps is 0"),
    "no action": (
        lambda r: change_info(r, features=features(r, without="action", actions={"dtype": "x"})),
        "no feature 'action', did you mean 'actions'",
    ),
    "no camera": (
        lambda r: change_info(r, features=features(r, without=CAMERA)),
        "names no feature",
    ),
    "two cameras": (
        lambda r: change_info(r, features=features(r, **CAMERAS)),
        "data.camera one of observation.images.top, observation.images.wrist",
    ),
    "upwards": (lambda r: change_info(r, data_path="../{episode_index:06d}"), "leads out of"),
    "absolute": (lambda r: change_info(r, video_path="/etc/passwd"), "leads out of"),
    "field": (
        lambda r: change_info(r, data_path="{episode_index.__class__}"),
        "is not understood; expected fields of episode_chunk",
    ),
    "width": (lambda r: change_info(r, data_path="{episode_index:099999999d}"), "not understood"),
    "no template": (lambda r: change_info(r, data_path=None), "has no data_path"),
    "no list": (
        lambda r: (r / "meta" / "episodes.jsonl").unlink(),
        "episodes.jsonl' cannot be read",
    ),
    "empty list": (lambda r: (r / "meta" / "episodes.jsonl").write_text(""), "lists no episode"),
    "list": (lambda r: (r / "meta" / "episodes.jsonl").write_text("[]"), "line 1 of"),
    "length": (
        lambda r: relist(r, lambda lines: [lines[0].replace("7", "6"), *lines[1:]]),
        "has 7 rows of episode 0, but its length is 6",
    ),
    "twice": (lambda r: relist(r, lambda lines: [*lines, lines[2]]), "lists episode 2 2 times"),
    "cut list": (
        lambda r: relist(r, lambda lines: lines[:2]),
        "lists 2 episodes in its folder meta, but total_episodes of .* is 3",
    ),
    "another's file": (
        lambda r: shutil.copy(r / E0, r / V2_DATA.format(episode_chunk=0, episode_index=1)),
        "episode_000001.parquet' has rows of episode 0, but is the file of episode 1",
    ),
    "rate": (lambda r: change_info(r, fps=4), "0.1 s apart, but fps of .*info.json' is 4"),
    "negative": (
        lambda r: (r / "meta" / "episodes.jsonl").write_text('{"episode_index": -1, "length": 6}'),
        "episode_index of an episode is -1",
    ),
    "no data": (lambda r: (r / E0).unlink(), "episode_000000.parquet' does not exist"),
    "damaged data": (
        lambda r: (r / E0).write_bytes((r / E0).read_bytes()[:-100]),
        "episode_000000.parquet' cannot be read as parquet",
    ),
    "no column": (
        lambda r: rewrite(r / E0, lambda t: t.drop_columns("observation.state")),
        "has no column 'observation.state'",
    ),
    "shape": (
        lambda r: change_info(
            r, features=features(r, **{"action": {"dtype": "float32", "shape": [3]}})
        ),
        r"action is list<element: float>, but meta/info.json says numbers of shape \[3\]",
    ),
    "words": (
        lambda r: rewrite(
            r / E0, lambda t: t.set_column(1, "action", pa.array([["a", "b"]] * len(t)))
        ),
        "action is list<element: string>",
    ),
    "ragged": (
        lambda r: rewrite(
            r / E0,
            lambda t: t.set_column(1, "action", pa.array([[1.0], [1.0, 2, 3], *[[1.0, 2]] * 5])),
        ),
        "action is list",
    ),
    "time": (
        lambda r: rewrite(r / E0, lambda t: t.set_column(2, "timestamp", pa.array([0.0] * 7))),
        "do not rise",
    ),
    "no video": (lambda r: (r / F0).unlink(), "episode_000000.mp4' does not exist"),
    "damaged video": (
        lambda r: (r / F0).write_bytes((r / F0).read_bytes()[:200]),
        "episode_000000.mp4' cannot be read as a video",
    ),
    "no text in parquet": (
        lambda r: (r / E0).write_bytes(
            (r / E0).read_bytes().replace(b"frame_index", b"frame_inde\xff")
        ),
        "cannot be read as parquet",
    ),
    "codec": (
        lambda r: (r / F0).write_bytes((r / F0).read_bytes().replace(b"avc1", b"none")),
        "of an unknown codec",
    ),
    "playlist": (
        lambda r: (r / F0).write_text("#EXTM3U\n/etc/passwd\n"),
        "cannot be read as a video",
    ),
    "short video": (
        lambda r: encode_film(r / F0, episode(0)["pictures"][:5], gop=3),
        "has 5 frames, but its episodes have 7 steps",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_broken_data_set_is_one_line(tmp_path: Path, what: str) -> None:
    root = by_hand(tmp_path / "set", "v2.1", True)
    read(root, limit=None)
    spoil, message = MISTAKES[what]
    spoil(root)
    with pytest.raises(UserError, match=message) as error:
        read(root, limit=None)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.slice(0, 10), "has 3 rows of episode 1, but its length is 4"),
        (lambda t: pa.concat_tables([t.slice(1), t.slice(0, 1)]), "of episode 0 lie scattered"),
        (lambda t: t.drop_columns(CAMERA), f"has no column '{CAMERA}'"),
        (lambda t: t.take([*range(6, -1, -1), *range(7, 11)]), "of episode 0 do not rise"),
        (lambda t: renumbered(t, [6, 5, 4, 3, 2, 1, 0]), "frame_index of episode 0 does not rise"),
        (lambda t: renumbered(t, range(1, 8)), "frame_index of episode 0 does not rise by one"),
        (lambda t: t.drop_columns("timestamp"), "has no column 'timestamp'"),
    ],
)
def test_broken_rows_of_version_3(tmp_path: Path, spoil: Any, message: str) -> None:
    root = by_hand(tmp_path / "set", "v3.0", False)
    rewrite(root / V3_DATA.format(chunk_index=0, file_index=0), spoil)
    with pytest.raises(UserError, match=message):
        read(root, limit=None)


def test_a_data_set_that_does_not_number_its_steps_is_read(tmp_path: Path) -> None:
    root = by_hand(tmp_path / "set", "v2.1", False)
    for file in (root / "data").rglob("*.parquet"):
        rewrite(file, lambda t: t.drop_columns("frame_index"))
    check_equal(read(root, limit=None)[0], 0)


def test_a_camera_is_chosen_by_name(tmp_path: Path) -> None:
    root = by_hand(tmp_path / "set", "v2.1", True)
    change_info(root, features=features(root, **CAMERAS))
    check_equal(read(root, limit=None, camera="top")[0], 3)
    check_equal(read(root, limit=None, camera=CAMERA)[0], 3)
    with pytest.raises(UserError, match="data.camera 'tob' is none of .*, did you mean 'top'"):
        read(root, limit=None, camera="tob")
    change_info(root, features=features(root, **{"observation.depth.top": CAMERAS[WRIST]}))
    with pytest.raises(UserError, match="'top' may be .*images.top or observation.depth.top of"):
        read(root, limit=None, camera="top")
    check_equal(read(root, limit=None, camera=CAMERA)[0], 3)


def test_bad_pictures_are_bad_images(tmp_path: Path) -> None:
    """They are counted one by one; all others stay usable."""
    root = by_hand(tmp_path / "set", "v2.0", False)
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode_png(picture(0, 0)))
    shutil.copy(secret, root / "inside.png")

    def spoil(table: pa.Table) -> pa.Table:
        cells = table[CAMERA].to_pylist()
        cells[1] = {"bytes": b"no picture", "path": None}
        cells[2] = {"bytes": None, "path": "../secret.png"}
        cells[3] = {"bytes": None, "path": "inside.png"}
        cells[4] = None
        at = table.schema.get_field_index(CAMERA)
        return table.set_column(at, CAMERA, pa.array(cells))

    rewrite(root / E0, spoil)
    (demo, *_), _ = read(root, limit=None)
    for step, reason in ((1, "no JPEG"), (2, "leads out of"), (4, "no picture")):
        with pytest.raises(BadImage, match=reason):
            demo.frame(step)
    for step, expected in ((0, 0), (3, 0), (5, 5)):
        assert off(demo.frame(step), picture(0, expected)) == 0
    with pytest.raises(BadImage):
        demo.frame(1)


def test_the_digest_is_of_pictures_that_lie_apart_too(tmp_path: Path) -> None:
    root = by_hand(tmp_path / "set", "v2.0", False)
    (root / "images").mkdir()

    def taken_out(table: pa.Table) -> pa.Table:
        cells = [{"bytes": None, "path": f"images/{i}.png"} for i in range(len(table))]
        return table.set_column(table.schema.get_field_index(CAMERA), CAMERA, pa.array(cells))

    for step, pixels in enumerate(episode(0)["pictures"]):
        (root / f"images/{step}.png").write_bytes(encode_png(pixels))
    rewrite(root / E0, taken_out)
    demonstrations, digest = read(root, limit=1)
    assert off(demonstrations[0].frame(2), picture(0, 2)) == 0
    assert read(root, limit=1)[1] == digest
    (root / "images/2.png").write_bytes(encode_png(picture(1, 2)))
    assert read(root, limit=1)[1] != digest


def test_of_a_video_of_more_frames_the_nearest_is_taken(tmp_path: Path) -> None:
    """At four times the rate of the steps: three frames lie between two of them."""
    root = by_hand(tmp_path / "set", "v2.1", True)
    grey = [np.full((32, 48, 3), 8 * i, np.uint8) for i in range(4 * LENGTHS[0])]
    encode_film(root / F0, grey, gop=10, rate=4 * FPS)
    (demo, *_), _ = read(root, limit=1)
    seen = [round(float(demo.frame(step).mean()) / 8) for step in range(LENGTHS[0])]
    assert seen == [4 * step for step in range(LENGTHS[0])]


def test_odd_text_in_a_video_does_no_harm(tmp_path: Path) -> None:
    root = by_hand(tmp_path / "set", "v2.1", True)
    (root / F0).write_bytes((root / F0).read_bytes().replace(b"isom", b"iso\xff"))
    check_equal(read(root, limit=None)[0], 3)


def test_a_video_that_breaks_off_leaves_bad_images(tmp_path: Path) -> None:
    root = by_hand(tmp_path / "set", "v2.1", True)
    data = bytearray((root / F0).read_bytes())
    begin = data.index(b"mdat") + 4
    middle = (begin + len(data)) // 2
    data[middle : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - middle)
    (root / F0).write_bytes(data)
    (demo, *_), _ = read(root, limit=None)
    assert off(demo.frame(0), picture(0, 0)) <= 3
    with pytest.raises(BadImage, match="episode_000000.mp4"):
        demo.frame(LENGTHS[0] - 1)


@pytest.mark.parametrize("file", ["data", "meta/episodes"])
def test_a_table_that_unpacks_to_far_more_than_its_size_is_refused(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = by_hand(tmp_path, "v3.0", False)
    monkeypatch.setattr(parquet, "MAX_GROUP", 1 << 20)
    assert len(read(folder, limit=None)[0]) == len(LENGTHS)
    (path, *_) = sorted((folder / file).glob("**/*.parquet"))
    pq.write_table(pa.concat_tables([pq.read_table(path)] * 20_000), path, row_group_size=1 << 20)
    with pytest.raises(UserError, match=f"{path.name}' unpacks to a row group over"):
        read(folder, limit=None)


@pytest.mark.parametrize(("limit", "decoded"), [(0.001, False), (0.002, True)])
def test_pictures_over_the_limit_are_not_decoded(
    tmp_path: Path, limit: float, *, decoded: bool
) -> None:
    file = tmp_path / "0.parquet"
    pq.write_table(pa.table({CAMERA: [{"bytes": encode_png(picture(0, 0))}]}), file)  # 32x48
    decode = frames.from_parquet(file, CAMERA, 0, tmp_path, frames.Room(), max_megapixels=limit)
    (found,) = decode(0, 1)
    assert decoded != isinstance(found, str)
