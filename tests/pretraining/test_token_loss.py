"""Distances, pairs and best constants, beside plain double precision."""

import pytest
import torch

from pixio_lightning.models.features import Layer
from pixio_lightning.pretraining.token_loss import Match, TargetMeans, distillation_loss, match

B, N, D = 5, 6, 7
KINDS = ("cosine", "l1", "mse")


def layer(n_cls):
    raw = torch.randn(B, n_cls + N, D) + 1
    return Layer(torch.full_like(raw, float("nan")), raw, n_cls, (2, 3))


def plain(ours, theirs, kind):
    """One token at a time, in double precision."""
    ours, theirs = ours.double(), theirs.double()
    if kind == "cosine":
        return 1 - (ours @ theirs) / (ours @ ours).sqrt() / (theirs @ theirs).sqrt()
    gap = ours - theirs
    return gap.abs().sum() / D if kind == "l1" else (gap * gap).sum() / D


@pytest.mark.parametrize("weighting", ["halves", "tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_equals_a_plain_sum_over_tokens(kind, weighting):
    teacher, tokens = layer(4), torch.randn(B, 4 + 3, D)
    keep = torch.stack([torch.randperm(N)[:3] for _ in range(B)])
    found = distillation_loss(match(tokens, 4, teacher, keep), kind, weighting)
    for i in range(B):
        cls = [plain(tokens[i, j], teacher.raw_tokens[i, j], kind) for j in range(4)]
        patches = [
            plain(tokens[i, 4 + j], teacher.raw_tokens[i, 4 + keep[i, j]], kind) for j in range(3)
        ]
        expected = (sum(cls) / 4 + sum(patches) / 3) / 2
        if weighting == "tokens":
            expected = (sum(cls) + sum(patches)) / 7
        assert found[i].item() == pytest.approx(expected.item(), abs=1e-6)


def test_other_numbers_of_class_tokens_are_matched_by_their_means():
    teacher, tokens = layer(4), torch.randn(B, 2 + N, D)
    found = match(tokens, 2, teacher, None)
    assert found.cls.shape == found.target_cls.shape == (B, 1, D)
    assert torch.equal(found.cls[:, 0], tokens[:, :2].mean(1))
    assert torch.equal(found.target_cls[:, 0], teacher.raw_tokens[:, :4].mean(1))
    assert torch.equal(found.target_patches, teacher.raw_tokens[:, 4:])


@pytest.mark.parametrize(("ours", "theirs"), [(0, 4), (3, 0), (0, 0)])
def test_without_class_tokens_only_patches_count(ours, theirs):
    teacher, tokens = layer(theirs), torch.randn(B, ours + N, D)
    found = match(tokens, ours, teacher, None)
    assert found.cls.shape[1] == found.target_cls.shape[1] == 0
    both = [distillation_loss(found, "cosine", w) for w in ("halves", "tokens")]
    alone = 1 - torch.cosine_similarity(tokens[:, ours:], teacher.raw_tokens[:, theirs:], dim=-1)
    for loss in both:
        assert torch.allclose(loss, alone.mean(1))


def test_half_precision_is_widened_before_the_loss():
    teacher = layer(1)._replace(raw_tokens=layer(1).raw_tokens.bfloat16())
    found = match(torch.randn(B, 1 + N, D, dtype=torch.bfloat16), 1, teacher, None)
    assert {tensor.dtype for tensor in found} == {torch.float32}
    double = layer(1)._replace(raw_tokens=layer(1).raw_tokens.double())
    found = match(torch.randn(B, 1 + N, D, dtype=torch.float64), 1, double, None)
    assert {tensor.dtype for tensor in found} == {torch.float64}


@pytest.mark.parametrize("weighting", ["halves", "tokens"])
@pytest.mark.parametrize("n_cls", [0, 2, 4])
@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_no_constant_does_better_than_the_best(kind, n_cls, weighting):
    """In two batches, with an image without weight; and what it says is what the constant gets."""
    parts = [layer(4), layer(4)]
    weights = [torch.tensor([1.0, 1, 0, 1, 1]), torch.ones(B)]
    means = TargetMeans(kind)
    for part, weight in zip(parts, weights, strict=True):
        means.add(part, weight)
    said = means.losses(means.sums(), n_cls=n_cls, teacher_cls=4, weighting=weighting)
    means.reset()
    assert means.sums() is None
    raw = torch.cat([parts[0].raw_tokens[weights[0] > 0], parts[1].raw_tokens])
    teacher = Layer(raw, raw, 4, (2, 3))
    blank = match(torch.zeros(len(raw), n_cls + N, D), n_cls, teacher, None)

    def loss_of(cls, patches):
        found = Match(
            cls.expand_as(blank.cls), blank.target_cls, patches.expand_as(blank.patches), blank[3]
        )
        return distillation_loss(found, kind, weighting).mean().item()

    for name, over in (("constant", (0, 1)), ("position", (0,))):
        unit = torch.nn.functional.normalize if kind == "cosine" else lambda x, dim: x
        cls = unit(blank.target_cls, dim=-1).mean(0)
        patches = unit(blank.target_patches, dim=-1).mean(over)
        assert loss_of(cls, patches) == pytest.approx(said[name].item(), abs=1e-5)
        for _ in range(5):
            other = patches + 0.1 * torch.randn_like(patches)
            assert loss_of(cls, other) > said[name].item()


def test_the_absolute_difference_has_no_baseline():
    means = TargetMeans("l1")
    means.add(layer(4), torch.ones(B))
    assert means.sums() is None


def test_a_channel_far_from_zero_costs_the_baseline_no_digits():
    """As some channels of a ViT are; the variance is left of the difference of two sums."""
    means, squares = TargetMeans("mse"), []
    for _ in range(50):
        raw = torch.randn(8, 1 + N, D)
        raw[..., 0] += 3000
        means.add(Layer(raw, raw, 1, (2, 3)), torch.ones(8))
        squares.append(raw.double())
    said = means.losses(means.sums(), n_cls=0, teacher_cls=1, weighting="tokens")
    patches = torch.cat(squares)[:, 1:]
    true = (patches - patches.mean(0)).square().mean()
    assert said["position"].item() == pytest.approx(true.item(), rel=1e-5)
