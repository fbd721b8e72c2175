"""What is exported is read back by the library it was written for, with equal outputs."""

import json
import os

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, PixioModel

from pixio_lightning.cli.main import export as main
from pixio_lightning.errors import UserError
from pixio_lightning.models.vit import PixioViT
from pixio_lightning.models.weights.export import export, identity, resized
from pixio_lightning.models.weights.fill import fill
from pixio_lightning.models.weights.key_names import infer
from pixio_lightning.models.weights.read import Weights, digest, read

ARGS = {
    "patch_size": 16,
    "img_size": 64,
    "n_cls_tokens": 8,
    "in_chans": 3,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 6,
}


@pytest.fixture(scope="module")
def vit():
    generator = torch.Generator().manual_seed(0)
    model = PixioViT(**ARGS).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


@pytest.fixture
def weights(vit):
    decoder = {"decoder_embed.weight": torch.ones(8, 96), "mask_token": torch.ones(1, 1, 8)}
    meta = {"name": None, "model_args": ARGS, "licence": "CC-BY-4.0"}
    return Weights(vit.state_dict(), decoder, meta, "run/last.ckpt")


@pytest.fixture
def checkpoint(vit, tmp_path):
    """A pretraining checkpoint of ours."""
    state = {f"backbone.vit.{n}": t for n, t in vit.state_dict().items()}
    state |= {"decoder.mask_token": torch.ones(1, 1, 8), "decoder.embed.weight": torch.ones(8, 96)}
    backbone = {"name": None, "model_args": ARGS}
    torch.save({"state_dict": state, "pixio": {"backbone": backbone}}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def outputs(vit, seed=1):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return images, vit.forward_features(images)


def test_transformers_folder(vit, weights, tmp_path):
    export(weights, "transformers", tmp_path / "out")
    model, info = PixioModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    images, expected = outputs(vit)
    with torch.no_grad():
        found = model.eval()(images).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8))
    pixels = processor(image, return_tensors="pt")["pixel_values"][0]
    resized = np.array(image.resize((64, 64), Image.Resampling.BICUBIC)) / 255
    expected = (resized - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    # Two libraries round 8-bit pixels apart: one grey level is 0.017, bilinear would be 0.3 off.
    assert abs(pixels.numpy() - expected.transpose(2, 0, 1)).mean() < 0.01


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_processor_of_transformers_keeps_the_channels(channels, tmp_path):
    """It converts to three channels where there are three, and nothing where there are others."""
    args = ARGS | {"in_chans": channels, "depth": 1}
    meta = {"name": None, "model_args": args, "mean": [0.5] * channels, "std": [0.2] * channels}
    encoder = PixioViT(**args).state_dict()
    export(Weights(encoder, None, meta, "run/last.ckpt"), "transformers", tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = np.full((channels, 64, 64), 102, dtype=np.uint8)
    found = processor(pixels, input_data_format="channels_first", return_tensors="pt")
    assert found["pixel_values"].shape == (1, channels, 64, 64)
    torch.testing.assert_close(found["pixel_values"].mean().item(), (102 / 255 - 0.5) / 0.2)


def test_timm_folder(vit, weights, tmp_path):
    export(weights, "timm", tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert type(model) is timm.models.VisionTransformer and model.num_reg_tokens == 7
    images, expected = outputs(vit)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 64, 64) and config["interpolation"] == "bicubic"


@torch.no_grad()
def test_a_timm_folder_for_images_of_another_size(vit, checkpoint, tmp_path):
    out = tmp_path / "out"
    words = [str(checkpoint), "--to", "timm", "--out", str(out)]
    assert main([*words, "--image-size", "96"]) == 0
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(images), vit.forward_features(images), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="--image-size is 40, but expected a multiple of 16"):
        main([*words, "--image-size", "40"])


def test_an_encoder_of_another_size_keeps_what_it_says_of_itself(weights):
    own = {"mean": [0.5] * 3, "std": [0.25] * 3, "licence": "MIT"}
    found = resized(weights._replace(meta=weights.meta | own), 96)
    about = identity(found)
    assert {key: about[key] for key in own} == own and about["model_args"]["img_size"] == 96
    other = weights._replace(meta={"name": "vit_small_patch14_dinov2"})
    with pytest.raises(UserError, match="is not a Pixio model: export it --to safetensors"):
        resized(other, 96)


@pytest.mark.parametrize("to", ["safetensors", "transformers", "timm"])
def test_every_export_reads_back(to, weights, tmp_path):
    out = tmp_path / ("w.safetensors" if to == "safetensors" else "w")
    files = export(weights, to, out)
    assert all(f.is_file() for f in files) and not list(tmp_path.rglob("*.tmp"))
    back = read(str(out))
    assert digest(back.encoder) == digest(weights.encoder)
    inferred = infer(back.encoder, back.meta)
    assert inferred == {"name": None, "model_args": ARGS}
    fill(PixioViT(**inferred["model_args"]), back)
    assert back.meta["licence"] == "CC-BY-4.0"
    assert (back.decoder is not None) == (to == "safetensors")


def test_decoder_file_stands_beside(weights, tmp_path):
    encoder, decoder = export(weights, "safetensors", tmp_path / "w.safetensors")
    assert decoder.name == "w.decoder.safetensors"
    assert digest(read(str(encoder)).decoder) == digest(weights.decoder)
    with safe_open(encoder, framework="pt") as file:
        assert set(file.keys()) == set(weights.encoder)
    with pytest.raises(UserError, match="give the encoder's file, w.safetensors"):
        read(str(decoder))
    # An encoder exported without a decoder does not pick up one that is not its own.
    export(weights._replace(decoder=None), "safetensors", tmp_path / "v.safetensors")
    decoder.rename(tmp_path / "v.decoder.safetensors")
    assert read(str(tmp_path / "v.safetensors")).decoder is None
    assert read(str(encoder)).decoder is None


def test_named_sizes_export_by_name(tmp_path):
    with torch.device("meta"):
        names = PixioViT(embed_dim=192, depth=12, num_heads=3, img_size=32).state_dict()
    state = {n: torch.zeros(t.shape, dtype=torch.bfloat16) for n, t in names.items()}
    export(Weights(state, None, {}, "hf:facebook/pixio-x"), "transformers", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["num_attention_heads"] == 3 and config["dtype"] == "bfloat16"
    back = read(str(tmp_path / "out")).meta
    assert back["name"] == "pixio_vitt16" and "Noncommercial" in back["licence"]


def test_other_models_export_as_safetensors_only(tmp_path):
    model = timm.create_model("vit_tiny_patch16_dinov3_qkvb", num_classes=0)
    meta = {"name": "vit_tiny_patch16_dinov3_qkvb", "licence": "DINOv3 License"}
    weights = Weights(model.state_dict(), None, meta, "run/best.ckpt")
    for to in ("transformers", "timm"):
        with pytest.raises(UserError, match="export it --to safetensors"):
            export(weights, to, tmp_path / to)
    export(weights, "safetensors", tmp_path / "w.safetensors")
    back = read(str(tmp_path / "w.safetensors"))
    assert fill(model, back).matched == len(model.state_dict())
    assert back.meta["name"] == meta["name"] and back.meta["licence"] == "DINOv3 License"


def test_a_failed_export_leaves_nothing(weights, tmp_path):
    (tmp_path / "w.safetensors").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        export(weights, "safetensors", tmp_path / "w.safetensors")
    weights.encoder["pos_embed"] = weights.encoder["pos_embed"].to_sparse()
    with pytest.raises(Exception):  # noqa: B017  (whatever safetensors makes of it)
        export(weights, "timm", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    assert (tmp_path / "w.safetensors").read_text() == "precious"


def test_who_may_read_an_export_is_said_by_the_umask(weights, tmp_path):
    before = os.umask(0o027)
    try:
        export(weights, "safetensors", tmp_path / "a.safetensors")
        export(weights, "transformers", tmp_path / "b")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5 and {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_command_line(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["last.ckpt"]) == 0
    said = capsys.readouterr().out
    for part in ("wrote last.safetensors", "54 tensors", "decoder: yes, 2 tensors", "own file"):
        assert part in said
    assert main(["last.ckpt", "--to", "timm"]) == 0
    assert "decoder: yes, 2 tensors, left out" in capsys.readouterr().out
    assert main(["last-timm", "--to", "transformers", "--out", "t"]) == 0
    assert "decoder: no" in capsys.readouterr().out
    assert digest(read("t").encoder) == digest(read("last.ckpt").encoder)
    for choice in (["--to", "tim"], ["--dtype", "float6"]):
        with pytest.raises(UserError, match="did you mean '(timm|float16)'"):
            main(["last.ckpt", *choice])
    for argv in (["last.ckpt", "--out", "x.pth"], []):
        with pytest.raises(UserError):
            main(argv)


@pytest.mark.parametrize("to", ["transformers", "timm"])
def test_an_encoder_without_its_last_norm_is_refused(to, vit, weights, tmp_path):
    state = {name: t for name, t in vit.state_dict().items() if not name.startswith("norm.")}
    with pytest.raises(UserError, match=f"{to} needs a norm behind the last block"):
        export(weights._replace(encoder=state), to, tmp_path / "out")
    assert not list(tmp_path.iterdir())
