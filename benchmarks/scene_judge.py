"""Frozen features judged by ridge regression on rendered scenes of the split `test`.

In seconds, and without a rate or a seed of a probe's own: depth and classes of patches, attributes
and kinds of place of whole images, in colour and in grey. No demo prints this split.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixio_heads.attributes.samples import SceneAttributes
from pixio_lightning import Backbone
from pixio_lightning.data import Scenes, SceneSamples
from pixio_lightning.data.scenes.worlds import known_places
from pixio_lightning.models import ridge
from pixio_lightning.training.callbacks.online_probe import knn_accuracy

SIDE, CLASSES = 8, 16
# Scenes of each world that maps are fitted to, and that they are judged on.
FITTED, JUDGED = 600, 300
WORLDS: dict[str, list[str] | None] = {"studio": ["studio"], "all": None}


@cache
def views(world: str, split: str) -> dict[str, Tensor]:
    """Return images `(N, 3, 64, 64)`, depth and classes of patches, attributes `(N, D)`, places."""
    places = WORLDS[world]
    size = {"train": FITTED, "held_out": JUDGED, "views": 1, "size": 64}
    scenes = Scenes(**size, places=tuple(places) if places else None)
    samples = SceneSamples(split, scenes, ("image", "depth", "valid", "class_id", "room_type"))
    kinds = list(known_places(WORLDS[world]))
    loaded = [samples.load(i) for i in range(len(samples))]
    known = SceneAttributes(split, scenes)
    rows = [known.load(i)["target"] for i in range(len(known))]
    found = {
        name: torch.from_numpy(np.stack([one[name] for one in loaded]))
        for name in loaded[0]
        if name != "room_type"
    }
    depth, valid = in_patches(found["depth"]), in_patches(found["valid"])
    depth = torch.where(valid, depth, depth.new_tensor(80.0)).clamp_min(0.1)  # the sky is far
    one_hot = torch.nn.functional.one_hot(in_patches(found["class_id"]).long(), CLASSES)
    return {
        "images": found["image"].permute(0, 3, 1, 2).contiguous(),
        "depth": depth.log().mean(dim=-1, keepdim=True),  # (N, 64, 1)
        "classes": one_hot.float().mean(dim=-2),  # (N, 64, 16)
        "attributes": torch.from_numpy(np.stack(rows)),
        "places": torch.tensor([kinds.index(str(one["room_type"])) for one in loaded]),
    }


def in_patches(maps: Tensor) -> Tensor:
    """Cut maps `(N, 64, 64)` into 64 patches of 64 pixels, `(N, 64, 64)`."""
    n, side = len(maps), maps.shape[1] // SIDE
    parts = maps.reshape(n, SIDE, side, SIDE, side).transpose(2, 3)
    return parts.reshape(n, SIDE * SIDE, side * side)


def grey(images: Tensor) -> Tensor:
    """Take the colours away."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True).round().to(torch.uint8).expand_as(images)


@torch.no_grad()
def read(backbone: Backbone | None, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return features of patches `(N, 64, C)` and of images `(N, D)`; of none, their pixels."""
    if backbone is None:
        side = images.shape[-1] // SIDE
        pixels = torch.nn.functional.pixel_unshuffle(images.float(), side)  # (N, 3 side^2, 8, 8)
        return pixels.flatten(2).transpose(1, 2), images.float().mean(dim=(2, 3))
    dense, whole = [], []
    for chunk in images.split(64):
        features = backbone(chunk)
        maps = [features.dense(i) for i in range(len(features.layers))]
        at = torch.cat(maps, dim=1)
        dense.append(torch.nn.functional.adaptive_avg_pool2d(at, SIDE).flatten(2).transpose(1, 2))
        whole.append(features.pooled)
    return torch.cat(dense), torch.cat(whole)


def explained(fit: tuple[Tensor, Tensor], judge: tuple[Tensor, Tensor]) -> Tensor:
    """Return the share of variance of each number that a linear map explains, `(D,)`."""
    found = ridge(*fit)
    left = judge[0] @ found.weight + found.bias - judge[1]
    return 1 - left.square().sum(dim=0) / (judge[1] - fit[1].mean(dim=0)).square().sum(dim=0)


def judged(
    backbone: Backbone | None, worlds: Iterable[str] = WORLDS, *, device: str = "cpu"
) -> dict[str, float]:
    """Judge frozen features in some worlds, in colour and in grey."""
    found: dict[str, float] = {}
    here = torch.eye(SIDE * SIDE, device=device)  # the position is free for all
    for world in worlds:
        for name, change in (("", lambda x: x), (", grey", grey)):
            sets = []
            for split in ("train", "test"):
                known = {key: value.to(device) for key, value in views(world, split).items()}
                patches, whole = read(backbone, change(known["images"]))
                patches = torch.cat([patches, here.expand(len(patches), -1, -1)], dim=2)
                sets.append((known, patches.flatten(0, 1), whole))
            (fit, x, a), (judge, y, b) = sets

            def flat(known: dict[str, Tensor], key: str) -> Tensor:
                return known[key].flatten(0, 1)

            depth = explained((x, flat(fit, "depth")), (y, flat(judge, "depth")))
            found[f"depth, {world}{name}"] = float(depth)
            own, truth = ridge(x, flat(fit, "classes")), flat(judge, "classes")
            right = (y @ own.weight + own.bias).argmax(dim=1) == truth.argmax(dim=1)
            found[f"classes, {world}{name}"] = float(right.float().mean())
            told = explained((a, fit["attributes"]), (b, judge["attributes"]))
            found[f"attributes, {world}{name}"] = float(told.mean())
            if len(WORLDS[world] or ()) != 1:
                hits = knn_accuracy(a, fit["places"], b, judge["places"], k=10)
                found[f"place k-NN, {world}{name}"] = hits
    return found


def opened(weights: str, args: dict[str, Any] | None = None) -> Backbone:
    """Return a frozen backbone whose features are those of all quarters of its depth."""
    name = "pixio_vitt16" if args else None
    backbone = Backbone(name, weights=weights, layers="quarters", model_args=args or {})
    backbone.load()
    return backbone.eval()
