"""Clips with masks and joints: lists, masks and MATLAB files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from clip_folders import SIZE, davis, jhmdb, vip
from kind import Kind, Make

from pixio_heads.propagation.data import PropagationData
from pixio_lightning.data import BadImage


def clips(write: Callable[[Path, dict[str, int]], Path], pattern: str, *names: str) -> Make:
    """Return what writes a data set; the files of a pattern are damaged."""

    def make(folder: Path) -> list[str]:
        write(folder, dict.fromkeys(names, 3))
        return sorted(str(p.relative_to(folder)) for p in folder.glob(pattern))

    return make


def _read(source: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        samples = PropagationData(source, str(folder), image_size=SIZE).samples_of("val")
        for index in range(min(4, len(samples))):
            with contextlib.suppress(BadImage):
                samples.load(index)
        samples.digest()

    return read


KINDS = {
    "davis_masks": Kind([clips(davis, "Annotations/**/*.png", "swan")], _read("davis2017")),
    "davis_lists": Kind([clips(davis, "ImageSets/**/*.txt", "swan", "bear")], _read("davis2017")),
    "vip_masks": Kind([clips(vip, "Annotations/**/*.png", "videos1")], _read("vip")),
    "jhmdb_joints": Kind([clips(jhmdb, "**/*.mat", "golf/one")], _read("jhmdb")),
    "jhmdb_lists": Kind([clips(jhmdb, "splits/*.txt", "golf/one", "golf/two")], _read("jhmdb")),
}
