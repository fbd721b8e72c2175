"""The plan of a run: its figures are those of real steps."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Any

import pytest
import timm.layers
import torch
import yaml
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pixio_lightning import Backbone, Distillation, PixelPretraining, Student
from pixio_lightning.cli import recipes
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.blocks import Attention
from pixio_lightning.models.mae_decoder import DecoderSize, pixel_loss
from pixio_lightning.pretraining.costs import activations, costs_of, plan
from pixio_lightning.pretraining.token_loss import distillation_loss


def model_of(checkpointing: bool = False, **args: int) -> PixelPretraining:
    args = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 2} | args
    backbone = Backbone(
        "pixio_vitt16",
        weights="random",
        tune="full",
        checkpointing=checkpointing,
        model_args=args | {"n_cls_tokens": 4},
    )
    return PixelPretraining(backbone, mask_grid=2, decoder=DecoderSize(32, 6, 2))


def on_meta(model: Any) -> Any:
    with torch.device("meta"):
        model.decoder = model.build(model.backbone)
    return model


def step(model: PixelPretraining, batch: int) -> torch.Tensor:
    images = torch.randint(0, 256, (batch, 3, 64, 64), dtype=torch.uint8)
    result = model(images, RandomKey(torch.arange(batch), 0, 0))
    return pixel_loss(result.prediction, result.target).mean()


def test_operations_are_those_of_a_real_step():
    model = model_of()
    model.configure_model()
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        step(model, 4).backward()
    costs = costs_of(on_meta(model_of()), 64)
    assert 4 * (costs.encoder + costs.decoder) == counted.get_total_flops()
    # 24 N D^2 + 4 N^2 D for a block, three times that with the backward pass.
    blocks = 6 * (24 * 20 * 64**2 + 4 * 20**2 * 64) * 3
    assert costs.encoder == pytest.approx(blocks, rel=0.1)


def distillation_of(**args: int) -> Distillation:
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 2}
    teacher = Backbone("pixio_vitt16", weights="random:0", model_args=sizes | {"embed_dim": 96})
    students = {
        name: Student(
            Backbone("pixio_vitt16", weights="random", tune="full", model_args=sizes | args),
            ratio,
            2,
        )
        for name, ratio in (("masked", 0.5), ("whole", 0.0))
    }
    return Distillation(teacher, students)


def test_operations_of_distillation_are_those_of_a_real_step():
    """Forward and backward of both students, and one forward pass of their teacher."""
    model = distillation_of()
    model.configure_model()
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        batch = {"image": images, "key": torch.arange(4)}
        result = model(batch["image"], RandomKey(batch["key"], 0, 0))
        losses = [distillation_loss(m, "cosine", "halves") for m in result.matches.values()]
        torch.stack(losses).sum().backward()
    costs = costs_of(on_meta(distillation_of()), 64)
    assert 4 * costs.operations == counted.get_total_flops()
    blocks = 6 * (24 * 72 * 96**2 + 4 * 72**2 * 96)
    assert costs.teacher == pytest.approx(blocks, rel=0.1)
    # 8 class tokens; half of 64 patches, and all of them, of 6 blocks that are 64 wide.
    assert costs.activations == 64 * (40 + 72) * 64 * 6
    facts = plan(on_meta(distillation_of()), 64, precision="32-true", batch=1, devices=1, steps=1)
    assert "of it in the teacher" in facts["compute"] and "for the teacher" in facts["memory"]


def test_checkpointing_computes_most_of_the_forward_pass_again():
    plain, again = (
        costs_of(on_meta(model_of(checkpointing)), 64) for checkpointing in (False, True)
    )
    for ours, theirs in zip(plain[:2], again[:2], strict=True):
        assert 1.2 * ours < theirs < 4 / 3 * ours


def test_half_precision_of_either_kind_keeps_as_much():
    model = model_of()
    assert activations(model, 64, "16-mixed") == activations(model, 64, "bf16-mixed")


def kept_by(model: PixelPretraining, half: bool) -> float:
    """Bytes that a real forward pass keeps for the backward pass, for each image."""
    model.configure_model()
    weights = {StorageWeakRef(p.untyped_storage()) for p in model.parameters()}
    kept: dict[StorageWeakRef, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if StorageWeakRef(storage) not in weights:
            kept[StorageWeakRef(storage)] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        loss = step(model, 64)
    assert loss.requires_grad
    return sum(kept.values()) / 64


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_a_real_step_keeps(precision, checkpointing, monkeypatch):
    """Of six more blocks, so that what is kept beside the blocks does not count."""
    # On a GPU, attention is not widened to float32.
    monkeypatch.setattr(Attention, "forward", timm.layers.Attention.forward)
    models = [model_of(checkpointing, depth=depth) for depth in (12, 6)]
    deep, shallow = (activations(model, 64, precision) for model in models)
    measured = [kept_by(model, precision == "bf16-mixed") for model in models]
    assert deep - shallow == pytest.approx(measured[0] - measured[1], rel=0.1)


def test_the_paper_size_plan():
    """Figures that were counted by hand, too."""
    backbone = Backbone("pixio_vitb16", weights="random", tune="full")
    model = on_meta(PixelPretraining(backbone))
    run = {"precision": "bf16-mixed", "batch": 512, "devices": 8, "steps": 125_000}
    facts = plan(model, 256, **run)
    assert facts["compute"].startswith("211 GFLOP an image and step, 82%")
    assert "2.8 GiB for weights, gradients and AdamW, 171 MiB an image" in facts["memory"]
    assert facts["on an H100"].startswith(
        "1,358 img/s, compiled, at 29% of 989 TFLOP/s in bf16: 0.5 days on 8"
    )


@pytest.mark.parametrize(("width", "begins"), [(192, None), (384, "at most "), (768, "")])
def test_no_speed_is_planned_from_models_of_another_size(width: int, begins: str | None) -> None:
    """What was not measured is marked, and a model far below those that were gets no speed."""
    model = on_meta(model_of(embed_dim=width))
    run = {"precision": "bf16-mixed", "batch": 256, "devices": 1, "steps": 10}
    facts = plan(model, 64, **run)
    assert {"compute", "memory"} <= facts.keys()
    speeds = {key: fact for key, fact in facts.items() if key.startswith("on an")}
    if begins is None:
        assert not speeds
        return
    assert ["not measured" in speeds[f"on an {name}"] for name in ("H100", "A100")] == [False, True]
    assert all(re.match(rf"{begins}[0-9,]+ img/s", fact) for fact in speeds.values())


def test_a_batch_that_is_too_large_is_told_from_a_model_that_is():
    run = {"precision": "bf16-mixed", "devices": 2, "steps": 10}
    said = plan(on_meta(model_of()), 64, batch=1 << 20, **run)["memory"]
    assert "; a card has 80.0 GiB: take a smaller data.batch_size, and raise" in said
    assert "a card has" not in plan(on_meta(model_of()), 64, batch=1, **run)["memory"]


def test_the_largest_model_is_planned_without_its_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = on_meta(PixelPretraining(Backbone("pixio_vit5b16", weights="random", tune="full")))
    facts = plan(model, 256, precision="bf16-mixed", batch=64, devices=256, steps=1_284_000)
    assert facts["compute"].startswith("2,532 GFLOP") and "82.6 GiB" in facts["memory"]
    assert facts["memory"].endswith(
        "; a card has 80.0 GiB: no batch fits beside the first; "
        "add -c with/fsdp, which divides it, and take at least 2 devices"
    )
    assert facts["on an H100"].startswith(
        "at most 141 img/s, compiled, at 36% of 989 TFLOP/s in bf16: 6.8 days on 256"
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20  # KiB of 20 GiB


@pytest.mark.parametrize(
    "name",
    [
        "vitb16_imagenet",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("vith16_imagenet", "vit5b16_web")),
    ],
)
def test_the_plans_of_the_page_are_those_of_the_recipes(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    text = recipes.find(f"pretrain/{name}").read_text()
    recipe = yaml.safe_load(text)
    about, trainer = recipe["model"]["init_args"], recipe["trainer"]
    backbone = Backbone(**about["backbone"])
    decoder = DecoderSize(**about["decoder"])
    model = PixelPretraining(
        backbone, mask_ratio=about["mask_ratio"], mask_grid=about["mask_grid"], decoder=decoder
    )
    facts = plan(
        on_meta(model),
        256,
        precision=trainer["precision"],
        batch=recipe["data"]["init_args"]["batch_size"],
        devices=trainer["devices"] * trainer.get("num_nodes", 1),
        steps=trainer["max_steps"],
        accumulate=trainer.get("accumulate_grad_batches", 1),
        sharded="with/fsdp" in text,
    )
    assert "a card has" not in facts["memory"]
    part = page.partition(f"pretrain/{name}\n  compute")[2].partition("\npretrain/")[0]
    for key in ("compute", "memory", "on an H100", "on an A100"):
        assert f"  {key:<14}{facts[key]}\n" in f"  compute{part}\n", facts[key]
