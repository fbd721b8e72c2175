"""How often each of several data sets is seen: in training by their weights, in turns otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def numbered(
    groups: Sequence[str], weights: Mapping[str, float], *, per_scene: int
) -> NDArray[np.int64]:
    """Return the first number of each scene's sets of views, and behind them how many there are.

    The data set that has most scenes for its weight has `per_scene` of each; scenes of the others
    have more, until all data sets are in proportion, and no scene is left out of a pass.

    Args:
        groups: Of each scene the data set it is of.
        weights: Of each data set.
        per_scene: Sets of views of a scene, at least.

    Returns:
        `(N + 1,)`; of one data set, each scene has `per_scene`.
    """
    scenes = Counter(groups)
    unit = max((n * per_scene / weights[group] for group, n in scenes.items()), default=0.0)
    quotas = {group: round(weights[group] * unit) for group in scenes}
    before: Counter[str] = Counter()
    counts = []
    for group in groups:
        each, more = divmod(quotas[group], scenes[group])
        counts.append(each + (before[group] < more))
        before[group] += 1
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def in_turns(groups: Sequence[Sequence[int]], limit: int) -> list[int]:
    """Return at most `limit` indices, as equally many of each group as there are, evenly spread.

    Args:
        groups: The indices of each.
        limit: At most so many.
    """
    left, taken = limit, {}
    order = sorted(range(len(groups)), key=lambda group: len(groups[group]))
    for place, group in enumerate(order):
        # What a small one leaves is for the larger ones.
        taken[group] = min(len(groups[group]), left // (len(groups) - place))
        left -= taken[group]
    return [
        indices[i * len(indices) // taken[group]]
        for group, indices in enumerate(groups)
        for i in range(taken[group])
    ]


def dealt(indices: list[int], processes: int) -> list[int]:
    """Return indices in an order of which each process, taking every so many-th, has neighbours.

    Args:
        indices: What is evaluated.
        processes: How many share them.
    """
    order, start = indices.copy(), 0
    for rank in range(processes):
        places = range(rank, len(indices), processes)
        for place, index in zip(places, indices[start:], strict=False):
            order[place] = index
        start += len(places)
    return order
