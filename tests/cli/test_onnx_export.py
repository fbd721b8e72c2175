"""What is exported as ONNX computes in onnxruntime what torch does, for any number of images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import pixio_lightning
from pixio_lightning import Backbone
from pixio_lightning.cli.export import onnx as onnx_export
from pixio_lightning.cli.main import main
from pixio_lightning.models.weights.export import export
from pixio_lightning.models.weights.read import Weights

ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_SCENES = ("--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}")
_SMALL = (
    "{name: pixio_vitt16, weights: 'random:0', model_args: "
    "{img_size: 64, patch_size: 8, embed_dim: 32, depth: 4, num_heads: 2, n_cls_tokens: 2}}"
)


def run(path: Path, images: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images.numpy()}), strict=True))


def said_by(path: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return json.loads(session.get_modelmeta().custom_metadata_map["pixio"])


def bytes_of(count: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = Backbone("pixio_vitt16", weights="random:0", model_args=ARGS | {"n_cls_tokens": 4})
    backbone.load()
    meta = {"name": "pixio_vitt16", "model_args": ARGS | {"n_cls_tokens": 4}}
    path = tmp_path_factory.mktemp("encoder") / "tiny.safetensors"
    export(Weights(backbone.vit.state_dict(), None, meta, "tiny"), "safetensors", path)
    return path


def test_an_encoder_gives_patches_and_class_tokens(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiny.onnx"
    assert main(["export", str(encoder), "--to", "onnx", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "images: uint8 (B, 3, 32, 32)" in said and "patches: (B, 32, 4, 4)" in said
    backbone = Backbone(weights=str(encoder))
    backbone.load()
    for count in (1, 2, 5):
        images = bytes_of(count, 32)
        with torch.no_grad():
            layer = backbone(images).layers[-1]
        found = run(out, images)
        np.testing.assert_allclose(found["patches"], layer.patches, atol=1e-4)
        np.testing.assert_allclose(found["cls"], layer.cls, atol=1e-4)


@pytest.mark.parametrize(
    "recipe", ["depth/demo", pytest.param("segmentation/demo", marks=pytest.mark.slow)]
)
def test_a_head_predicts_as_it_does_on_one_window(recipe: str, tmp_path: Path) -> None:
    words = ["-c", recipe, "-c", "with/debug", "--out", str(tmp_path / "run"), *_SCENES]
    assert main(["fit", *words, "--model.backbone", _SMALL]) == 0
    out = tmp_path / "head.onnx"
    assert main(["export", str(tmp_path / "run"), "--to", "onnx", "--out", str(out)]) == 0
    head = pixio_lightning.load(tmp_path / "run")
    images = bytes_of(3, head.window)
    expected = head.predict(images)
    found = run(out, images)["prediction"]
    assert found.shape == tuple(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    about = said_by(out)
    assert about["sees"].startswith("one window of an image, of which `pixio predict` blends")
    if recipe == "depth/demo":
        assert about["output"]["values"] == "depth" and about["output"]["unit"] == "metres"
        assert about["output"]["greatest"] == head.data_info["max_depth"]
    else:
        assert about["output"]["class_names"] == head.data_info["class_names"]
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-4)  # as it says
    other = tmp_path / "other.onnx"
    words = ["export", str(tmp_path / "run"), "--to", "onnx", "--out", str(other)]
    assert main([*words, "--image-size", str(2 * head.window)]) == 0
    found = run(other, bytes_of(3, 2 * head.window))["prediction"]
    assert found.shape[-2:] == (2 * head.window, 2 * head.window)


def test_a_head_on_weights_of_a_hub_needs_them_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-c", "depth/demo", "-c", "with/debug", "--out", str(tmp_path / "run"), *_SCENES]
    assert main(["fit", *words, "--model.backbone", _SMALL]) == 0
    stored = torch.load(tmp_path / "run/best.ckpt", weights_only=True)
    stored["pixio"]["config"]["init_args"]["backbone"]["init_args"]["weights"] = "hf:someone/vit"
    torch.save(stored, tmp_path / "hub.ckpt")
    line = ["export", str(tmp_path / "hub.ckpt"), "--to", "onnx", "--out", str(tmp_path / "a.onnx")]
    capsys.readouterr()
    assert main(line) == 2
    error = capsys.readouterr().err
    assert "if you trust them, --weights hf:someone/vit\n" in error and "load(" not in error
    assert main([*line, "--weights", "random:1"]) == 2
    assert "digest" in capsys.readouterr().err and not (tmp_path / "a.onnx").exists()
    assert main([*line, "--weights", "random:0"]) == 0


def test_a_classifier_takes_images_of_the_size_it_is_evaluated_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not of the size its encoder was made for; and it says which number is which class."""
    monkeypatch.chdir(tmp_path)
    words = ["-c", "classification/demo", "-c", "with/debug", "--out", "run", *_SCENES]
    small = _SMALL.replace("img_size: 64", "img_size: 32")
    assert main(["fit", *words, "--model.backbone", small]) == 0
    capsys.readouterr()
    assert main(["export", "run", "--to", "onnx", "--out", "head.onnx"]) == 0
    head = pixio_lightning.load("run")
    assert head.evaluation_info["centre_crop"] == (64, 1.0)
    images = bytes_of(2, 64)
    found = run(Path("head.onnx"), images)["prediction"]
    np.testing.assert_allclose(found, head.predict(images), rtol=1e-3, atol=1e-4)
    output = said_by(Path("head.onnx"))["output"]
    names = head.data_info["class_names"]
    assert output["class_names"] == list(names)
    assert output["values"] == "logits" and "softmax" in output["activation"]
    listed = ", ".join(f"{index} {name}" for index, name in enumerate(names))
    card = Path("head.README.md").read_text()
    assert f"| class names | {listed} |" in card and "np.zeros((1, 3, 64, 64), np.uint8)" in card
    assert f"class names: 0 {names[0]}, 1 {names[1]}" in capsys.readouterr().out


@pytest.mark.slow  # as the square ones of the next test
def test_an_encoder_of_oblong_images_takes_these(tmp_path: Path) -> None:
    args = ARGS | {"img_size": [16, 32], "n_cls_tokens": 4}
    backbone = Backbone("pixio_vitt16", weights="random:0", model_args=args).load()
    meta = {"name": "pixio_vitt16", "model_args": args}
    source, out = tmp_path / "oblong.safetensors", tmp_path / "oblong.onnx"
    export(Weights(backbone.vit.state_dict(), None, meta, "oblong"), "safetensors", source)
    assert main(["export", str(source), "--to", "onnx", "--out", str(out)]) == 0
    images = torch.randint(0, 256, (1, 3, 16, 32), dtype=torch.uint8)
    assert run(out, images)["patches"].shape == (1, 32, 2, 4)
    assert "np.zeros((1, 3, 16, 32), np.uint8)" in (tmp_path / "oblong.README.md").read_text()


@pytest.mark.parametrize(
    ("recipe", "said"), [("policy/demo", "proprio"), ("reconstruction/demo", "several views")]
)
@pytest.mark.slow
def test_heads_of_more_than_an_image_are_refused(
    recipe: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--trainer.max_steps", "2", "--data.steps_per_epoch", "2", "--data.num_workers", "0"]
    few += ["--model.backbone", _SMALL]  # its weights need not have been trained here
    few += ["--data.demonstrations=2", "--data.episodes=1"] if recipe == "policy/demo" else _SCENES
    assert main(["fit", "-c", recipe, *few, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    out = tmp_path / "head.onnx"
    assert main(["export", str(tmp_path / "run"), "--to", "onnx", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not out.exists()


def test_a_graph_that_computes_something_else_is_not_written(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    out = tmp_path / "tiny.onnx"
    assert main(["export", str(encoder), "--to", "onnx", "--out", str(out)]) == 2
    assert "onnxruntime differs from torch by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "onnx", "--image-size", "30"), "expected a multiple of 8"),
        (("--to", "onnx", "--image-size", "0"), "--image-size is 0, but expected a multiple"),
        (("--to", "onnx", "--image-size", "-8"), "--image-size is -8, but expected a multiple"),
        (("--to", "onnx", "--out", "x.txt"), "must end in .onnx"),
        (("--image-size", "32"), "goes with --to onnx and timm"),
        (("--weights", "timm"), "--weights goes with --to onnx"),
        (("--to", "onnx", "--weights", "timm"), "has no head"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], said: str, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(encoder), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_missing_package_is_named(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert main(["export", str(encoder), "--to", "onnx"]) == 2
    assert "pip install 'pixio-lightning[onnx]'" in capsys.readouterr().err
