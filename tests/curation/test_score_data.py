"""The entropy that stands for the colours of an image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from skimage import data
from sklearn.datasets import load_sample_images

from pixio_lightning.curation.scores import ScoredImages, colour_entropy


def levels(*values: int) -> np.ndarray:
    """Return a picture that shows each level of grey equally often."""
    row = np.repeat(np.array(values, np.uint8), 256 // len(values))
    return np.broadcast_to(row[None, :, None], (256, 256, 3))


@pytest.mark.parametrize(
    ("picture", "bits"),
    [(levels(7), 0), (levels(0, 255), 1), (levels(*range(0, 256, 4)), 6), (levels(*range(256)), 8)],
)
def test_entropy_by_hand(picture: np.ndarray, bits: float) -> None:
    assert colour_entropy(picture) == pytest.approx(bits, abs=1e-12)


def test_entropy_is_the_mean_of_the_channels() -> None:
    picture = np.array(levels(0))
    picture[..., 1] = levels(0, 255)[..., 1]
    picture[..., 2] = levels(*range(256))[..., 2]
    assert colour_entropy(picture) == pytest.approx((0 + 1 + 8) / 3, abs=1e-12)


def test_entropy_changes_little_with_the_size() -> None:
    photograph = Image.fromarray(data.astronaut())
    small, large = (np.asarray(photograph.resize((n, n))) for n in (256, 1500))
    assert abs(colour_entropy(small) - colour_entropy(large)) < 0.15


def test_photographs_pass_the_threshold_and_text_does_not() -> None:
    pictures = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea()]
    assert min(map(colour_entropy, pictures)) > 4.5
    page = Image.new("RGB", (800, 1000), "white")
    text = "Half of the recipe is its data. " * 4
    for line in range(45):
        ImageDraw.Draw(page).text((30, 20 + 21 * line), text, "black", ImageFont.load_default(16))
    assert colour_entropy(np.asarray(page)) < 3


def test_what_cannot_be_decoded_is_described_with_its_reason() -> None:
    found = ScoredImages.describe(b"no picture", size=32, max_megapixels=64)
    assert found["reason"] == "no JPEG, PNG, WebP, TIFF or BMP" and found["image"].shape == (
        3,
        32,
        32,
    )
    assert (found["width"], found["entropy"]) == (0, 0.0)
