"""A gradient lies in memory as its parameter does, as DDP's buckets expect."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.blocks import blocks_of, compile_blocks
from pixio_lightning.models.dense_decoders import DenseDecoder, DPTDecoder, LinearDecoder
from pixio_lightning.models.mae_decoder import DecoderSize, MaeDecoder

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64, "patch_size": 8}
TIMM = ("vit_huge_patch14_224.mae", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3")


def backbone_of(name: str) -> Backbone:
    return Backbone(name, weights="random:0", tune="full", model_args=SMALL).load().train()


def images_of(side: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)


def misplaced(*modules: nn.Module) -> list[str]:
    named = [pair for module in modules for pair in module.named_parameters()]
    gradients = {name: p.grad for name, p in named if p.grad is not None}
    assert len(gradients) > len(named) // 2
    return [n for n, p in named if p.grad is not None and p.grad.stride() != p.stride()]


@pytest.mark.parametrize("side", [64, 96])  # as the positions are, and interpolated
@pytest.mark.parametrize("name", ["pixio_vits16", *TIMM])
def test_an_encoder_that_sees_whole_images(name: str, side: int) -> None:
    backbone = backbone_of(name)
    # timm's models with patches of 14 and 16 pixels resize an image to their own.
    backbone(images_of(side)).dense().square().mean().backward()
    assert misplaced(backbone) == []


@pytest.mark.parametrize("decoder", [LinearDecoder, DPTDecoder])
def test_a_decoder_of_maps(decoder: type[DenseDecoder]) -> None:
    args = SMALL | {"depth": 4}
    backbone = Backbone("pixio_vits16", weights="random:0", layers="quarters", model_args=args)
    size = {"features": 16, "stages": [16] * 4} if decoder is DPTDecoder else {}
    module = decoder(backbone.dense_dim, 3, taps=4, **size)
    module(backbone(images_of(64)), (64, 64)).square().mean().backward()
    assert misplaced(module) == []


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize(
    "backend", ["", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_encoder_and_decoder_of_pretraining(backend: str, side: int) -> None:
    backbone, n = backbone_of("pixio_vits16"), (side // 8) ** 2
    decoder = MaeDecoder(32, 192, n_cls_tokens=8, grid=(8, 8), size=DecoderSize(32, 2, 2)).train()
    if backend:
        torch._dynamo.reset()
        blocks = [*blocks_of(backbone), *blocks_of(decoder)]
        assert len(blocks) == 4
        compile_blocks(blocks, backend=backend)
    order = torch.stack([torch.randperm(n) for _ in range(2)])
    keep, hide = order[:, : n // 4], order[:, n // 4 :]
    tokens = backbone(images_of(side), keep=keep).tokens
    decoder(tokens, keep, hide, (side // 8, side // 8)).square().mean().backward()
    assert misplaced(backbone, decoder) == []
