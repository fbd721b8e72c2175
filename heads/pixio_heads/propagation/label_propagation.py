"""Label propagation: what is known of the first frame is carried to the others by likeness.

Every patch of a frame takes the labels of the patches most like it in the first frame and in the
last few. Nothing is learned, so what comes out says how well features tell parts apart.

The protocol is that of the public evaluation of RVM (arXiv 2512.13684) and of CropMAE
(arXiv 2403.17823); the idea is from Jabri et al., 2020 (arXiv 2006.14613).

Shapes: V frames, h x w grid of N patches, C width of a feature, L labels, H x W pixels of the
frames as they are seen, Ho x Wo as they are stored, J joints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pixio_lightning.training import full_precision

# Similarities that are held at once: 64 MB, whatever the grid and the context.
_AT_ONCE = 1 << 24
_TOP_CELLS = 5  # whose weighted mean is a joint's position
_SPREAD = 0.5  # cells, the deviation of the Gaussian that a joint is


class Search(NamedTuple):
    """Where the labels of a patch come from.

    Attributes:
        k: Neighbours that are looked for.
        context: Last frames that are searched beside the first one.
        radius: Of the neighbours' distance in those, in patches; smaller ones count.
        temperature: They weigh ``exp(cosine / temperature)``.
    """

    k: int = 7
    context: int = 20
    radius: float = 20.0
    temperature: float = 0.7


def propagate(
    features: Iterable[Tensor], first: Tensor, grid: tuple[int, int], search: Search
) -> Iterator[Tensor]:
    """Yield the labels of every frame's patches `(N, L)`, float32; of the first those given.

    Features are asked for one by one, and only those in the context are kept. Before there are
    `context` frames the first one stands for those that are missing.

    Args:
        features: Of each frame `(N, C)`, of any length.
        first: Labels of the first frame `(N, L)`, of any scale.
        grid: Height and width in patches, whose product is N.
        search: Where the labels come from.
    """
    first = first.float()
    apart = ~_near(grid, search.radius, first.device)
    keys = labels = first  # until there is a frame
    for number, feature in enumerate(features):
        own = F.normalize(feature.float(), dim=1)
        if number == 0:
            keys = own.repeat(search.context + 1, 1, 1)
            labels = first.repeat(search.context + 1, 1, 1)
            yield first
            continue
        found = _carried(own, keys, labels, apart, search)
        yield found
        if search.context:
            slot = 1 + (number - 1) % search.context
            keys[slot], labels[slot] = own, found


def _near(grid: tuple[int, int], radius: float, device: torch.device) -> Tensor:
    """Return which patches are less than `radius` apart, bool `(N, N)`."""
    row, column = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    place = torch.cartesian_prod(row, column)
    return (place[:, None] - place[None]).square().sum(dim=2) < radius * radius


def _carried(
    queries: Tensor, keys: Tensor, labels: Tensor, apart: Tensor, search: Search
) -> Tensor:
    """Return labels `(N, L)` from the first frame and the last ones.

    Args:
        queries: Unit vectors `(N, C)`.
        keys: Those of the context `(M, N, C)`, of the first frame first.
        labels: Theirs `(M, N, L)`.
        apart: Patches that are too far from each other, `(N, N)`; it does not hold for the first.
        search: Where the labels come from.
    """
    frames, patches = keys.shape[:2]
    keys, values = keys.flatten(0, 1), labels.flatten(0, 1)
    parts = []
    for rows in torch.arange(patches).split(max(1, _AT_ONCE // (frames * patches))):
        chosen = slice(int(rows[0]), int(rows[-1]) + 1)
        # bfloat16 would round many neighbours to one likeness.
        with full_precision(queries.device):
            alike = (queries[chosen] @ keys.T).unflatten(1, (frames, patches))
        alike[:, 1:].masked_fill_(apart[chosen, None], -torch.inf)
        best, where = alike.flatten(1).topk(min(search.k, frames * patches), dim=1)
        weights = (best / search.temperature).softmax(dim=1)
        parts.append((weights[..., None] * values[where]).sum(dim=1))
    return torch.cat(parts)


# --- masks --------------------------------------------------------------------------------------


def mask_to_grid(mask: Tensor, ids: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return each patch's share of every label `(N, L)`.

    To the nearest pixel of the size that is seen, then a map for each label, bilinear and
    antialiased.

    Args:
        mask: uint8 `(Ho, Wo)`.
        ids: The labels `(L,)`; other values count as the first of them.
        size: Height and width that is seen.
        grid: Height and width in patches.
    """
    seen = _nearest(mask, size)
    hot = (seen == ids[:, None, None]).float()
    hot[0] = 1 - hot[1:].sum(dim=0)
    # Antialiased: of the middle of a patch alone, most of an outline would be lost.
    shares = F.interpolate(hot[None], grid, mode="bilinear", antialias=True)[0]
    return shares.flatten(1).T


def grid_to_mask(
    shares: Tensor, ids: Tensor, grid: tuple[int, int], size: tuple[int, int], stored: Sequence[int]
) -> Tensor:
    """Return a mask uint8 `(Ho, Wo)`: bilinear, the greatest share, the nearest pixel.

    Args:
        shares: `(N, L)`.
        ids: The labels `(L,)`.
        grid: Height and width in patches.
        size: Height and width that is seen.
        stored: Those of the mask.
    """
    maps = shares.T.unflatten(1, grid)[None]
    larger = F.interpolate(maps, size, mode="bilinear", align_corners=False)[0]
    return _nearest(ids[larger.argmax(dim=0)].to(torch.uint8), stored)


def _nearest(mask: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(mask.shape) == tuple(size):
        return mask
    scaled = F.interpolate(mask[None, None].float(), tuple(size), mode="nearest-exact")
    return scaled[0, 0].to(mask.dtype)


# --- joints -------------------------------------------------------------------------------------


def joints_to_grid(joints: Tensor, stored: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return a Gaussian for each joint `(N, J)`, of a deviation of half a cell.

    Args:
        joints: x and y in pixels of the stored frame `(J, 2)`, whose centres are whole numbers.
        stored: Its height and width `(2,)`.
        grid: Height and width in patches.
    """
    cells = torch.tensor(grid, device=joints.device, dtype=joints.dtype)
    at = (joints.flip(1) + 0.5) * cells / stored - 0.5
    row, column = (torch.arange(n, device=joints.device, dtype=joints.dtype) for n in grid)
    place = torch.cartesian_prod(row, column)
    return (-(place[:, None] - at).square().sum(dim=2) / (2 * _SPREAD**2)).exp()


def grid_to_joints(weights: Tensor, stored: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the weighted mean of each joint's five strongest cells `(J, 2)`, x and y in pixels.

    Args:
        weights: `(N, J)`.
        stored: Height and width of the frame `(2,)`.
        grid: Height and width in patches.
    """
    best, where = weights.topk(min(_TOP_CELLS, len(weights)), dim=0)
    shares = best / best.sum(dim=0).clamp_min(torch.finfo(best.dtype).tiny)
    row, column = where // grid[1], where % grid[1]
    at = torch.stack([(shares * column).sum(dim=0), (shares * row).sum(dim=0)], dim=1)
    cells = torch.tensor(grid, device=weights.device, dtype=weights.dtype)
    return (at + 0.5) * (stored / cells).flip(0) - 0.5
