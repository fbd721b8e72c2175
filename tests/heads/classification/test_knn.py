"""Neighbours, votes and accuracies against sets small enough to be worked out by hand."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import datasets
import lightning as L
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from pixio_heads.classification import knn
from pixio_heads.classification.data import ClassificationData
from pixio_heads.classification.head import KNN
from pixio_heads.classification.metrics import (
    MeanAveragePrecision,
    accuracies,
    by_frequency,
    neighbour_accuracies,
)
from pixio_lightning import Backbone
from pixio_lightning.errors import UserError
from pixio_lightning.models import nearest_neighbours, vote

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}


def at(*degrees: float) -> torch.Tensor:
    """Return unit vectors of a plane."""
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_neighbours_of_a_plane() -> None:
    bank = at(0, 10, 50, 180)
    similarity, index = nearest_neighbours(at(8, 100), bank, n=3)
    assert index.tolist() == [[1, 0, 2], [2, 3, 1]]
    expected = [[2, 8, 42], [50, 80, 90]]
    assert torch.allclose(similarity, torch.tensor(expected).mul(math.pi / 180).cos(), atol=1e-6)
    assert nearest_neighbours(at(8), bank, n=200)[1].shape == (1, 4)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_find_what_the_whole_bank_holds(chunk: int) -> None:
    bank, queries = F.normalize(torch.randn(100, 8), dim=1), F.normalize(torch.randn(9, 8), dim=1)
    whole = (queries @ bank.T).topk(20, dim=1)
    similarity, index = nearest_neighbours(queries, bank, n=20, chunk=chunk)
    assert torch.equal(index, whole.indices)
    assert torch.allclose(similarity, whole.values, atol=1e-6)


def test_bfloat16_around_it_rounds_nothing() -> None:
    """60 degrees away 0.01 degrees are 1.5e-4 of the cosine, a bit of bfloat16 is 2e-3."""
    bank = at(*[80 - 0.01 * i for i in range(10)])
    with torch.autocast("cpu", torch.bfloat16):
        _, index = nearest_neighbours(at(20), bank, n=3)
    assert index.tolist() == [[9, 8, 7]]


def test_a_close_neighbour_outvotes_two_far_ones() -> None:
    """exp(.99 / .07) is 19.3 times exp((.99 - .207) / .07), so 2 far ones hold 2 / 21.3."""
    similarity = torch.tensor([[0.99, 0.783, 0.783]])
    labels = torch.tensor([[2, 0, 0]])
    share = 1 / (1 + 2 * math.exp(-0.207 / 0.07))
    votes = vote(similarity, labels, num_classes=3, temperature=0.07)
    assert torch.allclose(votes, torch.tensor([[1 - share, 0, share]]), atol=1e-6)
    cold = vote(similarity, labels, num_classes=3, temperature=100.0)
    assert cold.argmax().item() == 0


def test_the_feature_is_the_mean_of_raw_class_tokens(randomize) -> None:
    backbone = randomize(Backbone("pixio_vitt16", weights="random:0", model_args=SMALL).load())
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        features = backbone(images)
        expected = features.layers[-1].raw_tokens[:, :8].mean(dim=1)
        found = knn.feature(features)
    assert torch.allclose(found, F.normalize(expected, dim=1), atol=1e-6)
    assert not torch.allclose(found, F.normalize(features.pooled, dim=1), atol=1e-2)
    after = knn.feature(features, normed=True)
    assert torch.allclose(after, F.normalize(features.pooled, dim=1), atol=1e-6)


def test_a_normed_token_counts_and_is_named(colours: Path, tmp_path: Path) -> None:
    said, banks = [], []
    for normed in (False, True):
        backbone = Backbone("pixio_vitt16", weights="random:0", model_args=SMALL)
        torch.nn.init.uniform_(backbone.load().vit.norm.weight)
        head = KNN(backbone, k=(1,), normed=normed)
        trainer = L.Trainer(
            accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
        )
        data = ClassificationData("folder", str(colours), image_size=64, num_workers=0)
        (found,) = trainer.validate(head, data, verbose=False)
        assert found["val/top1_k1"] == 1
        said.append(head.protocol)
        banks.append(head.statistics["bank"].float())
    assert "mean raw class token (patch where there is none)" in said[0]
    assert "mean normed class token (patch where there is none)" in said[1]
    assert not torch.allclose(*banks, atol=1e-2)


def test_without_class_tokens_it_is_the_mean_raw_patch() -> None:
    backbone = Backbone("vit_base_patch16_siglip_gap_224", weights="random:0", model_args=SMALL)
    with torch.no_grad():
        features = backbone(torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8))
    assert backbone.n_cls_tokens == 0
    expected = features.layers[-1].raw_patches.mean(dim=(2, 3))
    assert torch.allclose(knn.feature(features), F.normalize(expected, dim=1), atol=1e-6)


def test_a_hand_made_set_is_scored_for_every_number_of_neighbours() -> None:
    """Two clusters and an outlier of class 1 in the middle of class 0."""
    bank, labels = at(0, 2, 4, 3, 90, 92), torch.tensor([0, 0, 0, 1, 1, 1])
    queries, truth = at(3.1, 91, 2.6), torch.tensor([0, 1, 0])
    similarity, index = nearest_neighbours(queries, bank, n=4)
    votes = torch.stack(
        [
            vote(similarity[:, :k], labels[index[:, :k]], num_classes=2, temperature=0.07)
            for k in (1, 4)
        ],
        dim=1,
    )
    metrics = neighbour_accuracies(2, (1, 4))
    metrics.update(votes, truth)
    # The nearest one is the outlier for the first and the third query.
    assert {k: float(v) for k, v in metrics.compute().items()} == pytest.approx(
        {"top1_k1": 1 / 3, "top1_k4": 1.0}
    )


def test_numbers_of_neighbours_that_agree_at_first_part_later() -> None:
    metrics = neighbour_accuracies(3, (1, 2))
    same = torch.tensor([[[1.0, 0, 0], [1.0, 0, 0]]])
    metrics.update(same, torch.tensor([0]))
    metrics.update(torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]]), torch.tensor([1]))
    assert {k: float(v) for k, v in metrics.compute().items()} == {"top1_k1": 0.5, "top1_k2": 1.0}


def test_top5_is_there_for_more_than_five_classes() -> None:
    assert set(accuracies(5).keys()) == {"top1"}
    metrics = accuracies(7)
    scores = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1], [7.0, 6, 5, 4, 3, 2, 1]])
    metrics.update(scores, torch.tensor([4, 5]))
    assert {k: float(v) for k, v in metrics.compute().items()} == {"top1": 0.0, "top5": 0.5}


def test_the_majority_of_a_balanced_set_is_one_class() -> None:
    found = by_frequency(torch.tensor([0.25, 0.0, 0.5, 0.25]))
    assert found.argsort(descending=True).tolist() == [2, 0, 3, 1] and found[1] == 0
    assert by_frequency(torch.tensor([3, 3])).tolist() == [1.0, 0.5]


def test_mean_average_precision_leaves_out_classes_that_nothing_shows() -> None:
    scores, target = torch.randn(40, 5), torch.randint(0, 2, (40, 5))
    target[:, 3] = 0
    metric = MeanAveragePrecision(5)
    metric.update(scores[:25], target[:25])
    metric.update(scores[25:], target[25:])
    shown = [0, 1, 2, 4]
    expected = [average_precision_score(target[:, i], scores[:, i]) for i in shown]
    assert float(metric.compute()) == pytest.approx(sum(expected) / 4, abs=1e-5)
    # A constant finds every class as often as it is there.
    metric.reset()
    metric.update(torch.full((40, 5), 0.3), target)
    assert float(metric.compute()) == pytest.approx(float(target[:, shown].float().mean()))
    metric.reset()
    metric.update(scores, torch.zeros(40, 5))
    assert math.isnan(metric.compute())


@pytest.mark.parametrize("shift", [-120.0, 15.0, 30.0])
def test_the_average_precision_depends_on_the_order_of_scores_alone(shift: float) -> None:
    """Sigmoids of logits are equal where they saturate; so would float32 be, without doubles."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-2000, 2000, (400, 3), generator=generator) / 64
    target = (scores / 9 + torch.randn(400, 3, generator=generator) > 1).long()
    found = []
    for added in (0.0, shift):
        metric = MeanAveragePrecision(3)
        metric.update(scores + added, target)
        found.append(float(metric.compute()))
    assert found[0] == found[1] < 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"k": (0,)}, r"model.k is \[0\]"),
        ({"k": (10, 10)}, "each once"),
        ({"temperature": 0.0}, "model.temperature is 0, but expected a number above 0"),
    ],
)
def test_mistakes(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        KNN(Backbone("pixio_vitt16", weights="random"), **keys)


def test_a_backbone_that_would_be_trained_is_refused() -> None:
    with pytest.raises(UserError, match="set model.backbone.tune to frozen"):
        KNN(Backbone("pixio_vitt16", weights="random", tune="full"))


@pytest.mark.parametrize("bank", [0, -3])
def test_a_bank_without_images_is_refused(bank: int) -> None:
    with pytest.raises(UserError, match=f"model.bank is {bank}, but expected at least 1"):
        KNN(Backbone("pixio_vitt16", weights="random"), bank=bank)


def test_other_data_have_neighbours_of_their_own(colours: Path, tmp_path: Path) -> None:
    """One module, evaluated on one folder and then on another whose classes are swapped."""
    swapped = tmp_path / "swapped"
    shutil.copytree(colours, swapped)
    (swapped / "red").rename(swapped / "aside")
    (swapped / "blue").rename(swapped / "red")
    (swapped / "aside").rename(swapped / "blue")
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
    head = KNN(Backbone("pixio_vitt16", weights="random:0", model_args=sizes), k=(1,))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    for folder in (colours, swapped, colours):
        data = ClassificationData("folder", str(folder), image_size=64, num_workers=0)
        (found,) = trainer.validate(head, data, verbose=False)
        assert found["val/top1_k1"] == 1


def rows_of_noise(folder: Path, n: int) -> str:
    """Write a data set of images of noise, each of a class of its own: `c0`, `c1`, ..."""
    noise = torch.randint(0, 256, (n, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    classes = datasets.ClassLabel(names=[f"c{i}" for i in range(n)])
    features = datasets.Features({"image": datasets.Image(), "label": classes})
    rows = {"image": [i.numpy().astype("uint8") for i in noise], "label": range(n)}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def test_a_row_in_another_part_of_its_split_is_no_neighbour_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = rows_of_noise(tmp_path / "rows", 12)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}
    head = KNN(Backbone("pixio_vitt16", weights="random:0", model_args=sizes), k=(1,))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    data = ClassificationData(
        "hub", path, val_split="train[3:5]+train[9:]", image_size=32, num_workers=0
    )
    trainer.predict(head, data)
    with (tmp_path / "predictions/predictions.csv").open() as file:
        found = {row["name"]: row["label"] for row in csv.DictReader(file)}
    assert [int(name.removeprefix("train/")) for name in found] == [3, 4, 9, 10, 11]
    assert all(f"c{int(name[-8:])}" != found[name] for name in found)
    # They may be looked at, but judge nothing.
    with pytest.raises(UserError, match="5 of 5 held-out samples .* 'train/00000003' for one"):
        trainer.validate(head, data, verbose=False)
