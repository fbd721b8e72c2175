"""The decoder of pretraining and its loss."""

import pytest
import torch
from torch import nn

from pixio_lightning.models.mae_decoder import (
    DecoderSize,
    MaeDecoder,
    normalize_patches,
    pixel_loss,
)

GRID = (4, 6)


@pytest.fixture
def build(randomize):
    def build_decoder(**changes):
        arguments = {"n_cls_tokens": 3, "grid": GRID, "size": DecoderSize(32, 2, 4)} | changes
        return randomize(MaeDecoder(24, 12, **arguments))

    return build_decoder


@pytest.fixture
def inputs():
    """Encoder tokens of two samples, with 9 visible and 15 hidden patches each."""
    generator = torch.Generator().manual_seed(1)
    order = torch.stack([torch.randperm(24, generator=generator) for _ in range(2)])
    return torch.randn(2, 3 + 9, 24, generator=generator), order[:, :9], order[:, 9:]


@pytest.mark.parametrize(
    ("encoder_dim", "count"), [(1280, 102_062_336), (1536, 102_193_408), (3072, 102_979_840)]
)
def test_parameter_counts(encoder_dim, count):
    with torch.device("meta"):
        decoder = MaeDecoder(encoder_dim, 768, n_cls_tokens=8, grid=(16, 16), size=DecoderSize())
    assert sum(p.numel() for p in decoder.parameters()) == count + 512  # the mask token
    assert decoder.pos_embed.shape == (1, 264, 512)


def test_initialisation():
    decoder = MaeDecoder(
        192, 768, n_cls_tokens=8, grid=(16, 16), size=DecoderSize(512, 2, 16, "sincos")
    )
    for linear in (m for m in decoder.modules() if isinstance(m, nn.Linear)):
        bound = (6 / (linear.in_features + linear.out_features)) ** 0.5
        assert 0.99 * bound < linear.weight.abs().max() <= bound and not linear.bias.any()
    norms = [m for m in decoder.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 5 and {norm.eps for norm in norms} == {1e-6}
    assert decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.15)
    assert decoder.pos_embed[:, :8].std().item() == pytest.approx(0.02, rel=0.1)
    assert (decoder.pos_embed[:, 8:].square().sum(-1) - 256).abs().max() < 1e-3  # sin^2 + cos^2


def test_order_of_tokens_does_not_matter(build, inputs):
    decoder = build()
    tokens, keep, hide = inputs
    expected = decoder(tokens, keep, hide, GRID)
    visible, hidden = torch.randperm(9), torch.randperm(15)
    shuffled = torch.cat([tokens[:, :3], tokens[:, 3:][:, visible]], dim=1)
    found = decoder(shuffled, keep[:, visible], hide[:, hidden], GRID)
    assert expected.shape == (2, 15, 12)
    torch.testing.assert_close(found, expected[:, hidden], rtol=0, atol=1e-5)
    # The positions do matter: the same tokens elsewhere give another picture.
    assert (decoder(tokens, hide[:, :9], hide, GRID) - expected).abs().max() > 0.01


def test_samples_do_not_see_each_other(build, inputs):
    decoder = build()
    alone = decoder(*(x[1:] for x in inputs), GRID)
    torch.testing.assert_close(decoder(*inputs, GRID)[1:], alone, rtol=0, atol=1e-5)


def test_another_grid_resizes_the_positions(build, inputs):
    decoder = build()
    tokens, keep, hide = inputs
    larger = decoder(tokens, 2 * keep, torch.arange(96).expand(2, -1), (8, 12))
    assert larger.shape == (2, 96, 12)
    assert (larger[:, 1:] - larger[:, :-1]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_checkpointing_changes_nothing(build, inputs):
    decoder = build()
    calls = []
    for block in decoder.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    results = []
    for checkpointing, runs in ((False, 2), (True, 4)):
        decoder.checkpointing = checkpointing
        decoder.zero_grad()
        calls.clear()
        prediction = decoder(*inputs, GRID)
        prediction.square().sum().backward()
        assert len(calls) == runs  # each of the two blocks runs again in the backward pass
        results.append([prediction, *(p.grad for p in decoder.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="decoder.heads 3 does not divide decoder.dim 32"):
        MaeDecoder(24, 12, n_cls_tokens=1, grid=GRID, size=DecoderSize(32, 1, 3))


def test_normalize_patches_is_unbiased():
    """By hand: 0, 2, 4, 6 has mean 3 and unbiased variance 20 / 3."""
    patches = torch.tensor([[[0.0, 2.0, 4.0, 6.0]]], dtype=torch.float64)
    normalized, mean, std = normalize_patches(patches)
    deviation = (20 / 3 + 1e-6) ** 0.5
    assert mean.item() == 3 and std.item() == pytest.approx(deviation, abs=1e-15)
    expected = (torch.tensor([-3.0, -1, 1, 3], dtype=torch.float64) / deviation)[None, None]
    torch.testing.assert_close(normalized, expected)
    flat, _, std = normalize_patches(torch.full((1, 1, 4), 0.5))
    assert not flat.any() and std.item() == pytest.approx(1e-3)


def test_predicting_zero_costs_almost_one():
    """The unbiased variance of V values makes their mean square (V - 1) / V, here 767 / 768."""
    target, _, _ = normalize_patches(torch.rand(2, 5, 768, dtype=torch.float64))
    loss = pixel_loss(torch.zeros_like(target), target)
    assert loss.tolist() == pytest.approx([767 / 768] * 2, abs=3e-5)  # eps against 1/12


def test_pixel_loss_is_the_mean_of_each_sample():
    prediction = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]).bfloat16()
    loss = pixel_loss(prediction, torch.tensor([[[0.0, 0.0]], [[3.0, 1.0]]]))
    assert loss.dtype == torch.float32 and loss.tolist() == [2.5, 5.0]
