"""Rendered sets for tests: true geometry as a batch, and a prediction that says just that."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from pixio_heads.reconstruction.geometry import Geometry, quaternion_of, truth_of
from pixio_heads.reconstruction.model import Prediction
from pixio_lightning.data.scenes.render import render_scene


@cache
def batch(sets: int = 2, views: int = 2, size: int = 32, place: str | None = "den") -> Any:
    """Return a batch of rendered sets."""
    places = None if place is None else [place]
    rendered = [render_scene(i, views=views, size=size, places=places).views for i in range(sets)]

    def stacked(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([[getattr(v, name) for v in s] for s in rendered]))

    return {
        "image": stacked("image").movedim(-1, 2),
        "depth": stacked("depth"),
        "valid": stacked("valid"),
        "non_ambiguous": stacked("valid"),
        "intrinsics": stacked("intrinsics").float(),
        "cam2world": stacked("cam2world"),
        "metric": torch.ones(sets, dtype=torch.bool),
        "synthetic": torch.ones(sets, dtype=torch.bool),
        "key": torch.arange(sets),
        "size": (size, size),
    }


def perfect(truth: dict[str, Any], *, unit: float = 1.0) -> Prediction:
    """Return the truth as a prediction whose lengths are in units of `unit` metres."""
    geometry: Geometry = truth_of(truth)
    distance = (geometry.depth / geometry.rays[..., 2]) / unit
    return Prediction(
        rays=geometry.rays,
        distance=torch.where(truth["valid"], distance, 1.0),
        confidence=torch.ones_like(distance),
        mask_logits=torch.where(truth["non_ambiguous"], 40.0, -40.0),
        translation=geometry.cam2world[..., :3, 3] / unit,
        quaternion=quaternion_of(geometry.cam2world),
        scale=torch.full((len(distance),), unit),
    )
