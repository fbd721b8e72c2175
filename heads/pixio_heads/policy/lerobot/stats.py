"""Statistics of an episode's features, and of several episodes, as LeRobot keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Stats = dict[str, NDArray[Any]]  # min, max, mean, std of the feature's shape, and count (1,)


def of_values(values: NDArray[Any]) -> Stats:
    """Return the statistics of a feature's values `(T, n)`."""
    exact = values.astype(np.float64)
    return {
        "min": exact.min(axis=0),
        "max": exact.max(axis=0),
        "mean": exact.mean(axis=0),
        "std": exact.std(axis=0),
        "count": np.array([len(values)]),
    }


def levels(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many pixels of a picture have each level, by channel: `(3, 256)`."""
    return np.stack([np.bincount(picture[..., c].ravel(), minlength=256) for c in range(3)])


def of_levels(counts: NDArray[np.int64], pictures: int) -> Stats:
    """Return the statistics of pictures out of their `levels`: in `[0, 1]`, each `(3, 1, 1)`."""
    level = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ level
    found = {
        "min": level[(counts > 0).argmax(axis=1)],
        "max": level[255 - (counts[:, ::-1] > 0).argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt((share * (level - mean[:, None]) ** 2).sum(axis=1)),
    }
    channels = {kind: values.reshape(3, 1, 1) for kind, values in found.items()}
    return channels | {"count": np.array([pictures])}


def pooled(parts: Sequence[Stats]) -> Stats:
    """Return the statistics of all that the parts are of."""
    counts = np.array([part["count"][0] for part in parts])
    share = (counts / counts.sum()).reshape(-1, *(1,) * parts[0]["mean"].ndim)
    means, deviations = (np.stack([part[name] for part in parts]) for name in ("mean", "std"))
    mean = (share * means).sum(axis=0)
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt((share * (deviations**2 + (means - mean) ** 2)).sum(axis=0)),
        "count": counts.sum(keepdims=True),
    }


def plain(stats: dict[str, Stats]) -> dict[str, dict[str, Any]]:
    """Return statistics by feature as lists."""
    return {
        name: {kind: values.tolist() for kind, values in found.items()}
        for name, found in stats.items()
    }
