"""The model: sizes of its parts, order of views, chunks, and the two pose heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rendered_sets import batch

from pixio_heads.reconstruction.attention import AlternatingAttention, reference_embedding
from pixio_heads.reconstruction.head import Reconstruction
from pixio_heads.reconstruction.losses import Weights, factored_loss
from pixio_heads.reconstruction.model import Prediction, Reconstructor, Sizes
from pixio_lightning.errors import UserError
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.dense_decoders import DPT
from pixio_lightning.models.features import Features, Layer
from pixio_lightning.training.optim import Optim, parameter_groups

TINY = Sizes(dim=32, depth=4, heads=2, taps=(1, 2), stages=(8, 8, 8, 8), features=16)


def parameters(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def features(sets: int = 2, views: int = 3, width: int = 24, grid: tuple[int, int] = (3, 4)):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(sets * views, 2 + grid[0] * grid[1], width, generator=generator)
    return Features((Layer(tokens, tokens, 2, grid),), dense_cls=True)


def build(sizes: Sizes = TINY, **keys: object) -> Reconstructor:
    torch.manual_seed(0)
    return Reconstructor(24, 8, sizes=sizes, **keys)  # type: ignore[arg-type]


def test_the_first_version_has_its_published_size() -> None:
    with torch.device("meta"):
        model = Reconstructor(1280, 16, sizes=Sizes())
    attention = parameters(model.attention.blocks) + parameters(model.attention.norm)
    assert attention == pytest.approx(170.1, rel=0.005)
    assert parameters(model.attention.project) == pytest.approx(0.984, rel=0.005)
    assert parameters(model.maps) == pytest.approx(19.0, rel=0.005)
    assert parameters(model.pose) == pytest.approx(9.2, rel=0.005)
    assert parameters(model.scale) == pytest.approx(0.228, rel=0.005)


def test_shapes_and_ranges() -> None:
    found = build()(features(), 3, (24, 32))
    assert found.rays.shape == (2, 3, 24, 32, 3) and found.quaternion.shape == (2, 3, 4)
    assert (
        found.distance.shape == found.confidence.shape == found.mask_logits.shape == (2, 3, 24, 32)
    )
    assert found.translation.shape == (2, 3, 3) and found.scale.shape == (2,)
    ones = torch.ones(2, 3, 24, 32)
    assert torch.allclose(found.rays.norm(dim=-1), ones, atol=1e-5)
    assert torch.allclose(found.quaternion.norm(dim=-1), ones[..., 0, 0], atol=1e-5)
    assert bool((found.distance > 0).all() and (found.confidence >= 1).all())
    assert bool((found.scale > 0).all())
    assert all(part.dtype == torch.float32 for part in found)


def test_maps_of_odd_grids_are_doubled_and_cropped() -> None:
    model = build().eval()
    straight = DPT((24, 32, 32, 32), TINY.stages, features=TINY.features).eval()
    straight.load_state_dict(model.maps.trunk.state_dict())
    for grid, same in (((21, 21), False), ((21, 14), False), ((4, 6), True)):
        maps = [torch.randn(1, width, *grid) for width in (24, 32, 32, 32)]
        ours, other = model.maps.trunk(maps), straight(maps)
        assert torch.allclose(ours, other, atol=1e-5) == same


def test_views_but_the_first_have_no_order() -> None:
    model, given = build().eval(), features()
    swapped = given.layers[0].tokens.unflatten(0, (2, 3))[:, [0, 2, 1]].flatten(0, 1)
    other = Features((Layer(swapped, swapped, 2, (3, 4)),), dense_cls=True)
    first, second = model(given, 3, (24, 32)), model(other, 3, (24, 32))
    for a, b in zip(first[:-1], second[:-1], strict=True):
        assert torch.allclose(a[:, [0, 2, 1]], b, atol=1e-5)
    assert torch.allclose(first.scale, second.scale, atol=1e-5)
    reference = given.layers[0].tokens.unflatten(0, (2, 3))[:, [1, 0, 2]].flatten(0, 1)
    third = model(Features((Layer(reference, reference, 2, (3, 4)),), dense_cls=True), 3, (24, 32))
    assert not torch.allclose(first.translation[:, [1, 0, 2]], third.translation, atol=1e-4)


def test_the_reference_is_marked_by_a_sinusoid_at_position_zero() -> None:
    assert reference_embedding(6).tolist() == [0, 1, 0, 1, 0, 1]


def test_odd_blocks_see_one_view_alone() -> None:
    """With the global blocks silenced, a view's output depends on no other."""
    torch.manual_seed(0)
    attention = AlternatingAttention(24, dim=32, depth=4, heads=2, taps=(1,)).eval()
    for block in list(attention.blocks)[::2]:
        for silenced in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(silenced.weight)
            torch.nn.init.zeros_(silenced.bias)
    patches, token = torch.randn(1, 2, 6, 24), torch.zeros(1, 24)
    (tapped, last), _ = attention(patches, token)
    changed = patches.clone()
    changed[:, 1] += 1
    (tapped2, last2), _ = attention(changed, token)
    assert torch.equal(last[:, 0], last2[:, 0]) and torch.equal(tapped[:, 0], tapped2[:, 0])
    assert not torch.allclose(last[:, 1], last2[:, 1])


def test_every_parameter_is_trained() -> None:
    model = build()
    found = model(features(), 3, (24, 32))
    sum(part.square().sum() for part in found).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize(
    "without", [("scale",), tuple(name for name in vars(Weights()) if name != "scale")]
)
def test_every_parameter_has_a_gradient_whatever_terms_are_left_out(
    without: tuple[str, ...],
) -> None:
    model, truth = build(), batch(views=3)
    found = model(features(grid=(4, 4)), 3, (32, 32))
    weights = Weights(**dict.fromkeys(without, 0.0))
    factored_loss(found, truth, weights=weights, training=True)["loss"].backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_scale_token_is_not_decayed() -> None:
    model = build()
    groups = parameter_groups(model, Optim(lr=1.0, weight_decay=0.1), depth=2)
    (decay,) = [
        g["weight_decay"] for g in groups if any(p is model.scale_token for p in g["params"])
    ]
    assert decay == 0


@pytest.mark.parametrize("number", [0, -4])
def test_chunks_without_views_are_refused(number: int) -> None:
    with pytest.raises(UserError, match=f"model.views_per_chunk is {number}, but expected at le"):
        Reconstruction(Backbone("pixio_vitt16", weights="random"), views_per_chunk=number)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dim": 0}, "model.sizes.dim is 0, but expected at least 1"),
        ({"heads": 0}, "model.sizes.heads is 0, but expected at least 1"),
        ({"dim": 33}, "model.sizes.heads 2 does not divide model.sizes.dim 33"),
        ({"stages": (8, 0, 8, 8)}, "model.sizes.stages is 0, but expected at least 1"),
        ({"taps": (1, 4)}, r"model.sizes.taps is \[1, 4\], but expected two blocks .*, 0 to 3"),
    ],
)
def test_sizes_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sizes(**vars(TINY) | keys)


@pytest.mark.parametrize("keys", [{"views_per_chunk": 2}, {"checkpointing": True}])
def test_what_saves_memory_changes_nothing(keys: dict[str, object]) -> None:
    plain, saving = build(), build(**keys)
    first, second = (model(features(), 3, (24, 32)) for model in (plain, saving))
    for a, b in zip(first, second, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    for found in (first, second):
        found.distance.log().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-2, atol=1e-2)


def test_outside_of_training_few_large_maps_are_decoded_at_once() -> None:
    model, decoded = build(), []
    model.maps.register_forward_pre_hook(lambda _, given: decoded.append(len(given[0][0])))
    with torch.no_grad():
        together = model(features(), 3, (768, 1024))
        apart = model.eval()(features(), 3, (768, 1024))
        model(features(), 3, (24, 32))
    assert decoded == [6, *[1] * 6, 6]
    for a, b in zip(together, apart, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_heads_are_in_float32_under_autocast() -> None:
    model = build().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found: Prediction = model(features(), 3, (24, 32))
    assert all(part.dtype == torch.float32 for part in found)
    exact = model(features(), 3, (24, 32))
    assert torch.allclose(found.translation, exact.translation, atol=0.05)


def test_a_flat_pose_head_compares_with_the_reference_at_one_size() -> None:
    flat = Sizes(**vars(TINY) | {"pose_pool": "flatten", "pose_grid": (3, 4)})
    model = build(flat)
    found = model(features(), 3, (24, 32))
    assert found.translation.shape == (2, 3, 3)
    with pytest.raises(UserError, match="3x4 patches, and these images have 4x4"):
        model(features(grid=(4, 4)), 3, (32, 32))
    with pytest.raises(UserError, match="pose_grid"):
        build(Sizes(**vars(TINY) | {"pose_pool": "flatten"}))
