"""Every Vision Transformer behind one interface: same grid, masks, freezing, honest errors."""

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Purpose, RandomKey, keyed_uniform
from pixio_lightning.models import drop_path as drop_paths
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.blocks import compile_blocks
from pixio_lightning.models.mae_decoder import DecoderSize, MaeDecoder
from pixio_lightning.models.vit import PixioViT
from pixio_lightning.models.weights.read import digest

SMALL = {"embed_dim": 96, "depth": 3, "num_heads": 3}
# Class tokens, registers, and dense width in units of the embedding's.
MODELS = {
    "pixio_vits16": (8, 0, 2),
    "vit_huge_patch14_224.mae": (1, 0, 2),
    "vit_small_patch14_dinov2": (1, 0, 2),
    "vit_small_patch14_reg4_dinov2": (1, 4, 2),
    "vit_small_patch16_dinov3": (1, 4, 1),
    "vit_base_patch16_siglip_224": (0, 0, 1),
    "eva02_tiny_patch14_224": (1, 0, 2),  # its last norm is called fc_norm
    "aimv2_large_patch14_224": (0, 0, 1),  # norms its patches at once
}


@pytest.fixture
def build(randomize):
    def build_backbone(name="pixio_vits16", *, model_args=None, **kwargs):
        arguments = {"weights": "random:0", "tune": "full"} | kwargs
        backbone = Backbone(name, model_args=SMALL | (model_args or {}), **arguments).load()
        return randomize(backbone).eval()

    return build_backbone


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)


def shuffled(n, batch=2):
    return torch.stack([torch.randperm(n) for _ in range(batch)])


# --- one interface --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_same_crop_same_grid(build, images, name):
    n_cls, n_registers, width = MODELS[name]
    backbone = build(name)
    features = backbone(images)
    assert (backbone.n_cls_tokens, backbone.n_registers) == (n_cls, n_registers)
    layer = features.layers[0]
    assert layer.patches.shape == layer.raw_patches.shape == (2, 96, 16, 16)
    assert layer.cls.shape == layer.raw_cls.shape == (2, n_cls, 96)
    dense = features.dense()
    assert dense.shape == (2, backbone.dense_dim, 16, 16) and backbone.dense_dim == width * 96
    assert torch.equal(dense[:, :96], layer.patches)
    assert dense.stride()[1:] == (1, 16 * width * 96, width * 96)  # channels last, for convolutions
    if width == 2:
        mean = layer.tokens[:, :n_cls].mean(dim=1)
        assert torch.equal(dense[:, 96:], mean[..., None, None].expand(2, 96, 16, 16))
    # A head that reads class tokens gets patches where there are none.
    assert torch.equal(features.only("cls").pooled, features.pooled)
    assert features.pooled.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_equal_to_timm(build, images, name):
    # DINOv2's positions are resized otherwise (test_vit.py); at 16 x 16 they are as they are.
    args = {"img_size": 224} if name == "vit_small_patch14_dinov2" else None
    backbone = build(name, layers=[0, 2], model_args=args)
    resized = backbone.resize(backbone.normalize(images))
    expected = backbone.vit.forward_intermediates(resized, indices=[0, 2], intermediates_only=True)
    for layer, raw in zip(backbone(images).layers, expected, strict=True):
        torch.testing.assert_close(layer.raw_patches, raw, rtol=0, atol=1e-5)
    normed = backbone.vit.forward_features(resized)
    if name == "eva02_tiny_patch14_224":
        normed = backbone.vit.fc_norm(normed)
    n_cls = backbone.n_cls_tokens
    prefix = n_cls + backbone.n_registers
    tokens = torch.cat([normed[:, :n_cls], normed[:, prefix:]], dim=1)
    torch.testing.assert_close(backbone(images).tokens, tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_keeping_all_patches_in_any_order_is_the_full_pass(build, images, name):
    backbone = build(name)
    keep, n_cls = shuffled(256), backbone.n_cls_tokens
    full, kept = backbone(images).tokens, backbone(images, keep=keep).tokens
    index = torch.cat([torch.arange(n_cls).expand(2, -1), n_cls + keep], dim=1)
    expected = full.gather(1, index[..., None].expand_as(kept))
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_keeping_some_patches_is_embedding_all_and_choosing(build, images):
    backbone = build()
    vit, keep = backbone.vit, shuffled(256)[:, :64]
    patches = vit.patch_embed(backbone.normalize(images)).flatten(1, 2) + vit.pos_embed[:, 8:]
    cls = (vit.cls_token + vit.pos_embed[:, :8]).expand(2, -1, -1)
    x = torch.cat([cls, torch.stack([patches[i, keep[i]] for i in range(2)])], dim=1)
    for block in vit.blocks:
        x = block(x)
    features = backbone(images, keep=keep)
    torch.testing.assert_close(features.tokens, vit.norm(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.layers[-1].raw_tokens, x, rtol=1e-5, atol=3e-5)
    with pytest.raises(ValueError, match="a masked pass has .tokens"):
        features.dense()


@torch.no_grad()
def test_patch_14_is_resized(build, images):
    backbone = build("vit_small_patch14_dinov2")
    ramp = torch.arange(256.0).expand(1, 3, 256, -1)
    seen = []
    backbone.vit.patch_embed.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    backbone(images[..., :192, :])
    backbone(ramp, normalized=True)
    assert [tuple(x.shape[-2:]) for x in seen] == [(168, 224), (224, 224)]
    # Half-pixel centres: pixel j of 224 lies at (j + 0.5) * 256 / 224 - 0.5 of 256.
    expected = (torch.arange(4, 220) + 0.5) * 256 / 224 - 0.5
    torch.testing.assert_close(seen[1][0, 0, 100, 4:-4], expected, rtol=0, atol=0.02)
    with pytest.raises(UserError, match="256 x 250 pixels do not divide into tokens of 16"):
        backbone(images[..., :250])


def test_only_tapped_blocks_run(build, images):
    backbone = build(layers=[-3, 1])
    calls = []
    for i, block in enumerate(backbone.vit.blocks):
        block.register_forward_pre_hook(lambda *_, i=i: calls.append(i))
    assert len(backbone(images).layers) == 2 and calls == [0, 1]


def test_quarters_end_at_the_last_block():
    for name, taps in {"pixio_vitb16": [2, 5, 8, 11], "pixio_vith16": [7, 15, 23, 31]}.items():
        assert Backbone(name, weights="random", layers="quarters").tapped == taps


# --- input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pixio_vits16", "vit_base_patch16_siglip_224"])
def test_normalize_uses_the_models_own_statistics(build, name):
    backbone = build(name)
    mean, std = (0.5,) * 3, (0.5,) * 3
    if name == "pixio_vits16":
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = images.double() / 255
    expected = (expected - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(backbone.normalize(images).double(), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        direct = backbone(images).tokens
        assert torch.equal(direct, backbone(backbone.normalize(images), normalized=True).tokens)


def test_floats_are_refused_with_both_ways_out(build, images):
    backbone = build()
    with pytest.raises(TypeError, match=r"pass uint8, or pass backbone.normalize.*normalized=True"):
        backbone(images.float() / 255)
    with pytest.raises(TypeError, match="normalize takes uint8 images, got torch.float32"):
        backbone.normalize(images.float())


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels_are_refused(build, images, channels):
    """Also of one channel, which would be spread over all in silence."""
    backbone = build()
    with pytest.raises(
        UserError, match=rf"images of {channels} channels, but pixio_vits16 takes 3"
    ):
        backbone(images[:, :1].repeat(1, channels, 1, 1))


# --- what is trained ------------------------------------------------------------------------------


def test_frozen(build, images):
    backbone = build(tune="frozen").train()
    assert backbone.frozen and not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    features = backbone(images)
    assert not features.tokens.requires_grad and not features.dense().requires_grad


@pytest.mark.parametrize("name", MODELS)
def test_full_leaves_no_dead_parameter(build, images, name):
    backbone = build(name).train()
    backbone(images, keep=shuffled(256)[:, :64]).tokens.square().mean().backward()
    for parameter_name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.any(), parameter_name
        else:  # SigLIP's pooling, which no feature passes through
            assert parameter_name.startswith("vit.attn_pool.")
    assert all(p.requires_grad for p in backbone.vit.blocks.parameters())


@pytest.mark.parametrize(
    ("layers", "tune", "blocks"), [("last", 1, {2}), ("last", 3, {0, 1, 2}), ([0, 1], 1, {1})]
)
def test_last_blocks(build, images, layers, tune, blocks):
    """Blocks are counted from the last one that is read."""
    backbone = build(tune=tune, layers=layers).train()
    backbone(images).tokens.square().mean().backward()
    trained = {name for name, p in backbone.vit.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in backbone.vit.named_parameters() if p.requires_grad}
    starts = {f"blocks.{i}." for i in blocks} | {"norm."}
    parts = [n for n, _ in backbone.vit.named_parameters() if n.startswith(tuple(starts))]
    assert trained == set(parts)


@pytest.mark.parametrize("name", ["pixio_vits16", "vit_small_patch16_dinov3"])
def test_checkpointing_changes_nothing(build, images, name):
    """With drop path and a mask, to the last bit; and the blocks do run twice."""
    results = []
    for checkpointing in (False, True):
        backbone = build(name, checkpointing=checkpointing, drop_path=0.5).train()
        calls = []
        for block in backbone.vit.blocks:
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        keep, random_key = torch.arange(64).expand(2, -1), RandomKey(torch.tensor([3, 4]), 0, 0)
        loss = backbone(images, keep=keep, random_key=random_key).tokens.square().mean()
        loss.backward()
        assert len(calls) == (6 if checkpointing else 3)
        gradients = [p.grad for p in backbone.parameters() if p.grad is not None]
        results.append([loss, *gradients])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.slow
def test_compile_changes_nothing(build, images):
    results, names = [], []
    for compiled in (False, True):
        backbone = build(compile=compiled, model_args={"depth": 1}).train()
        tokens = backbone(images).tokens
        tokens.square().mean().backward()
        results.append([tokens, *(p.grad for p in backbone.parameters())])
        names.append(list(backbone.state_dict()))
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(plain, fast, rtol=1e-4, atol=1e-5)
    assert names[0] == names[1]


@pytest.mark.slow  # compiling takes long, as in the test above
def test_encoder_and_decoder_are_compiled_for_the_sizes_they_run_at(build, images):
    """One graph for all blocks of each, and no number of tokens that is left open."""
    graphs = []

    def remember(graph, inputs):
        graphs.append(inputs)
        return graph.forward

    torch._dynamo.reset()
    backbone = build(drop_path=0.4, model_args={"img_size": 64}).train()
    decoder = MaeDecoder(96, 768, n_cls_tokens=8, grid=(4, 4), size=DecoderSize(32, 3, 2)).train()
    images, order = images[..., :64, :64], shuffled(16)
    keep, hide = order[:, :4], order[:, 4:]

    def run(batch=2):
        random_key = RandomKey(torch.arange(batch), 0, 0)
        tokens = backbone(images[:batch], keep=keep[:batch], random_key=random_key).tokens
        return decoder(tokens, keep[:batch], hide[:batch], (4, 4))

    plain = run()
    compile_blocks([*backbone.vit.blocks, *decoder.blocks], backend=remember)
    torch.testing.assert_close(run(), plain, rtol=0, atol=1e-5)
    assert len(graphs) == 2
    run()
    assert len(graphs) == 2
    # Smaller batches, and evaluation: more sizes than torch compiles by default.
    for module in (backbone, decoder):
        module.eval()
    for side in (64, 48, 32, 16):
        for batch in (1, 2):
            with torch.no_grad():
                backbone(images[:batch, :, :side])
    assert len(graphs) == 10
    for inputs in graphs:
        assert not any(isinstance(given, (torch.SymInt, int)) for given in inputs)
        assert all(
            isinstance(size, int) for g in inputs if isinstance(g, torch.Tensor) for size in g.shape
        )
    torch._dynamo.reset()


# --- drop path ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_drop_path_is_a_share(build, rate):
    with pytest.raises(UserError, match=f"drop_path is {rate}; expected 0 to below 1"):
        build(drop_path=rate)


def test_drop_path_rates_rise_linearly(build):
    backbone = build(drop_path=0.4)
    for branch in ("drop_path1", "drop_path2"):
        rates = [getattr(block, branch).rate for block in backbone.vit.blocks]
        assert rates == pytest.approx([0.0, 0.2, 0.4])


def test_drop_path_rates_are_of_the_blocks_that_run(build, images):
    backbone = build(drop_path=0.4, layers=[1]).train()
    rates = [getattr(block.drop_path2, "rate", None) for block in backbone.vit.blocks]
    assert rates == [0.0, pytest.approx(0.4), None]
    backbone(images, random_key=RandomKey(torch.arange(len(images)), 0, 0))


def test_drop_path_keeps_the_expectation():
    rates = (0.0, 0.1, 0.4, 0.4)
    modules = [drop_paths.KeyedDropPath(rate) for rate in rates]
    keys = torch.arange(10000)
    pairs = [(modules[0], modules[1]), (modules[2], modules[3])]
    drawn = drop_paths.draw_factors(drop_paths.rates_of(pairs), RandomKey(keys, 0, 0))
    factors = torch.stack([factor.flatten() for pair in drawn for factor in pair])
    for values, rate in zip(factors, rates, strict=True):
        kept = values > 0
        standard_error = (rate * (1 - rate) / 10000) ** 0.5
        assert abs(kept.float().mean() - (1 - rate)) <= 4 * standard_error
        torch.testing.assert_close(values[kept], torch.full_like(values[kept], 1 / (1 - rate)))
    # Branches of one rate decide for themselves, and by the numbers of their own stream.
    assert abs(torch.corrcoef(factors[2:])[0, 1]) < 0.04
    numbers = keyed_uniform(keys, 4, seed=0, step=0, purpose=Purpose.DROP_PATH)
    assert torch.equal(factors[3] > 0, numbers[:, 3] >= 0.4)


class Count(TorchDispatchMode):
    """Count the operations of a pass, leaving out views, by their name."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += not func.is_view
        return func(*args, **(kwargs or {}))


def test_drop_path_is_drawn_at_once_for_all_blocks(build, images):
    """Bit for bit as block by block, in as many operations for 12 blocks as for 3."""
    random_key, counts = RandomKey(torch.tensor([3, -4, 5, 2**40]), 1, 7), []
    for depth in (3, 12):
        backbone = build(drop_path=0.4, model_args={"depth": depth}).train()
        seen = []
        for block in backbone.vit.blocks:
            for branch in (block.drop_path1, block.drop_path2):
                branch.register_forward_hook(lambda module, *_, seen=seen: seen.append(module))
        with torch.no_grad():
            backbone(images[:1].expand(4, -1, -1, -1)[..., :32, :32], random_key=random_key)
        uniform = random_key.uniform(2 * depth, Purpose.DROP_PATH)
        assert len(seen) == 2 * depth
        for number, module in enumerate(seen):
            rate = float(torch.linspace(0, 0.4, depth)[number // 2])
            expected = (uniform[:, number] >= rate).to(torch.float32) / (1 - rate)
            assert torch.equal(module.factor, expected[:, None, None])
        with Count() as count:
            drop_paths.draw_factors(backbone.drop_rates, random_key)
        counts.append(count.calls.total())
    assert counts[0] == counts[1]


def test_recomputed_blocks_keep_their_own_drop_path(build, images):
    """Two forward passes before one backward pass, as of two views of a scene."""
    gradients = []
    for checkpointing in (False, True):
        backbone = build(checkpointing=checkpointing, drop_path=0.6).train()
        draws = [RandomKey(torch.tensor([3, 4]), 0, epoch) for epoch in (0, 1)]
        passes = [backbone(images, random_key=draw).tokens.square().mean() for draw in draws]
        sum(passes).backward()
        gradients.append([p.grad for p in backbone.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_drop_path_belongs_to_sample_and_turn(build, images):
    backbone = build(drop_path=0.6).train()
    images = images[:1].expand(8, -1, -1, -1)[..., :64, :64]

    def tokens(keys, epoch):
        with torch.no_grad():
            keys = torch.tensor(keys)
            return backbone(images[: len(keys)], random_key=RandomKey(keys, 0, epoch)).tokens

    first = tokens([1, 2, 3, 4, 5, 6, 7, 8], 0)
    torch.testing.assert_close(first[[4, 1]], tokens([5, 2], 0), rtol=0, atol=1e-5)
    assert (first - tokens([1, 2, 3, 4, 5, 6, 7, 8], 1)).abs().amax(dim=(1, 2)).max() > 0.1
    assert first.std(dim=0).max() > 0.1  # the images are the same, the branches kept are not


def test_drop_path_is_off_in_evaluation(build, images):
    backbone, plain = build(drop_path=0.6), build()
    random_key = RandomKey(torch.tensor([1, 2]), 0, 0)
    assert not torch.equal(
        backbone.train()(images, random_key=random_key).tokens, plain(images).tokens
    )
    assert torch.equal(backbone.eval()(images).tokens, plain(images).tokens)
    assert torch.equal(backbone(images, random_key=random_key).tokens, plain(images).tokens)
    with pytest.raises(ValueError, match=r"training needs random_key=RandomKey\(key, seed, step\)"):
        backbone.train()(images)


# --- weights --------------------------------------------------------------------------------------


def test_random_seeds():
    def values(weights, tune="full"):
        args = {"depth": 1}
        vit = Backbone("pixio_vitt16", weights=weights, tune=tune, model_args=args).load().vit
        return torch.cat([p.detach().flatten() for p in vit.parameters()])

    # No checkpoint holds a frozen backbone: it must come out the same in every run.
    assert torch.equal(values("random", "frozen"), values("random:0"))
    before = torch.get_rng_state()
    seeded = values("random:7")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(values("random:7"), seeded)
    with torch.device("meta"):  # Lightning builds inside the device's context
        assert torch.equal(values("random:7"), seeded)
    assert not torch.equal(values("random:8"), seeded)
    torch.manual_seed(99)
    global_start = values("random")
    assert not torch.equal(values("random"), global_start)
    torch.manual_seed(99)
    assert torch.equal(values("random"), global_start)


def test_built_on_meta_until_needed(images):
    backbone = Backbone("pixio_vit5b16", weights="random")
    assert (backbone.embed_dim, backbone.depth, backbone.dense_dim) == (3072, 48, 6144)
    assert all(p.is_meta for p in backbone.parameters()) and not backbone.mean.is_meta
    small = Backbone("pixio_vits16", weights="random", model_args=SMALL)
    assert small(images).tokens.shape == (2, 264, 96) and small.load() is small


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "encoder.safetensors"
    args = {**SMALL, "img_size": 64}
    meta = {"name": "pixio_vits16", "model_args": args, "mean": [0.1] * 3, "std": [0.2] * 3}
    save_file(PixioViT(**args).state_dict(), path, {"pixio": json.dumps(meta)})
    return str(path)


def test_a_file_describes_itself(file):
    backbone = Backbone(weights=file).load()
    assert (backbone.name, backbone.depth, backbone.grid) == ("pixio_vits16", 3, (4, 4))
    assert backbone.identity["mean"] == pytest.approx([0.1] * 3)
    assert backbone.identity["std"] == pytest.approx([0.2] * 3)
    assert backbone.matched == "matched 42 of 42 tensors"


def test_disagreement_with_a_file(file):
    with pytest.raises(UserError, match=r"name is 'pixio_vitb16', but .* hold 'pixio_vits16'"):
        Backbone("pixio_vitb16", weights=file)
    with pytest.raises(UserError, match=r"model_args.img_size is 256, but .* have 64"):
        Backbone(weights=file, model_args={"img_size": 256})


def test_what_a_file_says_may_be_written_otherwise(file):
    """Sizes as two numbers; statistics as one for all channels, or rounded."""
    sides = {"img_size": [64, 64], "patch_size": [16, 16]}
    same = sides | {"mean": [0.10004], "std": [0.2] * 3}
    assert Backbone(weights=file, model_args=same).identity == Backbone(weights=file).identity
    for key, other in (("img_size", [64, 32]), ("mean", [0.102] * 3), ("std", [0.2] * 4)):
        with pytest.raises(UserError, match=f"model_args.{key} is .*, but .* have"):
            Backbone(weights=file, model_args={key: other})


@pytest.mark.parametrize("what", ["missing", "not finite"])
def test_a_failed_load_leaves_nothing_to_use(what, images, tmp_path):
    args = {**SMALL, "img_size": 64}
    state = PixioViT(**args).state_dict()
    if what == "missing":
        del state["norm.bias"]
    else:
        state["norm.bias"][3] = float("nan")
    path = tmp_path / "encoder.safetensors"
    save_file(state, path, {"pixio": json.dumps({"name": "pixio_vits16", "model_args": args})})
    backbone = Backbone(weights=str(path))
    refusals = []
    for use in (backbone.load, backbone.load, lambda: backbone(images), backbone.half):
        with pytest.raises(UserError) as refused:
            use()
        refusals.append(str(refused.value))
    assert len({*refusals}) == 1 and not backbone.loaded


@pytest.mark.parametrize("weights", ["file", "random:3"])
def test_the_digest_is_of_the_weights_as_read(weights, file):
    """Whether they are cast before they are loaded, as bf16-true does, or afterwards."""
    arguments = {"name": "pixio_vits16", "weights": weights, "model_args": SMALL}
    if weights == "file":
        arguments = {"weights": file}
    read = Backbone(**arguments)
    expected = digest(read.load().vit.state_dict())
    assert read.digest == expected
    cast_after = Backbone(**arguments).load().to(torch.bfloat16)
    cast_unloaded = Backbone(**arguments).half()
    torch.set_default_dtype(torch.bfloat16)
    try:
        cast_before = Backbone(**arguments).load()
    finally:
        torch.set_default_dtype(torch.float32)
    for cast in (cast_after, cast_unloaded, cast_before):
        assert {p.dtype for p in cast.vit.parameters()} < {torch.bfloat16, torch.float16}
        assert cast.digest == expected and cast.identity == read.identity
        with torch.no_grad():
            found = cast(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)).tokens
        assert found.dtype == cast.vit.patch_embed.proj.weight.dtype
        assert cast.mean.dtype == torch.float32 and torch.equal(cast.mean, read.mean)
    # What is trained is hashed as it is.
    tuned = Backbone(**arguments, tune="full").load()
    with torch.no_grad():
        before = tuned.digest
        tuned.vit.norm.bias += 1
    assert before == expected != tuned.digest


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "pixio_vitbb16"}, r"'pixio_vitbb16' is not known, did you mean 'pixio_vitb16'\?"),
        ({"name": "vit_smal_patch14_dinov2"}, "did you mean 'vit_small_patch14_dinov2'"),
        ({"name": "vit_small_patch16_dinov3.x"}, "did you mean 'vit_small_patch16_dinov3'"),
        ({"name": "xyz"}, "'xyz' is not known; Pixio's are pixio_vitt16"),
        ({"name": "resnet50"}, "'resnet50' is not a plain Vision Transformer"),
        ({"name": "vit_base_r50_s16_224"}, "is not a plain Vision Transformer"),
        ({"name": "vit_base_patch16_rope_mixed_224"}, "is not a plain Vision Transformer"),
        ({"name": None}, "backbone.name is missing"),
        ({"layers": [3, 12]}, r"layers is \[3, 12\], but pixio_vitt16 has blocks 0 to 11"),
        ({"layers": [-13]}, "has blocks 0 to 11"),
        ({"layers": []}, "has blocks 0 to 11"),
        ({"layers": [11, -1]}, "each to be named once"),
        ({"layers": "quarters", "model_args": {"depth": 3}}, "layers is quarters, but .* 0 to 2"),
        ({"tune": 13}, "tune is 13; give frozen, full, or the number .* 0 to 12"),
        ({"tune": "all"}, "tune is 'all'; give frozen, full"),
        ({"model_args": {"heads": 3}}, "model_args does not fit pixio_vitt16: .*'heads'"),
        ({"model_args": {"num_heads": 5}}, "model_args does not fit .* divisible by num_heads"),
        ({"weights": "random:x"}, "'random:x': the seed must be a number, as random:0"),
        ({"weights": f"random:{10**30}"}, "the seed must be a number, as random:0"),
        ({"weights": "random:\N{SUPERSCRIPT TWO}"}, "the seed must be a number, as random:0"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        Backbone(**({"name": "pixio_vitt16", "weights": "random"} | arguments))


def test_images_have_as_many_channels_as_the_model_takes(build):
    given = {"in_chans": 4, "mean": [0.1, 0.2, 0.3, 0.4], "std": [0.5]}
    images = torch.randint(0, 256, (2, 4, 32, 32), dtype=torch.uint8)
    backbone = build(model_args=given)
    expected = (images[:, 3].float() / 255 - 0.4) / 0.5
    torch.testing.assert_close(backbone.normalize(images)[:, 3], expected)
    assert backbone(images).layers[-1].patches.shape == (2, 96, 2, 2)
    with pytest.raises(UserError, match="images of 3 channels, but pixio_vits16 takes 4"):
        backbone(images[:, :3])
    with pytest.raises(UserError, match="mean has 3 values, .* 4 channels .*: give mean and std"):
        build(model_args={"in_chans": 4})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tune": True}, "backbone.tune is True; give frozen, full"),  # which is equal to 1
        ({"tune": False}, "backbone.tune is False; give frozen, full"),
        ({"layers": -1}, "backbone.layers is -1, but expected last, quarters or a list"),
        ({"layers": [True]}, r"backbone.layers is \[True\], but expected last, quarters"),
        ({"layers": "middle"}, "backbone.layers is 'middle', but expected last, quarters"),
    ],
)
def test_a_value_that_is_no_number_of_blocks_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        Backbone("pixio_vitt16", weights="random:0", **given)
