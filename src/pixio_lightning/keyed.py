"""Randomness that depends on what is drawn for, never on who draws it.

A draw is a hash of (seed, step, purpose, key): the sample's key, the step (a training step, or an
epoch of the data), and what the number is for. No generator holds a state, so a run
does not change with the number of workers or processes, and resuming needs nothing saved.

The hash is the finaliser of splitmix64 (Steele, Lea and Flood, 2014,
https://doi.org/10.1145/2714064.2660195). It exists twice, for Python integers (samplers and data
workers) and for tensors on any device; both give the same bits.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of splitmix64
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


class Purpose(IntEnum):
    """What a number is drawn for; those of two purposes are independent."""

    ORDER = 1
    CROP = 2
    MASK = 3
    DROP_PATH = 4
    FLIP = 6
    KEEP = 7
    KEEP_GROUP = 8
    VIEWS = 9
    SHAPE = 10
    COLOUR = 11
    CLIP = 12


def mix(value: int) -> int:
    """Return the splitmix64 finaliser of a 64-bit integer."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def fold(*parts: int) -> int:
    """Hash a sequence of integers to 64 bits; the order of the parts matters."""
    state = 0
    for part in parts:
        state = mix(state ^ (part & _MASK))
    return state


def uniform(key: int, n: int, *, seed: int, step: int, purpose: int) -> list[float]:
    """Draw `n` numbers in [0, 1) for one key, equal to a row of `keyed_uniform`."""
    base = fold(seed, step, purpose, key)
    return [(mix(base ^ i) >> 40) / (1 << 24) for i in range(n)]


def key_of(name: str) -> int:
    """Return a signed 64-bit key of a name, the same on every machine."""
    data = name.encode(errors="surrogateescape")  # a file's name need not be UTF-8
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), signed=True)


def permuted(position: int, n: int, *, seed: int, step: int) -> int:
    """Return where `position` goes under a random permutation of ``range(n)``.

    A balanced Feistel network over the smallest even number of bits that holds `n`, walked until
    the value falls inside (Black and Rogaway, 2002, https://doi.org/10.1007/3-540-45760-7_9).
    Constant memory at any `n`: two billion images need no shuffled index.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    keys = [fold(seed, step, Purpose.ORDER, i) for i in range(6)]
    while True:
        left, right = position >> half, position & low
        for key in keys:
            left, right = right, left ^ (mix(key ^ right) & low)
        position = left << half | right
        if position < n:
            return position


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; the shift of a signed tensor copies the sign bit."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(value: torch.Tensor) -> torch.Tensor:
    value = value + _signed(_GOLDEN)
    value = (value ^ _shift(value, 30)) * _signed(_MIX_1)
    value = (value ^ _shift(value, 27)) * _signed(_MIX_2)
    return value ^ _shift(value, 31)


def keyed_uniform(
    keys: torch.Tensor, n: int, *, seed: int, step: int, purpose: int
) -> torch.Tensor:
    """Draw `n` numbers in [0, 1) for each key, on the keys' device and without a synchronisation.

    Args:
        keys: int64 of shape `(B,)`.
        n: Numbers per key.
        seed: The run's seed.
        step: What tells repeated visits to a key apart: the training step, or the epoch.
        purpose: What the numbers are for, see `Purpose`.

    Returns:
        float32 of shape `(B, n)`, multiples of 2^-24.
    """
    import torch

    state = _mix_tensor(keys ^ _signed(fold(seed, step, purpose)))
    index = torch.arange(n, device=keys.device)
    bits = _shift(_mix_tensor(state[:, None] ^ index), 40)
    return bits.to(torch.float32) * 2.0**-24


def keyed_numbers(
    keys: NDArray[np.int64], *, seed: int, step: int, purpose: int
) -> NDArray[np.float64]:
    """Draw one number in [0, 1) for each key: the first of `uniform`, with more of its bits.

    Args:
        keys: int64 of shape `(N,)`.
        seed: The run's seed.
        step: The epoch.
        purpose: What the numbers are for, see `Purpose`.

    Returns:
        float64 of shape `(N,)`, multiples of 2^-53.
    """
    base = np.uint64(fold(seed, step, purpose))
    state = _mix_array(keys.astype(np.int64).view(np.uint64) ^ base)
    return (_mix_array(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix_array(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = value + np.uint64(_GOLDEN)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_2)
    return value ^ (value >> np.uint64(31))


class RandomKey(NamedTuple):
    """What random numbers depend on: equal keys give equal numbers, wherever they are drawn.

    Attributes:
        key: A sample's key, or those of a batch: int64 `(B,)`.
        seed: The run's seed.
        step: What tells repeated visits to a sample apart: the training step, or the epoch.
    """

    key: Any
    seed: int
    step: int

    def uniform(self, n: int, purpose: int) -> Any:
        """Draw `n` numbers in [0, 1) for a purpose.

        Returns:
            A list of floats for one key; for a batch float32 `(B, n)`, on the device of the keys.
        """
        draw = uniform if isinstance(self.key, int) else keyed_uniform
        return draw(self.key, n, seed=self.seed, step=self.step, purpose=purpose)
