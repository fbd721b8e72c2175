"""Shards as img2dataset, the Hub and macOS leave them; what is none is skipped and said so."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import images, jpeg, write_tar

from pixio_lightning.cli.main import main
from pixio_lightning.data.listing.splits import split_of
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.data.shards.format import ShardIndex, read_group
from pixio_lightning.data.shards.index import open_index
from pixio_lightning.data.shards.pack import pack
from pixio_lightning.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "pixio-cache"))


def table(path: Path, n: int = 10, *, column: str = "image", first: int = 0) -> Path:
    """Write a parquet file as the Hub has it, in groups of five."""
    cells = [{"bytes": jpeg(first + i), "path": None} for i in range(n)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"label": [1] * n, column: cells}), path, row_group_size=5)
    return path


def captions(path: Path) -> None:
    pq.write_table(pa.table({"key": ["0"] * 9, "url": [""] * 9}), path)


def pictures(folder: Path, n: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
    return folder


def opened(path: Path, **options: str) -> ShardIndex:
    return open_index(str(path), **options)  # type: ignore[arg-type]


def contents(index: ShardIndex) -> list[bytes]:
    read = [image for group in range(index.n_groups) for image in read_group(index, group)]
    assert not [image.reason for image in read if image.reason]
    return [image.data for image in read]


def packed(source: Path, out: Path, **options: str) -> ShardIndex:
    return pack(str(source), out, rows=None, group=5, shuffled=True, jobs=1, **options)  # type: ignore[arg-type]


# --- what is no shard -------------------------------------------------------------------------


def test_a_table_beside_its_tar_is_skipped(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tar(tars / "0.tar", [(image.key, image.data) for image in images(12)])
    captions(tars / "0.parquet")
    for again in range(2):  # built, and then from the cache
        index = opened(tars)
        assert (index.rows, index.damaged) == (12, []), again
        assert index.skipped == [("0.parquet", "no column of images, but key, url")]
    assert packed(tars, tmp_path / "out").rows == 12


def test_an_index_below_is_no_shard(tmp_path: Path) -> None:
    for name in ("a", "b"):
        packed(pictures(tmp_path / name, 12), tmp_path / "both" / name)
    index = opened(tmp_path / "both")
    assert (index.rows, index.damaged, index.skipped) == (24, [], [])


def test_only_tables_without_images(tmp_path: Path) -> None:
    captions(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no shard of images: a\.parquet: no column"):
        opened(tmp_path)


@pytest.mark.parametrize("place", ["", "a.tar.gz"])
def test_compressed_tars_are_named(place: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(pictures(tmp_path.parent / f"{tmp_path.name}-in", 2))
    with pytest.raises(UserError, match=r"expected \.parquet or \.tar files; unpack what is"):
        opened(tmp_path / place)
    table(tmp_path / "b.parquet")
    if not place:
        assert opened(tmp_path).skipped == [("a.tar.gz", "compressed")]


def test_the_files_of_macs_in_a_tar_are_no_images(tmp_path: Path) -> None:
    fork = b"\0\5\26\7" + bytes(80)
    entries = [("./a/._0.jpg", fork), ("__MACOSX/a/0.jpg", fork), ("./a/0.jpg", jpeg(0))]
    write_tar(tmp_path / "0.tar", entries)
    assert contents(opened(tmp_path)) == [jpeg(0)]


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 3)
    (source / "0.jpg").rename(source / os.fsdecode(b"caf\xe9.jpg"))
    (source / "1.jpg").rename(source / os.fsdecode(b"caf\xea.jpg"))
    (source / os.fsdecode(b"\xff.jpg")).touch()
    index = packed(source, tmp_path / "out")
    read = [image for group in range(index.n_groups) for image in read_group(index, group)]
    assert sorted(image.key for image in read) == ["2.jpg", r"caf\xe9.jpg", r"caf\xea.jpg"]
    assert (tmp_path / "out/bad_files.txt").read_bytes() == b"\xff.jpg\tempty file\n"


# --- columns ----------------------------------------------------------------------------------


def test_images_under_another_name(tmp_path: Path) -> None:
    table(tmp_path / "one/0.parquet", column="img")
    assert contents(opened(tmp_path / "one")) == [jpeg(i) for i in range(10)]
    cells = {name: [{"bytes": jpeg(at), "path": None}] for at, name in enumerate(("left", "right"))}
    (tmp_path / "two").mkdir()
    pq.write_table(pa.table(cells), tmp_path / "two/0.parquet")
    for _ in range(2):
        assert contents(opened(tmp_path / "two")) == [jpeg(0)]
        assert contents(opened(tmp_path / "two", column="right")) == [jpeg(1)]
    with pytest.raises(UserError, match="no column of images 'middle', but left, right"):
        opened(tmp_path / "two", column="middle")
    data = Pixels("shards", str(tmp_path / "one"), column="img", val_images=5)
    data.setup("fit")
    assert data.training_size() == 5
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars/0.tar", [(image.key, image.data) for image in images(12)])
    with pytest.raises(UserError, match="data.column is img, but the shards of .* are tar arch"):
        Pixels("shards", str(tmp_path / "tars"), column="img").setup("fit")


# --- splits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/unlabeled-00000-of-00001.parquet", "unlabeled"),
        ("data/train_small-00000-of-00002-abcdef.parquet", "train_small"),
        ("validation/0000.parquet", "val"),
        ("Valid/0.tar", "val"),
        ("imagenet1k-train-0000.tar", "train"),
        ("train/test_0.tar", "test"),
        ("00000-of-00002.parquet", None),
        ("constraint-0001.tar", None),
        ("a/b/0.tar", None),
    ],
)
def test_the_split_that_a_name_tells(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_shards_of_other_splits_are_not_trained_on(tmp_path: Path) -> None:
    table(tmp_path / "data/train-00000-of-00001.parquet", 40)
    table(tmp_path / "data/test-00000-of-00001.parquet", 20, first=40)
    table(tmp_path / "data/validation-00000-of-00001.parquet", 10, first=60)
    data = Pixels("shards", str(tmp_path), val_split="valid", val_images=100)
    data.setup("fit")
    assert data.training_size() == 40
    assert data._held_out is not None and len(data._held_out) == 10
    assert data._held_out.read(0) == jpeg(60)
    with pytest.raises(UserError, match=r"data.split is tests, but .*did you mean 'test'"):
        Pixels("shards", str(tmp_path), split="tests").setup("fit")
    with pytest.raises(UserError, match="of several splits .* give the folder of one, or --split"):
        packed(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="to whose shards those written there would be counted"):
        packed(tmp_path, tmp_path / "out", split="test")
    out = tmp_path.with_name(f"{tmp_path.name}-out")
    assert packed(tmp_path, out, split="test").rows == 20
    table(tmp_path / "more.parquet")
    with pytest.raises(UserError, match="of several splits .* unnamed"):
        Pixels("shards", str(tmp_path)).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_split": "validation"}, "data.val_split is validation, but no name of the shards"),
        ({"split": "test"}, "data.split is test, but no name of the shards"),
        ({"val_split": "train"}, "data.val_split 'train' holds out 3 of the shards that are"),
        ({"val_split": "Training"}, "data.val_split 'Training' holds out 3 of the shards that are"),
    ],
)
def test_a_split_that_no_name_tells_is_refused(
    options: dict[str, str], message: str, tmp_path: Path
) -> None:
    """As of what `pixio shard` writes: all of it would be held out, and trained on as well."""
    for number in range(3):
        table(tmp_path / "in" / f"{number:05d}-of-00003.parquet", first=10 * number)
    with pytest.raises(UserError, match=message):
        Pixels("shards", str(tmp_path / "in"), **options).setup("fit")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--split is test, but no name"):
        packed(tmp_path / "in", tmp_path / "out", split="test")


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_shard_under_another_name_is_not_held_out(
    link: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    for number in range(2):
        table(tmp_path / "in" / f"{number}.parquet", first=10 * number)
    table(tmp_path / "val" / "0.parquet", first=20)
    data = Pixels("shards", str(tmp_path / "in"), val_path=str(tmp_path / "val"))
    data.setup("fit")
    assert data.training_size() == 20
    link(tmp_path / "val" / "1.parquet", tmp_path / "in" / "1.parquet")
    with pytest.raises(UserError, match=r"data.val_path '.*val' holds out 1 of .* '1.parquet'"):
        Pixels("shards", str(tmp_path / "in"), val_path=str(tmp_path / "val")).setup("fit")


# --- pictures and shards ----------------------------------------------------------------------


def test_pictures_beside_shards_are_not_dropped(tmp_path: Path) -> None:
    write_tar(pictures(tmp_path / "in", 12) / "two.tar", [("0.jpg", jpeg(0)), ("1.jpg", jpeg(1))])
    with pytest.raises(UserError, match=r"12 pictures and 1 shards, such as two\.tar"):
        packed(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_of_captions_beside_pictures_is_no_shard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions(pictures(tmp_path / "in", 12) / "metadata.parquet")
    (tmp_path / "in/moving.gif").touch()
    line = ["shard", str(tmp_path / "in"), str(tmp_path / "in/shards"), "--rows", "5"]
    for _ in range(2):  # the second time, what was packed lies among the pictures
        assert main(line) == 0
        text = capsys.readouterr().out
        assert "12 images in 3 shards" in text
        assert "skipped metadata.parquet: no column of images, but key, url\n" in text
        assert "skipped *.gif: 1 of them\n" in text
