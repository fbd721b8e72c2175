"""Which of two points is nearer: DA-2K in its layout, pairs of the scenes, and the accuracy."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixio_heads.depth.ordinal import OrdinalAccuracy, OrdinalDepth
from pixio_heads.depth.ordinal_data import KINDS, OrdinalData, drawn_pairs
from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.samples import RandomKey
from pixio_lightning.data.scenes.samples import SceneSamples
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.errors import UserError
from pixio_lightning.models.backbone import Backbone

SIZE = (20, 30)


def da2k(root: Path, annotations: dict[str, Any]) -> None:
    for name in annotations:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), len(name), np.uint8)).save(path)
    (root / "annotations.json").write_text(json.dumps(annotations))


def pair(first: list[int], second: list[int], closer: str = "point1") -> dict[str, Any]:
    return {"point1": first, "point2": second, "closer_point": closer}


ANNOTATIONS = {
    "images/indoor/a.jpg": [pair([2, 3], [4, 25])],
    "images/non_real/b.png": [pair([0, 0], [19, 29], "point2"), pair([1, 2], [3, 4])],
}


def test_da2k_in_its_layout_and_in_its_zip(tmp_path: Path) -> None:
    da2k(tmp_path / "DA-2K", ANNOTATIONS)
    with zipfile.ZipFile(tmp_path / "DA-2K.zip", "w") as archive:
        for file in (tmp_path / "DA-2K").rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    for path in (tmp_path / "DA-2K", tmp_path / "DA-2K.zip"):
        data = OrdinalData("da2k", str(path), num_workers=0)
        samples = data.samples_of("test")
        assert [samples.name(i) for i in range(len(samples))] == list(ANNOTATIONS)
        first, second = samples.load(0), samples.load(1)
        assert first["points"].tolist() == [[[2, 3], [4, 25]]]
        assert second["points"].tolist() == [[[19, 29], [0, 0]], [[1, 2], [3, 4]]]
        assert [data.kinds[int(s["kind"])] for s in (first, second)] == ["indoor", "non_real"]
        assert first["image"].shape == (*SIZE, 3)
        batches = list(data.test_dataloader())
        assert [tuple(batch["points"].shape) for batch in batches] == [(1, 1, 2, 2), (1, 2, 2, 2)]


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"images/indor/a.jpg": [pair([0, 0], [1, 1])]}, "did you mean 'indoor'"),
        ({"images/indoor/a.jpg": [pair([0, 0], [1, 1], "point3")]}, "is not DA-2K's"),
        ({"images/indoor/a.jpg": [{"point1": [0, 0]}]}, "is not DA-2K's"),
        ({"images/indoor/a.jpg": [pair([0, 0, 0], [1, 1])]}, "is not DA-2K's"),
    ],
)
def test_other_annotations_are_refused(
    annotations: dict[str, Any], message: str, tmp_path: Path
) -> None:
    da2k(tmp_path, annotations)
    with pytest.raises(UserError, match=message):
        OrdinalData("da2k", str(tmp_path)).samples_of("test")


def test_broken_samples_of_da2k(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no annotations.json"):
        OrdinalData("da2k", str(tmp_path)).samples_of("test")
    outside = {"images/object/out.jpg": [pair([20, 0], [1, 1])], "images/object/no.jpg": []}
    da2k(tmp_path, ANNOTATIONS | outside)
    (tmp_path / "images/indoor/a.jpg").unlink()
    data = OrdinalData("da2k", str(tmp_path), num_workers=0)
    assert sum(float(batch["weight"].sum()) for batch in data.test_dataloader()) == 1
    assert sorted(data.bad.values()) == [
        "no a.jpg",
        *["no pair of points, or one outside of the image"] * 2,
    ]
    with pytest.raises(UserError, match="da2k is there to be tested on"):
        data.samples_of("train")


def test_accuracy_is_exact_on_a_set_made_by_hand() -> None:
    """Four pairs of two kinds: right, wrong and equal, and right."""
    disparity = torch.tensor([[[3.0, 2.0], [1.0, 1.0]], [[0.0, 5.0], [-1.0, -2.0]]])
    points = torch.tensor(
        [
            [[[0, 0], [1, 0]], [[0, 1], [0, 0]]],  # 3 > 1, and 2 < 3
            [[[1, 0], [1, 1]], [[0, 1], [0, 0]]],  # -1 > -2, and 5 > 0
        ]
    )
    equal = torch.tensor([[[[1, 0], [1, 1]]]])  # 1 and 1
    metric = OrdinalAccuracy(("indoor", "aerial", "object"))
    metric.update(disparity, points, torch.tensor([0, 2]))
    metric.update(disparity[:1], equal, torch.tensor([0]))
    found = {name: float(value) for name, value in metric.compute().items()}
    expected = {"accuracy": 3 / 5, "accuracy_indoor": 1 / 3, "accuracy_object": 1.0, "pairs": 5}
    assert found == pytest.approx(expected)
    parts = OrdinalAccuracy(metric.kinds)
    for i, kind in ((0, 0), (1, 2)):
        parts.update(disparity[i : i + 1], points[i : i + 1], torch.tensor([kind]))
    assert parts.correct.tolist() == [1, 0, 2] and parts.pairs.tolist() == [2, 0, 2]


def test_true_disparity_is_always_right_and_depth_never() -> None:
    depth = np.random.default_rng(0).uniform(1, 9, SIZE).astype(np.float32)
    points = torch.from_numpy(drawn_pairs(depth, depth > 2, 6, RandomKey(1, 0, 0)))[None]
    for output, share in ((1 / depth, 1.0), (depth, 0.0)):
        metric = OrdinalAccuracy(("any",))
        metric.update(torch.from_numpy(output)[None], points, torch.tensor([0]))
        assert metric.compute()["accuracy"] == share and metric.compute()["pairs"] == 6


def test_pairs_of_the_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    scenes = Scenes(train=2, held_out=2, views=2, size=48, places=("studio", "street"))
    data = OrdinalData(scenes=scenes, pairs=5)
    assert data.kinds == ("studio", "street")
    samples, again = data.samples_of("val"), OrdinalData(scenes=scenes, pairs=5).samples_of("val")
    views = SceneSamples("val", scenes, ("depth", "valid"))
    for i in range(len(samples)):
        sample, view = samples.load(i), views.load(i)
        near, far = (view["depth"][tuple(sample["points"][:, k].T)] for k in (0, 1))
        assert sample["points"].shape == (5, 2, 2) and (far > 1.1 * near).all()
        assert view["valid"][tuple(sample["points"].reshape(-1, 2).T)].all()
        assert np.array_equal(again.load(i)["points"], sample["points"])
    assert data.digest("val") != OrdinalData(scenes=scenes, pairs=6).digest("val")


def test_a_flat_view_has_no_pairs() -> None:
    flat = np.ones(SIZE, np.float32)
    with pytest.raises(BadImage, match="too few pairs"):
        drawn_pairs(flat, flat > 0, 1, RandomKey(1, 0, 0))
    with pytest.raises(UserError, match="data.pairs is 0"):
        OrdinalData(pairs=0)


def head() -> OrdinalDepth:
    small = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
    backbone = Backbone("pixio_vitt16", weights="random", model_args=small)
    made = OrdinalDepth(backbone, image_size=32)
    made.evaluation_info = {"kinds": KINDS}
    made.configure_model()
    return made


def test_the_loss_falls_with_the_right_order() -> None:
    points = torch.tensor([[[[0, 0], [1, 1]]]])
    disparity = torch.zeros(1, 2, 2)
    losses = []
    for nearer in (-1.0, 0.0, 1.0):
        disparity[0, 0, 0] = nearer
        losses.append(float(head().loss(disparity, {"points": points})["loss"]))
    assert losses[1] == pytest.approx(np.log(2)) and losses[0] > losses[1] > losses[2]
    assert losses[0] - losses[2] == pytest.approx(1.0)


def test_a_picture_marks_the_nearer_point_green() -> None:
    batch = {
        "image": torch.zeros(1, 3, 60, 90, dtype=torch.uint8),
        "points": torch.tensor([[[[10, 20], [50, 70]]]]),
    }
    panel = head().picture([batch], [torch.rand(1, 60, 90)])
    image, disparity = panel.rows[0]
    for picture in (image, disparity):
        assert picture[:, 10, 20].argmax() == 1 and picture[:, 50, 70].argmax() == 0
        assert (picture[:, 30, 45] == 255).all()  # on the line between them
    assert not batch["image"].any()
