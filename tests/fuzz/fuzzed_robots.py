"""Demonstrations: LeRobot folders, and pickles of CortexBench."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import numpy as np
import torch
from kind import Kind, Make
from test_cortexbench import demonstration
from test_lerobot import by_hand

from pixio_heads.policy import cortexbench, lerobot
from pixio_heads.policy.cortexbench import trifinger
from pixio_lightning.data import BadImage


def robot(version: str, video: bool, pattern: str) -> Make:
    """Return what writes a LeRobot folder; the files of a pattern are damaged."""

    def make(folder: Path) -> list[str]:
        by_hand(folder, version, video)
        return sorted(str(p.relative_to(folder)) for p in folder.glob(pattern))

    return make


def _folder(folder: Path) -> None:
    found, _ = lerobot.read(folder, limit=None, size=32)
    for demo in found:
        with contextlib.suppress(BadImage):
            demo.frame(len(demo) - 1)


def _pickled(protocol: int) -> Make:
    def make(folder: Path) -> list[str]:
        demos = [demonstration(seed, ("proprio", 24)) for seed in range(2)]
        (folder / "a.pickle").write_bytes(pickle.dumps(demos, protocol))
        return ["a.pickle"]

    return make


def _demonstrations(folder: Path) -> None:
    for demo in cortexbench.read(folder / "a.pickle", limit=None, trusted=True)[0]:
        demo.frame(0)


def _trifinger(tensors: bool) -> Make:
    def make(folder: Path) -> list[str]:
        arrays = {
            "ft_pos_cur": np.zeros((5, 9)),
            "delta_ftpos": np.ones((5, 9)),
            "image_60": np.zeros((5, 8, 8, 3), np.uint8),
        }
        content = {k: torch.from_numpy(v) for k, v in arrays.items()} if tensors else arrays
        (folder / "demo").mkdir()
        torch.save(content, folder / f"demo/{trifinger.FILE}")
        return [f"demo/{trifinger.FILE}"]

    return make


META = "meta/*.json*"
KINDS = {
    "lerobot_meta": Kind(
        [robot(v, video, META) for v in ("v2.1", "v3.0") for video in (False, True)], _folder
    ),
    "lerobot_tables": Kind(
        [
            robot("v2.1", False, "data/**/*.parquet"),
            robot("v3.0", True, "**/*.parquet"),
            robot("v3.0", False, "**/*.parquet"),
        ],
        _folder,
    ),
    "lerobot_video": Kind(
        [robot(version, True, "videos/**/*.mp4") for version in ("v2.1", "v3.0")], _folder
    ),
    "cortexbench": Kind([_pickled(protocol) for protocol in (2, 4, 5)], _demonstrations),
    "trifinger": Kind([_trifinger(True), _trifinger(False)], trifinger.read),
}
