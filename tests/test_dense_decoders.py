"""Dense decoders: sizes, dead parameters, and batch norm over processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from pixio_lightning.dense_decoders import DPT, DPTDecoder, LinearDecoder, SyncedBatchNorm2d
from pixio_lightning.errors import UserError
from pixio_lightning.features import Features, Layer


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
    mp.spawn(_shard, (str(tmp_path), x, weight, [2, 3]), nprocs=2)
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
