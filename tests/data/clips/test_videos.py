"""Clips of video files: which frame is read, whatever the file's rate, order and turn."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from video_files import GOOD, number_of, write_empty, write_sound, write_video

from pixio_lightning.data.clips import video_index as index_module
from pixio_lightning.data.clips.datamodule import Clips
from pixio_lightning.data.clips.video import video_frames
from pixio_lightning.data.clips.videos import VideoSource, windows
from pixio_lightning.data.decode import BadImage
from pixio_lightning.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))


def opened(folder: Path, seconds: float = 10.0, least: float = 0.2) -> VideoSource:
    about = {"least": least, "frames": 2, "whole": least, "max_megapixels": 64}
    return VideoSource(str(folder), seconds, **about)


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "h264", {}),
        ("mp4", "h264", {"bf": "3"}),  # frames are stored in another order than they are shown in
        ("mov", "h264", {"bf": "2", "x264-params": "open-gop=1"}),
        ("mkv", "h264", {"bf": "2"}),
        ("webm", "libvpx-vp9", {}),
        ("avi", "mpeg4", {}),
        ("mpg", "mpeg2video", {}),
    ],
)
def test_any_two_frames_are_those_that_are_asked_for(
    tmp_path: Path, suffix: str, codec: str, options: dict
) -> None:
    fps = 25 if suffix == "mpg" else 8
    write_video(tmp_path / "v" / f"a.{suffix}", codec=codec, options=options, fps=fps)
    source = opened(tmp_path / "v")
    times = source.times(0)
    assert len(source) == 1 and len(times) == GOOD
    if suffix != "mpg":  # whose encoder leaves a gap
        assert np.allclose(np.diff(times), 1 / fps, atol=2e-3)
    for wanted in ([0, 1], [3, 20], [5, 6], [11, 12], [22, 23], [0, 23], [4, 7, 13, 19]):
        assert [number_of(frame) for frame in source.read(0, wanted)] == wanted


def test_it_goes_to_a_key_frame_or_on_whichever_is_nearer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 24 frames with a key frame every 6: not all of them are decoded."""
    from pixio_lightning.data.clips import video

    write_video(tmp_path / "v" / "a.mp4", options={"bf": "0", "sc_threshold": "0"})
    source = opened(tmp_path / "v")
    (about,) = index_module.video_index(tmp_path / "v", ["a.mp4"])
    assert about.keys.tolist() == [0, 6, 12, 18]
    decoded = []
    first_from = video._first_from

    def counted(frames, time):
        def watched():
            for frame in frames:
                decoded.append(frame.time)
                yield frame

        return first_from(watched(), time)

    monkeypatch.setattr(video, "_first_from", counted)
    for wanted, most in (([13, 22], 2 + 5), ([13, 14], 3), ([0, 23], 1 + 6), ([7, 12], 2 + 1)):
        decoded.clear()
        assert [number_of(frame) for frame in source.read(0, wanted)] == wanted
        assert len(decoded) == most


def test_a_variable_rate_is_read_by_time(tmp_path: Path) -> None:
    ticks = [0, 1, 2, 10, 11, 20, 30, 31, 32, 33, 34, 50]
    write_video(tmp_path / "v" / "a.mp4", count=12, times=ticks, fps=10)
    source = opened(tmp_path / "v")
    assert np.allclose(source.times(0), np.array(ticks) / 10)
    assert [number_of(frame) for frame in source.read(0, [3, 5, 11])] == [3, 5, 11]
    # Windows are of time, not of frames.
    source = opened(tmp_path / "v", seconds=2.0)
    assert [len(source.times(i)) for i in range(len(source))] == [5, 6]
    assert source.name(1) == "a.mp4@2.000"


def test_a_turned_video_stands_upright(tmp_path: Path) -> None:
    write_video(tmp_path / "v" / "a.mp4", rotation=90)
    source = opened(tmp_path / "v")
    (frame,) = source.read(0, [4])
    assert frame.shape == (64, 48, 3) and number_of(frame) == 4


def test_windows_do_not_overlap_and_need_room() -> None:
    times = np.arange(100) / 10
    room = {"least": 0.1, "frames": 2, "whole": 0.1}
    assert windows(times, 4.0, **room) == [(0, 40), (40, 80), (80, 100)]
    assert windows(times, 4.0, **room | {"frames": 30}) == [(0, 40), (40, 80)]
    assert windows(times[:3], 4.0, **room | {"frames": 3}) == [(0, 3)]
    assert windows(times[:3], 4.0, **room | {"frames": 4}) == []
    assert windows(np.array([0.0, 9.0, 9.1, 9.2]), 4.0, **room) == [(1, 4)]
    assert windows(times[:0], 4.0, **room) == []


def test_a_short_rest_is_a_part_of_the_window_before_it() -> None:
    """Alone it would give samples of small gaps only, as many as a window gives of all gaps."""
    room = {"least": 0.13, "frames": 2, "whole": 1.6}
    fps = 24
    for count, found in (
        (102, [(0, 102)]),  # 4.25 s
        (192, [(0, 96), (96, 192)]),  # whole windows stay what they are, to the frame
        (193, [(0, 96), (96, 193)]),
        (134, [(0, 134)]),
        (135, [(0, 96), (96, 135)]),  # 1.6 s from its first frame to its last
        (30, [(0, 30)]),  # all there is
    ):
        assert windows(np.arange(count) / fps, 4.0, **room) == found
    # With gaps that only a whole window has room for, it is no rest.
    far = room | {"whole": 4.0}
    assert windows(np.arange(192) / fps, 4.0, **far) == [(0, 96), (96, 192)]
    assert windows(np.arange(190) / fps, 4.0, **far) == [(0, 190)]
    # Nothing is added that is far from the window.
    times = np.array([*np.arange(40) / 10, 20.0, 20.1, 20.2])
    assert windows(times, 4.0, **room) == [(0, 40), (40, 43)]


def test_damaged_files_are_named_with_their_reasons(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    good = write_video(folder / "good.mp4")
    write_video(folder / "deep" / "rotated.mp4", rotation=180)
    (folder / "truncated.mp4").write_bytes(good.read_bytes()[:600])
    (folder / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(4000))
    (folder / "nothing.mp4").write_bytes(b"")
    write_empty(folder / "empty.mkv")
    write_sound(folder / "sound.mp4")
    write_video(folder / "short.mp4", count=1)
    source = opened(folder)
    assert {source.file(i) for i in range(len(source))} == {"good.mp4", "deep/rotated.mp4"}
    reasons = dict(source.bad)
    assert set(reasons) == {
        *("truncated.mp4", "noise.mkv", "nothing.mp4", "empty.mkv", "sound.mp4", "short.mp4")
    }
    assert "cannot be read" in reasons["truncated.mp4"]
    assert "without frames" in reasons["sound.mp4"]
    assert reasons["short.mp4"].startswith("shorter than 0.2 s")
    assert not [reason for reason in reasons.values() if str(tmp_path) in reason]


def test_what_is_cut_off_in_the_middle_gives_what_it_has(tmp_path: Path) -> None:
    good = write_video(tmp_path / "w" / "a.mkv")
    data = good.read_bytes()
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mkv").write_bytes(data[: len(data) * 9 // 10])
    source = opened(tmp_path / "v")
    count = len(source.times(0))
    assert 2 <= count < GOOD
    assert number_of(source.read(0, [1])[0]) == 1


def test_what_cannot_be_opened_is_judged_by_how_many_can(tmp_path: Path) -> None:
    for name in "abcd":
        write_video(tmp_path / "v" / f"{name}.mp4")
    (tmp_path / "v" / "e.mp4").write_bytes(b"no video")
    data = Clips("videos", str(tmp_path / "v"), max_bad=0.5, clip_seconds=1.0, gap=(0.1, 0.3))
    data.setup("fit")
    assert set(data.bad) == {"e.mp4"}


def test_a_frame_that_is_lost_is_bad_under_the_name_of_its_clip(tmp_path: Path) -> None:
    file = write_video(tmp_path / "v" / "a.mp4")
    source = opened(tmp_path / "v")
    data = bytearray(file.read_bytes())
    at = data.index(b"mdat") + 4
    size = len(data) - at
    data[at : at + size * 2 // 3] = bytes(size * 2 // 3)
    file.write_bytes(data)
    with pytest.raises(BadImage) as caught:
        source.read(0, [2, 9])
    assert caught.value.name == source.name(0) == "a.mp4@0.000"


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "h264", {"bf": "2", "sc_threshold": "0"}),
        ("mov", "h264", {"bf": "2", "sc_threshold": "0", "x264-params": "open-gop=1"}),
        ("avi", "mpeg4", {"sc_threshold": "1000000000"}),
    ],
)
def test_what_a_decoder_fills_in_is_bad_up_to_the_next_key_frame(
    tmp_path: Path, suffix: str, codec: str, options: dict
) -> None:
    """A few bytes of a key frame are others: the decoder goes on, with frames made of guesses."""
    file = write_video(
        tmp_path / "v" / f"a.{suffix}",
        codec=codec,
        options=options,
        size=(96, 128),
        noise=10,
    )
    source, data = opened(tmp_path / "v"), bytearray(file.read_bytes())
    with av.open(str(file)) as container:
        keys = [p for p in container.demux(container.streams.video[0]) if p.is_keyframe]
    at = keys[1].pos + keys[1].size // 2
    data[at : at + 64] = np.random.default_rng(0).bytes(64)
    file.write_bytes(data)
    for wanted in ([6], [1, 9], [11]):
        with pytest.raises(BadImage, match="damaged"):
            source.read(0, wanted)
    for wanted in ([0, 3], [4, 13], [18, 23]):
        assert [number_of(frame) for frame in source.read(0, wanted)] == wanted
    every = video_frames(file, every=1 / 8, limit=None, max_megapixels=1)
    damaged = {number for number, frame in every if frame is None}
    assert {6, 7, 8, 9, 10, 11} <= damaged <= {4, 5, *range(6, 12)}


def test_the_index_is_kept_and_follows_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    look = index_module._look
    monkeypatch.setattr(
        index_module,
        "_look",
        lambda root, name, *about: looked.append(name) or look(root, name, *about),
    )
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / "v" / name)
    first = opened(tmp_path / "v")
    assert sorted(looked) == ["a.mp4", "b.mp4"]
    again = opened(tmp_path / "v")
    assert len(looked) == 2
    assert np.array_equal(first.times(1), again.times(1)) and first.name(1) == again.name(1)
    write_video(tmp_path / "v" / "b.mp4", count=9)
    changed = opened(tmp_path / "v")
    assert looked[2:] == ["b.mp4"] and len(changed.times(1)) == 9
    # A damaged index is made anew.
    (index,) = (tmp_path / "cache").glob("videos-*.parquet")
    index.write_bytes(b"no parquet")
    assert len(opened(tmp_path / "v")) == 2 and len(looked) == 5


def test_an_error_that_passes_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read now, as where too many are open, may be read at the next start."""
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / "v" / name)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened(tmp_path / "v")
    write_video(tmp_path / "v" / "b.mp4", count=9)
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    try:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))  # none is left
        videos = index_module.video_index(tmp_path / "v", ["a.mp4", "b.mp4"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number in taken:
            os.close(number)
    assert videos[1].reason
    assert len(opened(tmp_path / "v").times(1)) == 9


def test_what_was_indexed_before_a_kill_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, look, stop = [], index_module._look, True

    def counted(root, name, *about):
        if stop and len(looked) == 3:
            raise KeyboardInterrupt
        looked.append(name)
        return look(root, name, *about)

    monkeypatch.setattr(index_module, "_look", counted)
    monkeypatch.setattr(index_module, "_SAVED_EVERY", 0.0)
    monkeypatch.setattr(index_module, "available_cores", lambda: 1)
    for name in "abcde":
        write_video(tmp_path / "v" / f"{name}.mp4", count=4)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "v")
    (index,) = (tmp_path / "cache").glob("videos-*.parquet")
    known = pq.read_table(index)["name"].to_pylist()
    assert known and known == [name.encode() for name in looked[: len(known)]]
    stop = False
    assert len(opened(tmp_path / "v")) == 5 and len(looked) == 3 + 5 - len(known)


def test_one_process_indexes_before_the_others_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("v", "w"):
        for name in "ab":
            write_video(tmp_path / place / f"{name}.mp4", count=9 if place == "v" else 8)
    about = {"val_path": str(tmp_path / "w"), "gap": (0.1, 0.3)}
    Clips("videos", str(tmp_path / "v"), **about).prepare_data()
    looked = []
    monkeypatch.setattr(index_module, "_look", lambda *about: looked.append(about))
    data = Clips("videos", str(tmp_path / "v"), **about)
    data.setup("fit")
    assert not looked and data.training_size() == 2
    Clips("videos", str(tmp_path / "none")).prepare_data()  # said in `setup`, by all processes


def test_a_link_that_leads_nowhere_is_listed_in_every_run(tmp_path: Path) -> None:
    write_video(tmp_path / "v" / "a.mp4")
    (tmp_path / "v" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    for _ in range(3):
        source = opened(tmp_path / "v")
        assert source.bad == [("gone.mp4", "cannot be read (No such file or directory)")]
    write_video(tmp_path / "nowhere.mp4", count=9)
    assert len(opened(tmp_path / "v")) == 2


def test_a_name_may_hold_any_bytes(tmp_path: Path) -> None:
    write_video(tmp_path / "v" / os.fsdecode(b"\xff.mp4"))
    first, again = opened(tmp_path / "v"), opened(tmp_path / "v")
    assert first.file(0) == again.file(0) == os.fsdecode(b"\xff.mp4")
    assert [number_of(frame) for frame in again.read(0, [2])] == [2]


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.gif").write_bytes(b"GIF")
    with pytest.raises(UserError, match=r"holds no video, but 1 \.gif; expected \.mp4"):
        opened(tmp_path / "v")
    with pytest.raises(UserError, match="is not a folder"):
        opened(tmp_path / "w")
    (tmp_path / "v" / "a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="holds no video that can be used; the first of 1, a.mp4: "):
        opened(tmp_path / "v")
