"""Folders of weights say how images are prepared, as timm and transformers write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import PixioConfig, PixioModel

from pixio_heads.depth import Depth
from pixio_lightning.errors import UserError
from pixio_lightning.models import Backbone

NAME = "vit_tiny_patch16_224"
IMAGENET = [0.485, 0.456, 0.406]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = timm.create_model(NAME, num_classes=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def described(folder: Path, **said: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"architecture": NAME} | said))
    return folder


def mean_of(backbone: Backbone) -> list[float]:
    return [round(value, 3) for value in backbone.mean.flatten().tolist()]


@pytest.mark.parametrize("nested", [True, False])
def test_what_timm_says_of_weights_counts(nested: bool, weights: Path) -> None:
    said = {"tag": "mine", "mean": IMAGENET, "std": [0.2] * 3, "license": "cc-by-nc-4.0"}
    described(weights, **({"pretrained_cfg": said} if nested else said))
    backbone = Backbone(weights=str(weights))
    assert mean_of(backbone) == IMAGENET and backbone.std.mean().item() == pytest.approx(0.2)
    assert backbone.licence == "cc-by-nc-4.0" and backbone.name == NAME
    assert mean_of(Backbone(NAME, weights=str(weights))) == IMAGENET


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_classifier_is_said_beside_the_arguments(pool: str, tmp_path: Path) -> None:
    """As in most folders of the Hub; with `avg` the last norm is called otherwise."""
    model = timm.create_model(NAME, num_classes=10, global_pool=pool)
    timm.models.save_for_hf(model, tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    del said["model_args"]
    (tmp_path / "config.json").write_text(json.dumps(said))
    images = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8)
    backbone = Backbone(weights=str(tmp_path)).load().eval()
    with torch.no_grad():
        expected = model.eval().forward_features(backbone.normalize(images))
        if pool == "avg":
            expected = model.fc_norm(expected)
        torch.testing.assert_close(backbone(images).tokens, expected)


def test_the_tag_that_timm_knows_is_part_of_the_name(weights: Path) -> None:
    tag = "augreg_in21k_ft_in1k"
    described(weights, pretrained_cfg={"tag": tag})
    for name in (None, NAME, f"{NAME}.{tag}"):
        assert Backbone(name, weights=str(weights)).name == f"{NAME}.{tag}"
    with pytest.raises(UserError, match=f"hold '{NAME}.{tag}'"):
        Backbone(f"{NAME}.augreg_in21k", weights=str(weights))
    described(weights)  # of no tag: that of the name that is asked for
    assert Backbone(f"{NAME}.{tag}", weights=str(weights)).name == f"{NAME}.{tag}"


def test_a_file_named_as_in_a_folder_is_what_the_folder_says(weights: Path) -> None:
    file = str(weights / "model.safetensors")
    assert Backbone(NAME, weights=file).input_assumed
    described(weights, pretrained_cfg={"mean": IMAGENET, "std": [0.2] * 3})
    backbone = Backbone(weights=file)
    assert backbone.name == NAME and mean_of(backbone) == IMAGENET and not backbone.input_assumed
    (weights / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(UserError, match="model_type 'dinov2' is not read"):
        Backbone(NAME, weights=file)
    (weights / "model.safetensors").rename(weights / "other.safetensors")  # is of no folder
    assert Backbone(NAME, weights=str(weights / "other.safetensors")).input_assumed


def test_what_transformers_prepare_images_with_counts(tmp_path: Path) -> None:
    sizes = {"hidden_size": 192, "num_hidden_layers": 1, "num_attention_heads": 3}
    PixioModel(PixioConfig(**sizes, image_size=64)).save_pretrained(tmp_path)
    usual = mean_of(Backbone("pixio_vitt16", weights=str(tmp_path)))
    prepared = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepared))
    backbone = Backbone("pixio_vitt16", weights=str(tmp_path))
    assert usual == IMAGENET and mean_of(backbone) == [0.5] * 3
    assert torch.equal(backbone.std.flatten(), torch.full((3,), 0.5))


def test_a_head_does_not_see_images_otherwise_than_it_was_trained(
    weights: Path, tmp_path: Path
) -> None:
    described(weights)
    head = Depth(Backbone(NAME, weights=str(weights)), window=32, stride=32)
    head.data_info, head.evaluation_info = {"max_depth": 10.0}, {"min_depth": 0.1, "max_depth": 9.0}
    head.configure_model()
    checkpoint: dict[str, Any] = {"state_dict": dict(head.state_dict())}
    head.on_save_checkpoint(checkpoint)
    described(weights, pretrained_cfg={"mean": IMAGENET})
    other = Depth(Backbone(NAME, weights=str(weights)), window=32, stride=32)
    other.data_info, other.evaluation_info = head.data_info, head.evaluation_info
    with pytest.raises(UserError, match="trained on images whose mean is .0.5"):
        other.on_load_checkpoint(checkpoint)
