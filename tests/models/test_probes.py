"""Ridge regression in closed form: against scikit-learn, and what chooses its penalty."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import Ridge

from pixio_lightning.models import ridge


def drawn(n: int, c: int, d: int, *, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n + c)
    x = torch.randn(n, c, generator=generator) * torch.linspace(0.1, 9, c) + 3
    truth = torch.randn(c, d, generator=generator) / torch.linspace(0.1, 9, c)[:, None]
    return x, x @ truth + 5 + noise * torch.randn(n, d, generator=generator)


def test_it_is_that_of_scikit_learn_on_standardised_features() -> None:
    x, y = drawn(300, 12, 3, noise=1.0)
    found = ridge(x, y, penalties=(0.1,))
    scaled = (x - x.mean(dim=0)) / x.std(dim=0)
    expected = Ridge(alpha=0.1 * len(x)).fit(scaled.numpy(), y.numpy()).predict(scaled.numpy())
    assert (x @ found.weight + found.bias).numpy() == pytest.approx(expected, abs=1e-3)


def test_each_number_has_the_penalty_that_the_held_back_samples_choose() -> None:
    x, y = drawn(100, 60, 1, noise=0.0)
    noise = torch.randn(100, 1, generator=torch.Generator().manual_seed(1))
    both = ridge(x, torch.cat([y, noise], dim=1))
    exact = (x @ both.weight + both.bias)[:, 0] - y[:, 0]
    assert exact.square().mean() < 1e-4 * y.var()  # hardly any penalty
    # Nothing tells noise: nearly all of it is taken away.
    told = (x @ both.weight + both.bias)[:, 1]
    assert told.var() < 0.1 * noise.var()
    overfitted = ridge(x, noise, penalties=(1e-4,))
    assert (x @ overfitted.weight + overfitted.bias).var() > 0.4 * noise.var()


def test_a_feature_that_never_differs_tells_nothing_and_harms_nothing() -> None:
    x, y = drawn(50, 4, 1, noise=0.0)
    x[:, 2] = 7.0
    found = ridge(x, torch.full_like(y, 2.5))
    assert torch.allclose(x @ found.weight + found.bias, torch.tensor(2.5))
    with pytest.raises(ValueError, match="too few"):
        ridge(x[:1], y[:1])


def test_the_order_of_a_sorted_table_chooses_no_other_penalty() -> None:
    """A last fifth of sorted samples holds kinds that the others do not have."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(2000) // 400
    centres = torch.randn(5, 60, generator=generator)
    x = centres[kinds] + 2 * torch.randn(2000, 60, generator=generator)
    y = torch.eye(5)[kinds]
    mixed = torch.randperm(1600, generator=generator)
    order = torch.cat([torch.arange(k * 400, k * 400 + 320) for k in range(5)])
    judged = torch.cat([torch.arange(k * 400 + 320, k * 400 + 400) for k in range(5)])

    def error(rows: torch.Tensor) -> float:
        found = ridge(x[rows], y[rows])
        return float((x[judged] @ found.weight + found.bias - y[judged]).square().mean())

    assert error(order) == pytest.approx(error(order[mixed]), rel=0.01)
