"""What a number of a depth file is worth."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixio_heads.reconstruction.views.frames import FileScene, Frame
from pixio_lightning.data import BadImage
from pixio_lightning.data.depth import encode_png

METRES = np.full((18, 24), 1.5, np.float32)


def loaded(folder: Path, depth: str, scale: float | None) -> np.ndarray:
    Image.new("RGB", (24, 18)).save(folder / "0.jpg")
    frame = Frame("0", folder / "0.jpg", folder / depth, np.eye(3), np.eye(4), None)
    scene = FileScene(
        "room", [frame], metric=True, synthetic=False, scale=scale, max_megapixels=64.0
    )
    return scene.load(0).depth


@pytest.mark.parametrize("scale", [0.001, None])
def test_a_scale_that_is_given_is_that_of_floats_too(tmp_path: Path, scale: float | None) -> None:
    np.save(tmp_path / "0.npy", METRES / (scale or 1))
    assert np.allclose(loaded(tmp_path, "0.npy", scale), METRES)


@pytest.mark.parametrize("scale", [0.01, None])
def test_integers_count_in_millimetres_where_nothing_is_said(
    tmp_path: Path, scale: float | None
) -> None:
    Image.fromarray((METRES / (scale or 0.001)).round().astype(np.uint16)).save(tmp_path / "0.png")
    assert np.allclose(loaded(tmp_path, "0.png", scale), METRES)


def test_a_file_that_says_another_unit_than_is_given_stops(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encode_png(METRES, unit=0.001))
    assert np.allclose(loaded(tmp_path, "0.png", None), METRES)
    with pytest.raises(BadImage, match="counts in 0.001 m, not in 0.01 m of data.depth_scale"):
        loaded(tmp_path, "0.png", 0.01)
