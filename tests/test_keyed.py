"""Keyed draws are pinned, the same in both forms, uniform, and independent of each other."""

import pytest
import torch

from pixio_lightning.keyed import (
    Purpose,
    RandomKey,
    fold,
    key_of,
    keyed_uniform,
    mix,
    permuted,
    uniform,
)

BASE = {"seed": 1, "step": 2, "purpose": Purpose.MASK}
KEYS = torch.arange(4096)


def draw(keys=KEYS, n=16, **changes):
    return keyed_uniform(keys, n, **(BASE | changes))


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs().item()


def chi_square(counts):
    """Distance from equal counts in standard deviations of the chi-square distribution."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5


def test_mix_is_splitmix64():
    """The sequence its authors' program gives for the seed 1234567."""
    golden = 0x9E3779B97F4A7C15
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [mix((1234567 + i * golden) % 2**64) for i in range(5)] == published


def test_pinned():
    """A change of the hash would change every run and resume: it must not pass unseen."""
    assert fold(1, 2, 3) == 0xD0734750FDE362B3
    assert fold(-1) == 0xE4D971771B652C20
    assert key_of("n01440764/n01440764_10026.JPEG") == -5916221866242118100
    pinned = [9201779 / 2**24, 5318744 / 2**24, 3213240 / 2**24]
    assert uniform(42, 3, **BASE) == pinned
    assert draw(torch.tensor([42]), 3).tolist() == [pinned]
    assert [permuted(i, 10, seed=1, step=2) for i in range(10)] == [5, 6, 0, 1, 2, 9, 7, 8, 3, 4]
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "ORDER": 1,
        "CROP": 2,
        "MASK": 3,
        "DROP_PATH": 4,
        "FLIP": 6,
        "KEEP": 7,
        "KEEP_GROUP": 8,
        "VIEWS": 9,
        "SHAPE": 10,
        "COLOUR": 11,
        "CLIP": 12,
    }


@pytest.mark.parametrize("step", [-1, 0, 10**6])
@pytest.mark.parametrize("seed", [0, 2**63 + 5])
def test_tensors_equal_python(seed, step):
    keys = [0, 1, -1, 12345, 2**63 - 1, -(2**63), key_of("a"), key_of("b")]
    tensor = keyed_uniform(torch.tensor(keys), 33, seed=seed, step=step, purpose=Purpose.CROP)
    python = [uniform(key, 33, seed=seed, step=step, purpose=Purpose.CROP) for key in keys]
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor.double(), torch.tensor(python, dtype=torch.float64))


def test_draw_belongs_to_the_sample():
    rows = RandomKey(torch.tensor([7, 8, 9]), 1, 2).uniform(5, Purpose.MASK)
    other_batch = RandomKey(torch.tensor([9, 100, 7]), 1, 2).uniform(5, Purpose.MASK)
    assert torch.equal(rows[[2, 0]], other_batch[[0, 2]])
    assert torch.equal(rows, draw(torch.tensor([7, 8, 9]), 5))
    assert torch.equal(draw(n=3), draw(n=16)[:, :3])


@pytest.mark.parametrize(
    "values",
    [draw(), draw(n=1), draw(KEYS * 2**32), draw(KEYS[:1], 65536)],
    ids=["keys x numbers", "first number", "high bits of keys", "one key"],
)
def test_uniform(values):
    n = values.numel()
    assert values.min() >= 0 and values.max() < 1
    # Five standard errors: of the mean sqrt(1/12 n), of the variance sqrt(1/180 n).
    assert abs(values.mean() - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    assert abs(values.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    flat = values.flatten()
    assert abs(chi_square(torch.histc(flat, 64, 0, 1))) < 5
    # Neighbours together: pairs fall evenly into 16 x 16 cells.
    pairs = (flat[::2] * 16).long() * 16 + (flat[1::2] * 16).long()
    assert abs(chi_square(pairs.bincount(minlength=256).float())) < 5


@pytest.mark.parametrize(
    "other",
    [
        draw(seed=2),
        draw(step=3),
        draw(step=-1),
        draw(purpose=Purpose.DROP_PATH),
        draw(seed=2, step=1),
        draw(KEYS + 1),
        draw(KEYS ^ 2**62),
        draw(n=17)[:, 1:],
    ],
    ids=["seed", "step", "fixed step", "purpose", "swapped", "next key", "high bit", "next number"],
)
def test_independent(other):
    # 65536 pairs: the correlation of independent ones has a standard error of 1/256.
    assert correlation(draw(), other) < 5 / 256


def test_order_of_parts_matters():
    assert len({fold(1, 2), fold(2, 1), fold(1, 2, 0), fold(0, 1, 2), fold(3)}) == 5


def test_keys_of_names_fit_int64():
    keys = [key_of(f"{i}.jpg") for i in range(10000)]
    assert len(set(keys)) == len(keys)
    assert torch.tensor(keys, dtype=torch.int64).tolist() == keys
    assert 0.45 < sum(key < 0 for key in keys) / len(keys) < 0.55


@pytest.mark.parametrize("n", [*range(1, 18), 31, 64, 65, 255, 1000, 1025, 4096])
def test_permuted_is_a_bijection(n):
    assert sorted(permuted(i, n, seed=0, step=0) for i in range(n)) == list(range(n))


def test_permuted_differs_between_passes():
    first, second = ([permuted(i, 1000, seed=0, step=t) for i in range(1000)] for t in (0, 1))
    other_seed = [permuted(i, 1000, seed=1, step=0) for i in range(1000)]
    # A random permutation has one fixed point on average; so have two compared with each other.
    for a, b in ((first, range(1000)), (first, second), (first, other_seed)):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < 10


def test_permuted_of_two_billion():
    n = 2_000_000_011
    places = {permuted(i, n, seed=0, step=0) for i in range(2000)}
    assert len(places) == 2000 and all(0 <= place < n for place in places)
    assert 0.4 < sum(place < n / 2 for place in places) / 2000 < 0.6


@pytest.mark.parametrize("n", [3, 16, 50])
def test_permuted_goes_everywhere_equally_often(n):
    counts = torch.zeros(n)
    for step in range(100 * n):
        counts[permuted(n // 2, n, seed=0, step=step)] += 1
    assert abs(chi_square(counts)) < 5
