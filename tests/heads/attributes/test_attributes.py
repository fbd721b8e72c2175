"""What is told of images: truths of scenes, tables, shares of variance, and a folder learned."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixio_heads.attributes.data import AttributeData
from pixio_heads.attributes.head import Attributes, histogram
from pixio_heads.attributes.metrics import Explained
from pixio_heads.attributes.samples import SceneAttributes, read_table, scene_columns
from pixio_lightning import Backbone
from pixio_lightning.cli.main import main
from pixio_lightning.data import Scenes, SceneSamples, lights_of, scene_seed
from pixio_lightning.errors import UserError
from pixio_lightning.models import ridge

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "pixio-cache"))


def test_a_row_of_a_scene_is_what_was_rendered() -> None:
    scenes = Scenes(train=12, held_out=4, views=2, size=32)
    known = SceneAttributes("train", scenes)
    fields = ("room_type", "outdoor", "camera_pitch", "camera_height", "cam2world", "depth")
    views = SceneSamples("train", scenes, fields)
    names = [column for own in known.attributes.values() for column in own]
    outdoor = 0
    for index in range(len(known)):
        row = dict(zip(names, known.load(index)["target"].tolist(), strict=True))
        view = views.load(index)
        assert (
            row[str(view["room_type"])] == 1 and sum(row[p] for p in known.attributes["place"]) == 1
        )
        assert row["outdoor"] == float(view["outdoor"])
        assert row["camera_pitch"] == pytest.approx(float(view["camera_pitch"]), rel=1e-5)
        assert row["camera_height"] == pytest.approx(float(view["camera_height"]), rel=1e-5)
        towards = np.array([row["light right"], row["light down"], row["light ahead"]])
        assert np.linalg.norm(towards) == pytest.approx(1, abs=1e-5)
        # Going from the camera that way leads to one of the lights.
        pose = view["cam2world"]
        lights, _ = lights_of(scene_seed("train", index // 2))
        ways = [light.position - pose[:3, 3] for light in lights]
        along = [float(pose[:3, :3] @ towards @ way / np.linalg.norm(way)) for way in ways]
        assert max(along) == pytest.approx(1, abs=1e-5)
        assert 0 < row["light_contrast"] < 5 and 0 <= row["things"] < 40
        outdoor += int(view["outdoor"])
    assert 0 < outdoor < len(known)


def test_what_never_differs_is_no_attribute() -> None:
    assert not {"place", "outdoor"} & scene_columns(Scenes(places=("studio",))).keys()
    assert "outdoor" not in scene_columns(Scenes(places=("studio", "office")))
    assert scene_columns(Scenes(places=("street", "office")))["place"] == ["street", "office"]


def test_shares_of_variance_by_hand() -> None:
    columns = {"a": ["a"], "kind": ["x", "y"]}
    whole = Explained(columns, ["", "patches"])
    truth = torch.tensor([[1.0, 1, 0], [3.0, 0, 1], [5.0, 1, 0], [7.0, 0, 1]])
    mean = torch.tensor([4.0, 0.5, 0.5])
    exact = torch.stack([truth, mean.expand_as(truth)], dim=1)
    off = exact.clone()
    off[:, 0, 0] += 1  # squares of 1 beside those of 3, 1, 1, 3: 4 of 20
    whole.update(off, truth, mean)
    found = whole.compute()
    assert found["a"] == pytest.approx(0.8) and found["kind"] == 1
    assert found["explained"] == pytest.approx(0.9)
    assert found["a_patches"] == found["kind_patches"] == found["explained_patches"] == 0
    parts = Explained(columns, ["", "patches"])
    for i in (0, 2):
        parts.update(off[i : i + 2], truth[i : i + 2], mean)
    assert {k: float(v) for k, v in parts.compute().items()} == pytest.approx(
        {k: float(v) for k, v in found.items()}
    )


def test_a_histogram_by_hand() -> None:
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, 0] = torch.tensor([[0, 31], [32, 255]])
    shares = histogram(image)[0]
    assert shares[:8].tolist() == [0.5, 0.25, 0, 0, 0, 0, 0, 0.25]
    assert shares[8] == shares[16] == 1 and shares.sum() == 3


def write_folder(root: Path, n: int) -> Path:
    """Write images of one brightness, told by a number, and a kind: whether its left is dark."""
    rng = np.random.default_rng(0)
    root.mkdir()
    with (root / "attributes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "brightness", "left", "remark"])
        for i in range(n):
            level, dark = int(rng.integers(60, 250)), bool(rng.random() < 0.5)
            pixels = np.full((32, 40, 3), level, np.uint8)
            pixels[:, :20] //= 3 if dark else 1
            Image.fromarray(pixels).save(root / f"{i:03d}.png")
            table.writerow([f"{i:03d}.png", level, "dark" if dark else "light", f"no. {i}"])
    return root


def line_of(folder: Path, out: Path) -> list[str]:
    return [
        *("-c", "attributes/demo", "--data.source", "folder", "--data.path", str(folder)),
        *("--data.columns", "[brightness, left]", "--data.image_size", "32", "--out", str(out)),
        *("--model.backbone.weights", "random:3", "--model.backbone.model_args.img_size", "32"),
        *("--model.backbone.model_args.embed_dim", "32", "--trainer.precision", "32-true"),
    ]


def test_a_folder_with_a_table_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, encoded, forward = write_folder(tmp_path / "in", 200), Counter(), Backbone.forward

    def counted(self: Backbone, images: torch.Tensor, **kwargs: Any) -> Any:
        encoded[self.weights] += len(images)
        return forward(self, images, **kwargs)

    monkeypatch.setattr(Backbone, "forward", counted)
    line = line_of(folder, tmp_path / "run")
    assert main(["test", *line]) == 0
    # Each image once, by the backbone and by a random one beside it.
    assert encoded.keys() == {"random:3", "random:0"} and len({*encoded.values()}) == 1
    record = json.loads((tmp_path / "run" / "results.jsonl").read_text().splitlines()[-1])
    metrics, baselines = record["metrics"], record["baselines"]
    assert metrics["brightness"] > 0.9 and metrics["left"] > 0.7
    assert metrics["brightness_token1"] > 0.9
    assert abs(baselines["shuffled"]["brightness"]) < 0.3
    assert baselines["histogram"]["brightness"] > 0.3
    assert baselines["histogram"]["left"] == baselines["histogram"]["left_token2"]
    # A line for each image of the folder, its kind by name.
    assert main(["predict", *line]) == 0
    with (tmp_path / "run" / "predictions" / "attributes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200 and rows[0].keys() == {"name", "brightness", "left"}
    with (folder / "attributes.csv").open() as file:
        truth = {row["name"]: row for row in csv.DictReader(file)}
    right = sum(row["left"] == truth[row["name"]]["left"] for row in rows)
    off = [abs(float(row["brightness"]) - float(truth[row["name"]]["brightness"])) for row in rows]
    assert right > 180 and np.median(off) < 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "attributes.csv' cannot be read"),
        ("file,a\nx.png,1\n", "has no column 'name', but file, a"),
        ("name,bright\nx.png,1\ny.png,2\n", "no column 'brightness', but name, bright, did you"),
        ("name,brightness\nx.png,1\ny.png,\n", "line 3: 'brightness' is empty"),
        ("name,brightness\nx.png,a\ny.png,a\n", "'brightness' holds 1 different words"),
        ("name,brightness\nx.png,nan\ny.png,nan\n", "line 2: 'brightness' is nan; expected a fin"),
        ("name,brightness\nx.png,1\ny.png,-inf\nz.png,2\n", "line 3: 'brightness' is -inf; exp"),
        ("name,brightness\nx.png,1\ny.png,2\nz.png,1e39\n", "line 4: 'brightness' is 1e+39; ex"),
        ("name,brightness\n", "holds 1 attributes of 0 images"),
        ("name,brightness\nx.png,5\ny.png,5.0\n", "'brightness' is 5 for every image"),
    ],
)
def test_mistakes_of_a_table(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "attributes.csv").write_text(text)
    with pytest.raises(UserError) as raised:
        read_table(tmp_path, ["brightness"])
    assert message in str(raised.value)


def test_an_image_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 4)
    Image.new("RGB", (32, 32)).save(tmp_path / "secret.png")
    text = (folder / "attributes.csv").read_text().replace("000.png", "../secret.png")
    (folder / "attributes.csv").write_text(text)
    data = AttributeData("folder", str(folder), columns=["brightness"], image_size=32)
    read = [data.samples_of(split) for split in ("train", "val")]
    sample = next(s for s in read if "../secret.png" in [s.name(i) for i in range(len(s))])
    number = [sample.name(i) for i in range(len(sample))].index("../secret.png")
    with pytest.raises(Exception, match="outside of the folder"):
        sample.load(number)


def test_the_digest_follows_pictures_and_table(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 8)

    def digests() -> set[str]:
        data = AttributeData("folder", str(folder), columns=["brightness"])
        return {data.digest("train"), data.digest("predict")}

    first = digests()
    assert digests() == first
    for path in folder.rglob("*.png"):  # others under the same names
        Image.new("RGB", (30, 20)).save(path)
    assert not digests() & first


def test_a_head_says_what_its_numbers_are_and_sees_pictures_as_its_data_does() -> None:
    data = AttributeData("scenes", scenes=Scenes(2, 2, views=1, size=32))
    head = Attributes(Backbone("pixio_vitt16", weights="random:0", model_args=SMALL))
    head.read_data_attributes(data)
    said = json.loads(json.dumps(head.output_config))
    assert said["readings"][0] == "mean of class tokens" and said["readings"][-1] == "patches"
    assert said["units"]["camera_pitch"] == "degrees above the horizon"
    assert said["units"].keys() == data.attributes.keys()
    assert said["numbers"] == [name for own in data.attributes.values() for name in own]
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    assert np.array_equal(head.prepared(picture), data.prepare({"image": picture})["image"])
    assert head.evaluation_side == 32 and head.prepared(picture).shape == (32, 32, 3)


def test_readings_of_backbones_with_few_class_tokens() -> None:
    def head(k: int) -> Attributes:
        args = SMALL | {"n_cls_tokens": k}
        return Attributes(Backbone("pixio_vitt16", weights="random:0", model_args=args))

    assert head(4).readings == ["", "token0", "token1", "token2", "token3", "patches"]
    assert head(1).readings == ["", "patches"]
    for k in (1, 4):
        made = head(k)
        made.backbone.load()
        images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
        readings = made._read(made.encode_images(images))
        assert readings.shape == (2, len(made.readings), 32)
        if k == 4:
            assert torch.allclose(readings[:, 1:5].mean(dim=1), readings[:, 0], atol=1e-6)
    tuned = Backbone("pixio_vitt16", weights="random:0", model_args=SMALL, tune="full")
    with pytest.raises(UserError, match="trains nothing"):
        Attributes(tuned)


def test_maps_are_not_rounded_where_the_encoder_is() -> None:
    """Features far from 0 beside how they differ, as tokens are, lose what tells in bfloat16."""
    head = Attributes(Backbone("pixio_vitt16", weights="random", tune="frozen", model_args=SMALL))
    x = 100 + torch.randn(64, 1, 4, generator=torch.Generator().manual_seed(0))
    fitted = ridge(x[:, 0], x[:, 0, :1], penalties=(1e-4,))
    head.statistics = {"own_weight": fitted.weight[None], "own_bias": fitted.bias[None]}
    exact = head._told("own", x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head._told("own", x), exact)


def test_a_table_that_a_spreadsheet_has_saved_is_read(tmp_path: Path) -> None:
    """They begin UTF-8 with a byte order mark."""
    (tmp_path / "attributes.csv").write_text("\ufeffname,a\nx.png,1\ny.png,2\n", encoding="utf-8")
    assert read_table(tmp_path, None)[:2] == (["x.png", "y.png"], {"a": ["a"]})


def test_records_tell_which_columns_and_what_of_an_image_a_mean_is_of(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 4)
    said = {}
    for columns, side in ((["brightness"], 32), (["brightness", "left"], 32), (None, 64)):
        data = AttributeData("folder", str(folder), columns=columns, image_size=side)
        head = Attributes(Backbone("pixio_vitt16", weights="random:0", model_args=SMALL))
        head.read_data_attributes(data)
        said[data.dataset.removeprefix(f"folder {folder}")] = head.protocol
    assert [*said] == [
        ", columns brightness",
        ", columns brightness, left",
        ", columns brightness, left, remark",
    ]
    assert [line.rpartition("; ")[2] for line in said.values()] == [
        *["centre crop of 32 px"] * 2,
        "centre crop of 64 px",
    ]
    # Backbones of one class token and of eight are compared.
    few = Attributes(
        Backbone("pixio_vitt16", weights="random:0", model_args=SMALL | {"n_cls_tokens": 1})
    )
    few.read_data_attributes(AttributeData("folder", str(folder), image_size=64))
    assert few.protocol == said[", columns brightness, left, remark"]
