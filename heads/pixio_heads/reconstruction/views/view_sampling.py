"""Which views make a set: a random walk from neighbour to neighbour.

The views of a set are connected, not pairwise overlapping. As in MapAnything
(https://arxiv.org/abs/2509.13414): the walk goes to a random neighbour that it has not been to and
turns back where there is none; where it cannot go far enough, others start elsewhere and the
longest is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pixio_heads.reconstruction.views.covisibility import Neighbours
from pixio_lightning.data import RandomKey
from pixio_lightning.keyed import Purpose

_ATTEMPTS = 4

Near = Neighbours | NDArray[np.bool_]


def chosen(near: Near, n: int, random_key: RandomKey) -> list[int]:
    """Choose the views of a set; the first is the one the others are seen from.

    Args:
        near: At a the neighbours of view a, bool `(N,)`.
        n: Views of the set. All N come in random order; more than a walk reaches are repeated.
        random_key: Where random numbers come from.

    Returns:
        `n` indices.
    """
    total = len(near)
    numbers = iter(random_key.uniform(max((_ATTEMPTS + 1) * n, total), Purpose.VIEWS))
    if n == total:
        return np.argsort([next(numbers) for _ in range(n)]).tolist()
    best: list[int] = []
    untried = np.ones(total, dtype=bool)
    for _ in range(_ATTEMPTS):
        if len(best) == n or not untried.any():
            break
        starts = np.flatnonzero(untried)
        walk = _walk(near, int(starts[int(next(numbers) * len(starts))]), n, numbers)
        untried[walk] = False
        best = max(best, walk, key=len)
    return best + [best[int(next(numbers) * len(best))] for _ in range(n - len(best))]


def _walk(near: Near, start: int, n: int, numbers: Iterator[float]) -> list[int]:
    """Return up to `n` views, each a neighbour of one before it."""
    walk, trail = [start], [start]
    unvisited = np.ones(len(near), dtype=bool)
    unvisited[start] = False
    while trail and len(walk) < n:
        onward = np.flatnonzero(near[trail[-1]] & unvisited)
        if not len(onward):
            trail.pop()
            continue
        view = int(onward[int(next(numbers) * len(onward))])
        unvisited[view] = False
        walk.append(view)
        trail.append(view)
    return walk
