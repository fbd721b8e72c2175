"""Data sets that describe themselves in hostile ways contact nothing and fill no memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from traced_memory import traced

from pixio_lightning.cli.main import main
from pixio_lightning.data import parquet
from pixio_lightning.data.decode import BadImage, decode_pixels
from pixio_lightning.data.hub import HubSource
from pixio_lightning.data.shards.format import Shard, ShardIndex, read_group
from pixio_lightning.data.shards.index import INDEX, open_index, read_index, write_index
from pixio_lightning.errors import UserError
from pixio_lightning.files import open_parquet

_MOST_ROWS = 1 << 20  # of a group


def encoded(form: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form, **how)
    return file.getvalue()


def images(count: int = 3) -> pa.Table:
    return pa.table({"image": pa.array([{"bytes": encoded(), "path": None}] * count)})


# --- folders that the library of Hugging Face reads -----------------------------------------------


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and what is asked of it."""
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


CARDS = {
    "address": "data_files: URL/x.parquet",
    "address of a split": "data_files: [{split: train, path: 'URL/x.parquet'}]",
    "addresses of a split": "data_files: [{split: train, path: ['*.parquet', 'URL/x.parquet']}]",
    "address in a chain": "data_files: 'zip://*::URL/x.zip'",
    "folder": "data_dir: URL/",
    "absolute": "data_files: OTHER/*.parquet",
    "above": "data_files: '../other/*.parquet'",
    "home": "data_files: '~/*.parquet'",
}


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("card", CARDS)
def test_a_card_names_nothing_elsewhere(
    card: str, file: str, requests: tuple[str, list[str]], tmp_path: Path
) -> None:
    for name in ("set", "other"):
        (tmp_path / name).mkdir()
        pq.write_table(images(), tmp_path / name / "train.parquet")
    said = CARDS[card].replace("URL", requests[0]).replace("OTHER", str(tmp_path / "other"))
    configs = f"configs:\n- config_name: default\n  {said}\n"
    text = f"---\n{configs}---\n# A set\n" if file == "README.md" else configs
    (tmp_path / "set" / file).write_text(text)
    with pytest.raises(UserError, match="outside of its folder: refused") as refused:
        HubSource(tmp_path / "set", "train")
    assert str(refused.value).isprintable() and not requests[1]


def test_a_card_may_say_which_files_are_which_split(tmp_path: Path) -> None:
    (tmp_path / "set/parts").mkdir(parents=True)
    pq.write_table(images(), tmp_path / "set/parts/a.parquet")
    said = "data_files: [{split: held_out, path: 'parts/*.parquet'}]"
    text = f"---\nlicense: mit\nconfigs:\n- config_name: default\n  {said}\n---\n"
    (tmp_path / "set/README.md").write_text(text)
    assert len(HubSource(tmp_path / "set", "held_out")) == 3


def test_a_card_without_a_heading_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pq.write_table(images(), tmp_path / "set/train.parquet")
    (tmp_path / "set/README.md").write_text("# A set\n\nof https://example.org\n---\n")
    assert len(HubSource(tmp_path / "set", "train")) == 3


SAVED: dict[str, dict[str, str]] = {
    "no keys": {"state.json": "{}", "dataset_info.json": "{}"},
    "lists": {"state.json": "[]", "dataset_info.json": "[]"},
    "deep": {"state.json": "[" * 100_000, "dataset_info.json": "{}"},
    "splits that are none": {"dataset_dict.json": '{"splits": 5}'},
    "list of splits": {"dataset_dict.json": "[]"},
}


@pytest.mark.parametrize("kind", SAVED)
def test_a_saved_set_that_is_none(kind: str, tmp_path: Path) -> None:
    for name, text in SAVED[kind].items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="cannot be read as a data set"):
        HubSource(tmp_path, "train")


FEATURES = ['{"info": 5}', '{"info": {"features": {"image": 5}}}']
FEATURES += ['{"info": {"features": {"image": {"_type": "os.system"}}}}']


@pytest.mark.parametrize("features", FEATURES)
def test_features_that_are_none(features: str, tmp_path: Path) -> None:
    table = images().replace_schema_metadata({"huggingface": features})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match="cannot be read as a data set"):
        HubSource(tmp_path, "train")


# --- shards ---------------------------------------------------------------------------------------


ROW = {"path": "a.parquet", "size": 9, "sha256": "", "rows": 3, "group_rows": [3]}
ROW |= {"group_start": [], "group_end": [], "group_max_loss": []}
TAR = ROW | {"path": "a.tar", "group_rows": [3, 4], "group_start": [0, 9], "group_end": [9, 19]}
WRONG: list[dict[str, Any]] = [
    {"path": None},
    {"path": "\x1b[2Ja.parquet"},
    {"path": "a\0.parquet"},
    {"path": "a.pkl"},
    {"size": None},
    {"sha256": None},
    {"group_rows": None},
    {"group_rows": [-5]},
    {"group_rows": [None]},
    {"group_rows": [_MOST_ROWS + 1]},
    {"group_rows": [2**31 - 1] * 3},
    {"path": "a.tar"},
    {"path": "a.tar", "group_start": [10], "group_end": [0]},
    {"path": "a.tar", "group_start": [-1], "group_end": [10]},
    {"group_max_loss": [1.0, 2.0]},
    {"group_max_loss": [None]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_a_row_of_an_index_that_is_none(wrong: dict[str, Any], tmp_path: Path) -> None:
    shard = Shard("a.parquet", 9, "", np.array([3], np.int32))
    write_index(ShardIndex(str(tmp_path), [shard]), tmp_path / INDEX)
    schema = pq.read_schema(tmp_path / INDEX)
    before = [TAR, ROW | {"group_rows": []}, TAR]
    for right in ([], before):
        table = pa.Table.from_pylist([*right, ROW | wrong, ROW | wrong], schema=schema)
        pq.write_table(table, tmp_path / INDEX, row_group_size=2)
        found = f"is no index of shards: .* in row {len(right)}$"
        with pytest.raises(UserError, match=found) as refused:
            read_index(str(tmp_path))
        assert str(refused.value).isprintable()
    pq.write_table(pa.Table.from_pylist(before, schema=schema), tmp_path / INDEX)
    read = read_index(str(tmp_path)).shards  # without the one that has no image
    assert [shard.group_end.tolist() for shard in read] == [[9, 19], [9, 19]]


def test_an_index_is_read_as_arrays_and_not_as_numbers(tmp_path: Path) -> None:
    """Of a group of a tar an index has 20 bytes; as numbers of Python it took over 100."""
    shards, groups = 50, 1000
    rows, ends = np.full(groups, 100, np.int32), np.arange(groups) + 10**9
    parts = [Shard(f"{i}.tar", 9, "", rows, ends, ends) for i in range(shards)]
    write_index(ShardIndex(str(tmp_path), parts), tmp_path / INDEX)
    read_index(str(tmp_path))  # what is made once
    _, peak = traced(lambda: read_index(str(tmp_path)))
    index = read_index(str(tmp_path))
    assert index.rows == shards * groups * 100
    assert peak / index.n_groups < 75


def test_notes_of_an_index_that_are_no_text(tmp_path: Path) -> None:
    write_index(ShardIndex(str(tmp_path), []), tmp_path / INDEX)
    table = pq.read_table(tmp_path / INDEX).replace_schema_metadata({"damaged": b"\xff"})
    pq.write_table(table, tmp_path / INDEX)
    with pytest.raises(UserError, match="is no index of shards"):
        read_index(str(tmp_path))


PACKED: dict[str, dict[str, Any]] = {
    "packed": {"use_dictionary": False},
    "one value for all rows": {"use_dictionary": True, "dictionary_pagesize_limit": 1 << 30},
}


@pytest.mark.parametrize("how", PACKED)
def test_a_group_that_unpacks_to_far_more_than_its_size_is_bad(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MAX_GROUP", 1 << 26)  # a sixteenth of what it is
    (folder := tmp_path / "set").mkdir()
    zeros = pa.table({"image": pa.array([bytes(1_000_000)] * 100)})
    pq.write_table(zeros, folder / "a.parquet", compression="zstd", **PACKED[how])
    pq.write_table(images(), folder / "b.parquet")
    assert (folder / "a.parquet").stat().st_size < 50_000
    index = open_index(str(folder))
    large, small = ({image.reason for image in read_group(index, group)} for group in range(2))
    assert small == {""} and len(large) == 1 and large.pop().startswith("a row group over")
    with pytest.raises(UserError, match="a.parquet', of .* bytes, unpacks to a row group over"):
        HubSource(folder, "train")
    (folder / "a.parquet").unlink()
    assert len(HubSource(folder, "train")) == 3


def test_a_shard_that_claims_more_rows_than_a_group_has_is_left_out(tmp_path: Path) -> None:
    none = pa.array([None], pa.binary()).take(pa.array(np.zeros(_MOST_ROWS + 1, np.int32)))
    pq.write_table(pa.table({"image": none}), tmp_path / "a.parquet", row_group_size=2 * _MOST_ROWS)
    pq.write_table(images(), tmp_path / "b.parquet")
    index = open_index(str(tmp_path))
    assert [shard.path for shard in index.shards if shard.rows] == ["b.parquet"]
    assert index.damaged == [("a.parquet", f"a row group over {_MOST_ROWS:,} rows")]


# --- pictures -------------------------------------------------------------------------------------


def test_a_picture_of_many_scans_is_refused_before_any_is_decoded() -> None:
    whole = encoded("JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    assert decode_pixels(whole, max_megapixels=64).shape == (64, 64, 3)
    with pytest.raises(BadImage, match="over 100 scans"):
        decode_pixels(whole[:-2] + 100 * last + whole[-2:], max_megapixels=64)
    # So may one that is not progressive, by scans without content.
    whole = encoded("JPEG")
    at = whole.index(b"\xff\xda")
    empty = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    with pytest.raises(BadImage, match="over 100 scans"):
        decode_pixels(whole[:at] + 100 * empty + whole[at:], max_megapixels=64)


def test_bytes_behind_a_picture_and_in_its_segments_are_no_scans() -> None:
    """A phone appends a film, and keeps a thumbnail of its own in a segment."""
    film = bytes(range(256)) + 200 * b"\xff\xda\x00\x08"
    whole = encoded("JPEG")
    assert decode_pixels(whole + film, max_megapixels=64).shape == (64, 64, 3)
    segment = b"\xff\xe5" + (len(film) + 2).to_bytes(2, "big") + film
    assert decode_pixels(whole[:2] + segment + whole[2:], max_megapixels=64).shape == (64, 64, 3)


def test_names_of_pictures_only_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    for i in range(6):
        (tmp_path / f"set/{i}.png").write_bytes(encoded())
    (tmp_path / "set/a\x1b]0;owned\x07\x1b[2J\nval loss  0.001.png").write_bytes(b"x")
    words = ["-c", "pretrain/demo", "-c", "with/debug", "--data.source=folder"]
    words += ["--data.path", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    words += ["--ckpt_path", "none"]
    assert main(["predict", *words]) == 0
    told = capsys.readouterr().out
    assert "unusable: a?]0;owned??[2J?val loss  0.001.png (no JPEG" in told
    assert all(line.isprintable() for line in told.splitlines())
    bad = (tmp_path / "out/predictions/bad_files.txt").read_bytes().splitlines()
    assert len(bad) == 1 and bad[0].endswith(
        b"?val loss  0.001.png\tno JPEG, PNG, WebP, TIFF or BMP"
    )


@pytest.mark.parametrize("name", ["image", "observation.image"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.binary(1 << 16)])
def test_a_value_in_every_row_is_told_before_it_fills_the_memory(
    name: str, kind: pa.DataType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the column's name holds dots, as those of robots do."""
    monkeypatch.setattr(parquet, "MAX_GROUP", 1 << 20)
    table = pa.table({name: pa.array([bytes(1 << 16)] * 1000, kind)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    sizes: list[int] = []
    read = pq.ParquetFile.iter_batches

    def seen(*args: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        for batch in read(*args, **options):
            sizes.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", seen)
    with pytest.raises(parquet.TooLarge), open_parquet(tmp_path / "a.parquet") as file:
        parquet.read_rows(file, 0, [name])
    assert sum(sizes) < 2 << 20


def test_a_footer_tells_of_columns_whose_names_hold_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MAX_GROUP", 1 << 10)
    table = pa.table({"a.b": [list(range(1000))], "a.bc": [1]})
    pq.write_table(table, tmp_path / "a.parquet")
    with open_parquet(tmp_path / "a.parquet") as file:
        assert parquet.read_rows(file, 0, ["a.bc"]).num_rows == 1
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)  # it is not even begun
        with pytest.raises(parquet.TooLarge):
            parquet.read_rows(file, 0, ["a.b"])


def test_lists_of_equal_numbers_are_told_by_the_footer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"state": [[0.0] * 1000] * 2000})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 13
    monkeypatch.setattr(parquet, "MAX_GROUP", 1 << 23)
    with open_parquet(tmp_path / "a.parquet") as file:
        assert file.metadata.row_group(0).total_byte_size < 1 << 17
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)  # it is not even begun
        with pytest.raises(parquet.TooLarge):
            parquet.read_rows(file, 0, ["state"])
