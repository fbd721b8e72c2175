"""Which samples a test and a baseline are of: no validation set under another name, no stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixio_heads.attributes.data import AttributeData
from pixio_heads.classification.data import ClassificationData
from pixio_heads.depth import Depth
from pixio_heads.depth.data import DepthData
from pixio_heads.depth.ordinal_data import OrdinalData
from pixio_heads.reconstruction.data import ReconstructionData
from pixio_heads.segmentation.data import SegmentationData
from pixio_lightning.cli.main import main
from pixio_lightning.data import SampleData
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.models import Backbone

FEW = Scenes(train=2, held_out=2, views=2, size=32)
DATA = (
    *(DepthData, ClassificationData, SegmentationData, AttributeData, OrdinalData),
    ReconstructionData,
)


def names(data: SampleData, split: str) -> list[str]:
    samples = data.samples_of(split)
    return [samples.name(i) for i in range(len(samples))]


@pytest.mark.parametrize("kind", DATA)
def test_scenes_are_tested_on_others_than_they_are_validated_on(kind: Any) -> None:
    data = kind("scenes", scenes=FEW)
    if kind is not ReconstructionData:  # whose sets are named by their number
        splits = [set(names(data, split)) for split in ("train", "val", "test")]
        assert len(set.union(*splits)) == sum(map(len, splits)) and all(splits)
    digests = [data.samples_of(split).digest() for split in ("train", "val", "test")]
    assert len({*digests}) == 3 and data.part_of("test") == "test"


def photographs(folder: Path, count: int) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    for i in range(count):
        Image.fromarray(np.full((32, 32, 3), 9 * i, np.uint8)).save(folder / f"images/{i}.png")
        metres = np.full((32, 32), 1000 * (i + 1), np.uint16)
        Image.fromarray(metres).save(folder / f"depth/{i}.png")


@pytest.mark.parametrize("parts", [("train", "val"), ("train", "val", "test")])
def test_a_record_says_which_split_was_read(
    parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in parts:
        photographs(tmp_path / "data" / part, 3)
    line = ["-c", "depth/demo", "--out", str(tmp_path / "run"), "--trainer.max_steps", "1"]
    line += ["--data.source", "folder", "--data.path", str(tmp_path / "data")]
    line += ["--data.num_workers", "0", "--data.batch_size", "2", "--data.image_size", "32"]
    line += [
        "--model.window",
        "32",
        "--model.stride",
        "32",
        "--model.backbone.weights",
        "random:0",
        "--data.views",
        "1",
    ]
    line += ["--model.backbone.layers", "last", "--model.decoder", "LinearDecoder"]
    line += ["--trainer.precision", "32-true", "--trainer.accelerator", "cpu"]
    line += ["--model.backbone.model_args", "{img_size: 32, embed_dim: 24, depth: 1, num_heads: 2}"]
    assert main(["fit", *line]) == 0
    capsys.readouterr()
    assert main(["test", *line]) == 0
    last = json.loads((tmp_path / "run/results.jsonl").read_text().splitlines()[-1])
    apart = "test" in parts
    assert last["verb"] == "test" and last["split"] == ("test" if apart else "val")
    assert ("no other part to test on" in capsys.readouterr().out) != apart


def test_what_stands_for_an_unusable_sample_is_no_training_sample(tmp_path: Path) -> None:
    for part in ("train", "val"):
        photographs(tmp_path / part, 3)
    (tmp_path / "train/images/1.png").write_bytes(b"damaged")
    data = DepthData("folder", str(tmp_path), val_batch_size=3, num_workers=0, max_depth=80.0)
    (batch,) = data.statistics_dataloader()
    assert batch["name"] == ["images/0.png", "images/2.png"] and len(batch["depth"]) == 2
    (shared,) = data.statistics_dataloader(share=True)
    assert sorted(shared["weight"].tolist()) == [0, 1, 1]
    backbone = Backbone("pixio_vits16", weights="random:0", model_args={"depth": 1})
    found = Depth(backbone).fit_statistics(data.statistics_dataloader())
    assert found["constant"] == 1  # the lower one of 1 m and 3 m
    assert torch.equal(found["median_map"], torch.ones(64, 64))


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (DepthData, {"depth_column": "other"}),
        (DepthData, {"orientation": "stored"}),
        (DepthData, {"val_split": "test"}),
        (SegmentationData, {"mask_column": "other"}),
        (SegmentationData, {"label_shift": -1}),
        (SegmentationData, {"orientation": "stored"}),
        (ClassificationData, {"label_column": "other"}),
    ],
)
def test_what_decides_on_targets_is_in_what_records_call_the_data(
    data: type[SampleData], keys: dict[str, Any]
) -> None:
    """Rows with equal names are compared, and get a verdict."""
    more = {"num_classes": 3} if data is SegmentationData else {}
    plain, other = (data("hub", "x", **more, **k).dataset for k in ({}, keys))
    assert plain != other and plain.startswith("hub x, validation")
