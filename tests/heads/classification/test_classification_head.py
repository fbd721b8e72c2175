"""The classifiers through the real command line: what they learn, predict, refuse and record."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from class_runs import SMALL, words
from PIL import Image

import pixio_lightning
from pixio_heads.classification.attentive import AttentiveClassifier, attention
from pixio_heads.classification.data import ClassificationData
from pixio_heads.classification.head import Classification
from pixio_heads.classification.linear import LinearClassifier, pooled
from pixio_heads.classification.picture import SIDE, bars
from pixio_lightning import Backbone
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError
from pixio_lightning.models import Features, Layer
from pixio_lightning.testing import BACKBONES
from pixio_lightning.training import results
from pixio_lightning.training.checkpoints import checkpoint_io

SCENES = ["--data.scenes", "{train: 6, held_out: 4, views: 2, size: 64}"]


SHORT = ["--trainer.max_steps=40", "--data.steps_per_epoch=15", "--data.batch_size=16"]
SHORT += ["--model.optim.lr=1e-2", "--panels.every_n_steps=0", "--data.val_batch_size=4"]


def test_a_folder_is_learned_and_a_table_of_other_images_is_written(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = words("classification/folder_linear", colours, tmp_path / "run", *SHORT)
    assert main(["fit", *line]) == 0
    last = results.read(tmp_path / "run")[-1]
    assert last["metrics"]["top1"] == 1.0
    assert last["baselines"]["majority"]["top1"] == pytest.approx(1 / 3)
    assert last["n"] == 6 and last["checkpoint"] == "last"

    (tmp_path / "in/sub").mkdir(parents=True)
    for name, colour in (("a, b.png", (10, 200, 20)), ("sub/ü.png", (220, 20, 30))):
        Image.new("RGB", (80, 70), colour).save(tmp_path / "in" / name)
    (tmp_path / "in/broken.jpg").write_bytes(b"no image")
    line = words("classification/folder_linear", tmp_path / "in", tmp_path / "run")
    for _ in range(2):  # a second time replaces the table
        assert main(["predict", *line]) == 0
    assert "broken.jpg" in capsys.readouterr().out
    with (tmp_path / "run/predictions/predictions.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["name", "label", "probability"]
    assert [row[:2] for row in table[1:]] == [["a, b.png", "green"], ["sub/ü.png", "red"]]
    assert all(1 / 3 < float(row[2]) <= 1 for row in table[1:])
    # In Python a picture is prepared alike: the centre of it, at the size of training.
    logits = pixio_lightning.load(tmp_path / "run").predict(tmp_path / "in/a, b.png")
    assert float(logits.softmax(1).max()) == pytest.approx(float(table[1][2]), abs=1e-4)


def test_neighbours_know_a_folder_and_leave_no_checkpoint(colours: Path, tmp_path: Path) -> None:
    line = words("classification/folder_knn", colours, tmp_path / "run", "--model.k=[1,3]")
    assert main(["fit", *line]) == 0
    (found,) = results.read(tmp_path / "run")
    assert found["task"] == "knn" and found["metrics"] == {"top1_k1": 1.0, "top1_k3": 1.0}
    # Three classes, of which none is more frequent: whichever is named is right for a third.
    third = pytest.approx(1 / 3)
    assert found["baselines"]["majority"] == {"top1_k1": third, "top1_k3": third}
    assert "mean raw class token" in found["protocol"] and "among all" in found["protocol"]
    assert main(["predict", *line]) == 0
    table = (tmp_path / "run/predictions/predictions.csv").read_text().splitlines()
    assert len(table) == 61 and "red/0.png,red,1.0000" in table
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_other_classes_than_those_learned_are_refused(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = words("classification/folder_linear", colours, tmp_path / "run", *SHORT)
    assert main(["fit", *line]) == 0
    (colours / "green").rename(colours / "grün")
    capsys.readouterr()
    assert main(["validate", *line]) == 2
    error = capsys.readouterr().err
    assert "other classes than the checkpoint was trained on" in error
    assert "'grün' only in the data; 'green' only in the checkpoint" in error


def test_checkpoint_and_record_of_the_best_and_the_last(tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = ["-c", "classification/demo", "-c", "with/debug", *SCENES, "--out", str(out)]
    line += ["--trainer.max_steps", "6", "--data.val_images", "8", "--panels.every_n_steps", "0"]
    assert main(["fit", *line]) == 0
    lines = results.read(out)
    assert [(e["checkpoint"], e["steps"]) for e in lines if e["checkpoint"] != "best"] == [
        *(("running", 2), ("running", 4), ("last", 6))
    ]
    best, last = lines[-2:]
    evaluations = [e for e in lines if e["checkpoint"] != "best"]
    top = max(e["metrics"]["top1"] for e in evaluations)
    assert best["checkpoint"] == "best" and last["checkpoint"] == "last"
    assert best["metrics"]["top1"] == top
    assert best["steps"] == next(e["steps"] for e in evaluations if e["metrics"]["top1"] == top)
    assert best["chosen_by"] == "top1"
    assert best["chosen"] == "of 3 evaluations, on the split it is reported on"
    assert checkpoint_io.read(out / "best.ckpt")["global_step"] == best["steps"]


def test_objects_are_several_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = ["-c", "classification/demo", "-c", "with/debug", *SCENES, "--data.target", "objects"]
    line += ["--data.val_images", "8", "--out", str(tmp_path / "run")]
    assert main(["fit", *line]) == 0
    last = results.read(tmp_path / "run")[-1]
    assert last["metrics"].keys() == {"mean_ap"} and "any number of 16" in last["protocol"]
    assert results.read(tmp_path / "run")[-2]["chosen_by"] == "mean_ap"
    assert list((tmp_path / "run/panels").glob("*.png"))
    assert main(["predict", *line]) == 0
    table = (tmp_path / "run/predictions/predictions.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in table[1:]} == {
        f"val/{scene:06d}/{view}" for scene in range(4) for view in range(2)
    }
    capsys.readouterr()
    knn = ["-c", "classification/folder_knn", "-c", "with/debug", *SCENES]
    assert main(["fit", *knn, "--data.target", "objects", "--out", str(tmp_path / "knn")]) == 2
    assert "KNN votes for one class" in capsys.readouterr().err


def test_one_recipe_over_four_backbones_gives_lines_that_may_be_compared(tmp_path: Path) -> None:
    lines = []
    for name, backbone in BACKBONES.items():
        overlay = tmp_path / f"{name}.yaml"
        overlay.write_text(yaml.safe_dump({"model": {"backbone": backbone}}))
        line = ["-c", "classification/demo", "-c", "with/debug", "-c", str(overlay), *SCENES]
        line += ["--panels.every_n_steps=0", "--out", str(tmp_path / name)]
        assert main(["fit", *line]) == 0
        lines.append(results.read(tmp_path / name)[-1])
    assert len({line["backbone"]["name"] for line in lines}) == 4
    assert results.differences(lines) == []
    assert main(["fit", *line, "--fresh", "--data.crop_pct=0.5", "--data.val_images=3"]) == 0
    other = results.read(tmp_path / name)[-1]
    why = results.differences([*lines, other])
    assert [text.split(" is ")[0] for text in why] == ["n", "protocol"]
    assert "0.5 of the short side" in why[1]
    assert main(["validate", *line, "--data.crop_pct=0.25"]) == 0
    assert "0.25 of the short side" in results.read(tmp_path / name)[-1]["protocol"]


@pytest.mark.parametrize("task", ["folder_linear", "folder_knn"])
def test_a_folder_without_images_is_no_class_and_one_alone_is_refused(
    task: str, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Archives of Macs leave a `__MACOSX`, which would count in top-1 as a class."""
    (colours / "grey").mkdir()
    line = words(f"classification/{task}", colours, tmp_path / "run", "--trainer.max_steps=1")
    assert main(["fit", *line]) == 0
    assert "grey" not in capsys.readouterr().out
    assert ClassificationData("folder", str(colours)).num_classes == 3
    for name in ("blue", "green"):
        for path in (colours / name).iterdir():
            path.unlink()
    assert main(["fit", *line, "--fresh"]) == 2
    assert "holds images in red; expected" in capsys.readouterr().err


def test_what_is_pooled() -> None:
    backbone = Backbone("pixio_vitt16", weights="random:0", model_args=SMALL)
    with torch.no_grad():
        features = backbone(torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8))
    tokens = features.tokens
    means = tokens[:, :8].mean(dim=1), tokens[:, 8:].mean(dim=1)
    assert torch.allclose(pooled(features, "cls"), means[0], atol=1e-6)
    assert torch.allclose(pooled(features, "patches"), means[1], atol=1e-6)
    assert torch.allclose(pooled(features, "both"), torch.cat(means, dim=1), atol=1e-6)
    classifier = LinearClassifier(32, 3, pool="both")
    assert {n for n, _ in classifier.named_parameters()} == {"linear.weight", "linear.bias"}
    normed = F.batch_norm(torch.cat(means, dim=1), None, None, training=True)
    expected = F.linear(normed, classifier.linear.weight, classifier.linear.bias)
    assert torch.allclose(classifier(features), expected, atol=1e-5)


def test_an_attentive_probe_begins_as_a_mean_and_looks_where_its_queries_point() -> None:
    backbone = Backbone("pixio_vitt16", weights="random:0", model_args=SMALL)
    with torch.no_grad():
        features = backbone(torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8))
    tokens = features.tokens
    classifier = AttentiveClassifier(32, 3)
    normed = F.batch_norm(tokens.flatten(0, 1), None, None, training=True).view_as(tokens)
    values = normed @ classifier.values.weight.T
    logits = classifier.linear(values.mean(dim=1))
    assert torch.allclose(classifier(features), logits, atol=1e-5)
    looked = attention(normed, classifier.queries)
    assert torch.allclose(looked, torch.tensor(1 / tokens.shape[1]))

    with torch.no_grad():  # the third of the eight queries looks at one token, a patch
        classifier.queries[:, 2] = 1e4 * normed[0, 9]
    found = attention(normed, classifier.queries)[0]
    assert found[9, 2] == 1 and torch.allclose(found.sum(dim=0), torch.ones(8))
    gathered = values.mean(dim=1)[0].clone()
    gathered[8:12] = values[0, 9, 8:12]
    assert torch.allclose(classifier(features)[0], classifier.linear(gathered), atol=1e-5)
    assert AttentiveClassifier(100, 3).queries.shape == (100, 4)


def test_an_attentive_probe_finds_the_token_that_a_mean_hides() -> None:
    """One patch in 17 tells the class; which one is said by a mark beside it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1024, 17, 16, generator=generator)
    tokens[..., :2] = 0
    target = torch.randint(0, 2, (1024,), generator=generator)
    place = torch.randint(1, 17, (1024,), generator=generator)
    rows = torch.arange(1024)
    tokens[rows, place, 0] = 4  # the mark
    tokens[:, :, 2] *= 3
    tokens[rows, place, 2] = 2.0 * target - 1
    accuracy = {}
    for name in ("attentive", "linear"):
        layer = Layer(tokens, tokens, 1, (4, 4))
        features = Features((layer,), dense_cls=False)
        torch.manual_seed(0)
        if name == "linear":
            classifier: torch.nn.Module = LinearClassifier(16, 2, pool="both")
        else:
            classifier = AttentiveClassifier(16, 2)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-2, weight_decay=0.0)
        for _ in range(150):
            loss = F.cross_entropy(classifier(features.rows(0, 512)), target[:512])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        held_out = classifier.eval()(features.rows(512, 1024)).argmax(dim=1)
        accuracy[name] = float((held_out == target[512:]).float().mean())
    assert accuracy["attentive"] > 0.95 and accuracy["linear"] < 0.75


@pytest.mark.parametrize("multilabel", [False, True])
def test_losses_of_training_alone_smooth_their_labels(multilabel: bool) -> None:
    head = Classification(Backbone("pixio_vitt16", weights="random"), label_smoothing=0.1)
    head.data_info = {"multilabel": multilabel}
    logits = torch.randn(4, 3)
    if multilabel:
        target = torch.randint(0, 2, (4, 3))
        soft = torch.where(target == 1, 0.95, 0.05)
        share = logits.sigmoid()
        expected = -(soft * share.log() + (1 - soft) * (1 - share).log()).mean()
    else:
        target = torch.tensor([0, 1, 2, 0])
        soft = torch.full((4, 3), 0.1 / 3)
        soft[range(4), target] += 0.9
        expected = -(soft * logits.log_softmax(dim=1)).sum(dim=1).mean()
    batch = {"target": target}
    assert head.loss(logits, batch)["loss"] == pytest.approx(float(expected), rel=1e-5)
    # What an evaluation reports compares with that of any other share.
    plain = Classification(Backbone("pixio_vitt16", weights="random"))
    plain.data_info = head.data_info
    assert torch.equal(head.validation_loss(logits, batch), plain.loss(logits, batch)["loss"])


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("pixio_vitt16", {"pool": "patch"}, "did you mean 'patches'"),
        ("pixio_vitt16", {"label_smoothing": 1.0}, "expected 0 to below 1"),
        ("vit_base_patch16_siglip_gap_224", {}, "has no class token: set it to patches or"),
    ],
)
def test_mistakes(name: str, keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Classification(Backbone(name, weights="random"), **keys)


def test_bars_are_as_long_as_probabilities_and_green_where_true() -> None:
    drawn = bars(["a", "b", "c"], torch.tensor([0.1, 0.5, 0.9]), [1])
    assert drawn.shape == (3, SIDE, SIDE) and drawn.dtype == torch.uint8
    rows = drawn[:, SIDE // 6 - 12 :: SIDE // 6].permute(1, 2, 0)  # through the bars
    green = (rows[..., 1] > rows[..., 0]).sum(dim=1)
    dark = (rows.amax(dim=2) < 200).sum(dim=1)
    shares = dark[:3] / (SIDE - 8)
    assert torch.allclose(shares, torch.tensor([0.9, 0.5, 0.1]), atol=0.02)
    assert green[0] == 0 and green[1] == dark[1] and green[2] == 0 and not dark[3:].any()


def test_data_of_a_head_that_trains_nothing_are_blamed_themselves(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (80, 70)).save(tmp_path / "a.png")
    for name, said in (("folder_knn", False), ("folder_linear", True)):
        line = words(f"classification/{name}", tmp_path, tmp_path / "run")
        assert main(["predict", *line]) == 2
        error = capsys.readouterr().err
        assert ("is not trained" in error) is said and str(tmp_path) in error
