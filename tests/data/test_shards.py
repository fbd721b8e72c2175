"""Shards hold what was packed; damage is found, named and counted; nothing in them ever runs."""

from __future__ import annotations

import errno
import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from shard_files import Store, empty_parquet, images, jpeg, keys, pack, stored, write_tar

from pixio_lightning.cli.main import main
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.data.shards import format as shards
from pixio_lightning.data.shards import index as shard_index
from pixio_lightning.data.shards import remote
from pixio_lightning.data.shards.digests import FILE as DIGESTS
from pixio_lightning.data.shards.format import ShardIndex, read_group
from pixio_lightning.data.shards.index import open_index
from pixio_lightning.data.shards.pack import pack as pack_folder
from pixio_lightning.data.shards.score_files import INSIDE, all_scores
from pixio_lightning.data.shards.set import held_out_groups
from pixio_lightning.data.shards.stream import BlockOrder, Cursor, ShardImages
from pixio_lightning.data.sources import FolderSource
from pixio_lightning.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))


def everything(index: ShardIndex) -> dict[str, bytes]:
    read = [image for group in range(index.n_groups) for image in read_group(index, group)]
    assert not [image.reason for image in read if image.reason]
    assert len(read) == index.rows
    return {image.key: image.data for image in read}


def one_pass(index: ShardIndex, batch_size: int = 8) -> tuple[list[list[int]], dict[str, str]]:
    """Read one pass with one reader; returns the keys of each batch, and what was bad."""
    order = BlockOrder.of(index, np.arange(index.n_groups), rows=30, seed=0)
    data = ShardImages(
        index,
        order,
        None,
        rank=0,
        world_size=1,
        batch_size=batch_size,
        size=16,
        scale=(0.5, 1.0),
        ratio=(1.0, 1.0),
        max_megapixels=64,
        seed=0,
    )
    data.cursors = [Cursor(0, 0)]
    batches, bad = [], {}
    for batch in data:
        if batch["cursor"].block >= order.blocks_per_pass:
            break
        batches.append(batch["key"].tolist())
        bad |= dict(batch["bad"])
    return batches, bad


# --- packing --------------------------------------------------------------------------------------


def write_folder(folder: Path, n: int) -> dict[str, bytes]:
    for image in images(n):
        path = folder / image.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.data)
    return {image.key: image.data for image in images(n)}


def test_no_more_than_a_row_group_is_held_while_a_shard_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "in", 40)
    events: list[int] = []  # images that are read, and those of each group that is written
    read, write = FolderSource.read, pq.ParquetWriter.write_table
    monkeypatch.setattr(FolderSource, "read", lambda *of: events.append(1) or read(*of))

    def written(writer: pq.ParquetWriter, table: pa.Table, **options: int) -> None:
        if "image" in table.column_names:  # it is no index
            events.append(-len(table))
        write(writer, table, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", written)
    packing = {"rows": 20, "group": 5, "shuffled": True, "jobs": 1}
    assert pack_folder(str(tmp_path / "in"), tmp_path / "out", **packing).n_groups == 8
    held = np.cumsum(events)
    assert held.max() == 5 and held[-1] == 0


def test_a_folder_is_packed_whole_and_read_by_datasets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_folder(tmp_path / "in", 95)
    line = ["shard", str(tmp_path / "in"), str(tmp_path / "out"), "--rows", "40", "--group", "10"]
    assert main(line) == 0
    assert "95 images in 3 shards" in capsys.readouterr().out
    index = open_index(str(tmp_path / "out"))
    found = everything(index)
    assert found == {name.removeprefix("images/"): data for name, data in files.items()} or (
        found == files
    )
    assert [shard.rows for shard in index.shards] == [40, 40, 15]
    assert all(len(shard.sha256) == 64 for shard in index.shards)
    # Shuffled, so that neighbours of a folder do not share a row group.
    assert list(found) != sorted(found)
    written = sorted(str(path) for path in (tmp_path / "out").glob("0*.parquet"))
    loaded = datasets.load_dataset(
        "parquet", data_files=written, split="train", cache_dir=str(tmp_path / "hf")
    )
    assert loaded[3]["image"].size == (20, 20)
    # The same line again writes nothing; another --group is another content.
    times = {path: Path(path).stat().st_mtime_ns for path in written}
    assert main(line) == 0
    assert {path: Path(path).stat().st_mtime_ns for path in written} == times
    assert main([*line[:-1], "20"]) == 0
    assert {path: Path(path).stat().st_mtime_ns for path in written} != times


def test_packing_goes_on_after_a_kill_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 30)
    (tmp_path / "in" / "empty.jpg").touch()
    out = tmp_path / "out"
    index = pack_folder(str(tmp_path / "in"), out, rows=10, group=5, shuffled=True, jobs=1)
    assert index.rows == 30
    assert (out / "bad_files.txt").read_text() == "empty.jpg\tempty file\n"
    (out / "00001-of-00004.parquet").unlink()
    (out / ".00002-of-00004.parquet.99-0123abcd.tmp").write_bytes(b"half")
    again = pack_folder(str(tmp_path / "in"), out, rows=10, group=5, shuffled=True, jobs=2)
    assert again.digest == index.digest
    assert again.digest is again.digest  # of 200,000 shards it is taken once
    assert [path.name for path in out.glob(".*")] == [DIGESTS]
    (out / "other.parquet").touch()
    with pytest.raises(UserError, match="holds other shards, such as 'other.parquet'"):
        pack_folder(str(tmp_path / "in"), out, rows=10, group=5, shuffled=True, jobs=1)


def test_a_finished_shard_is_not_read_again_unless_it_has_changed(tmp_path: Path) -> None:
    """After a kill there may be terabytes of them."""
    write_folder(tmp_path / "in", 30)
    out = tmp_path / "out"

    def digests() -> list[str]:
        index = pack_folder(str(tmp_path / "in"), out, rows=10, group=5, shuffled=True, jobs=1)
        return [shard.sha256 for shard in index.shards]

    before = digests()
    shard = out / "00000-of-00003.parquet"
    then, data = shard.stat(), shard.read_bytes()
    place = data.index(b"images/")  # a key, where only reading everything would find it
    shard.write_bytes(data[:place] + b"IMAGES/" + data[place + 7 :])
    os.utime(shard, ns=(then.st_atime_ns, then.st_mtime_ns))
    with (out / DIGESTS).open("a") as file:
        file.write('["00001-of')  # as a kill leaves it
    assert digests() == before
    os.utime(shard)
    assert digests()[1:] == before[1:] and digests()[0] != before[0]
    shard.unlink()
    assert digests() == before


def test_tar_shards_are_packed_one_to_one(tmp_path: Path) -> None:
    tars = pack(tmp_path / "tars", 50, kind="tar")
    out = tmp_path / "out"
    packed = pack_folder(str(tmp_path / "tars"), out, rows=None, group=7, shuffled=True, jobs=1)
    assert everything(packed) == everything(tars)
    assert [shard.rows for shard in packed.shards] == [shard.rows for shard in tars.shards]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_shard_without_an_image_counts_for_nothing(kind: str, tmp_path: Path) -> None:
    whole = pack(tmp_path / "shards", 30, kind=kind)
    for name in ("shards", "empty"):
        (tmp_path / name).mkdir(exist_ok=True)
        empty = tmp_path / name / f"1a.{kind}"
        empty_parquet(empty) if kind == "parquet" else write_tar(empty, [])
    index = open_index(str(tmp_path / "shards"))
    assert [shard.path for shard in index.shards] == [shard.path for shard in whole.shards]
    assert not index.damaged
    packing = {"rows": None, "group": 7, "shuffled": True, "jobs": 1}
    packed = pack_folder(str(tmp_path / "shards"), tmp_path / "out", **packing)
    assert everything(packed) == everything(whole)
    with pytest.raises(UserError, match="holds no image: its shards are empty"):
        pack_folder(str(tmp_path / "empty"), tmp_path / "none", **packing)
    data = Pixels("shards", str(tmp_path / "shards"), val_path=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="data.val_path .* holds no image to validate on"):
        data.setup("fit")


def test_scores_of_a_shard_without_an_image_are_not_missed(tmp_path: Path) -> None:
    whole = pack(tmp_path / "shards", 30)
    scores = dict.fromkeys(("loss", "entropy"), pa.float32())
    scores |= dict.fromkeys(("width", "height"), pa.int32())
    empty = pa.schema([("hash", pa.int64()), ("image", pa.binary()), *scores.items()])
    pq.write_table(empty.empty_table(), tmp_path / "shards" / "1a.parquet")
    for name in (s.path for s in whole.shards):
        path = tmp_path / "shards" / name
        table = pq.read_table(path)
        for column, kind in scores.items():
            table = table.append_column(column, pa.array([1] * len(table), kind))
        pq.write_table(table, path)
    index = open_index(str(tmp_path / "shards"))
    assert [number for number, _, _ in all_scores(index, INSIDE)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "out"], "does not exist"),
        (["in", "out", "--rows", "0"], "expected at least 1"),
        (["in"], "expected SOURCE and OUT, or shards and --verify"),
        (["in", "out", "--verify"], "expected SOURCE and OUT, or shards and --verify"),
    ],
)
def test_mistakes_of_pixio_shard_are_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "in", 3)
    assert main(["shard", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_options_of_pictures_are_refused_for_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "tars", 12, kind="tar")
    for option in (["--rows", "4"], ["--rows", "10000"], ["--in-order"]):
        assert main(["shard", "tars", "out", *option]) == 2
        error = capsys.readouterr().err
        assert f"{' '.join(option)} is of pictures, but 'tars' holds shards" in error
        assert error.count("\n") == 1 and not (tmp_path / "out").exists()


# --- the index ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_every_group_is_found_by_the_index(kind: str, tmp_path: Path) -> None:
    index = pack(tmp_path / "shards", 350, kind=kind)
    assert everything(index) == {image.key: image.data for image in images(350)}
    assert index.n_groups == (36 if kind == "parquet" else 6)
    for again in (open_index(str(tmp_path / "shards")) for _ in range(2)):
        assert again.digest == index.digest and everything(again) == everything(index)
    assert len(list((tmp_path / "cache").glob("index-*"))) == 1  # it was kept, not built again
    single = open_index(str(tmp_path / "shards" / f"0.{kind}"))
    assert single.rows == 116


def test_other_members_of_a_tar_are_passed_over(tmp_path: Path) -> None:
    entries: list[tuple[str, bytes]] = []
    for image in images(120):
        long = "/".join(["deep"] * 40) + "/" + image.key  # longer than a plain header holds
        entries += [(long, image.data), (image.key[:-4] + ".json", b"{}" * 600), ("notes", b"x")]
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar", entries)
    with tarfile.open(tmp_path / "shards" / "0.tar", "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    index = open_index(str(tmp_path / "shards"))
    assert not index.damaged
    assert list(everything(index).values()) == [image.data for image in images(120)]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("pipe:touch {canary}; cat x.tar", "has no known protocol"),
        ("shell://touch {canary}", "has no known protocol"),
        ("simplecache::http://x/y", "has no known protocol"),
        ("{tmp}/shardz", "did you mean 'shards'"),
        ("{tmp}/empty", "holds no shard"),
    ],
)
def test_what_is_no_place_for_shards_is_refused(path: str, message: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "shards").mkdir()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        open_index(path.format(canary=canary, tmp=tmp_path))
    assert not canary.exists()


@pytest.mark.parametrize(
    "path", ["../outside.parquet", "/etc/x.parquet", "pipe:touch x", "a/../../b"]
)
def test_an_index_that_leads_elsewhere_is_refused(path: str, tmp_path: Path) -> None:
    index = pack(tmp_path / "shards", 20, shards=1)
    shard = index.shards[0]._replace(path=path)
    shard_index.write_index(
        ShardIndex(index.root, [shard]), tmp_path / "shards" / shard_index.INDEX
    )
    with pytest.raises(UserError, match="outside of its folder: refused|no name of a shard"):
        open_index(str(tmp_path / "shards"))


def test_a_shard_that_was_rewritten_is_noticed_where_its_size_changed(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 20)
    packing = {"rows": 10, "group": 5, "shuffled": True, "jobs": 1}
    index = pack_folder(str(tmp_path / "in"), tmp_path / "out", **packing)
    path = tmp_path / "out" / index.shards[0].path
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(UserError, match="remove 'index.parquet', and the shards are indexed anew"):
        open_index(str(tmp_path / "out"))


# --- damage ---------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def rot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 6000] = b"\x81" * 6000
    path.write_bytes(bytes(data))


def blank(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "truncated tar": ("tar", "truncated|missing from its shard|damaged", cut),
    "rot inside a tar": (
        "tar",
        "missing from its shard|corrupt|truncated|damaged|no.*image|no JPEG",
        rot,
    ),
    "0-byte tar": ("tar", "missing from its shard|damaged", blank),
    "missing tar": ("tar", "shard is missing", Path.unlink),
    "truncated parquet": ("parquet", "shard is damaged", cut),
    "rot inside a parquet page": ("parquet", "damaged|corrupt|truncated|not a JPEG", rot),
    "0-byte parquet": ("parquet", "shard is damaged", blank),
    "missing parquet": ("parquet", "shard is missing", Path.unlink),
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_what_a_damaged_shard_lost_is_counted(name: str, first: bool, tmp_path: Path) -> None:
    """Every image is either trained on once or counted once; batches stay whole."""
    kind, reason, damage = DAMAGE[name]
    index = pack(tmp_path / "shards", 300, kind=kind)
    number = 0 if first else 1
    damage(tmp_path / "shards" / f"{number}.{kind}")
    remote.forget_opened()
    batches, bad = one_pass(index)
    assert {len(batch) for batch in batches} == {8}
    seen = [key for batch in batches for key in batch]
    assert len(seen) == len(set(seen))
    whole = set(shards_keys(300))
    assert set(seen) <= whole
    lost = set(shards_keys(300)[number * 100 : (number + 1) * 100])
    assert whole - lost - set(seen) == set() or len(whole - lost - set(seen)) < 8  # the last batch
    # One reader: but for the unfinished batch at the end, what was not seen was counted.
    assert 300 - len(seen) - 8 < len(bad) <= 300 - len(seen)
    assert 0 < len(bad) <= 100
    assert all(place.startswith(f"{number}.{kind}") for place in bad)
    import re

    assert all(re.search(reason, text) for text in bad.values()), set(bad.values())


def shards_keys(n: int) -> list[int]:
    from pixio_lightning.keyed import key_of

    return [key_of(key) for key in keys(n)]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("first", [False, True])
def test_damage_that_is_there_when_the_index_is_built(
    kind: str, first: bool, tmp_path: Path
) -> None:
    pack(tmp_path / "shards", 300, kind=kind)
    number = 0 if first else 2
    blank(tmp_path / "shards" / f"{number}.{kind}")
    (empty_parquet if kind == "parquet" else lambda path: write_tar(path, []))(
        tmp_path / "shards" / f"9.{kind}"
    )
    index = open_index(str(tmp_path / "shards"))
    assert index.rows == 200
    assert index.damaged == [(f"{number}.{kind}", "shard is damaged")]
    assert len(everything(index)) == 200
    if kind == "tar":  # what lies before the damage can be used
        for damage, word in ((rot, "damaged"), (cut, "truncated")):
            pack(tmp_path / word, 300, kind=kind)
            damage(tmp_path / word / "1.tar")
            index = open_index(str(tmp_path / word))
            assert [place for place, _ in index.damaged] == ["1.tar"]
            assert index.damaged[0][1].startswith(f"{word} after ")
            assert 200 < index.rows < 300 and len(everything(index)) == index.rows


def test_bad_images_are_named_and_replaced(tmp_path: Path) -> None:
    entries = [(image.key, image.data) for image in images(60)]
    entries[7] = ("images/half.jpg", jpeg(7)[:-90])
    entries[21] = ("images/text.jpg", b"This is no picture at all. " * 9)
    entries[33] = ("images/none.png", b"")
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar", entries)
    index = open_index(str(tmp_path / "shards"))
    batches, bad = one_pass(index, batch_size=19)
    assert [len(batch) for batch in batches] == [19, 19, 19]
    assert bad == {
        "0.tar:images/half.jpg": "truncated",
        "0.tar:images/text.jpg": "no JPEG, PNG, WebP, TIFF or BMP",
        "0.tar:images/none.png": "empty file",
    }


# --- networks and disks ---------------------------------------------------------------------------


class ClientError(Exception):
    """Of a client of an object store, none of whose errors has a class in common with others."""


PASSING = {
    "shard cannot be read (Input/output error)": OSError(errno.EIO, "Input/output error"),
    "shard cannot be read (Stale file handle)": OSError(errno.ESTALE, "Stale file handle"),
    "shard cannot be read (TimeoutError)": TimeoutError("read timed out"),
    "shard cannot be read (ClientError)": ClientError("slow down"),
}


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("reason", PASSING)
def test_a_read_that_fails_in_passing_costs_no_image(
    reason: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.01))
    monkeypatch.setattr(shard_index, "GROUP_ROWS", 10)  # of a tar
    with stored(pack(tmp_path / "shards", 40, shards=2, kind=kind)) as index:
        whole = everything(index)
        assert len(whole) == 40
        for failing in (0, 3):
            Store.failures[:] = [PASSING[reason]] * 2
            again = {i.key: i.data for i in read_group(index, failing) if not i.reason}
            assert len(again) == 10 and again.items() <= whole.items() and not Store.failures
        # What fails for longer is lost with what was said, but not what comes after it.
        Store.failures[:] = [PASSING[reason]] * 3
        assert {image.reason for image in read_group(index, 1)} == {reason}
        assert everything(index) == whole
        remote.forget_opened()
        Store.failures[:] = [PASSING[reason]] * 2
        names = [shard.path for shard in index.shards]
        indexed = shard_index.build_index(index.root, names)
        assert not indexed.damaged and not Store.failures
        assert indexed.n_groups == index.n_groups


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError("bucket/0"), "shard is missing"),
        (PermissionError("bucket/0"), "shard cannot be read (PermissionError)"),
        (PermissionError(errno.EACCES, "no"), "shard cannot be read (Permission denied)"),
        (MemoryError(), "shard cannot be read (MemoryError)"),
        (pa.ArrowInvalid("no magic"), "shard is damaged"),
        (OSError("Couldn't deserialize thrift"), "shard is damaged"),
    ],
)
def test_what_another_try_does_not_change_is_read_once(
    error: Exception, reason: str, tmp_path: Path
) -> None:
    with stored(pack(tmp_path / "shards", 40, shards=2)) as index:
        Store.failures[:] = [error]
        assert {image.reason for image in read_group(index, 0)} == {reason}
        assert not [image.reason for image in read_group(index, 0) if image.reason]


def test_a_file_that_used_up_its_tries_is_tried_once_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.01))
    failure = OSError(errno.EIO, "Input/output error")

    def tries(group: int) -> int:
        Store.failures[:] = [failure] * 9
        assert all(image.reason for image in read_group(index, group))
        left = len(Store.failures)
        Store.failures.clear()
        return 9 - left

    with stored(pack(tmp_path / "shards", 40, shards=2)) as index:
        assert [tries(group) for group in (0, 1, 0, 3, 2)] == [3, 1, 1, 3, 1]
        assert len(everything(index)) == 40  # each is tried, whatever failed before
        monkeypatch.setattr(remote, "_GIVEN_UP", 0.0)
        remote.forget_opened()
        assert [tries(group) for group in (0, 1, 0)] == [3, 3, 3]


def test_what_failed_in_passing_is_not_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.01))
    monkeypatch.setattr(remote, "PROTOCOLS", (*remote.PROTOCOLS, "store"))
    local = pack(tmp_path / "shards", 40, shards=2)

    def start() -> ShardIndex:
        remote.forget_opened()
        return open_index("store://bucket")

    with stored(local):
        Store.objects["bucket/2.parquet"] = b"PAR1, but no more than that"
        Store.failures[:] = [ConnectionError(errno.ETIMEDOUT, "Connection timed out")] * 9
        failed = start()
        Store.failures.clear()
        assert ("shard cannot be read (Connection timed out)") in dict(failed.damaged).values()
        assert not list((tmp_path / "cache").glob("*/*"))
        # Damage lasts, and is kept; what an earlier start kept of a failure is made anew.
        assert start().rows == 40 and start().damaged == [("2.parquet", "shard is damaged")]
        (kept,) = (tmp_path / "cache").glob(f"*/{shard_index.INDEX}")
        Store.fetched.clear()
        assert start().rows == 40 and not Store.fetched
        shard_index.write_index(ShardIndex("", local.shards[:1], failed.damaged), kept)
        assert start().rows == start().rows == 40


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_nothing_is_fetched_from_a_store_but_what_is_asked_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups are read in random order: what follows one in its file is for nothing."""
    monkeypatch.setattr(shard_index, "GROUP_ROWS", 10)  # of a tar
    with stored(pack(tmp_path / "shards", 240, shards=2, kind=kind)) as index:
        for group in (0, 12):  # with the footers
            read_group(index, group)
        Store.fetched.clear()
        groups = [int(group) for group in np.random.default_rng(0).permutation(24)]
        read = [image for group in groups for image in read_group(index, group)]
        assert sorted(image.key for image in read) == keys(240)
        held = sum(len(image.data) for image in read)
        if kind == "tar":
            held = sum(int((s.group_end - s.group_start).sum()) for s in index.shards)
        assert held <= sum(Store.fetched) < 1.2 * held


# --- what must never run --------------------------------------------------------------------------


class Canary:
    """Unpickling one leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_nothing_in_a_shard_runs_or_unpacks(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = gzip.compress(bytes(50_000_000))
    weights = io.BytesIO()
    torch.save(Canary(canary), weights)
    hostile = [
        ("a.pyd", pickle.dumps(Canary(canary))),
        ("a.pkl", pickle.dumps(Canary(canary))),
        ("a.pth", weights.getvalue()),
        ("a.jpg.gz", bomb),
        ("b.jpg", bomb),
        ("c.jpg", pickle.dumps(Canary(canary))),
        ("pipe:touch canary.jpg", b"x" * 100),
        (f"../../{'x' * 20}.jpg", jpeg(1)),
        (str(tmp_path / "absolute.jpg"), jpeg(2)),
    ]
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar", hostile + [(i.key, i.data) for i in images(60)])
    before = {path for path in tmp_path.rglob("*")}
    index = open_index(str(tmp_path / "shards"))
    batches, bad = one_pass(index)
    assert len(bad) == 3 and len(batches) == 7
    assert set(bad.values()) == {"no JPEG, PNG, WebP, TIFF or BMP"}
    assert not canary.exists()
    after = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert after == before


def test_what_is_too_large_is_not_even_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_decode import huge_png

    for module in (shards, shard_index):
        monkeypatch.setattr(module, "MAX_MEMBER", 100_000)
        monkeypatch.setattr(module, "MAX_RANGE", 200_000)
    entries = [(image.key, image.data) for image in images(40)]
    entries.insert(10, ("images/large.jpg", bytes(150_000)))
    entries.insert(20, ("images/huge.jpg", bytes(1_000_000)))
    entries.insert(30, ("images/bomb.png", huge_png(13_000)[:90_000]))
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar", entries)
    index = open_index(str(tmp_path / "shards"))
    batches, bad = one_pass(index)
    assert len(batches) == 5
    assert {reason.split()[0] for reason in bad.values()} == {"over"}
    assert sorted(bad.values())[-1] == "over 64 megapixels" and len(bad) == 3


def test_a_row_group_survives_the_loss_of_its_neighbour(tmp_path: Path) -> None:
    """Rot in one page must not take the shard with it."""
    index = pack(tmp_path / "shards", 100, shards=1)
    path = tmp_path / "shards" / "0.parquet"
    chunk = pq.read_metadata(path).row_group(4).column(2)
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    data[start : start + 12] = b"\xff" * 12
    path.write_bytes(bytes(data))
    remote.forget_opened()
    reasons = [read_group(index, group)[0].reason for group in range(10)]
    assert [bool(reason) for reason in reasons] == [group == 4 for group in range(10)]


def test_shards_that_are_not_what_their_index_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    (tmp_path / "photos").mkdir()
    for i in range(30):
        (tmp_path / f"photos/{i:02d}.jpg").write_bytes(jpeg(i))
    assert main(["shard", str(tmp_path / "photos"), str(shards), "--rows", "10"]) == 0
    line = ["shard", str(shards), "--verify"]
    assert main(line) == 0
    assert "3 shards are what the index says; it has the digests of 3" in capsys.readouterr().out
    _, first, second = sorted(shards.glob("0*.parquet"))
    data = bytearray(first.read_bytes())
    data[100] ^= 1  # of the same size
    first.write_bytes(data)
    assert main(line) == 2
    assert "1 of 3 shards" in (said := capsys.readouterr().err)
    assert f"{first.name} has another sha256; fetch" in said
    first.write_bytes(data[:-1])
    second.unlink()
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "2 of 3" in said and "bytes instead of" in said and f"{second.name} is missing" in said
    for option in (["--in-order"], ["--rows", "5"]):
        assert main([*line, *option]) == 2
        assert "--verify takes no option but --jobs" in capsys.readouterr().err
    assert main(["shard", str(tmp_path), "--verify"]) == 2
    assert "has no index.parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("n", "groups"), [(1, 1), (7, 7), (42, 11), (100, 10), (101, 11), (1000, 10)]
)
def test_a_small_folder_makes_groups_of_which_one_can_be_held_out(
    n: int, groups: int, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(n):
        (tmp_path / f"in/{i}.jpg").write_bytes(jpeg(i))
    index = pack_folder(
        str(tmp_path / "in"), tmp_path / "out", rows=1000, group=100, shuffled=False, jobs=1
    )
    assert index.rows == n and index.n_groups == groups
    if groups > 1:
        held_out = held_out_groups(index, limit=n)
        assert index.group_rows[held_out].sum() <= max(1, n / 10)
