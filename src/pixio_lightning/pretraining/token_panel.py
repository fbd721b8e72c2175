"""Pictures of distillation: a teacher's tokens beside its students', in the same colours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pixio_lightning.pretraining.token_loss import Distance, Distilled, distances
from pixio_lightning.training import visualize


def token_panel(images: Tensor, found: Distilled, kind: Distance) -> visualize.Panel:
    """Draw a row for each image: the image, the teacher, each student and how far off it is.

    Args:
        images: uint8 `(B, 3, H, W)`.
        found: A pass in which nothing was hidden.
        kind: What is drawn as a distance.
    """
    grid, size = found.teacher.grid, images.shape[-2:]
    assert grid is not None, "the teacher sees all patches"
    matches = found.matches.values()
    targets = next(iter(matches)).target_patches
    # One set of axes for all, of directions alone: equal colours are equal tokens.
    tokens = torch.cat([targets, *(m.patches for m in matches)])
    maps = F.normalize(tokens, dim=-1).transpose(1, 2).unflatten(2, grid)
    shown = visualize.principal_components(maps, images.shape).split(len(images))
    apart = [distances(m.patches, m.target_patches, kind) for m in matches]
    most = max(visualize.quantile(torch.stack(apart), 0.98), 1e-6)
    columns, titles = [images, shown[0]], ["image", "teacher"]
    for name, picture, distance in zip(found.matches, shown[1:], apart, strict=True):
        large = F.interpolate(distance.unflatten(1, grid)[:, None], size)[:, 0]
        columns += [picture, torch.stack([visualize.colour(one / most, "error") for one in large])]
        titles += [f"{name}, projected", f"{name}: distance"]
    title = "1 - cosine" if kind == "cosine" else kind
    legend = visualize.Legend(title, 0.0, float(f"{most:.2g}"), "", "error")
    caption = "patch tokens by their principal components, the same for teacher and students"
    rows = [list(row) for row in zip(*columns, strict=True)]
    return visualize.Panel(rows, titles, caption, (legend,))
