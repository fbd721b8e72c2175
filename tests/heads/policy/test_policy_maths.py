"""The maths of the policy head: intervals, metrics, what is read of features, joined histories."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest

from pixio_heads.policy.metrics import EpisodeMetrics, wilson
from pixio_heads.policy.model import ConvReader, KeyPoints, PolicyNet, Reader, fused
from pixio_heads.policy.statistics import from_proprio, statistics_of, unevenness
from pixio_lightning.errors import UserError
from pixio_lightning.models import Features, Layer

K, N, C = 3, (4, 4), 16


def features(rows: int) -> Features:
    tokens = torch.randn(rows, K + N[0] * N[1], C)
    return Features((Layer(tokens, tokens * 2, K, N),), False)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (8, 10), (41, 50), (1, 1), (3, 7)])
def test_intervals_equal_scipys(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert wilson(0, n)[0] == 0 and wilson(n, n)[1] == 1


def test_no_episode_has_no_interval() -> None:
    assert all(math.isnan(end) for end in wilson(0, 0))


def test_fresh_starts_and_those_of_demonstrations_are_apart() -> None:
    metrics = EpisodeMetrics()
    #            last any return steps broken
    outcomes = [[1, 1, 2.0, 10, 0], [0, 1, 1.0, 40, 0], [0, 0, 0.0, 3, 1], [1, 1, 5.0, 8, 0]]
    metrics.update(torch.tensor(outcomes), torch.tensor([False, False, False, True]))
    found = {name: float(value) for name, value in metrics.compute().items()}
    low, high = wilson(1, 3)
    assert found == pytest.approx(
        {
            "success": 1 / 3,
            "success_low": low,
            "success_high": high,
            "success_any": 2 / 3,
            "return": 1.0,
            "steps": 53 / 3,
            "broken": 1.0,
            "demonstration_success": 1.0,
        },
        abs=1e-6,
    )


def test_flare_is_differences_and_the_last() -> None:
    first, second, third = torch.randn(3, 2, 5)
    history = torch.stack([first, second, third], dim=1)
    expected = torch.cat([second - first, third - second, third], dim=1)
    assert torch.equal(fused(history, "flare"), expected)
    assert torch.equal(fused(history, "concat"), torch.cat([first, second, third], dim=1))
    assert torch.equal(fused(history, "last"), third)


@pytest.mark.parametrize("token", ["cls", "first_cls", "patches", "keypoints", "attention"])
def test_what_is_read_of_features(token: str) -> None:
    given = features(2)
    reader = Reader(C, token)  # type: ignore[arg-type]
    found = reader(given)
    assert found.shape == (2, reader.width)
    layer = given.layers[0]
    expected = {
        "cls": layer.tokens[:, :K].mean(1),
        "first_cls": layer.tokens[:, 0],
        "patches": layer.tokens[:, K:].mean(1),
    }
    if token in expected:
        torch.testing.assert_close(found, expected[token])
    else:  # they look at patches, and at no class token
        changed = layer.tokens.clone()
        changed[:, :K] += 1
        again = reader(Features((layer._replace(tokens=changed),), False))
        assert torch.equal(again, found)
        changed[:, K:] += torch.randn(C, generator=torch.Generator().manual_seed(1))
        changed[:, K] += 3
        assert not torch.allclose(reader(Features((layer._replace(tokens=changed),), False)), found)


def test_key_points_are_where_a_map_is_strongest() -> None:
    points = KeyPoints(2, count=2)
    with torch.no_grad():
        points.maps.weight.copy_(torch.eye(2)[..., None, None])
    maps = torch.zeros(1, 2, 5, 9)
    maps[0, 0, 4, 0] = 100  # lower left
    maps[0, 1, 2, 8] = 100  # right, in the middle
    # All y, then all x.
    expected = torch.tensor([[1.0, 0.0, -1.0, 1.0]])
    torch.testing.assert_close(points(maps), expected, atol=1e-3, rtol=0)
    # However little the patches of an image differ.
    torch.testing.assert_close(points(7 + maps / 100), expected, atol=1e-2, rtol=0)


def net(**changes: object) -> PolicyNet:
    keys: dict = {
        "history": 3,
        "proprio": 4,
        "actions": 2,
        "observe": "backbone",
        "token": "cls",
        "fusion": "flare",
        "hidden": 8,
        "depth": 2,
        "batch_norm": True,
    }
    return PolicyNet(C, **(keys | changes))


@pytest.mark.parametrize("observe", ["backbone", "conv", "blind"])
@pytest.mark.parametrize("token", ["cls", "keypoints", "attention"])
def test_every_parameter_learns(observe: str, token: str) -> None:
    model = net(observe=observe, token=token)
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    actions = model(features(12), images, torch.randn(4, 4))
    assert actions.shape == (4, 2) and actions.abs().max() < 0.1  # small at the start
    (actions - 1).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_step_with_a_past_is_a_history_at_once() -> None:
    model = net().eval()
    given, proprio = features(6), torch.randn(2, 4)
    whole, read = model(given, None, proprio), model.read(given, None)
    assert read is not None
    vectors = read.unflatten(0, (2, 3))
    assert vectors.shape == (2, 3, C)
    last = Features((given.layers[0]._replace(tokens=given.tokens[[2, 5]]),), False)
    now = model.read(last, None)
    assert now is not None
    step = model.act(torch.cat([vectors[:, :2], now[:, None]], dim=1), proprio)
    torch.testing.assert_close(step, whole)


def test_the_convolution_net_sees_where_things_are() -> None:
    reader = ConvReader()
    image = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    image[0, :, 4:8, 4:8] = 255
    image[1, :, 24:28, 20:24] = 255
    found = reader(image)
    assert found.shape == (2, reader.width) and not torch.allclose(found[0], found[1], atol=1e-3)


def test_key_points_of_one_patch_are_refused() -> None:
    with pytest.raises(UserError, match="keypoints says where in an image something is"):
        KeyPoints(4)(torch.randn(2, 4, 1, 1))


def test_actions_that_follow_from_proprioception_are_told_from_it() -> None:
    proprio = torch.randn(60, 3) * torch.tensor([1.0, 200.0, 0.01]) + 5
    actions = torch.stack([proprio[:, 0] + 1, 3 - proprio[:, 1], torch.full((60,), 7.0)], dim=1)
    known = statistics_of(actions[:40], proprio[:40])
    told = from_proprio(known, proprio[40:])
    assert ((told - actions[40:]) / known["std"]).abs().max() < 1e-2
    # Without proprioception, or in an earlier checkpoint, there is no map.
    bare = statistics_of(actions, proprio[:, :0])
    assert bare.keys() == {"mean", "std"} and from_proprio(bare, proprio[:2]).isnan().all()


def test_parts_of_actions_that_raw_ones_hide_are_noted() -> None:
    wide = torch.tensor([[100.0, 1.0, 5.0], [300.0, -1.0, 5.0]])  # and one that never changes
    assert "one part of the actions varies 100 times as much" in unevenness(wide)
    assert unevenness(wide[:, 1:]) == unevenness(wide / torch.tensor([20.0, 1.0, 1.0])) == ""
