"""The policy head: what it sees in rollouts, and actions in their own units."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pixio_heads.policy import Policy, PolicyData
from pixio_heads.policy.gym.env import GymEnvironment
from pixio_heads.policy.gym.env import make as make_gym
from pixio_heads.policy.rollout.pictures import square
from pixio_lightning import Backbone
from pixio_lightning.errors import UserError

SIZE = 32
TINY = {"img_size": SIZE, "embed_dim": 24, "depth": 2, "num_heads": 2}


def policy(**keys: Any) -> Policy:
    backbone = Backbone("pixio_vits16", weights="random:1", tune="frozen", model_args=TINY)
    head = Policy(backbone, **keys)
    head.data_info = {"history": 3, "proprio_dim": 4, "action_dim": 2}
    head.configure_model()
    head.statistics = {"mean": torch.tensor([10.0, -1.0]), "std": torch.tensor([2.0, 0.5])}
    assert head.decoder is not None
    with torch.no_grad():
        for parameter in head.decoder.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return head.eval()


def test_keys_of_a_simulator_are_refused_where_there_is_none() -> None:
    keys: list[dict[str, Any]] = [{"videos": 2}, {"timeout": 5.0}]
    for given in keys:
        ((name, value),) = given.items()
        head = policy(**given)
        head.read_data_attributes(PolicyData(task="reach"))  # which has one
        with pytest.raises(UserError, match=f"model.{name} is {value}, but the data has no simul"):
            policy(**given).read_data_attributes(SimpleNamespace(environment={}))
    policy().read_data_attributes(SimpleNamespace(environment={}))


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("observe", ["backbone", "conv", "blind"])
@pytest.mark.parametrize("token", ["cls", "keypoints"])
def test_a_rollout_sees_what_training_sees(observe: str, token: str) -> None:
    head = policy(observe=observe, token=token)
    images, state = frames(4), np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    past = None
    with torch.no_grad():
        for now in range(4):
            fresh = np.array([now == 0, now == 1])  # the second row's episode begins one later
            pair = np.stack([images[now], images[max(now, 1)]])
            acted, past = head._act(pair, np.stack([state[now]] * 2), fresh, past)
            for row, first in enumerate((0, 1)):
                if now < first:
                    continue
                steps = [max(first, now - back) for back in (2, 1, 0)]
                history = torch.from_numpy(images[steps]).movedim(-1, 1)[None]
                batch = {"image": history, "proprio": torch.from_numpy(state[now])[None]}
                expected = head.predicted(batch)[0].numpy()
                np.testing.assert_allclose(acted[row], expected, atol=1e-5)


def test_normalised_actions_are_learned_and_real_ones_given() -> None:
    head = policy(normalize_actions=True)
    batch = {
        "image": torch.from_numpy(frames(6)).movedim(-1, 1).unflatten(0, (2, 3)),
        "proprio": torch.randn(2, 4),
        "action": torch.tensor([[12.0, -1.0], [10.0, 0.0]]),
    }
    raw = head(head.encode(batch), batch)
    given = head.predicted(batch)
    torch.testing.assert_close(given, raw * torch.tensor([2.0, 0.5]) + torch.tensor([10.0, -1.0]))
    target = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(head.loss(raw, batch)["loss"], (raw - target).square().mean())
    scored, truth = head.scored(given, batch)
    torch.testing.assert_close(scored, raw)
    torch.testing.assert_close(truth, target)
    mean = head.scored(head.baselines(batch)["mean_action"], batch)[0]
    torch.testing.assert_close(mean, torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("keys", "given", "needed"),
    [
        ({}, torch.zeros(1, 3, 3, SIZE, SIZE, dtype=torch.uint8), "`proprio` (B, 4)"),
        ({}, np.zeros((SIZE, SIZE, 3), np.uint8), "`image` (B, 3, 3, H, W) and `proprio` (B, 4)"),
        ({}, {"proprio": torch.zeros(1, 4)}, "`image` (B, 3, 3, H, W)"),
        ({"observe": "blind"}, {"proprio": torch.zeros(1, 5)}, "expected `proprio` (B, 4), so"),
        ({"proprio": False}, torch.zeros(1, 2, 3, SIZE, SIZE), "expected `image` (B, 3, 3, H, W)"),
    ],
)
def test_other_inputs_than_a_policy_reads_are_one_line(
    keys: dict[str, Any], given: Any, needed: str
) -> None:
    with pytest.raises(UserError) as told:
        policy(**keys).predict(given)
    assert needed in str(told.value) and "\n" not in str(told.value)


def test_a_policy_of_pictures_alone_predicts_from_them() -> None:
    for observe in ("backbone", "conv"):
        head = policy(proprio=False, observe=observe)
        images = torch.randint(0, 256, (2, 3, 3, SIZE, SIZE), dtype=torch.uint8)
        assert head.predict(images).shape == (2, 2)


def test_weights_that_go_on_with_other_demonstrations_keep_the_scale_they_learned() -> None:
    """What is judged by, and stands beside, is of the demonstrations at hand."""
    head, raw = policy(normalize_actions=True), policy()
    batch = {
        "image": torch.randint(0, 256, (2, 3, 3, SIZE, SIZE), dtype=torch.uint8),
        "proprio": torch.zeros(2, 4),
        "action": torch.tensor([[12.0, -1.0], [10.0, -1.5]]),
    }
    acted, prediction = head.predict(batch), torch.zeros(2, 2)
    loss = head.loss(prediction, batch)["loss"]
    others = {"mean": torch.tensor([-3.0, 2.0]), "std": torch.tensor([1.0, 4.0])}
    for _ in range(2):  # and so do they once more
        head.statistics = others | head.kept_statistics()
        torch.testing.assert_close(head.predict(batch), acted)
        assert head.loss(prediction, batch)["loss"] == loss
        assert head.scored(batch["action"], batch)[1][0].tolist() == [15.0, -0.75]
    assert raw.kept_statistics() == {}


def test_an_old_checkpoint_does_not_claim_the_demonstrations_at_hand() -> None:
    head = policy()
    head.remember({"facts": {"history": 3, "proprio_dim": 4, "action_dim": 2}})
    head.read_data_attributes(PolicyData(demonstrations=7))
    assert "learned from demonstrations of which the checkpoint says nothing" in head.protocol
    head.remember({"facts": {"learned_from": "3 demonstrations of DIR"}})
    head.read_data_attributes(PolicyData(demonstrations=7))
    assert head.protocol.endswith("learned from 3 demonstrations of DIR")


def test_a_live_picture_is_cut_as_that_of_a_demonstration() -> None:
    env: GymEnvironment = make_gym("point_worlds:Drawn-v0", 20)
    seen = env.reset(seed=3)[0]["image"]
    drawn: Any = env.unwrapped.render()
    assert drawn.shape == (40, 80, 3)
    assert np.array_equal(seen, square(drawn, 20))
