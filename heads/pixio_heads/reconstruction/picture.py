"""A set in pictures: two views, true and predicted depth, and both clouds from two sides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pixio_heads.reconstruction.drawing import clouds
from pixio_heads.reconstruction.geometry import (
    Geometry,
    average_distance,
    intrinsics_of,
    rebased,
    truth_of,
)
from pixio_heads.reconstruction.model import Prediction
from pixio_lightning.training import visualize

TITLES = [
    *("view 0", "view 1", "true depth", "predicted depth"),
    *("true cloud", "predicted cloud", "from above", "predicted, above"),
]


def set_row(batch: dict[str, Any], prediction: Prediction) -> list[Tensor]:
    """Return the pictures of `TITLES` of the first set of a batch, uint8 `(3, h, w)` each.

    Predicted lengths are brought to the truth's average distance, as the figures are.
    """
    truth, guess = truth_of(batch), rebased(prediction.compose())
    valid = batch["valid"]
    guess = _scaled(
        guess, average_distance(truth.points, valid) / average_distance(guess.points, valid)
    )
    seen = valid[0, 0]
    near = truth.depth[0, 0][seen]
    high = visualize.quantile(near, 0.98) if len(near) else 1.0
    depths = (torch.where(seen, truth.depth[0, 0], torch.nan), guess.depth[0, 0])
    images = batch["image"][0]
    row = [images[0], images[min(1, len(images) - 1)]]
    row += [visualize.colour(depth / high, "depth") for depth in depths]
    colours = images.movedim(1, -1)[valid[0]]
    for side in ("front", "above"):
        camera = clouds.facing(truth.points[0][valid[0]], side, cam2world=truth.cam2world[0])
        for geometry in (truth, guess):
            cloud = clouds.with_cameras(
                geometry.points[0][valid[0]],
                colours,
                intrinsics_of(geometry.rays[0]),
                geometry.cam2world[0],
                size=tuple(valid.shape[-2:]),
            )
            row.append(clouds.draw(*cloud, camera))
    return row


def _scaled(geometry: Geometry, factor: Tensor) -> Geometry:
    """Multiply all lengths of a set `(B,)`."""
    cam2world = geometry.cam2world.clone()
    cam2world[..., :3, 3] *= factor[:, None, None]
    return geometry._replace(
        points=geometry.points * factor[:, None, None, None, None],
        depth=geometry.depth * factor[:, None, None, None],
        cam2world=cam2world,
    )
