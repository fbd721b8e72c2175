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


def of_frame(frame: NDArray[np.uint8]) -> Stats:
    """Return those of a picture's channels, in `[0, 1]` and of shape `(3, 1, 1)`, counted once."""
    found = of_values(frame.reshape(-1, 3) / 255)
    channels = {name: values.reshape(3, 1, 1) for name, values in found.items() if name != "count"}
    return channels | {"count": np.array([1])}


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
