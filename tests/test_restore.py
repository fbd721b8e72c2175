"""From a checkpoint back to the module: only what is installed, and only what fits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import pixio_lightning
from pixio_lightning.cli import main
from pixio_lightning.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        words = ["-c", "depth/demo", "-c", "with/debug", "--out", str(folder / "run")]
        words += ["--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}"]
        assert main(["fit", *words]) == 0
    return folder / "run/last.ckpt"


def rewritten(path: Path, folder: Path, **about: object) -> Path:
    stored = torch.load(path, weights_only=True)
    stored["pixio"] |= about
    torch.save(stored, folder / "changed.ckpt")
    return folder / "changed.ckpt"


def test_a_loaded_head_predicts_on_plain_images(trained: Path) -> None:
    head = pixio_lightning.load(trained)
    depth = head.predict(torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8))
    assert depth.shape == (2, 64, 96) and depth.min() > 0 and not head.training


def test_a_class_that_is_not_installed_is_not_imported(trained: Path, tmp_path: Path) -> None:
    path = rewritten(trained, tmp_path, **{"class": "antigravity:Head"})
    with pytest.raises(UserError, match="no installed head"):
        pixio_lightning.load(path)
    assert "antigravity" not in sys.modules


def test_a_foreign_class_in_the_configuration_is_refused(trained: Path, tmp_path: Path) -> None:
    config = torch.load(trained, weights_only=True)["pixio"]["config"]
    config["init_args"]["decoder"] = {"class_path": "antigravity.Decoder"}
    with pytest.raises(UserError, match="which its head does not use: refused"):
        pixio_lightning.load(rewritten(trained, tmp_path, config=config))
    assert "antigravity" not in sys.modules


def test_another_backbone_is_refused_by_its_digest(trained: Path) -> None:
    with pytest.raises(UserError, match="digest"):
        pixio_lightning.load(trained, weights="random:3")


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="none of `pixio fit`"):
        pixio_lightning.load(tmp_path / "other.ckpt")
