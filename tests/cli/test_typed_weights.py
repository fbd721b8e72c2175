"""Weights that are typed say which model they are, however the command line spells their key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from pixio_lightning.cli.class_lookup import import_named
from pixio_lightning.cli.config_tree import typed
from pixio_lightning.cli.lightning_cli import PixioCLI
from pixio_lightning.cli.main import main
from pixio_lightning.cli.options import parse_options
from pixio_lightning.errors import UserError

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
