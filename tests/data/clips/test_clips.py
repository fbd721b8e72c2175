"""Samples of clips: keyed frames, cut alike, whoever reads them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from video_files import number_of, painted, write_video

from pixio_lightning.data.clips.datamodule import Clips
from pixio_lightning.data.clips.frame_folders import FrameFolders
from pixio_lightning.data.clips.pairs import HeldOutPairs, TrainingPairs
from pixio_lightning.data.clips.source import choose_frames, hold_out_files
from pixio_lightning.data.clips.videos import VideoSource
from pixio_lightning.data.decode import BadImage, centre_crop, to_tensor
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import RandomKey

LOOK = {"size": 16, "scale": (0.5, 1.0), "ratio": (0.75, 1.3), "seed": 0}
choose = partial(choose_frames, gap=(0.13, 1.0))


class Painted:
    """Clips of 20 frames at 8 a second, each frame of one brightness; some cannot be read."""

    def __init__(self, count: int = 6, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad, self.reads = count, bad, []

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{self.file(index)}@{index % 2}"

    def file(self, index: int) -> str:
        return f"{index // 2}.mp4"

    def times(self, index: int) -> np.ndarray:
        return np.arange(20) / 8 + index % 2 * 2.5

    def read(self, index: int, frames) -> list[np.ndarray]:
        self.reads.append((index, list(frames)))
        if index in self.bad:
            raise BadImage("broken", name=self.file(index))
        return [painted(frame, 24 + 2 * index, 32) for frame in frames]


def seconds_between(times: np.ndarray, frames: list[int]) -> np.ndarray:
    return np.diff(times[frames])


def test_gap_and_start_are_uniform_in_their_ranges() -> None:
    times = np.arange(121) / 30
    drawn = [choose_frames(times, RandomKey(k, 0, 0), gap=(0.2, 1.6)) for k in range(4000)]
    gaps = np.array([times[b] - times[a] for a, b in drawn])
    assert gaps.min() >= 0.2 - 1 / 30 and gaps.max() <= 1.6 + 1 / 30
    assert np.abs(np.histogram(gaps, 7, (0.2, 1.6))[0] / 4000 - 1 / 7).max() < 0.02
    starts = np.array([times[a] / (4 - (times[b] - times[a])) for a, b in drawn])
    assert np.abs(np.histogram(starts, 5, (0, 1))[0] / 4000 - 0.2).max() < 0.03
    again = choose_frames(times, RandomKey(5, 0, 0), gap=(0.2, 1.6))
    assert again == drawn[5] != choose_frames(times, RandomKey(5, 0, 1), gap=(0.2, 1.6))


@pytest.mark.parametrize("past", [1, 3])
def test_frames_rise_and_fit_whatever_the_rate(past: int) -> None:
    for fps in (2, 5, 24, 60):
        times = 3.0 + np.arange(4 * fps) / fps
        for key in range(200):
            frames = choose_frames(
                times, RandomKey(key, 0, 0), gap=(0.13, 1.6), past=past, step=0.2
            )
            assert len(frames) == past + 1 and min(np.diff(frames)) >= 1
            assert frames[0] >= 0 and frames[-1] < len(times)
            if fps == 60:
                steps = seconds_between(times, frames)
                assert np.abs(steps[:-1] - 0.2).max(initial=0) <= 1 / 60 + 1e-6
                assert 0.13 - 1 / 60 <= steps[-1] <= 1.6 + 1 / 60


def test_a_clip_that_is_too_short_is_bad() -> None:
    for times in (np.arange(2) / 60, np.zeros(0), np.zeros(1)):
        with pytest.raises(BadImage, match=r"shorter than 0.13 s"):
            choose(times, RandomKey(0, 0, 0))
    # One of less than the greatest gap gives what it has.
    frames = choose_frames(np.array([0.0, 0.3]), RandomKey(1, 0, 0), gap=(0.2, 5.0))
    assert frames == [0, 1]


def test_a_sample_holds_the_frames_that_its_gap_says() -> None:
    source = Painted()
    pairs = TrainingPairs(source, choose, **LOOK)
    for position in range(24):
        sample = pairs[position]
        assert set(sample) == {"past", "future", "gap", "key", "bad"}
        assert sample["past"].shape == (1, 3, 16, 16) and sample["future"].dtype == torch.uint8
        numbers = [number_of(sample[name].float().numpy()) for name in ("past", "future")]
        assert sample["gap"].tolist() == pytest.approx([(numbers[1] - numbers[0]) / 8])
        assert numbers[1] > numbers[0]
    keys = [pairs[p]["key"] for p in range(6)]
    assert len({*keys}) == 6 and {*keys} == {pairs[p]["key"] for p in range(6, 12)}


def test_all_frames_of_a_sample_are_cut_and_mirrored_alike() -> None:
    """Equal frames stay equal; and some are mirrored."""

    class Still(Painted):
        def read(self, index, frames):
            ramp = np.arange(32, dtype=np.uint8)[None, :, None] * 6
            return [np.broadcast_to(ramp, (24, 32, 3)).copy() for _ in frames]

    pairs = TrainingPairs(Still(), choose, **LOOK)
    rising = []
    for position in range(40):
        sample = pairs[position]
        assert torch.equal(sample["past"][0], sample["future"])
        rising.append(bool(sample["future"][0, 8, 0] < sample["future"][0, 8, -1]))
    assert 10 < sum(rising) < 30
    held_out = HeldOutPairs(Still(), choose, size=16)
    assert all(held_out[i]["future"][0, 8, 0] < held_out[i]["future"][0, 8, -1] for i in range(6))


def test_two_crops_of_one_frame_are_the_control_without_time() -> None:
    """The future as ever, and in place of the past the same frame, cut out elsewhere."""

    class Ramp(Painted):
        def read(self, index, frames):
            ramp = np.arange(32, dtype=np.uint8)[None, :, None] * 4
            return [np.broadcast_to(ramp, (24, 32, 3)) + np.uint8(5 * f) for f in frames]

    crops, pairs = (TrainingPairs(Ramp(), choose, two_crops=two, **LOOK) for two in (True, False))
    for position in range(12):
        one, other = crops[position], pairs[position]
        assert torch.equal(one["gap"], other["gap"]) and one["key"] == other["key"]
        assert not torch.equal(one["past"][0], one["future"])
    one = TrainingPairs(Painted(), choose, two_crops=True, **LOOK)[3]
    assert torch.equal(one["past"][0], one["future"])  # of one brightness, wherever it is cut


def test_samples_in_a_row_share_a_clip_that_is_read_once() -> None:
    source = Painted()
    pairs = TrainingPairs(source, choose, repeat=3, **LOOK)
    samples = [pairs[p] for p in range(18)]
    assert len(source.reads) == 6 and {index for index, _ in source.reads} == set(range(6))
    keys = [sample["key"] for sample in samples]
    assert len({*keys}) == 18  # masked apart
    gaps = {float(sample["gap"]) for sample in samples[:3]}
    assert len(gaps) > 1
    # Alone, each is the same.
    fresh = TrainingPairs(Painted(), choose, repeat=3, **LOOK)
    for position in (4, 16, 2):
        assert torch.equal(fresh[position]["future"], samples[position]["future"])
        assert fresh[position]["key"] == keys[position]
    single = TrainingPairs(Painted(), choose, **LOOK)
    firsts = [(single[p]["key"], float(single[p]["gap"])) for p in range(6)]
    assert firsts == [(keys[3 * p], float(samples[3 * p]["gap"])) for p in range(6)]


def test_a_bad_clip_is_replaced_and_its_file_named_once() -> None:
    pairs = TrainingPairs(Painted(bad=(2, 3)), choose, **LOOK)
    found = [pairs[position] for position in range(6)]
    names = {bad for sample in found for bad in sample["bad"]}
    assert names == {("1.mp4", "broken")}
    assert all("future" in sample for sample in found)
    held_out = HeldOutPairs(Painted(bad=(2, 3)), choose, size=16)
    weights = [held_out[i]["weight"] for i in range(6)]
    # Those whose wrong past would be of the broken file go without, too.
    assert weights == [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]


def test_held_out_samples_are_always_the_same_and_have_the_past_of_another() -> None:
    held_out = HeldOutPairs(Painted(), choose, size=16)
    first, again = held_out[1], HeldOutPairs(Painted(), choose, size=16)[1]
    assert all(torch.equal(first[n], again[n]) for n in ("past", "future", "wrong_past", "gap"))
    assert first["name"] == "0.mp4@1" and first["weight"] == 1.0
    assert torch.equal(first["wrong_past"], held_out[4]["past"])


def test_another_clip_is_of_another_file_where_there_is_one() -> None:
    class Uneven(Painted):
        def file(self, index):
            return "short.mp4" if index == 5 else "long.mp4"

    held_out = HeldOutPairs(Uneven(), choose, size=16)
    assert all(torch.equal(held_out[i]["wrong_past"], held_out[5]["past"]) for i in range(5))
    two = HeldOutPairs(Painted(2), choose, size=16)
    assert torch.equal(two[0]["wrong_past"], two[1]["past"])
    assert "wrong_past" not in HeldOutPairs(Painted(1), choose, size=16)[0]


def test_files_are_held_out_whole() -> None:
    source = Painted(40)
    train, val = hold_out_files(source)
    files = [{part.file(i) for i in range(len(part))} for part in (train, val)]
    assert not files[0] & files[1] and len(files[0] | files[1]) == 20 and len(files[1]) == 2
    assert len(train) + len(val) == 40 and train.name(0).startswith(train.file(0))
    with pytest.raises(UserError, match="1 clip is too few.*data.val_path"):
        hold_out_files(Painted(2))


# --- the data module --------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))


def test_rendered_clips_come_with_exact_motion(cache: None) -> None:
    scenes = Scenes(train=4, held_out=3, views=5, size=32, places=("studio",))
    data = Clips(
        scenes=scenes, clip_seconds=1.0, image_size=32, batch_size=2, past_frames=2, num_workers=0
    )
    data.prepare_data()
    data.setup("fit")
    assert data.contents() == {"clips": "4 to train on, 3 held out"}
    batch = data.samples(3)
    assert batch["past"].shape == (3, 2, 3, 32, 32) and batch["gap"].shape == (3, 2)
    assert (batch["gap"][:, 0] > batch["gap"][:, 1]).all()
    error = {
        name: (image.float() - batch["future"].float()).square().mean()
        for name, image in (("copy", batch["past"][:, -1]), ("warp", batch["warp"]))
    }
    assert error["warp"] < error["copy"]
    pairs = [*data.training_pairs(5)]
    assert [len(part["key"]) for part in pairs] == [2, 2, 1]
    keys = [data.training_set()[i]["key"] for i in (0, 1)]
    assert pairs[0]["key"].tolist() == keys
    data.two_crops = True  # a hedged copy is of frames, whatever is trained on
    assert torch.equal(next(data.training_pairs(2))["past"], pairs[0]["past"])


def test_folders_of_numbered_pictures(tmp_path: Path) -> None:
    for folder, count in (("bear", 12), ("deep/cow", 3), ("alone", 1)):
        for i in range(count):
            file = tmp_path / "JPEGImages" / folder / f"frame_{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(painted(i)).save(file)
    about = {"least": 0.2, "frames": 2, "whole": 0.3, "max_megapixels": 1.0}
    source = FrameFolders(str(tmp_path), 10.0, 0.8, **about)
    names = [source.name(i) for i in range(len(source))]
    bear = "JPEGImages/bear"
    assert names == [f"{bear}@0.000", f"{bear}@0.800", "JPEGImages/deep/cow@0.000"]
    assert source.times(1).tolist() == pytest.approx([0.8, 0.9, 1.0, 1.1])
    # frame_2 comes before frame_10.
    assert [number_of(f) for f in source.read(1, [0, 2, 3])] == [8, 10, 11]
    assert [name for name, _ in source.bad] == ["JPEGImages/alone"]
    (tmp_path / bear / "frame_9.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(BadImage) as caught:
        source.read(1, [1])
    assert caught.value.name == f"{bear}/frame_9.png"
    with pytest.raises(UserError, match="holds no folder of frames; the first of 3"):
        FrameFolders(str(tmp_path), 10.0, 0.8, **about | {"least": 9.0})


def pictures(folder: Path, names: Iterable[str]) -> None:
    """Write a picture for each name, of the brightness of its place in the list."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(painted(i % 25, 16, 16)).save(folder / name)


def numbered(folder: Path, fps: float = 10.0, seconds: float = 4.0) -> FrameFolders:
    about = {"least": 0.2, "frames": 2, "whole": 0.2, "max_megapixels": 1.0}
    return FrameFolders(str(folder), fps, seconds, **about)


def test_pictures_that_differ_in_their_last_number_are_a_video(tmp_path: Path) -> None:
    """Two cameras, a date in front, a suffix behind; a poster and what has no number are named."""
    for camera in ("left", "right"):
        pictures(tmp_path / "two", (f"2024-05-0{camera[0]}7_{camera}{i}.png" for i in range(12)))
    pictures(tmp_path / "two", ["poster.png", "cover_1.png"])
    pictures(tmp_path / "one", (f"cam2_{i:03d}_rgb.{'PNG' if i % 2 else 'png'}" for i in range(5)))
    pictures(tmp_path / "none", ["a.png", "b.png", "c2.png"])
    source = numbered(tmp_path)
    videos = ["one", "two/2024-05-0l7_left*.png", "two/2024-05-0r7_right*.png"]
    assert [source.file(i) for i in range(len(source))] == videos
    assert source.name(1) == f"{videos[1]}@0.000"
    left = [f"two/2024-05-0l7_left{i}.png" for i in range(12)]
    assert source.paths(1) == left and len(source.paths(0)) == 5
    assert [number_of(frame) for frame in source.read(2, [2, 10])] == [2, 10]
    assert [name for name, _ in source.bad] == ["none", "two/cover_1.png", "two/poster.png"]
    assert all(reason.startswith("in no numbered row") for _, reason in source.bad)


def test_the_number_of_a_picture_says_when_it_is_shown(tmp_path: Path) -> None:
    pictures(tmp_path / "fives", (f"{i:05d}.png" for i in range(0, 60, 5)))
    pictures(tmp_path / "from_one", (f"{i}.png" for i in range(1, 12)))
    pictures(tmp_path / "missing", (f"{i}.png" for i in (0, 1, 2, 5, 6)))
    source = numbered(tmp_path, fps=30.0)
    times = {source.file(i): source.times(i) for i in range(len(source))}
    assert times["fives"] == pytest.approx(np.arange(12) / 6)
    assert times["from_one"] == pytest.approx(np.arange(11) / 30)
    assert times["missing"] == pytest.approx(np.array([0, 1, 2, 5, 6]) / 30)
    stamps = [1531884156012460000 + i * 100_000_000 for i in range(9)]
    pictures(tmp_path / "stamps" / "of", (f"{stamp}.png" for stamp in stamps))
    assert numbered(tmp_path / "stamps", fps=1e9).times(0) == pytest.approx(np.arange(9) / 10)
    seconds = [f"13050311{i // 10:02d}.{i % 10}75304.png" for i in range(5, 25)]  # as TUM's
    pictures(tmp_path / "seconds" / "of", seconds)
    assert numbered(tmp_path / "seconds", fps=1.0).times(0) == pytest.approx(np.arange(20) / 10)


def test_unusable_videos_and_clips_are_judged_each_by_their_like(tmp_path: Path) -> None:
    """Not pictures of no video; and of a clip two samples are made, but one clip is unusable."""
    for i in range(12):
        pictures(tmp_path / f"{i:02d}", (f"{frame}.png" for frame in range(20)))
    pictures(tmp_path / "short", ("0.png", "1.png"))
    for i in range(4):
        pictures(tmp_path / "00", (f"poster{chr(97 + i)}.png",))

    def opened(max_bad: float) -> Clips:
        about = {"fps": 10.0, "clip_seconds": 2.0, "image_size": 16, "num_workers": 0}
        data = Clips("frames", str(tmp_path), max_bad=max_bad, repeat=2, **about)
        data.setup("fit")
        return data

    data = opened(1.2 / 13)
    assert len(data.bad) == 5
    with pytest.raises(UserError, match=r"^1 of 13 videos are unusable \(1 shorter than"):
        opened(0.8 / 13)
    data = opened(0.3)
    assert data.training_size() == 22
    broken = [(f"clip {i}", "a frame is damaged") for i in range(4)]
    data.count_bad(broken[:3], 22)
    with pytest.raises(UserError, match=r"^4 of 11 clips are unusable \(4 a frame is damaged"):
        data.count_bad(broken[3:], 22)


def test_no_clip_spans_a_jump_in_the_numbers(tmp_path: Path) -> None:
    numbers = [*range(20), *range(40, 50), *range(5000, 5020)]
    pictures(tmp_path / "a", (f"{i:05d}.png" for i in numbers))
    pictures(tmp_path / "far", (f"{1531884156012460 + i * 83333}.png" for i in range(9)))
    pictures(tmp_path / "twice", [*(f"{i:02d}.png" for i in range(9)), "3.png"])
    source = numbered(tmp_path)
    assert [source.name(i) for i in range(len(source))] == ["a@0.000", "a@4.000", "a@500.000"]
    assert [len(source.times(i)) for i in range(3)] == [20, 10, 20]
    assert [number_of(f) for f in source.read(2, [0, 4])] == [5, 9]
    reasons = dict(source.bad)
    assert reasons["far"] == "numbers 83333 apart, 8333.3 s at 10 a second"
    assert reasons["twice"] == "two pictures of one number"


@pytest.mark.parametrize("how", ["copy", "link", "hard link", "folder link"])
@pytest.mark.parametrize("source", ["videos", "frames"])
def test_a_video_at_both_paths_is_refused(
    source: str, how: str, tmp_path: Path, cache: None
) -> None:
    train, apart = tmp_path / "train", tmp_path / "val"
    for place, counts in ((train, (20, 21, 22)), (apart, (20, 21))):
        for count in counts:
            folder = place / f"{count}"
            if source == "videos":
                # As long as those to train on, of other frames.
                write_video(folder / "a.mp4", count=count, size=(48, 64 if place == train else 80))
            else:
                pictures(folder, (f"{i}.png" for i in range(count)))
                colour = "red" if place == train else "blue"
                Image.new("RGB", (16, 16), colour).save(folder / "3.png")
    where = Clips(source, str(train), val_path=str(apart), num_workers=0)
    where.setup("fit")
    moved = apart / "other"
    if how == "folder link":
        moved.symlink_to(train / "21")
    else:
        moved.mkdir()
        link = {"link": os.symlink, "hard link": os.link, "copy": shutil.copyfile}[how]
        for file in (train / "21").iterdir():
            link(file, moved / file.name)
    name = "/a.mp4" if source == "videos" else ""
    data = Clips(source, str(train), val_path=str(apart), num_workers=0)
    with pytest.raises(UserError, match=f"holds 'other{name}', which is '21{name}' of data.path"):
        data.setup("fit")


def test_a_hedged_copy_is_fitted_to_pairs_cut_as_they_are_judged(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for i in range(12):
            pixels = noise.integers(0, 255, (24, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    data = Clips("frames", str(tmp_path), image_size=24, fps=8.0, num_workers=0, gap=(0.2, 1.0))
    data.setup("fit")
    train = data.training_set().source
    whole = [
        to_tensor(frame, centre_crop(40, 24), 24)
        for index in range(len(train))
        for frame in train.read(index, range(12))
    ]
    (pairs,) = data.training_pairs(6)
    for image in (*pairs["past"][:, 0], *pairs["future"]):
        assert any(torch.equal(image, x) or torch.equal(image.flip(-1), x) for x in whole)


def test_no_video_is_open_before_a_worker_reads(tmp_path: Path, cache: None) -> None:
    """Nothing of FFmpeg is shared by a fork: opening and decoding happen where frames are read."""
    for name in ("a", "b", "c"):
        write_video(tmp_path / "v" / f"{name}.mp4")
    data = Clips("videos", str(tmp_path / "v"), image_size=32, num_workers=0)
    data.setup("fit")
    train = data.training_set()

    def held(value: object, seen: set[int]) -> list[str]:
        if id(value) in seen or isinstance(value, (str, int, float, np.ndarray)):
            return []
        seen.add(id(value))
        own = [type(value).__module__] if type(value).__module__.startswith("av") else []
        inner = [*getattr(value, "__dict__", {}).values()]
        inner += list(value) if isinstance(value, (list, tuple, set)) else []
        inner += list(value.values()) if isinstance(value, dict) else []
        return own + [name for child in inner for name in held(child, seen)]

    assert not held(data, set()) and not held(train, set())
    assert isinstance(train.source.source, VideoSource)
    train[0]
    assert not held(train, set())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"path": "x"}, "data.source is scenes, which is made here"),
        ({"source": "videos"}, "give data.path"),
        ({"gap": (0.5, 0.2)}, "data.gap is .0.5, 0.2."),
        ({"gap": (0.0, 1.0)}, "above 0"),
        ({"past_frames": 0}, "data.past_frames is 0"),
        ({"past_step": 0.0}, "data.past_step is 0"),
        ({"clip_seconds": 0.3, "past_frames": 2}, "take 0.33 s"),
        ({"repeat": 0}, "data.repeat is 0"),
        ({"fps": 0.0}, "data.fps is 0"),
        ({"source": "shards", "path": "a", "fps": 8.0}, "data.fps is 8.0, but data.source is sh"),
        ({"source": "shards", "path": "a", "clip_seconds": 9.0}, "data.clip_seconds is 9.0, but"),
        ({"source": "frames", "path": "a", "val_path": "a/b"}, "lies inside data.path"),
    ],
)
def test_mistakes(words: dict, text: str) -> None:
    with pytest.raises(UserError, match=text):
        Clips(**words)


def test_the_length_of_packed_clips_is_not_judged_by_a_key_they_do_not_read() -> None:
    assert Clips("shards", "a", gap=(5.0, 6.0)).least_seconds == 5.0
    with pytest.raises(UserError, match="data.clip_seconds is 4, but .* take 5 s"):
        Clips("videos", "a", gap=(5.0, 6.0))
