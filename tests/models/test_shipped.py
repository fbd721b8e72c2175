"""`weights: tiny`: the file that lies in the package, and the word that stands for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pixio_lightning import Backbone
from pixio_lightning.errors import UserError
from pixio_lightning.models.weights.read import DECODER_SUFFIX, read
from pixio_lightning.models.weights.shipped import SHIPPED
from pixio_lightning.models.weights.students import absolute

FILE = SHIPPED["tiny"]
CARD = FILE.with_name("tiny.README.md").read_text()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of that name, which holds no weights."""
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_what_its_card_says() -> None:
    backbone = Backbone(weights="tiny")
    features = backbone(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).layers[-1]
    assert features.patches.shape == (1, backbone.embed_dim, 8, 8)
    assert features.cls.shape == (1, 4, backbone.embed_dim) and features.cls.isfinite().all()
    assert f"| digest | {backbone.digest} |" in CARD
    assert f"{backbone.embed_dim}, {backbone.depth}, " in CARD
    assert backbone.licence == "Apache-2.0" and "license: apache-2.0" in CARD
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    assert f"{parameters:,} parameters" in CARD


def test_it_is_small() -> None:
    files = [FILE, FILE.with_suffix(DECODER_SUFFIX), FILE.with_name("tiny.README.md")]
    assert sum(file.stat().st_size for file in files) <= 5e6


def test_the_word_wins_over_a_folder_which_a_path_names(elsewhere: Path) -> None:
    assert read("tiny").decoder and absolute("tiny") == "tiny"
    with pytest.raises(UserError, match="tiny holds no weights"):
        Backbone(weights="./tiny")
    assert absolute("./tiny") == str(elsewhere / "tiny")


@pytest.mark.parametrize(("word", "meant"), [("tinny", "tiny"), ("randon", "random")])
def test_a_misspelt_word_gets_the_nearest(word: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"'{word}': no such file or folder, .* '{meant}'"):
        Backbone(weights=word)


@pytest.mark.parametrize(
    ("name", "model_args", "says"),
    [
        ("pixio_vitb16", {}, "hold 'pixio_vitt16'"),
        (None, {"patch_size": 16}, "have 8"),
        (None, {"img_size": 128}, "have 64"),
    ],
)
def test_what_contradicts_it_is_told_what_it_is(name, model_args, says) -> None:
    text = re.escape(f"weights 'tiny' (the small Pixio of this package) {says}")
    with pytest.raises(UserError, match=text):
        Backbone(name, weights="tiny", model_args=model_args)
