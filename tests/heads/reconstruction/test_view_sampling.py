"""The random walk: connected, reproducible, and what it does where it cannot go on."""

from __future__ import annotations

import numpy as np
import pytest

from pixio_heads.reconstruction.views.view_sampling import chosen
from pixio_lightning.data.samples import RandomKey


def chain(n: int) -> np.ndarray:
    near = np.zeros((n, n), bool)
    for i in range(n - 1):
        near[i, i + 1] = near[i + 1, i] = True
    return near


def random_graph(n: int, share: float, seed: int) -> np.ndarray:
    near = np.random.default_rng(seed).random((n, n)) < share
    near |= near.T
    np.fill_diagonal(near, False)
    return near


@pytest.mark.parametrize("seed", range(6))
def test_every_view_is_a_neighbour_of_one_before_it(seed: int) -> None:
    near = random_graph(40, 0.1, seed)
    for epoch in range(20):
        views = chosen(near, 8, RandomKey(1, seed, epoch))
        assert len(set(views)) == 8
        assert all(near[views[:i], views[i]].any() for i in range(1, 8))


def test_it_is_a_function_of_the_chance() -> None:
    near = random_graph(40, 0.2, 0)
    draws = [chosen(near, 4, RandomKey(key, 0, epoch)) for key in range(5) for epoch in range(5)]
    again = [chosen(near, 4, RandomKey(key, 0, epoch)) for key in range(5) for epoch in range(5)]
    assert draws == again and len({tuple(d) for d in draws}) > 20
    starts = {chosen(near, 2, RandomKey(key, 0, 0))[0] for key in range(400)}
    assert starts == set(range(40))


def test_a_dead_end_is_left_on_the_way_it_was_reached() -> None:
    # From the middle of a star every walk must come back to it.
    near = np.zeros((6, 6), bool)
    near[0, 1:] = near[1:, 0] = True
    for epoch in range(20):
        views = chosen(near, 5, RandomKey(2, 0, epoch))
        assert len(set(views)) == 5 and 0 in views[:2]


def test_a_small_component_is_left_for_one_that_is_large_enough() -> None:
    near = np.zeros((9, 9), bool)
    near[:6, :6] = chain(6)
    near[6:, 6:] = chain(3)
    for epoch in range(40):
        views = chosen(near, 5, RandomKey(3, 0, epoch))
        assert len(set(views)) == 5 and max(views) < 6


def test_the_longest_walk_is_filled_up_with_its_own_views() -> None:
    near = np.zeros((7, 7), bool)
    near[:3, :3] = chain(3)
    near[3:5, 3:5] = chain(2)
    for epoch in range(40):
        views = chosen(near, 5, RandomKey(4, 0, epoch))
        assert set(views) == {0, 1, 2} and len(set(views[:3])) == 3
    assert chosen(np.zeros((3, 3), bool), 2, RandomKey(0, 0, 0)) in ([0, 0], [1, 1], [2, 2])
    assert len(chosen(chain(2), 5, RandomKey(0, 0, 0))) == 5


def test_as_many_as_there_are_come_in_random_order() -> None:
    orders = {tuple(chosen(np.zeros((3, 3), bool), 3, RandomKey(k, 0, 0))) for k in range(60)}
    assert len(orders) == 6 and all(sorted(order) == [0, 1, 2] for order in orders)


def test_neighbours_are_drawn_evenly() -> None:
    near = np.ones((5, 5), bool)
    np.fill_diagonal(near, False)
    pairs = [tuple(chosen(near, 2, RandomKey(key, 0, 0))) for key in range(4000)]
    counts = [pairs.count((a, b)) for a in range(5) for b in range(5) if a != b]
    assert min(counts) > 150 and max(counts) < 250  # 200 each, standard deviation 14
