"""Windows over large images."""

from __future__ import annotations

import pytest
import torch

from pixio_lightning import windows

SEEN = {"window": 256, "stride": 170}


@pytest.mark.parametrize(("size", "n"), [((426, 560), 12), ((375, 1242), 24), ((100, 100), 1)])
def test_counts_and_coverage(size: tuple[int, int], n: int) -> None:
    places = windows.corners(size, **SEEN)
    assert len(places) == n
    covered = torch.zeros(size)
    for top, left in places:
        covered[top : top + 256, left : left + 256] += 1
    assert covered.min() >= 1


@pytest.mark.parametrize("size", [(426, 560), (375, 1242), (100, 300)])
def test_what_is_cut_is_put_together_again(size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    pieces = windows.cut(images, **SEEN)
    assert pieces.shape[1:] == (3, 256, 256)
    assert torch.allclose(windows.merge(pieces, size, **SEEN), images, atol=1e-6)
    one_by_one = torch.cat([windows.cut(image[None], **SEEN) for image in images])
    assert torch.equal(pieces, one_by_one)


def test_the_border_is_zero_and_overlaps_are_averaged() -> None:
    pieces = windows.cut(torch.ones(1, 1, 200, 300), **SEEN)
    assert pieces[-1, 0, 30:].sum() == 0  # the last row of windows starts at 170
    numbered = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 256, 256)
    merged = windows.merge(numbered, (200, 300), **SEEN)
    assert merged[0, 0, 0, 0] == 0 and merged[0, 0, 199, 299] == 2 and merged[0, 0, 199, 200] == 1.5


def test_a_stride_beyond_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves pixels out"):
        windows.origins(100, window=16, stride=17)
