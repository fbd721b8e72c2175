"""Weights that are typed say which model they are, however the command line spells their key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from PIL import Image

from pixio_lightning.cli.class_lookup import import_named
from pixio_lightning.cli.config_tree import typed
from pixio_lightning.cli.lightning_cli import PixioCLI
from pixio_lightning.cli.main import main
from pixio_lightning.cli.options import parse_options
from pixio_lightning.errors import UserError
from pixio_lightning.training import results

SPELLINGS = [
    ["--model.backbone.weights", "tiny"],
    ["--model.backbone.weights=tiny"],
    ["--model.backbone.init_args.weights", "tiny"],
    ["--model.init_args.backbone.weights=tiny"],
    ["--model.init_args.backbone.init_args.weights=tiny"],
    ["--model.backbone={weights: tiny}"],
    ["--model.backbone", "{class_path: Backbone, init_args: {weights: tiny}}"],
    ["--model.backbone=Backbone", "--model.backbone.weights=tiny"],
    ["--model.init_args", "{backbone: {weights: tiny}}"],
    ["--model={init_args: {backbone: {weights: tiny}}}"],
    ["--model", "{class_path: Depth, init_args: {backbone: {weights: tiny}}}"],
]


def parsed(words: list[str]) -> PixioCLI:
    options = parse_options(["-c", "depth/folder", "--data.path=.", *words])
    import_named(options.configs, options.rest)
    return PixioCLI(options, "check")


@pytest.mark.parametrize("words", SPELLINGS, ids=" ".join)
def test_typed_weights_say_which_model_they_are(words: list[str]) -> None:
    classes = {"model.class_path", "model.backbone", "model.backbone.class_path"}
    assert set(typed(words)) - classes == {"model.backbone.weights"}
    backbone = parsed(words).model.backbone
    assert (backbone.weights, backbone.embed_dim) == ("tiny", 128)


@pytest.mark.parametrize(
    "words",
    [["--model.backbone.model_args.depth=2"], ["--model.backbone", "{model_args: {depth: 2}}"]],
)
def test_an_architecture_that_is_typed_too_must_agree(words: list[str]) -> None:
    with pytest.raises(UserError, match="model_args.*depth"):
        parsed(["--model.backbone.weights=tiny", *words]).model.backbone  # noqa: B018


def test_a_name_that_is_left_out_is_that_of_the_weights() -> None:
    words = ["--model.backbone.name", "null", "--model.backbone.weights", "tiny"]
    assert parsed(words).model.backbone.embed_dim == 128


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("", "no such file or folder; `pixio fit -c pretrain/demo` makes it, in the current"),
        ("", "--model.backbone.weights tiny needs no training$"),
        ("runs/mine/last.ckpt", "no such file or folder$"),
        ("dinov2_b", "did you mean `-c backbone/dinov2_b`.$"),
        (
            "hf:me/absent",
            "not in the cache.*; or take others: -c backbone/dinov2_b needs no account",
        ),
    ],
)
def test_weights_that_are_not_there_say_how_to_come_by_some(
    weights: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = ["--model.backbone.weights", weights] if weights else []
    assert main(["fit", "-c", "depth/demo", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)


def test_timms_weights_are_looked_for_when_a_run_or_a_suite_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not when the first row has trained for hours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = (
        "not in the cache.*`hf download timm/vit_base_patch14_dinov2.lvd142m`.*"
        "or take others: --model.backbone.weights tiny needs no network$"
    )
    suite = {"rows": {"a": {"fit": "depth/demo"}}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    for words, begin in (
        (["check", "-c", "depth/demo", "-c", "backbone/dinov2_b"], "error: timm/"),
        (["bench", "suite.yaml", "--backbones", "tiny,dinov2_b"], "error: row dinov2_b: timm/"),
    ):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(f"{begin}.*{said}", line), line
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_that_is_not_there_says_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in (
        ["test", "-c", "depth/demo", "--ckpt_path", "runs/depth/demo/best.ckpt"],
        ["export", "runs/depth/demo/best.ckpt"],
    ):
        assert main(line) == 2
        assert "; `pixio fit -c depth/demo` makes it" in capsys.readouterr().err


def test_a_plan_says_that_there_are_no_data_yet(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["check", "-c", "pretrain/folder", "--trainer.accelerator", "cpu"]
    assert main([*line, "--data.path", "not/yet"]) == 0
    assert "not looked at: 'not/yet' does not exist here" in capsys.readouterr().out
    assert main([*line, "--data.path", "."]) == 0
    assert "not looked at" not in capsys.readouterr().out


def test_a_plan_of_other_data_modules_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of Lightning's own kind, that has a path and no source."""
    (tmp_path / "theirs.py").write_text(
        "import lightning as L\n"
        "class Data(L.LightningDataModule):\n"
        "    batch_size, image_size, path = 2, 64, 'nowhere'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    line = ["check", "-c", "pretrain/demo", "--data", "theirs.Data"]
    assert main(line) == 0
    assert "not looked at: 'nowhere'" in capsys.readouterr().out


def folder_linear(folder: Path, data: str, *words: str, out: str = "run") -> list[str]:
    line = ["-c", "classification/folder_linear", "--data.path", str(folder / data)]
    line += ["--data.image_size=64", "--data.num_workers=0", "--data.batch_size=4"]
    line += ["--data.steps_per_epoch=1", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    return [*line, "--panels.every_n_steps=0", "--out", str(folder / out), *words]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes, photos, and two runs on `tiny`, where the recipe names gated weights of the Hub."""
    folder = tmp_path_factory.mktemp("begun")
    for number in range(12):
        shade, place = 20 * number, folder / "classes" / "ab"[number % 2]
        for path in (place / f"{number}.png", folder / "photos" / f"{number}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (shade, 90, 255 - shade)).save(path)
    for out, more in (("run", []), ("tuned", ["-c", "with/finetune"])):
        line = folder_linear(folder, "classes", *more, "--model.backbone.weights", "tiny", out=out)
        assert main(["fit", *line]) == 0
    return folder


@pytest.mark.parametrize(("out", "more"), [("run", []), ("tuned", ["-c", "with/finetune"])])
def test_weights_that_a_run_began_with_need_not_be_typed_again(
    out: str, more: list[str], begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = "tiny" if out == "run" else str(begun / out / "best.ckpt")
    assert main(["predict", *folder_linear(begun, "photos", *more, out=out)]) == 0
    said = capsys.readouterr().out
    assert f"model.backbone.weights {taken}: of the checkpoint" in said
    assert main(["test", *folder_linear(begun, "classes", *more, out=out)]) == 0
    typed_too = [*more, "--model.backbone.weights", "tiny"]
    assert main(["test", *folder_linear(begun, "classes", *typed_too, out=out)]) == 0
    untyped, again = results.read(begun / out)[-2:]
    assert untyped["metrics"] == again["metrics"] and untyped["backbone"]["weights"] == taken
    config = str(begun / out / "config.yaml")
    line = ["test", "-c", config, "--out", str(begun / out), "--data.path", str(begun / "classes")]
    assert main(line) == 0  # which names all that was typed


def test_a_configuration_that_a_run_was_not_begun_with_asks_for_its_weights(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = begun / "other.yaml"
    other.write_text("model: {backbone: {name: null, weights: 'random:5'}}")
    line = folder_linear(begun, "photos", "-c", str(other))
    assert main(["predict", *line]) == 2
    assert "random:5" in capsys.readouterr().err
    whole = begun / "whole.yaml"
    whole.write_text("model: {init_args: {backbone: {weights: 'random:5', name: null}}}")
    assert main(["predict", *folder_linear(begun, "photos", "--model", str(whole))]) == 2


def test_weights_that_only_a_checkpoint_names_are_not_fetched(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = torch.load(begun / "run/best.ckpt", weights_only=True)
    backbone = stored["pixio"]["config"]["init_args"]["backbone"]
    for weights, way in (("hf:some/body", "hf:some/body"), (str(tmp_path / "gone.pth"), "PATH")):
        (backbone.get("init_args") or backbone)["weights"] = weights
        torch.save(stored, tmp_path / "theirs.ckpt")
        line = folder_linear(begun, "photos", "--ckpt_path", str(tmp_path / "theirs.ckpt"))
        assert main(["predict", *line]) == 2
        error = capsys.readouterr().err
        assert f", --model.backbone.weights {way}\n" in error and error.count("\n") == 1
