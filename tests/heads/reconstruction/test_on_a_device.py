"""Loss, figures and baselines where all tensors are on a GPU: a pretended one.

An operation on tensors of two devices raises, as it does on a real one. Fake tensors would not do:
torchmetrics copies its states, and a copy of a fake tensor copies its mode, whose weak references
to storages are then freed twice (torch 2.15), which damages the memory of later tests.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretend_cuda import pretend_cuda
from rendered_sets import batch, perfect
from torch.utils._pytree import tree_map_only

from pixio_heads.reconstruction import Reconstruction
from pixio_heads.reconstruction.constant import constant_geometry, fit_constant
from pixio_heads.reconstruction.geometry import truth_of
from pixio_heads.reconstruction.losses import HIGH_POINTS, Weights, factored_loss
from pixio_heads.reconstruction.metrics import ReconstructionMetrics
from pixio_heads.reconstruction.model import Reconstructor, Sizes
from pixio_lightning import Backbone
from pixio_lightning.models.features import Features, Layer

TINY = Sizes(dim=32, depth=4, heads=2, taps=(1, 2), stages=(8, 8, 8, 8), features=16)


def on_gpu(tree: Any) -> Any:
    """Return a structure of tensors with all of them on the GPU."""
    return tree_map_only(torch.Tensor, lambda x: x.to("cuda:0"), tree)


def devices(tree: Any) -> set[str]:
    found: set[str] = set()
    tree_map_only(torch.Tensor, lambda x: found.add(x.device.type), tree)
    return found


@pytest.mark.parametrize("weights", [Weights(), HIGH_POINTS])
def test_the_loss_is_made_where_the_prediction_is(
    monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    real = dict(batch()), perfect(batch())
    with pretend_cuda(monkeypatch):
        given, guess = on_gpu(real)
        for training in (True, False):
            found = factored_loss(guess, given, weights=weights, training=training)
            assert devices(found) == {"cuda"}


def test_the_model_runs_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Reconstructor(24, 8, sizes=TINY)
    with pretend_cuda(monkeypatch), torch.no_grad():
        tokens = torch.randn(6, 14, 24, device="cuda:0")
        features = Features((Layer(tokens, tokens, 2, (3, 4)),), dense_cls=True)
        found = model.to("cuda:0")(features, 3, (24, 32))
        assert devices(list(found)) == {"cuda"} and devices(list(found.compose())) == {"cuda"}


def test_figures_stay_on_the_device_with_something_to_measure_or_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = dict(batch()), perfect(batch())
    with pretend_cuda(monkeypatch):
        given, guess = on_gpu(real)
        for batches in (1, 0):
            metric = ReconstructionMetrics().to("cuda:0")
            for _ in range(batches):
                metric.update(guess.compose(), truth_of(given), given["valid"], given["metric"])
            assert devices(metric.compute()) == {"cuda"}


def test_a_constant_from_a_checkpoint_is_shown_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is read onto the CPU."""
    real, parts = dict(batch()), fit_constant([batch()])
    with pretend_cuda(monkeypatch):
        found = constant_geometry(parts, on_gpu(real))
        assert devices(list(found)) == {"cuda"}


def test_a_checkpoint_holds_statistics_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sharded one is read without being told where to put them, also where there is no GPU."""
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    backbone = Backbone("pixio_vits16", weights="random:0", tune="full", model_args=args)
    head = Reconstruction(backbone, sizes=TINY)
    head.configure_model()
    with pretend_cuda(monkeypatch):
        head.to("cuda:0").statistics = fit_constant([batch()])
        assert devices(head.statistics) == {"cuda"}
        checkpoint: dict[str, Any] = {"state_dict": {}}
        head.on_save_checkpoint(checkpoint)
        assert devices(checkpoint["pixio"]["statistics"]) == {"cpu"}
