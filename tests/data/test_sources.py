"""Sources find every image once, under names that stay, and run nothing they find."""

import os
import pickle
import time
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.hub import HubSource
from pixio_lightning.data.hub import content as content_of
from pixio_lightning.data.sources import FolderSource, Source, Subset, hold_out
from pixio_lightning.errors import UserError


def paint(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (value, 0, 0)).save(path)
    return path


def refusal(build: object, *arguments: object, **options: object) -> str:
    with pytest.raises(UserError) as refused:
        build(*arguments, **options)  # type: ignore[operator]
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    return str(refused.value)


# --- folders ----------------------------------------------------------------------------------


def test_a_folder_is_searched_at_any_depth(tmp_path: Path) -> None:
    wanted = ["a/b/c/deep.webp", "a/one.JPG", "a/two.Jpeg", "top.png"]
    for i, name in enumerate(wanted):
        paint(tmp_path / name, i)
    for other in (".hidden.png", "a/._fork.jpg", ".cache/thumbnail.png", "moving.gif"):
        paint(tmp_path / other)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    source = FolderSource(tmp_path)
    assert [source.name(i) for i in range(len(source))] == wanted
    assert [source.label(i) for i in range(len(source))] == ["c", "a", "a", None]
    assert source.read(3) == (tmp_path / "top.png").read_bytes()


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    paint(root / "m" / "near.png")
    (root / "m" / "back").symlink_to(root)
    for i in range(5):
        paint(tmp_path / f"outside{i}" / "far.png")
        for letter in "ztpga":
            (root / f"{letter}{i}").symlink_to(tmp_path / f"outside{i}")
    (root / "lost.png").symlink_to(tmp_path / "nowhere.png")
    # Of the names of a folder the first is taken, not the one the file system lists first.
    outside = [f"a{i}/far.png" for i in range(5)]
    assert list(FolderSource(root).names) == [*outside, "lost.png", "m/near.png"]


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"caf\xea.png", "日本.png".encode()):
        paint(tmp_path / "x.png").rename(tmp_path / os.fsdecode(name))
    source = FolderSource(tmp_path)
    train, held_out = hold_out(source, limit=1)
    assert len(train) == 2 and held_out.read(0)


def test_a_missing_or_empty_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    missing = refusal(FolderSource, tmp_path / "photso")
    assert missing == f"data.path '{tmp_path}/photso' is not a folder, did you mean 'photos'?"
    assert "holds no image; expected .jpg" in refusal(FolderSource, tmp_path / "photos")
    file = paint(tmp_path / "a.png")
    named = refusal(FolderSource, file, key="data.val_path")
    assert named.startswith(f"data.val_path '{file}' is not a folder")


def test_a_folder_that_nothing_changed_in_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.png", "a/b/2.png", "c/3.png"):
        paint(tmp_path / name)
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "c"):
        os.utime(folder, (1e9, 1e9))
    listed = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scan(path))
    assert list(FolderSource(tmp_path / "a").names) == ["1.png", "b/2.png"]
    assert list(FolderSource(tmp_path).names) == ["a/1.png", "a/b/2.png", "c/3.png"]
    assert sorted(listed) == sorted(["a", "b", tmp_path.name, "c"])
    paint(tmp_path / "a" / "b" / "4.png")
    (tmp_path / "a" / "b" / "2.png").unlink()
    assert list(FolderSource(tmp_path).names) == ["a/1.png", "a/b/4.png", "c/3.png"]


def test_what_is_added_within_a_tick_of_the_disk_s_clock_is_found(tmp_path: Path) -> None:
    now = time.time()
    for name in ("a.png", "b.png"):
        paint(tmp_path / name)
        os.utime(tmp_path, (now, now))
        assert FolderSource(tmp_path).names[-1] == name


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    paint(tmp_path / "open" / "a.png")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        text = refusal(FolderSource, tmp_path)
    finally:
        closed.chmod(0o700)
    assert text == f"data.path: folder '{closed}' cannot be read (Permission denied)"


# --- Hugging Face data sets -------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pictures() -> datasets.Dataset:
    features = datasets.Features(
        {
            "number": datasets.Value("int32"),
            "image": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    images = [Image.fromarray(np.full((20, 20, 3), 9 * i, np.uint8)) for i in range(4)]
    # The last two have no class (-1 is how the hub writes it), the very last no image.
    rows = {"number": range(5), "image": [*images, None], "kind": [0, 1, 1, -1, None]}
    return datasets.Dataset.from_dict(rows, features=features)


def check(source: Source, split: str) -> None:
    assert [source.name(i) for i in range(5)] == [f"{split}/{i:08d}" for i in range(5)]
    assert [source.label(i) for i in range(5)] == ["cat", "dog", "dog", None, None]
    assert all(source.read(i).startswith(b"\x89PNG") for i in range(4))
    assert len({source.read(i) for i in range(4)}) == 4
    assert source.read(4) == b""


def test_parquet(tmp_path: Path) -> None:
    pictures().to_parquet(tmp_path / "set" / "train.parquet")
    check(HubSource(tmp_path / "set", "train"), "train")
    check(HubSource(tmp_path / "set", "train", column="image"), "train")


def test_a_broken_second_column_of_images_harms_no_row(tmp_path: Path) -> None:
    rows = pictures().add_column("thumbnail", [{"bytes": b"no picture", "path": None}] * 5)
    rows.cast_column("thumbnail", datasets.Image()).to_parquet(tmp_path / "set" / "train.parquet")
    check(HubSource(tmp_path / "set", "train", column="image"), "train")


def test_a_row_reads_no_column_but_its_own(tmp_path: Path) -> None:
    pictures().add_column("huge", ["x" * 100_000] * 5).to_parquet(tmp_path / "set/train.parquet")
    assert HubSource(tmp_path / "set", "train").data[0].keys() == {"image"}


def test_parquet_that_was_not_written_by_datasets(tmp_path: Path) -> None:
    data = [paint(tmp_path / f"{i}.png", i).read_bytes() for i in range(3)]
    cells = [{"bytes": content, "path": None} for content in data]
    for name, column in (("structs", [*cells, None]), ("plain", [*data, None])):
        (tmp_path / name).mkdir()
        table = pa.table({"number": range(4), "picture": column})
        pq.write_table(table, tmp_path / name / "train.parquet")
        source = HubSource(tmp_path / name, "train")
        assert [source.read(i) for i in range(4)] == [*data, b""]
        assert source.label(0) is None


def test_arrow(tmp_path: Path) -> None:
    pictures().save_to_disk(tmp_path / "one")
    check(HubSource(tmp_path / "one", "train"), "train")
    both = datasets.DatasetDict({"train": pictures().select([0]), "validation": pictures()})
    both.save_to_disk(tmp_path / "both")
    check(HubSource(tmp_path / "both", "validation"), "validation")
    assert len(HubSource(tmp_path / "both", "train")) == 1
    assert "'validaton', did you mean 'validation'?" in refusal(
        HubSource, tmp_path / "both", "validaton"
    )


def test_image_folder(tmp_path: Path) -> None:
    for i, kind in enumerate(("cat", "dog", "dog")):
        paint(tmp_path / "set" / "train" / kind / f"{i}.png", i)
    source = HubSource(tmp_path / "set", "train")
    assert [source.label(i) for i in range(3)] == ["cat", "dog", "dog"]
    assert source.read(2) == (tmp_path / "set" / "train" / "dog" / "2.png").read_bytes()


def test_images_in_a_zip(tmp_path: Path) -> None:
    contents = [paint(tmp_path / f"{i}.png", i).read_bytes() for i in range(3)]
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set/train.zip", "w") as archive:
        for i, content in enumerate(contents):
            archive.writestr(f"pictures/{i}.png", content)
    source = HubSource(tmp_path / "set", "train")
    assert [source.read(i) for i in range(3)] == contents
    for path in ("zip://a.png::/nowhere.zip", f"zip://a.png::{tmp_path}/0.png"):
        with pytest.raises(BadImage, match="its zip cannot be read"):
            content_of({"bytes": None, "path": path})


def test_a_folder_that_would_be_a_pattern_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "set [v1]" / "train" / "a.png")
    assert "holds [ ], which" in refusal(HubSource, tmp_path / "set [v1]", "train")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    pictures().to_parquet(folder / "train.parquet")
    split = refusal(HubSource, folder, "trian")
    assert split.startswith(f"data.path '{folder}' cannot be read") and "['train']" in split
    column = refusal(HubSource, folder, "train", column="imgae")
    assert "columns number, image, kind (images: image), did you mean 'image'?" in column
    assert "data.column is 'number'" in refusal(HubSource, folder, "train", column="number")
    missing = refusal(HubSource, tmp_path / "sett", "train", key="data.val_path")
    assert missing == f"data.val_path '{tmp_path}/sett' is not a folder, did you mean 'set'?"
    (folder / "train.parquet").write_bytes((folder / "train.parquet").read_bytes()[:-50])
    assert "cannot be read" in refusal(HubSource, folder, "train")
    (tmp_path / "empty").mkdir()
    assert "cannot be read" in refusal(HubSource, tmp_path / "empty", "train")


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def test_nothing_that_lies_in_a_data_set_is_run(tmp_path: Path) -> None:
    canary = tmp_path / "sang"
    script = tmp_path / "script"
    script.mkdir()
    (script / "script.py").write_text(f"open({str(canary)!r}, 'w')\n")
    assert "scripts are no longer supported" in refusal(HubSource, script, "train")
    for header in ("", "---\nconfigs:\n- config_name: default\n  data_files: train.pkl\n---\n"):
        pickled = tmp_path / f"pickled{len(header)}"
        pickled.mkdir()
        (pickled / "train.pkl").write_bytes(pickle.dumps(Canary(canary)))
        (pickled / "README.md").write_text(header)
        assert "cannot be read" in refusal(HubSource, pickled, "train")
    assert not canary.exists()
    pickle.loads((pickled / "train.pkl").read_bytes())
    assert canary.exists()  # it would have sung


# --- held-out images --------------------------------------------------------------------------


class Names:
    """A source of names alone."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> bytes:
        return self.names[index].encode()

    def label(self, index: int) -> str | None:
        return self.names[index][0]


def split(names: list[str], limit: int) -> tuple[list[str], list[str]]:
    parts = hold_out(Names(names), limit=limit)
    return tuple([part.name(i) for i in range(len(part))] for part in parts)  # type: ignore


@pytest.mark.parametrize(("n", "limit", "count"), [(2, 9, 1), (9, 9, 1), (50, 9, 5), (500, 9, 9)])
def test_a_tenth_is_held_out(n: int, limit: int, count: int) -> None:
    names = [f"{i:04d}" for i in range(n)]
    train, held_out = split(names, limit)
    assert sorted(train + held_out) == names and len(held_out) == count
    # By name alone: no other order or machine holds out others.
    assert set(split(names[::-1], limit)[1]) == set(held_out)


def test_files_that_are_added_put_none_of_the_old_into_the_held_out_set() -> None:
    old = [f"{i:04d}" for i in range(1000)]
    before, after = split(old, 50)[1], split([*old, *(f"new{i}" for i in range(200))], 50)[1]
    assert set(after) & set(old) <= set(before)
    assert 25 < len(set(after) & set(before)) < 50


def test_one_image_cannot_be_split() -> None:
    assert "too few" in refusal(hold_out, Names(["a"]), limit=5)


def test_a_subset_keeps_names_contents_and_classes() -> None:
    part = Subset(Names(["ax", "bx", "cx"]), [2, 0])
    assert len(part) == 2
    assert [(part.name(i), part.read(i), part.label(i)) for i in range(2)] == [
        ("cx", b"cx", "c"),
        ("ax", b"ax", "a"),
    ]
