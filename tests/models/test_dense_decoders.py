"""Dense decoders: sizes, dead parameters, and batch norm over processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from torch import Tensor, nn

from pixio_lightning.errors import UserError
from pixio_lightning.models.dense_decoders import DPT, DPTDecoder, LinearDecoder, SyncedBatchNorm2d
from pixio_lightning.models.features import Features, Layer


def features(taps: int, grid: tuple[int, int], width: int = 8) -> Features:
    tokens = torch.randn(taps, 2, 3 + grid[0] * grid[1], width)
    return Features(tuple(Layer(t, t, 3, grid) for t in tokens), dense_cls=True)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_paper_s_head_has_its_parameters_less_the_dead_ones() -> None:
    """768 wide, with the class token 1536; the deepest block has no unit to join with."""
    with torch.device("meta"):
        assert count(DPTDecoder(1536, 1)) == 32_647_169 - 1_180_160


@pytest.mark.parametrize("grid", [(16, 16), (15, 20), (7, 9)])
def test_no_parameter_is_dead_and_odd_grids_work(grid: tuple[int, int]) -> None:
    for decoder in (
        LinearDecoder(16, 2, taps=4, positions=(5, 5)),
        DPTDecoder(16, 2, features=8, stages=(4, 6, 8, 8)),
    ):
        size = (grid[0] * 16, grid[1] * 16)
        out = decoder(features(4, grid), size)
        assert out.shape == (2, 2, *size)
        out.square().mean().backward()
        dead = [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
        assert dead == []


def test_maps_are_of_float32_under_autocast() -> None:
    """In bfloat16 a map of depth has a hundred values, and many pixels are equally far."""
    for decoder in (
        LinearDecoder(16, 1, taps=4, positions=(5, 5)),
        DPTDecoder(16, 1, features=8, stages=(4, 6, 8, 8)),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            out = decoder(features(4, (8, 8)), (128, 128))
        assert out.dtype == torch.float32
        assert len(out.detach().unique()) > 10_000
        out.sum().backward()


def test_the_trunk_equals_an_independent_one() -> None:
    """The neck of transformers' Depth Anything, with the same weights."""
    from transformers import DepthAnythingConfig
    from transformers.models.depth_anything.modeling_depth_anything import DepthAnythingNeck

    config = DepthAnythingConfig(
        reassemble_hidden_size=16,
        neck_hidden_sizes=[4, 6, 8, 8],
        fusion_hidden_size=8,
        patch_size=16,
    )
    theirs, ours = DepthAnythingNeck(config).eval(), DPT(16, (4, 6, 8, 8), features=8).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
        for i, layer in enumerate(theirs.reassemble_stage.layers):
            ours.projections[i].load_state_dict(layer.projection.state_dict())
            if i != 2:
                ours.resizes[i].load_state_dict(layer.resize.state_dict())
            ours.convolutions[i].load_state_dict(theirs.convs[i].state_dict())
            # Theirs goes from deep to shallow.
            fusion, other = ours.fusions[3 - i], theirs.fusion_stage.layers[i]
            fusion.project.load_state_dict(other.projection.state_dict())
            pairs = [(fusion.refine, other.residual_layer2)]
            pairs += [(fusion.join, other.residual_layer1)] if fusion.join is not None else []
            for unit, their_unit in pairs:
                unit.convolution1.load_state_dict(their_unit.convolution1.state_dict())
                unit.convolution2.load_state_dict(their_unit.convolution2.state_dict())
        for grid in ((4, 4), (5, 7)):
            maps = torch.randn(4, 2, 16, *grid)
            tokens = [torch.cat([torch.zeros(2, 1, 16), m.flatten(2).mT], 1) for m in maps]
            expected = theirs(tokens, *grid)[-1]
            got = ours(list(maps))
            assert got.shape == expected.shape == (2, 8, 8 * grid[0], 8 * grid[1])
            assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def _doubled_and_cropped(trunk: DPT, maps: list[Tensor]) -> Tensor:
    """Rebuild the trunk from its description: four levels, fused from deep to shallow, each doubled
    and cut to the next."""

    def refined(unit: nn.Module, x: Tensor) -> Tensor:
        first, second = unit.convolution1, unit.convolution2
        inner = nn.functional.conv2d(x.relu(), first.weight, first.bias, padding=1)
        return x + nn.functional.conv2d(inner.relu(), second.weight, second.bias, padding=1)

    levels = []
    for i, x in enumerate(maps):
        projection, convolution = trunk.projections[i], trunk.convolutions[i]
        x = nn.functional.conv2d(x, projection.weight, projection.bias)
        resize = trunk.resizes[i]
        if i < 2:
            x = nn.functional.conv_transpose2d(x, resize.weight, resize.bias, stride=(4, 2)[i])
        elif i == 3:
            x = nn.functional.conv2d(x, resize.weight, resize.bias, stride=2, padding=1)
        levels.append(nn.functional.conv2d(x, convolution.weight, padding=1))
    fused = None
    for i in (3, 2, 1, 0):
        fusion, x = trunk.fusions[i], levels[i]
        if fused is not None:
            x = fused[:, :, : x.shape[2], : x.shape[3]] + refined(fusion.join, x)
        x = refined(fusion.refine, x)
        x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        fused = nn.functional.conv2d(x, fusion.project.weight, fusion.project.bias)
    assert fused is not None
    return fused


@pytest.mark.parametrize("grid", [(21, 21), (21, 14), (14, 21), (6, 4)])
def test_doubling_and_cropping_is_a_switch_that_matters_on_odd_grids(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    trunk = DPT(8, (4, 6, 8, 8), features=8, double_and_crop=True).eval()
    straight = DPT(8, (4, 6, 8, 8), features=8).eval()
    straight.load_state_dict(trunk.state_dict())
    maps = list(torch.randn(4, 1, 8, *grid))
    with torch.no_grad():
        expected, other = _doubled_and_cropped(trunk, maps), straight(maps)
        got = trunk(maps)
    assert got.shape == other.shape == (1, 8, 8 * grid[0], 8 * grid[1])
    assert torch.allclose(got, expected, atol=1e-5)
    odd = grid[0] % 2 or grid[1] % 2
    assert torch.allclose(got, other, atol=1e-5) != bool(odd)


@pytest.mark.parametrize("keys", [{"features": -3}, {"stages": (8, 0, 8, 8)}])
def test_dpt_has_channels(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="^decoder.[a-z]+ is -?[0-9], but expected at least 1$"):
        DPTDecoder(8, 1, **keys)


def test_dpt_asks_for_four_layers() -> None:
    with pytest.raises(UserError, match="layers to quarters"):
        DPTDecoder(16, 1, taps=1)


def _shard(rank: int, folder: str, x: Tensor, weight: Tensor, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=len(sizes))
    norm = SyncedBatchNorm2d(x.shape[1])
    own = x.split(sizes)[rank].clone().requires_grad_()
    out = norm(own)
    (out * weight.split(sizes)[rank]).sum().backward()
    found = {"out": out, "x": own.grad, "mean": norm.running_mean, "var": norm.running_var}
    found |= {"weight": norm.weight.grad, "bias": norm.bias.grad}
    torch.save({k: v.detach() for k, v in found.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_batch_norm_over_uneven_processes_equals_one(tmp_path: Path) -> None:
    x, weight = torch.randn(5, 3, 4, 4) * 2 + 30, torch.randn(5, 3, 4, 4)
    in_processes(_shard, str(tmp_path), x, weight, [2, 3])
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    norm = nn.BatchNorm2d(3)
    whole = x.clone().requires_grad_()
    (norm(whole) * weight).sum().backward()
    with torch.no_grad():
        expected = nn.BatchNorm2d(3)(x)
    assert torch.allclose(torch.cat([p["out"] for p in parts]), expected, atol=1e-5)
    assert torch.allclose(torch.cat([p["x"] for p in parts]), whole.grad, atol=1e-5)
    assert torch.allclose(sum(p["weight"] for p in parts), norm.weight.grad, atol=1e-4)
    assert torch.allclose(sum(p["bias"] for p in parts), norm.bias.grad, atol=1e-4)
    for part in parts:
        assert torch.allclose(part["mean"], norm.running_mean, atol=1e-5)
        assert torch.allclose(part["var"], norm.running_var, atol=1e-5)


def test_batch_norm_of_a_single_value_is_refused_in_training_alone() -> None:
    norm = SyncedBatchNorm2d(3)
    with pytest.raises(UserError, match="set data.batch_size to at least 2"):
        norm(torch.randn(1, 3, 1, 1))
    norm.eval()(torch.randn(1, 3, 1, 1))
