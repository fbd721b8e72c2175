"""Real photographs, cut into a few dozen files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs that ship with scikit-learn and scikit-image."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photographs")
    pictures = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea()]
    for i, picture in enumerate(pictures):
        side = min(picture.shape[:2]) // 2
        for y in range(0, picture.shape[0] - side + 1, side // 2):
            for x in range(0, picture.shape[1] - side + 1, side // 2):
                crop = Image.fromarray(picture[y : y + side, x : x + side, :3])
                crop.save(folder / f"{i}-{y:03d}-{x:03d}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def recipe(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretraining recipe on the photographs."""
    from running import write_recipe

    return write_recipe(tmp_path_factory.mktemp("recipe"), photographs)
