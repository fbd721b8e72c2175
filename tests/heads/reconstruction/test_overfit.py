"""The head learns: eight pairs are reconstructed after a few hundred steps."""

from __future__ import annotations

import pytest
import torch
from rendered_sets import batch

from pixio_heads.reconstruction.geometry import truth_of
from pixio_heads.reconstruction.losses import HIGH_POINTS, factored_loss
from pixio_heads.reconstruction.metrics import ReconstructionMetrics
from pixio_heads.reconstruction.model import Reconstructor, Sizes
from pixio_lightning import Backbone

SMALL = {"img_size": 48, "patch_size": 8, "embed_dim": 96, "depth": 2, "num_heads": 3}
TINY = Sizes(
    dim=96,
    depth=4,
    heads=3,
    taps=(1, 2),
    stages=(16, 16, 32, 32),
    features=24,
    pose_pool="flatten",
    pose_grid=(6, 6),
)


@pytest.mark.slow
def test_eight_pairs_are_learnt_by_heart() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pairs = batch(sets=8, size=48)
    args = SMALL | {"n_cls_tokens": 1, "pos_init": "sincos"}
    backbone = Backbone("pixio_vitt16", weights="random:0", tune="full", model_args=args)
    backbone.load()
    model = Reconstructor(96, 8, sizes=TINY)
    parameters = [*backbone.parameters(), *model.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=300, pct_start=0.1)
    images = pairs["image"].flatten(0, 1)
    for _ in range(300):
        prediction = model(backbone(images), 2, (48, 48))
        loss = factored_loss(prediction, pairs, weights=HIGH_POINTS, training=True)["loss"]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
    metric = ReconstructionMetrics()
    guess = prediction.compose()
    guess = guess._replace(**{name: part.detach() for name, part in guess._asdict().items()})
    metric.update(guess, truth_of(pairs), pairs["valid"], pairs["metric"])
    found = {name: float(value) for name, value in metric.compute().items()}
    print(float(loss.detach()), found)
    assert float(loss.detach()) < 1.0
    assert found["rotation_median"] < 3
    assert found["points_rel"] < 0.2
