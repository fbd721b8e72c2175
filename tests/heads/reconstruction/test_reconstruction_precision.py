"""Under the trainer's autocast the truth costs and scores what it does without."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from rendered_sets import batch, perfect

from pixio_heads.reconstruction.constant import fit_constant
from pixio_heads.reconstruction.head import Reconstruction
from pixio_heads.reconstruction.model import Prediction
from pixio_lightning import Backbone
from pixio_lightning.features import Features

_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 1}


class Told(Reconstruction):
    """A head that has been told the truth."""

    def forward(self, features: Features, batch: dict[str, Any]) -> Prediction:
        return perfect(batch)


@pytest.fixture
def head() -> Told:
    backbone = Backbone("pixio_vitt16", weights="random:0", model_args=_VIT, layers="last")
    head = Told(backbone, weights="high_points")
    head.statistics = fit_constant([batch()])
    head.configure_model()
    return head


def given() -> dict[str, Any]:
    return batch() | {"weight": torch.ones(2), "name": ["a", "b"]}


def under(bfloat16: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()


def test_the_truth_costs_the_same(head: Told) -> None:
    costs = []
    for bfloat16 in (False, True):
        with under(bfloat16):
            costs.append(float(head.training_step(given(), 0)))
    plain, mixed = costs
    assert mixed == plain


def test_the_truth_scores_the_same(head: Told) -> None:
    outcomes = []
    for bfloat16 in (False, True):
        with under(bfloat16), torch.no_grad():
            head.validation_step(given(), 0)
        assert head.evaluation is not None
        outcomes.append(head.evaluation.finish())
    plain, mixed = outcomes
    assert plain.loss < 2e-4 and plain.metrics["points_rel"] < 1e-5
    assert mixed == plain
