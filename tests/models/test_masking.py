"""Block masks: how many, which, how often; and patches in the order the decoder predicts."""

import pytest
import torch

from pixio_lightning.keyed import Purpose, RandomKey
from pixio_lightning.models.masking import (
    block_mask,
    count_blocks,
    gather_tokens,
    patchify,
    unpatchify,
)


def masked(keys, *, grid=(16, 16), block=4, ratio=0.75):
    n_blocks, _ = count_blocks(grid, block, ratio)
    noise = RandomKey(torch.as_tensor(keys), 0, 0).uniform(n_blocks, Purpose.MASK)
    return block_mask(noise, grid=grid, block=block, ratio=ratio)


@pytest.mark.parametrize(
    ("block", "ratio", "visible"),
    [(1, 0.75, 64), (2, 0.75, 64), (4, 0.75, 64), (8, 0.75, 64), (4, 0.625, 96), (4, 0.5, 128)],
)
def test_visible_patches_of_the_paper(block, ratio, visible):
    mask = masked(range(3), block=block, ratio=ratio)
    assert mask.keep.shape == (3, visible) and mask.hide.shape == (3, 256 - visible)
    assert mask.keep.dtype == mask.hide.dtype == torch.int64


def test_counts_survive_floating_point():
    """``10 * (1 - 0.9)`` is 0.9999999999999998, and one of ten blocks is meant."""
    assert count_blocks((2, 5), 1, 0.9) == (10, 1)
    assert count_blocks((10, 10), 1, 0.93) == (100, 7)
    assert count_blocks((3, 3), 1, 0.75) == (9, 2)  # 2.25 rounds down


@pytest.mark.parametrize("grid", [(16, 16), (8, 24)])
@pytest.mark.parametrize("block", [1, 2, 4])
def test_keep_and_hide_partition_the_patches(grid, block):
    mask = masked(range(20), grid=grid, block=block)
    every = torch.cat([mask.keep, mask.hide], dim=1).sort(dim=1).values
    assert torch.equal(every, torch.arange(grid[0] * grid[1]).expand(20, -1))
    for part in mask:
        assert (part.diff(dim=1) > 0).all()


@pytest.mark.parametrize("grid", [(16, 16), (8, 24)])
@pytest.mark.parametrize("block", [2, 4])
def test_blocks_are_whole_and_aligned(grid, block):
    hidden = torch.zeros(20, grid[0] * grid[1])
    hidden.scatter_(1, masked(range(20), grid=grid, block=block).hide, 1.0)
    height, width = grid
    for sample in hidden.view(20, height, width):
        for top in range(0, height, block):
            for left in range(0, width, block):
                cells = sample[top : top + block, left : left + block]
                assert cells.unique().numel() == 1


def test_largest_noise_is_hidden():
    noise = torch.tensor([[0.3, 0.9, 0.1, 0.7]])
    mask = block_mask(noise, grid=(4, 4), block=2, ratio=0.5)
    # Blocks 0 (top left) and 2 (bottom left) stay.
    assert mask.keep.tolist() == [[0, 1, 4, 5, 8, 9, 12, 13]]


def test_masks_belong_to_the_sample():
    mask, reordered = masked([3, 4, 5]), masked([5, 6, 3])
    assert torch.equal(mask.keep[[2, 0]], reordered.keep[[0, 2]])
    assert len({tuple(row) for row in masked(range(50)).keep.tolist()}) > 45


def test_every_block_is_hidden_equally_often():
    """Four standard errors, sqrt(0.75 * 0.25 / 4096) each; pairs of blocks alike, 12/16 * 11/15."""
    mask = masked(range(4096))
    hidden = torch.zeros(4096, 256).scatter_(1, mask.hide, 1.0)
    corners = hidden.view(-1, 4, 4, 4, 4)[:, :, 0, :, 0].flatten(1)
    together = corners.T @ corners / 4096
    assert (together.diagonal() - 0.75).abs().max() < 4 * 0.00677
    apart = together[~torch.eye(16, dtype=torch.bool)]
    assert (apart - 0.55).abs().max() < 4 * 0.00777


def test_block_that_does_not_divide():
    with pytest.raises(ValueError, match=r"mask_grid 3 .* 16 x 16 .* one of 1, 2, 4, 8, 16$"):
        count_blocks((16, 16), 3, 0.75)
    with pytest.raises(ValueError, match=r"mask_grid 4 .* 16 x 18 .* one of 1, 2$"):
        count_blocks((16, 18), 4, 0.75)
    with pytest.raises(ValueError, match="mask_grid 0"):
        count_blocks((16, 16), 0, 0.75)


@pytest.mark.parametrize("ratio", [-0.5, 0.0, 0.95, 1.0, 2.0])
def test_ratio_that_hides_all_or_nothing(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio {ratio} keeps .* of 16 blocks"):
        count_blocks((16, 16), 4, ratio)


def test_noise_of_another_grid():
    with pytest.raises(ValueError, match=r"\(B, 16\) .* got \(2, 256\)"):
        block_mask(torch.rand(2, 256), grid=(16, 16), block=4, ratio=0.75)


def test_gather_tokens():
    tokens, index = torch.randn(2, 5, 3), torch.tensor([[4, 0], [2, 2]])
    expected = torch.stack([tokens[0, [4, 0]], tokens[1, [2, 2]]])
    assert torch.equal(gather_tokens(tokens, index), expected)


def test_patchify_order_is_row_column_channel():
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    for b, patch, row, column, channel in [(0, 0, 0, 0, 0), (0, 1, 2, 3, 1), (1, 5, 3, 0, 2)]:
        top, left = patch // 3 * 4, patch % 3 * 4
        value = patches[b, patch, (row * 4 + column) * 3 + channel]
        assert value == images[b, channel, top + row, left + column]


def test_unpatchify_undoes_patchify():
    images = torch.randn(2, 3, 32, 48)
    assert torch.equal(unpatchify(patchify(images, 16), 16, (2, 3)), images)
