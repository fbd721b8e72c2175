"""The entropy that stands for the colours of an image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from skimage import data
from sklearn.datasets import load_sample_images

from pixio_lightning.curation.scores import ScoredImages, WholeGroups, colour_entropy


class Groups:
    """As much of an index of shards as batches are made by."""

    def __init__(self, *rows: int) -> None:
        self.rows = rows

    def rows_of(self, group: int) -> int:
        return self.rows[group]


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


@pytest.mark.parametrize("workers", [0, 1, 3, 4])
def test_no_group_is_read_by_two_workers(workers: int) -> None:
    rows = (100,) * 12
    batches = [
        *WholeGroups(Groups(*rows), np.arange(len(rows)), 30, workers=workers)  # type: ignore[arg-type]
    ]
    assert sorted(row for batch in batches for row in batch) == list(range(sum(rows)))
    assert max(map(len, batches)) <= 30
    ends = np.cumsum(rows)
    readers: dict[int, set[int]] = {}
    for i, batch in enumerate(batches):  # as a DataLoader gives them to its workers
        (group,) = {int(np.searchsorted(ends, row, side="right")) for row in batch}
        readers.setdefault(group, set()).add(i % max(1, workers))
    assert all(len(of_group) == 1 for of_group in readers.values())
