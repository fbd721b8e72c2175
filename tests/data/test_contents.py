"""What a run says of its data: how many there are, of which split, and what is not read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixio_heads.classification.data import ClassificationData
from pixio_heads.segmentation.data import SegmentationData
from pixio_lightning.data.batches import collate
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.data.shards.pack import pack
from pixio_lightning.errors import UserError


def pictures(folder: Path, n: int, *, suffix: str = ".png", width: int = 32) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 255, (32, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}{suffix}")
    return folder


def opened(data: Pixels) -> Pixels:
    data.setup("fit")
    return data


def test_images_of_a_folder_and_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    root = pictures(tmp_path / "in", 12)
    pictures(root / "more", 5, suffix=".gif")
    (root / "a.heic").touch()
    (root / "notes.txt").touch()
    said = opened(Pixels("folder", str(root), val_images=1)).contents()
    assert said == {
        "images": "11 to train on, 1 held out; skipped of other formats 5 .gif, 1 .heic"
    }
    pack(str(root), tmp_path / "out", rows=6, group=3, shuffled=True, jobs=1)
    said = opened(Pixels("shards", str(tmp_path / "out"), val_images=3)).contents()
    assert said == {
        "images": "9 to train on, 3 held out; skipped *.gif: 5 of them, *.heic: 1 of them"
    }


def test_classes_and_splits(tmp_path: Path) -> None:
    for split, n in (("Train", 6), ("valid", 3)):
        pictures(tmp_path / split / "ant", n)
        pictures(tmp_path / split / "bee", n // 3)
    data = ClassificationData("folder", str(tmp_path))
    data.samples_of("train"), data.samples_of("val")
    assert data.contents() == {
        "samples": "8 train in Train/, 4 val in valid/",
        "classes": "2: 6 ant, 2 bee",
    }


def test_a_tenth_that_is_held_out(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 10)
    pictures(tmp_path / "masks", 1)
    (tmp_path / "images/a.gif").touch()
    data = SegmentationData("folder", str(tmp_path), num_classes=2)
    assert data.contents() == {"samples": "skipped of other formats 1 .gif"}
    data.samples_of("train"), data.samples_of("val")
    assert data.contents() == {"samples": "9 train, 1 val, skipped of other formats 1 .gif"}


def test_no_held_out_image_can_be_used(tmp_path: Path) -> None:
    data = opened(Pixels("folder", str(pictures(tmp_path, 6)), image_size=32, num_workers=0))
    (tmp_path / data.labelled[1].name(0)).write_bytes(b"no picture")
    for use in (lambda: list(data.val_dataloader()), lambda: data.samples(4)):
        with pytest.raises(UserError, match=r"^none of 1 images can be used; the first, "):
            use()


@pytest.mark.parametrize(
    ("split", "advice"),
    [
        ("train", "set data.batch_size to 1 or data.image_size to a number"),
        ("val", "set data.val_batch_size to 1"),
    ],
)
def test_sizes_that_do_not_fit_beside_each_other(split: str, advice: str, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for i, width in enumerate((32, 48)):
            pictures(tmp_path / part / "images" / str(i), 1, width=width)
            mask = tmp_path / part / "masks" / str(i) / "0.png"
            mask.parent.mkdir(parents=True)
            Image.fromarray(np.zeros((32, width), np.uint8)).save(mask)
    data = SegmentationData("folder", str(tmp_path), num_classes=2, image_size=None)
    samples = data.training_set() if split == "train" else data.evaluation_set("val")
    ((_, reason),) = collate([samples[0], samples[1]])["bad"]  # type: ignore[index]
    assert reason.endswith(f": {advice}")
