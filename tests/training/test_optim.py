"""Parameter groups, learning rates and schedules, number for number."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pixio_heads.depth import Depth
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.mae_decoder import DecoderSize
from pixio_lightning.pretraining.masked_pixels import PixelPretraining
from pixio_lightning.training.optim import (
    Optim,
    Part,
    block_depth,
    build,
    parameter_groups,
    peak_lr,
    schedule_factor,
)


@pytest.fixture
def module():
    args = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3}
    backbone = Backbone("pixio_vitt16", weights="random", tune="full", model_args=args)
    module = PixelPretraining(backbone, mask_grid=1, decoder=DecoderSize(32, 1, 4))
    module.configure_model()
    return module


def by_name(module, groups):
    """Return the group of every parameter that an optimiser would see."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = [(names[id(p)], group) for group in groups for p in group["params"]]
    assert len({name for name, _ in found}) == len(found)
    return dict(found)


def test_what_is_decayed(module):
    groups = by_name(module, parameter_groups(module, Optim(weight_decay=0.05), depth=3))
    assert set(groups) == {name for name, _ in module.named_parameters()}
    for name, group in groups.items():
        plain = "norm" in name or name.endswith(".bias")
        assert group["weight_decay"] == (0.0 if plain else 0.05), name
    decayed = {"backbone.vit.cls_token", "backbone.vit.pos_embed", "decoder.mask_token"}
    decayed |= {"decoder.pos_embed", "backbone.vit.patch_embed.proj.weight"}
    assert {groups[name]["weight_decay"] for name in decayed} == {0.05}


def test_biases_of_any_shape_are_not_decayed():
    module = nn.Module()
    module.part = nn.Module()
    module.part.bias = nn.Parameter(torch.zeros(2, 2))
    module.part.scale = nn.Parameter(torch.zeros(2))
    (group,) = parameter_groups(module, Optim(), depth=1)
    assert group["weight_decay"] == 0.0 and len(group["params"]) == 2


def test_what_is_frozen_is_left_out(module):
    module.backbone.requires_grad_(False)
    groups = by_name(module, parameter_groups(module, Optim(), depth=3))
    assert set(groups) == {n for n, _ in module.named_parameters() if n.startswith("decoder.")}


def test_layer_decay(module):
    groups = by_name(module, parameter_groups(module, Optim(layer_decay=0.5), depth=3))
    expected = {
        "decoder.blocks.0.mlp.fc1.weight": 1.0,
        "decoder.norm.weight": 1.0,
        "backbone.vit.norm.weight": 1.0,
        "backbone.vit.blocks.2.attn.qkv.weight": 0.5,
        "backbone.vit.blocks.0.norm1.bias": 0.125,
        "backbone.vit.patch_embed.proj.weight": 0.0625,
        "backbone.vit.cls_token": 0.0625,
        "backbone.vit.pos_embed": 0.0625,
    }
    assert {name: groups[name]["lr_factor"] for name in expected} == expected


def test_layer_decay_counts_the_blocks_that_run():
    args = {"img_size": 64, "embed_dim": 48, "depth": 4, "num_heads": 3}
    backbone = Backbone("pixio_vitt16", weights="random", tune="full", layers=[1], model_args=args)
    module = Depth(backbone, optim=Optim(lr=1.0, layer_decay=0.5))
    (part,) = module.parts
    groups = by_name(module, parameter_groups(part.module, part.optim, depth=part.depth))
    found = {name: group["lr_factor"] for name, group in groups.items()}
    assert found["backbone.vit.norm.weight"] == 1.0
    assert found["backbone.vit.blocks.1.attn.qkv.weight"] == 0.5
    assert found["backbone.vit.blocks.0.attn.qkv.weight"] == 0.25
    assert "backbone.vit.blocks.2.attn.qkv.weight" not in found


def test_a_scale_for_all_of_the_backbone(module):
    optim = Optim(lr=5e-5, backbone_lr_scale=0.1, layer_decay=0.5)
    groups = by_name(module, parameter_groups(module, optim, depth=3))
    expected = {
        "decoder.blocks.0.mlp.fc1.weight": 1.0,
        "backbone.vit.norm.weight": 0.1,
        "backbone.vit.blocks.2.attn.qkv.weight": 0.05,
        "backbone.vit.pos_embed": 0.00625,
    }
    found = {name: groups[name]["lr_factor"] for name in expected}
    assert found == pytest.approx(expected)
    built = build([Part(module, optim, 3)], global_batch=7, total_steps=10)
    rates = by_name(module, built["optimizer"].param_groups)
    assert rates["backbone.vit.norm.bias"]["initial_lr"] == pytest.approx(5e-6)
    assert rates["decoder.norm.bias"]["initial_lr"] == pytest.approx(5e-5)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("backbone.vit.fc_norm.weight", 0),
        ("backbone.vit.patch_embed.norm.weight", 13),
        ("backbone.vit.norm_pre.weight", 13),
        ("backbone.vit.reg_token", 13),
        ("backbone.vit.blocks.11.ls1.gamma", 1),
        ("head.blocks.0.weight", 0),
    ],
)
def test_depth_of_other_models(name, blocks):
    assert block_depth(name, 12) == blocks


def test_peak_lr_scales_with_the_batch():
    """Pixio's own: 2.5e-5 for 256 images is 8e-4 at 8192."""
    assert peak_lr(Optim(blr=2.5e-5), 8192) == pytest.approx(8e-4)
    assert peak_lr(Optim(blr=1.25e-5), 16384) == pytest.approx(8e-4)
    assert peak_lr(Optim(lr=3e-4), 8192) == 3e-4


def test_a_learning_rate_is_needed_and_lr_is_taken_as_it_is():
    assert peak_lr(Optim(blr=1e-4, lr=1e-3), 512) == 1e-3
    with pytest.raises(UserError, match="give model.optim.blr, .* or model.optim.lr"):
        peak_lr(Optim(), 256)


@pytest.mark.parametrize("warmup", [0.1, 10])
def test_cosine(warmup):
    factor = schedule_factor(Optim(warmup=warmup), 110)
    start = 11 if warmup == 0.1 else 10
    assert [factor(step) for step in range(3)] == [0, 1 / start, 2 / start]
    assert factor(start) == 1.0
    for step in (20, 60, 109):
        progress = (step - start) / (110 - start)
        assert factor(step) == pytest.approx(0.5 * (1 + math.cos(math.pi * progress)), abs=1e-12)
    assert factor(110) == factor(200) == 0.0
    assert schedule_factor(Optim(warmup=10), 110)(60) == pytest.approx(0.5)


def test_poly_and_constant_and_floor():
    poly = schedule_factor(Optim(schedule="poly", warmup=0), 100)
    assert [poly(0), poly(100)] == [1.0, 0.0] and poly(25) == pytest.approx(0.75**0.9)
    constant = schedule_factor(Optim(schedule="constant", warmup=4), -1)
    assert [constant(2), constant(4), constant(10**6)] == [0.5, 1.0, 1.0]
    floor = schedule_factor(Optim(warmup=0, min_lr=0.1), 100)
    assert [floor(0), floor(50), floor(100)] == pytest.approx([1.0, 0.55, 0.1])


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_schedule_without_an_end(schedule):
    with pytest.raises(UserError, match=f"the {schedule} schedule needs .* trainer.max_steps"):
        schedule_factor(Optim(schedule=schedule), -1)


def test_optimizer_follows_the_schedule(module):
    optim = Optim(blr=1e-3, warmup=2, layer_decay=0.5, betas=(0.9, 0.99))
    built = build([Part(module, optim, 3)], global_batch=512, total_steps=4)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, torch.optim.AdamW) and built["lr_scheduler"]["interval"] == "step"
    groups = by_name(module, optimizer.param_groups)
    last = groups["backbone.vit.blocks.2.mlp.fc1.weight"]
    head = groups["decoder.pred.weight"]
    assert head["betas"] == (0.9, 0.99) and head["weight_decay"] == 0.05
    rates = []
    for _ in range(5):
        rates.append((head["lr"], last["lr"]))
        optimizer.step()
        scheduler.step()
    expected = [0.0, 1e-3, 2e-3, 1e-3, 0.0]  # 1e-3 * 512 / 256 at the peak
    assert [r[0] for r in rates] == pytest.approx(expected, abs=1e-12)
    assert [r[1] for r in rates] == pytest.approx([0.5 * lr for lr in expected], abs=1e-12)


def test_nothing_to_train(module):
    module.requires_grad_(False)
    assert build([Part(module, Optim(lr=1.0), 3)], global_batch=1, total_steps=1) == {}


def test_a_warm_up_that_is_longer_than_the_run_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ["check", "-c", "pretrain/demo", "--trainer.max_steps", "4", "--out", str(tmp_path)]
    assert main([*line, "--model.optim.warmup", "100"]) == 0
    assert "4, all of them warm-up, which has 100: the peak lr is not" in capsys.readouterr().out
    assert main([*line, "--model.optim.warmup", "0.5"]) == 0
    assert "4, cosine after 2 of warm-up" in capsys.readouterr().out
