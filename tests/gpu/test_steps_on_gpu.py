"""What only a GPU shows of a step: that it waits for nothing, and what memory it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import ON_A_GPU, logged_run

from pixio_lightning import Backbone, PixelPretraining
from pixio_lightning.cli.main import main
from pixio_lightning.data.stream import EndlessLoader
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.mae_decoder import DecoderSize, pixel_loss
from pixio_lightning.pretraining.costs import BLOCK_BYTES, costs_of

_STEPS, _LOG = 12, 4  # the last step is one that is logged


@pytest.fixture
def checked_waits() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("checked_waits")
@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", ON_A_GPU)
def test_no_step_between_two_logs_waits_for_the_gpu(
    name: str,
    precision: str,
    compiled: str,
    gpu: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch raises where the host would wait; after the first steps, which allocate and compile."""
    fetch, checked = EndlessLoader.__next__, []

    def noted(loader: EndlessLoader) -> dict[str, Any]:
        step = len(checked)
        waits_allowed = step < _LOG or step % _LOG == _LOG - 1
        checked.append(not waits_allowed)
        batch = fetch(loader)
        torch.cuda.set_sync_debug_mode("default" if waits_allowed else "error")
        return batch

    monkeypatch.setattr(EndlessLoader, "__next__", noted)
    run = [*logged_run(name, tmp_path, steps=_STEPS, every=_LOG), *gpu]
    run += ["--trainer.precision", precision]
    run += ["--model.backbone.compile", compiled]
    assert main(["fit", *run]) == 0
    assert sum(checked) == 6


def _step(model: PixelPretraining, images: torch.Tensor, precision: str) -> torch.Tensor:
    keys = torch.arange(len(images), device=images.device)
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
        result = model(images, RandomKey(keys, 0, 0))
        loss = pixel_loss(result.prediction, result.target).mean()
    return loss


def _model(depth: int = 12) -> PixelPretraining:
    args = {"img_size": 256, "embed_dim": 384, "depth": depth, "num_heads": 6, "n_cls_tokens": 8}
    backbone = Backbone("pixio_vitt16", weights="random:0", tune="full", model_args=args)
    torch.manual_seed(0)  # for the decoder
    model = PixelPretraining(backbone, mask_grid=4, decoder=DecoderSize(256, 8, 8))
    model.configure_model()
    return model


@pytest.mark.parametrize("precision", list(BLOCK_BYTES)[:2])
def test_a_step_keeps_the_memory_that_its_plan_names(precision: str) -> None:
    """The plan names what blocks keep; beside it lie the input, the loss and one block's work."""
    planned = costs_of(_model(), 256, precision=precision).activations
    model, batch = _model().cuda(), 64
    images = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8, device="cuda")
    _step(model, images, precision).backward()  # once, for gradients and workspaces
    model.zero_grad(set_to_none=False)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    loss = _step(model, images, precision)
    kept = (torch.cuda.memory_allocated() - before) / batch
    loss.backward()
    assert 0.9 * planned < kept < 1.25 * planned


def test_a_gpu_computes_what_the_processor_does() -> None:
    """Loss and gradients, in float32; torch's products on the GPU round as those of the CPU."""
    images = torch.randint(0, 256, (4, 3, 256, 256), dtype=torch.uint8)
    found = {}
    for device in ("cpu", "cuda"):
        model = _model(depth=3).to(device)
        loss = _step(model, images.to(device), "32-true")
        loss.backward()
        grads = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        found[device] = float(loss.detach()), grads
    (one, grads), (two, others) = found["cpu"], found["cuda"]
    assert two == pytest.approx(one, rel=1e-5) and grads.keys() == others.keys()
    for name, grad in grads.items():
        assert (grad - others[name]).norm() < 1e-3 * grad.norm() + 1e-7, name
