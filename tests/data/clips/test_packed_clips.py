"""Clips packed into shards: what is kept of them, and that images can be trained on as well."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from shard_files import Store, stored
from traced_memory import traced
from video_files import number_of, painted, write_sound, write_video

from pixio_lightning.cli.main import main
from pixio_lightning.data import parquet
from pixio_lightning.data.clips import table as clip_table
from pixio_lightning.data.clips.datamodule import Clips
from pixio_lightning.data.clips.packed import PackedClips
from pixio_lightning.data.clips.source import hold_out_files
from pixio_lightning.data.clips.table import TABLE, TABLE_SCHEMA, numbered, write_clips
from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.data.shards import remote
from pixio_lightning.data.shards.format import Shard, ShardIndex
from pixio_lightning.data.shards.index import INDEX, write_index
from pixio_lightning.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for i in range(4):
        write_video(tmp_path / "v" / f"{i}.mp4", fps=8, size=(48 + 16 * i, 64))
    write_sound(tmp_path / "v" / "sound.mp4")
    return tmp_path / "v"


def pack(source: Path, out: Path, *words: str) -> None:
    assert main(["shard", str(source), str(out), "--clips", *words]) == 0


def opened(path: Path) -> PackedClips:
    return PackedClips(str(path), least=0.2, frames=2, max_megapixels=1.0)


def test_what_is_left_out_may_have_any_name_and_is_forgotten_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "v" / "a.mp4")
    bad = write_sound(tmp_path / "v" / os.fsdecode(b"\xff.mp4"))
    pack(tmp_path / "v", tmp_path / "shards")
    assert "1 files were left out" in capsys.readouterr().out
    assert (tmp_path / "shards" / "bad_files.txt").read_bytes().startswith(b"\xff.mp4\t")
    bad.unlink()
    pack(tmp_path / "v", tmp_path / "shards")
    assert "left out" not in capsys.readouterr().out


def test_the_same_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "v" / "a.png")
    bad = tmp_path / "v" / os.fsdecode(b"\xff.png")
    bad.touch()
    words = ["shard", str(tmp_path / "v"), str(tmp_path / "shards")]
    assert main(words) == 0 and "1 files were left out" in capsys.readouterr().out
    bad.unlink()
    assert main(words) == 0 and "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["videos", "folders of frames", "pictures"])
def test_a_file_replaced_under_its_name_is_packed_again(kind: str, tmp_path: Path) -> None:
    def write(name: str, red: int) -> None:
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[..., 0] = red
        if kind == "videos":
            write_video(tmp_path / "in" / f"{name}.mp4", count=15 if red else 16)
        for number in range(0 if kind == "videos" else 12):
            file = tmp_path / "in" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file, compress_level=0)  # of one size in bytes

    def packed() -> list[dict[str, Any]]:
        form = ["--rows", "8"] if kind == "pictures" else ["--clips", "--rows", "12"]
        assert main(["shard", str(tmp_path / "in"), str(tmp_path / "out"), *form]) == 0
        files = sorted((tmp_path / "out").glob("0*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]

    write("a", 0)
    write("b", 0)
    before = packed()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0*.parquet")}
    assert packed() == before and all(p.stat().st_mtime_ns == at for p, at in written.items())
    write("b", 200)
    assert packed() != before


def test_a_row_is_a_frame_and_a_row_group_a_clip(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    words = ["--fps", "4", "--seconds", "1.5", "--side", "32", "--rows", "24", "--in-order"]
    pack(videos, out, *words)
    said = capsys.readouterr().out
    assert "48 images of 8 clips in 2 shards" in said and "video/shards" in said
    assert "sound.mp4\tis a video without frames" in (out / "bad_files.txt").read_text()
    clips = opened(out)
    assert len(clips) == 8 and clips.name(3) == "1.mp4@1.500" and clips.file(3) == "1.mp4"
    assert np.allclose(clips.times(3), 1.5 + np.arange(6) / 4)
    # Every other frame of eight a second.
    assert [number_of(f) for f in clips.read(3, range(6))] == [12, 14, 16, 18, 20, 22]
    assert [clips.read(2 * i, [0])[0].shape for i in range(4)] == [
        *((32, 43, 3), (32, 32, 3), (40, 32, 3), (48, 32, 3)),
    ]
    file = pq.ParquetFile(out / "00000-of-00002.parquet")
    assert file.num_row_groups == 4
    rows = file.read_row_group(1).to_pylist()
    assert {row["clip"] for row in rows} == {"0.mp4@1.500"}
    assert [row["frame"] for row in rows] == [0, 2, 4, 6, 8, 10]
    assert main(["shard", str(out), "--verify"]) == 0


def test_order_is_shuffled_and_the_same_line_goes_on(videos: Path, tmp_path: Path) -> None:
    words = ("--seconds", "1", "--rows", "16")
    pack(videos, tmp_path / "a", *words)
    pack(videos, tmp_path / "b", *words)
    names = [opened(tmp_path / run) for run in ("a", "b")]
    shuffled = [[clips.name(i) for i in range(len(clips))] for clips in names]
    assert shuffled[0] == shuffled[1] != sorted(shuffled[0]) and len(shuffled[0]) == 12
    shards = sorted((tmp_path / "a").glob("0*.parquet"))
    before = {p.name: p.stat().st_mtime_ns for p in shards}
    shards[1].unlink()
    pack(videos, tmp_path / "a", *words)
    after = {p.name: p.stat().st_mtime_ns for p in shards}
    assert [name for name in after if after[name] != before[name]] == [shards[1].name]
    assert shards[1].read_bytes() == (tmp_path / "b" / shards[1].name).read_bytes()
    for wrong in (["--fps", "4"], ["--clips", "--group", "4"], ["--clips", "--side", "0"]):
        assert main(["shard", str(videos), str(tmp_path / "c"), *wrong]) == 2


def test_folders_of_frames_are_packed_too(tmp_path: Path) -> None:
    for i in range(12):
        file = tmp_path / "v" / "bear" / f"{i:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(painted(i)).save(file)
    pack(tmp_path / "v", tmp_path / "shards", "--fps", "12")
    clips = opened(tmp_path / "shards")
    assert [number_of(f) for f in clips.read(0, range(6))] == [0, 2, 4, 6, 8, 10]


def test_samples_of_shards_are_those_of_the_videos(videos: Path, tmp_path: Path) -> None:
    """Packed at their own rate and size, clips give the same frames, apart from what JPEG does."""
    pack(videos, tmp_path / "shards", "--seconds", "1.5", "--side", "200")
    found = {}
    for source, path in (("videos", videos), ("shards", tmp_path / "shards")):
        own = {"clip_seconds": 1.5} if source == "videos" else {}  # packed, they have their length
        data = Clips(source, str(path), image_size=32, num_workers=0, val_images=4, **own)
        data.setup("fit")
        train = data.training_set()
        samples = [train[i] for i in range(len(train.source))]
        found[source] = {s["key"]: s for s in samples}
        assert data.contents()["clips"].endswith("; 1 unusable") == (source == "videos")
    assert found["videos"].keys() == found["shards"].keys()
    for key, sample in found["videos"].items():
        other = found["shards"][key]
        assert sample["gap"] == other["gap"]
        difference = sample["future"].float() - other["future"].float()
        assert difference.abs().mean() < 3


def test_masked_pretraining_reads_the_same_shards(videos: Path, tmp_path: Path) -> None:
    pack(videos, tmp_path / "shards", "--seconds", "1")
    data = Pixels("shards", str(tmp_path / "shards"), image_size=32, val_images=8, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    # One of four videos is held out, whole, and some of its frames are looked at.
    assert data.training_size() == 72 and len(data._held_out) == 8
    assert data.samples(3)["image"].shape == (3, 3, 32, 32)


def test_a_frame_is_read_again_where_a_store_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.01))
    write_video(tmp_path / "v" / "a.mp4", fps=8)
    pack(tmp_path / "v", tmp_path / "shards")
    clips = opened(tmp_path / "shards")
    here = clips.read(0, [0, 1])
    with stored(clips.index) as clips.index:
        Store.failures[:] = [TimeoutError("read timed out")] * 2
        for one, other in zip(here, clips.read(0, [0, 1]), strict=True):
            assert np.array_equal(np.asarray(one), np.asarray(other))
        Store.failures[:] = [TimeoutError("read timed out")] * 3
        with pytest.raises(BadImage, match=r"its shard cannot be read \(TimeoutError\)"):
            clips.read(0, [0])


def test_what_is_lost_or_other_is_one_line(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    pack(videos, out, "--seconds", "1", "--rows", "16")
    clips = opened(out)
    shard = out / "00001-of-00006.parquet"
    name = pq.read_table(shard)["clip"][0].as_py()
    at = [clips.name(i) for i in range(len(clips))].index(name)
    whole = shard.read_bytes()
    table = pq.read_table(out / TABLE)
    start = next(row["starts"][0] for row in table.to_pylist() if row["clip"] == name)
    shard.write_bytes(whole[:start] + bytes(40) + whole[start + 40 :])
    with pytest.raises(BadImage) as caught:
        clips.read(at, [0])
    assert caught.value.name == name
    shard.unlink()
    with pytest.raises(BadImage, match="shard is missing") as caught:
        clips.read(at, [0])
    assert caught.value.name == name  # each clip of it counts
    shard.write_bytes(whole)
    shutil.copy(out / TABLE, tmp_path / "kept")
    pq.write_table(table.slice(1), out / TABLE)
    with pytest.raises(UserError, match="lists 11 clips, but the shards hold 12"):
        opened(out)
    rows = table.to_pylist()
    for wrong in (
        {"starts": [-1] * 8},
        {"times": [0.0] * 8},
        {"sizes": [1]},
        {"times": [None] * 8},
        {"times": None},
        {"clip": None},
        {"starts": [], "times": [], "sizes": []},
    ):
        changed = [rows[0] | wrong, *rows[1:]]
        pq.write_table(pa.Table.from_pylist(changed, schema=table.schema), out / TABLE)
        with pytest.raises(UserError, match="pack them again"):
            opened(out)
    (out / TABLE).unlink()
    with pytest.raises(UserError, match="holds no shards of clips.*pixio shard DIR SHARDS --clips"):
        opened(out)
    shutil.copy(tmp_path / "kept", out / TABLE)
    with pytest.raises(UserError, match="holds no clip that can be used"):
        PackedClips(str(out), least=9.0, frames=2, max_megapixels=1.0)


def test_packed_clips_are_arrays_and_not_objects(tmp_path: Path) -> None:
    """Of the 4 frames of a clip the table has 80 bytes; as objects they took over 800."""
    count, frames = 3000, 4
    rows = np.full(count, frames, np.int32)
    shard = Shard("0.parquet", 1, "", rows)
    write_index(ShardIndex(str(tmp_path), [shard]), tmp_path / INDEX)
    of_each = np.arange(frames)
    table = {
        "clip": [f"v{i // 3}@{i % 3}.000" for i in range(count)],
        "file": [f"v{i // 3}" for i in range(count)],
        "times": [of_each / 8] * count,
        "starts": [of_each * 30000 + i for i in range(count)],
        "sizes": [of_each + 30000] * count,
    }
    pq.write_table(pa.table(table, schema=TABLE_SCHEMA), tmp_path / TABLE)
    opened(tmp_path)  # what is made once
    size, _ = traced(lambda: hold_out_files(opened(tmp_path)))
    held = hold_out_files(opened(tmp_path))
    assert sum(map(len, held)) == count
    assert held[0].times(7).tolist() == [0, 0.125, 0.25, 0.375]
    assert size / count < 300


def test_as_many_clips_are_read_as_were_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many frames they have; but nothing unpacks to more than numbers of clips do."""
    count, frames = 1500, 1000
    rows = np.full(count, frames, np.int32)
    shard = Shard("0.parquet", 1, "", rows)
    write_index(ShardIndex(str(tmp_path), [shard]), tmp_path / INDEX)
    rng = np.random.default_rng(0)
    ends = np.arange(count + 1, dtype=np.int32) * frames

    def packed(starts: np.ndarray, sizes: np.ndarray) -> PackedClips:
        lists = (np.tile(np.arange(frames) / 8, count), starts, sizes.astype(np.int32))
        columns = [pa.array([f"v{i}"] * count) for i in range(2)]
        columns += [pa.ListArray.from_arrays(ends, values) for values in lists]
        write_clips(pa.table(columns, TABLE_SCHEMA.names).cast(TABLE_SCHEMA), tmp_path)
        return opened(tmp_path)

    monkeypatch.setattr(parquet, "MAX_GROUP", 24 << 20)  # of 1 GiB
    monkeypatch.setattr(clip_table, "MAX_WHOLE", 1 << 20)  # of 4 GiB
    n = count * frames
    clips = packed(rng.integers(0, 1 << 30, n), rng.integers(1, 1 << 15, n))
    assert len(clips) == count and len(clips.times(count - 1)) == frames
    assert clips.file(7) == "v1"
    with pytest.raises(UserError, match=r"larger than it may be \(over .* GiB in all\): pack the"):
        packed(np.zeros(n, np.int64), np.zeros(n))


def test_files_are_numbered_in_order() -> None:
    """By which it is chosen what is held out."""
    files = ["v10", "v9", "\u00e4", "v10", "V", "v9\\xff"]
    names, numbers = numbered(pa.chunked_array([files[:2], files[2:]]))
    expected = np.unique(files, return_inverse=True)
    assert names == expected[0].tolist() and numbers.tolist() == expected[1].tolist()


def test_packed_clips_at_both_addresses_are_refused(videos: Path, tmp_path: Path) -> None:
    pack(videos, tmp_path / "a", "--seconds", "1")
    (tmp_path / "w").mkdir()
    shutil.copy(videos / "2.mp4", tmp_path / "w" / "2.mp4")
    pack(tmp_path / "w", tmp_path / "b", "--seconds", "1")
    data = Clips("shards", str(tmp_path / "a"), val_path=str(tmp_path / "b"))
    with pytest.raises(UserError, match="holds '2.mp4@.*', which is '2.mp4@.*' of data.path"):
        data.setup("fit")
    write_video(tmp_path / "w" / "2.mp4", size=(200, 104))
    pack(tmp_path / "w", tmp_path / "c", "--seconds", "1")
    Clips("shards", str(tmp_path / "a"), val_path=str(tmp_path / "c")).setup("fit")


def test_every_process_looks_at_shards_of_clips(videos: Path, tmp_path: Path) -> None:
    pack(videos, tmp_path / "a", "--seconds", "1")
    shard = next((tmp_path / "a").glob("[!_]*-*.parquet"))
    shard.write_bytes(shard.read_bytes() + b"more")

    class FakeTrainer:
        local_rank = 0

    data = Clips("shards", str(tmp_path / "a"))
    data.trainer = FakeTrainer()  # type: ignore[assignment]
    for rank in (0, 1):  # one that did not would wait for the others, which have stopped
        data.trainer.local_rank = rank  # type: ignore[misc]
        with pytest.raises(UserError, match=f"{shard.name}' has .* bytes, but"):
            data.setup("fit")
