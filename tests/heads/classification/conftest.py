"""A folder of images that a random backbone tells apart, and a shared cache of scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "pixio-cache"))


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder of red, green and blue images, each of another shade."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("blue", "green", "red")):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for i in range(20):
            image = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
            image[..., 2 - channel] = rng.integers(160, 255)
            Image.fromarray(image).save(tmp_path / "colours" / name / f"{i}.png")
    return tmp_path / "colours"
