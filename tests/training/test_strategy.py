"""Sharded modules: gathered in bfloat16, summed in float32, filled and clipped as whole ones."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from pixio_lightning.errors import UserError
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.blocks import blocks_of
from pixio_lightning.models.mae_decoder import DecoderSize
from pixio_lightning.pretraining.masked_pixels import PixelPretraining
from pixio_lightning.training import strategy
from pixio_lightning.training.strategy import ShardedStrategy

CPU = torch.device("cpu")


class Block(nn.Module):
    """A linear layer that remembers in which precision it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.seen: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += [self.linear.weight.dtype, x.dtype]
        return self.linear(x.to(self.linear.weight.dtype)).float()


class Model(nn.Module):
    """Blocks, and an end and a buffer that stay in float32."""

    offset: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.end = nn.Linear(6, 3)
        self.register_buffer("offset", torch.randn(6), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.offset
        for block in self.blocks:
            x = block(x)
        assert self.end.weight.dtype == torch.float32
        return self.end(x)


def start(rank: int, folder: str, check: Callable[[DeviceMesh], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    check(init_device_mesh("cpu", (2,)))
    dist.barrier()
    dist.destroy_process_group()


def whole() -> Model:
    torch.manual_seed(5)
    return Model()


def part(rank: int) -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(rank))


def sharded(mesh: DeviceMesh, policy: strategy.MixedPrecisionPolicy) -> Model:
    if mesh.get_local_rank() == 0:
        model = whole()
    else:
        with torch.device("meta"):
            model = Model()
    strategy.distribute(model, mesh, policy=policy, device=CPU)
    return model


def equals_the_whole(mesh: DeviceMesh) -> None:
    """Values, outputs, gradients and their clipping, with only a part in each process."""
    model, expected = sharded(mesh, strategy.mixed_precision("32-true", "cpu")), whole()
    rank, held = mesh.get_local_rank(), 0
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        held += parameter.to_local().numel()
        assert torch.equal(parameter.full_tensor(), expected.get_parameter(name)), name
    assert held <= 0.6 * sum(p.numel() for p in expected.parameters())
    assert torch.equal(model.offset, expected.offset)
    model(part(rank)).square().sum().backward()
    expected(torch.cat([part(0), part(1)])).square().sum().div(2).backward()
    assert nn.utils.get_total_norm([p.grad for p in expected.parameters()]) > 0.5
    for module in (model, expected):
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
    for name, parameter in model.named_parameters():
        found = parameter.grad.full_tensor()
        torch.testing.assert_close(found, expected.get_parameter(name).grad)


def sums_in_float32(mesh: DeviceMesh) -> None:
    """One gradient is a 2048th of the other: their sum has more digits than bfloat16 holds."""
    model = sharded(mesh, strategy.mixed_precision("bf16-mixed", "cuda"))
    rank = mesh.get_local_rank()
    model(part(rank))
    for block in model.blocks:
        assert block.seen == [torch.bfloat16, torch.float32]  # what it is given is not cast
    assert model.blocks[0].linear.weight.dtype == torch.float32
    block = sharding_of_one(mesh)
    (block(torch.ones(1, 6)) * (1.0 if rank == 0 else 2.0**-11)).sum().backward()
    gradient = block.blocks[0].linear.bias.grad
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient.full_tensor(), torch.full((6,), (1 + 2.0**-11) / 2))


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](x)


def sharding_of_one(mesh: DeviceMesh) -> One:
    module = One()
    strategy.shard(module, mesh, policy=strategy.mixed_precision("bf16-mixed", "cuda"))
    return module


def builds_once(mesh: DeviceMesh) -> None:
    """All go on with the random state of the first process, or end with its mistake."""
    first = mesh.get_local_rank() == 0
    trainer = SimpleNamespace(strategy=ShardedStrategy(), is_global_zero=first)
    torch.manual_seed(0)

    def build(*, empty: bool = False) -> None:
        assert empty is not first
        torch.rand(1 if empty else 3)

    strategy.build_once(build, trainer)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert drawn == torch.rand(4)[3]

    def fail() -> None:
        assert first
        raise UserError("a tensor is missing")

    with pytest.raises(UserError, match="a tensor is missing"):
        strategy.build_once(fail, trainer)


@pytest.mark.parametrize("check", [equals_the_whole, sums_in_float32, builds_once])
def test_two_processes(check: Callable[[DeviceMesh], None], tmp_path: Path) -> None:
    in_processes(start, str(tmp_path), check)


def test_blocks_of_bfloat16_weights_compute_as_under_autocast_alone(monkeypatch) -> None:
    """On a GPU, whose results' types are known without one: the residual stream is float32."""
    args = {"embed_dim": 48, "depth": 2, "num_heads": 3, "n_cls_tokens": 3, "img_size": 64}
    seen: dict[bool, list[torch.dtype]] = {}
    enabled = torch.is_autocast_enabled("cuda")
    for cast in (False, True):
        backbone = Backbone(
            "pixio_vitt16", weights="random", tune="full", drop_path=0.3, model_args=args
        )
        module = PixelPretraining(backbone, mask_grid=1, decoder=DecoderSize(32, 2, 4))
        module.configure_model()
        blocks = [*blocks_of(module.backbone), *blocks_of(module.decoder)]
        seen[cast] = found = []
        for block in blocks:
            block.to(torch.bfloat16 if cast else torch.float32)
            block.register_forward_hook(lambda *given, found=found: found.append(given[2].dtype))
        # Not the context, which asks for a GPU to be there.
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                module.to_empty(device="cuda")
                images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8, device="cuda")
                random_key = RandomKey(torch.arange(4, device="cuda"), 0, 0)
                result = module(images, random_key)
        finally:
            torch.set_autocast_enabled("cuda", enabled)
        assert result.prediction.device.type == "cuda"
        found += [result.prediction.dtype, result.target.dtype]
    assert seen[True] == seen[False] == [torch.float32] * 4 + [torch.bfloat16, torch.float32]
