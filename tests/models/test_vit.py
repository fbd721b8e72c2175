"""The encoder is Pixio's: parameter counts, initialisation, and transformers' outputs."""

import json
import math

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import nn
from transformers import PixioConfig, PixioModel

from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.vit import (
    PixioViT,
    published_positions,
    resize_positions,
    sincos_positions,
)
from pixio_lightning.models.weights.key_names import to_official

SMALL = {"embed_dim": 96, "depth": 4, "num_heads": 6}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("pixio_vitb16", 85_855_488),
        ("pixio_vitl16", 303_377_408),
        ("pixio_vith16", 631_013_120),
        ("pixio_vit1b16", 1_361_515_008),
        ("pixio_vit5b16", 5_440_939_008),
    ],
)
def test_parameter_counts(name, count):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.cls_token.shape == (1, 8, model.embed_dim)
    assert model.pos_embed.shape == (1, 8 + 256, model.embed_dim)


@pytest.fixture(scope="module")
def theirs(randomize):
    config = PixioConfig(
        hidden_size=96, num_hidden_layers=4, num_attention_heads=6, image_size=256, n_cls_tokens=8
    )
    return randomize(PixioModel(config)).eval()


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    meta = {"name": "pixio_vitt16", "model_args": {**SMALL, "img_size": 256}}
    save_file(to_official(theirs.state_dict())[0], path, {"pixio": json.dumps(meta)})
    return Backbone(weights=str(path), layers=[0, 1, 2, 3])


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (256, 320), (384, 512), (512, 512)])
@torch.no_grad()
def test_equal_to_transformers(ours, theirs, size):
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    expected = theirs(ours.normalize(images), output_hidden_states=True)
    features = ours(images)
    assert (ours.patch_size, ours.n_cls_tokens, ours.grid) == (16, 8, (16, 16))
    for layer, raw in zip(features.layers, expected.hidden_states[1:], strict=True):
        assert raw.shape == (1, 8 + size[0] * size[1] // 256, 96)
        torch.testing.assert_close(layer.raw_tokens, raw, rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.tokens, theirs.layernorm(raw), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.tokens, expected.last_hidden_state, rtol=0, atol=1e-5)
    pooled = features.layers[-1].cls.mean(dim=1)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=1e-5)


def test_every_norm_has_the_papers_epsilon():
    norms = [m for m in PixioViT(**SMALL).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 2 * 4 + 1 and {norm.eps for norm in norms} == {1e-6}


def test_initialisation():
    model = PixioViT(embed_dim=192, depth=2, num_heads=3)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    weights.append(model.patch_embed.proj.weight.flatten(1))
    assert len(weights) == 2 * 4 + 1
    for weight in weights:
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    biases = {n: p for n, p in model.named_parameters() if n.endswith(".bias")}
    # The patch convolution's own bias is PyTorch's, uniform within one over the root of its fan-in.
    patch_bias, bound = biases.pop("patch_embed.proj.bias"), 768**-0.5
    assert 0.95 * bound < patch_bias.abs().max() <= bound
    assert patch_bias.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert len(biases) == 2 * 6 + 1 and not any(b.any() for b in biases.values())
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.LayerNorm))
    for tokens in (model.cls_token, model.pos_embed):
        # 1536 numbers at least: the standard error of their deviation is below 2 %.
        assert tokens.std().item() == pytest.approx(0.02, rel=0.06)
        assert abs(tokens.mean().item()) < 0.002


def plain_sincos(height, width, dim):
    table = torch.zeros(height * width, dim, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            for i in range(dim // 4):
                frequency = 1 / 10000 ** (i / (dim / 4))
                values = [math.sin(row * frequency), math.cos(row * frequency)]
                values += [math.sin(column * frequency), math.cos(column * frequency)]
                for quarter, value in enumerate(values):
                    table[row * width + column, quarter * (dim // 4) + i] = value
    return table


def test_sincos_equals_a_plain_loop():
    positions = sincos_positions((4, 6), 32)
    assert positions.shape == (1, 24, 32) and positions.dtype == torch.float32
    torch.testing.assert_close(positions[0].double(), plain_sincos(4, 6, 32), rtol=0, atol=1e-7)


def test_sincos_start_leaves_class_tokens_random():
    model = PixioViT(pos_init="sincos", img_size=(64, 96), **SMALL)
    assert torch.equal(model.pos_embed[:, 8:], sincos_positions((4, 6), 96))
    assert model.pos_embed[:, :8].std().item() == pytest.approx(0.02, rel=0.15)
    assert model.pos_embed.requires_grad


def test_positions_stay_at_their_own_size():
    pos_embed = torch.randn(1, 8 + 24, 4)
    assert resize_positions(pos_embed, n_prefix=8, old=(4, 6), new=(4, 6)) is pos_embed


def test_resized_positions_keep_class_tokens_and_axes():
    """What varies along one axis only still does, within its own channel."""
    row, column = torch.randn(8, 1).expand(8, 6), torch.randn(1, 6).expand(8, 6)
    prefix = torch.randn(1, 3, 2)
    old = torch.cat([prefix, torch.stack([row, column], dim=-1).view(1, 48, 2)], dim=1)
    new = resize_positions(old.bfloat16(), n_prefix=3, old=(8, 6), new=(16, 9))
    assert new.dtype == torch.bfloat16 and torch.equal(new[:, :3], prefix.bfloat16())
    grid = new[0, 3:].float().view(16, 9, 2)
    assert torch.equal(grid[..., 0], grid[:, :1, 0].expand(16, 9))
    assert torch.equal(grid[..., 1], grid[:1, :, 1].expand(16, 9))
    assert grid[:, 0, 0].unique().numel() > 8 and grid[0, :, 1].unique().numel() > 6


def test_timm_knows_the_family():
    assert isinstance(PixioViT(**SMALL), VisionTransformer)
    model = timm.create_model("pixio_vitt16", depth=1, n_cls_tokens=1, img_size=128)
    assert model.cls_token.shape[1] == 1 and model.pos_embed.shape == (1, 1 + 64, 192)
    assert model(torch.randn(1, 3, 96, 64)).shape == (1, 192)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cls_tokens": 0}, "n_cls_tokens must be 1 or more, got 0"),
        ({"pos_init": "sine"}, "pos_init must be 'trunc_normal' or 'sincos', got 'sine'"),
        ({"pos_init": "sincos", "embed_dim": 90}, "a width that 4 divides, got 90"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixioViT(**(SMALL | arguments))


@torch.no_grad()
def test_positions_of_dinov2_are_of_its_offset_grid():
    # 16 patches a side from 37: of half-pixel centres, patch j lies at (j + 0.5) * 37 / 16.1 - 0.5;
    # without the offset the last would lie 0.2 further. The cubic leaves a ramp by up to 0.05.
    name = "vit_small_patch14_dinov2"
    backbone = Backbone(name, weights="random:0", model_args={"depth": 1}).load()
    vit = backbone.vit
    ramp = torch.arange(37.0).repeat_interleave(37)[:, None].expand(-1, backbone.embed_dim)
    vit.pos_embed[:, 1:] = ramp
    found = published_positions(name, vit, (16, 20))
    rows = (torch.arange(2, 14) + 0.5) * 37 / 16.1 - 0.5
    assert found.shape == (1, 320, backbone.embed_dim)
    torch.testing.assert_close(found[0, :, 0].view(16, 20)[2:14, 7], rows, rtol=0, atol=0.06)
    assert torch.equal(published_positions(name, vit, (37, 37)), vit.pos_embed[:, 1:])
    # They are what the backbone adds, to all patches and to kept ones.
    vit.patch_embed.proj.weight.zero_()
    seen = []
    vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pictures = torch.zeros(1, 3, 256, 320, dtype=torch.uint8)
    backbone(pictures)
    backbone(pictures, keep=torch.tensor([[319, 5]]))
    bias = vit.patch_embed.proj.bias
    torch.testing.assert_close(seen[0][:, 1:], found + bias)
    torch.testing.assert_close(seen[1][:, 1:], (found + bias)[:, [319, 5]])


@torch.no_grad()
def test_positions_of_mae_are_those_of_our_encoder():
    """Both doors to the same weights, and MAE's own evaluation, have no antialiasing."""
    arguments = {"img_size": 64, "embed_dim": 48, "depth": 1, "num_heads": 3}
    theirs = Backbone("vit_base_patch16_224.mae", weights="random:0", model_args=arguments).load()
    ours = Backbone(
        "pixio_vitb16", weights="random:0", model_args=arguments | {"n_cls_tokens": 1}
    ).load()
    ours.vit.load_state_dict(theirs.vit.state_dict())
    pictures = torch.randint(256, (1, 3, 48, 32), dtype=torch.uint8)
    normalized = ours.normalize(pictures)
    mine, found = (b(normalized, normalized=True).layers[0].tokens for b in (ours, theirs))
    torch.testing.assert_close(found, mine)
    untagged = published_positions("vit_base_patch16_224", theirs.vit, (3, 2))
    assert untagged is None  # nobody knows whose it is
    assert published_positions("vit_small_patch14_reg4_dinov2.lvd142m", theirs.vit, (3, 2)) is None


@torch.no_grad()
def test_positions_of_dinov2_with_registers_are_timms():
    name = "vit_small_patch14_reg4_dinov2"
    backbone = Backbone(name, weights="random:0", model_args={"depth": 1}).load()
    resized = resample_abs_pos_embed(backbone.vit.pos_embed, [16, 16], num_prefix_tokens=0)
    backbone.vit.patch_embed.proj.weight.zero_()
    seen = []
    backbone.vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    backbone(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))
    bias = backbone.vit.patch_embed.proj.bias
    torch.testing.assert_close(seen[0][:, 5:], resized + bias)
