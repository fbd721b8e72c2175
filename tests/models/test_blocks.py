"""Attention on a processor in half precision."""

from __future__ import annotations

import timm.layers
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pixio_lightning.models.blocks import Attention


def both(**options):
    """Our attention and timm's, with the same weights."""
    ours = Attention(32, num_heads=4, qkv_bias=True, **options)
    theirs = timm.layers.Attention(32, num_heads=4, qkv_bias=True, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


class Kernels(TorchDispatchMode):
    """The types in which attention was computed, forward and backward."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(func):
            self.types.append(args[0].dtype)
        return func(*args, **kwargs or {})


def test_float32_is_timms_bit_for_bit():
    ours, theirs = both()
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, 9, 32, dtype=dtype)
        assert torch.equal(ours.to(dtype)(x), theirs.to(dtype)(x))


def test_under_autocast_attention_and_its_gradient_are_of_float32():
    ours, theirs = both(qk_norm=True, norm_layer=torch.nn.LayerNorm)
    x = torch.randn(2, 9, 32)
    exact = theirs(x)
    exact.square().sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in theirs.parameters()])
    with Kernels() as kernels:
        with torch.autocast("cpu", torch.bfloat16):
            y = ours(x)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16 and kernels.types == [torch.float32] * 2
    torch.testing.assert_close(y.float(), exact, atol=2e-2, rtol=2e-2)
    found = torch.cat([p.grad.flatten() for p in ours.parameters()])
    assert (found - gradient).norm() < 2e-2 * gradient.norm()


def test_weights_of_bfloat16():
    ours, theirs = both()
    x = torch.randn(2, 9, 32, dtype=torch.bfloat16)
    with Kernels() as kernels:
        y = ours.bfloat16()(x)
        y.sum().backward()
    assert kernels.types == [torch.float32] * 2 and y.dtype == torch.bfloat16
    torch.testing.assert_close(y, theirs.bfloat16()(x), atol=2e-2, rtol=2e-2)


def test_without_gradients_it_stays_in_half_precision():
    ours, _ = both()
    x = torch.randn(2, 9, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Kernels() as kernels:
        ours(x)
    assert kernels.types == [torch.bfloat16]


def test_a_frozen_one_computes_the_same_in_training_and_in_evaluation():
    ours, _ = both()
    ours.requires_grad_(False)
    x = torch.randn(2, 9, 32)
    with torch.autocast("cpu", torch.bfloat16):
        in_training = ours(x)
        with torch.no_grad():
            in_evaluation = ours(x)
        through = ours(x.requires_grad_())
    assert torch.equal(in_training, in_evaluation) and through.requires_grad
