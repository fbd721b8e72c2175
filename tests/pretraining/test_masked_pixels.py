"""Pretraining computes the paper's loss: compared with a plain implementation of the same maths."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from pixio_lightning.curation.scoring import image_losses
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.mae_decoder import DecoderSize, pixel_loss
from pixio_lightning.models.masking import gather_tokens, patchify, unpatchify
from pixio_lightning.pretraining.baselines import inverse_distance
from pixio_lightning.pretraining.masked_pixels import PixelPretraining
from pixio_lightning.training.optim import Optim
from pixio_lightning.training.run_folder import Metrics

N_CLS, PATCH, SIDE = 3, 16, 4  # class tokens, pixels in a patch's side, patches in an image's
N = SIDE * SIDE


@pytest.fixture
def build(randomize):
    def build_module(patch=PATCH, **changes):
        args = {"embed_dim": 48, "depth": 2, "num_heads": 3, "n_cls_tokens": N_CLS}
        args |= {"img_size": SIDE * patch, "patch_size": patch}
        backbone = Backbone("pixio_vitt16", weights="random:0", tune="full", model_args=args)
        arguments = {"mask_grid": 1, "decoder": DecoderSize(32, 2, 4)} | changes
        module = PixelPretraining(backbone, **arguments)
        module.configure_model()
        randomize(module)
        return module

    return build_module


@pytest.fixture
def batch():
    keys = torch.tensor([11, -7, 2**40])
    size = (3, 3, SIDE * PATCH, SIDE * PATCH)
    return {"image": torch.randint(0, 256, size, dtype=torch.uint8), "key": keys}


class Calls(TorchFunctionMode):
    """Remember the calls of one function of torch."""

    def __init__(self, name):
        super().__init__()
        self.name, self.found = name, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "").endswith(self.name):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


def draw_for(batch, epoch=0):
    return RandomKey(batch["key"], 0, epoch)


def hidden_pixels(mask):
    """Return the mask as bool `(B, 1, H, W)`."""
    hidden = torch.zeros(len(mask.hide), N, 1).scatter_(1, mask.hide[..., None], 1.0)
    return unpatchify(hidden.expand(-1, -1, PATCH * PATCH), PATCH, (SIDE, SIDE)).bool()


# --- the reference: every patch is embedded, every token predicted, in the image's order ----------


def plain_norm(x, parameters, name):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    x = (x - mean) / torch.sqrt(variance + 1e-6)
    return x * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def plain_linear(x, parameters, name):
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def plain_block(x, parameters, name, heads):
    qkv = plain_linear(plain_norm(x, parameters, f"{name}.norm1"), parameters, f"{name}.attn.qkv")
    mixed = []
    for q, k, v in zip(*(part.chunk(heads, -1) for part in qkv.chunk(3, -1)), strict=True):
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        mixed.append(weights @ v)
    x = x + plain_linear(torch.cat(mixed, -1), parameters, f"{name}.attn.proj")
    hidden = plain_linear(plain_norm(x, parameters, f"{name}.norm2"), parameters, f"{name}.mlp.fc1")
    return x + plain_linear(F.gelu(hidden), parameters, f"{name}.mlp.fc2")


def plain_loss(module, images, keep):
    """Return the loss of normalised images `(B, 3, H, W)` when `keep (B, n)` is visible."""
    p = dict(module.named_parameters())
    batch = len(images)
    columns = []
    for row in range(SIDE):
        for column in range(SIDE):
            patch = images[:, :, row * PATCH :, column * PATCH :][:, :, :PATCH, :PATCH]
            columns.append(patch.permute(0, 2, 3, 1).reshape(batch, -1))
    pixels = torch.stack(columns, dim=1)

    kernel, bias = (p[f"backbone.vit.patch_embed.proj.{name}"] for name in ("weight", "bias"))
    embedded = F.conv2d(images, kernel, bias, stride=PATCH).flatten(2).transpose(1, 2)
    positions = p["backbone.vit.pos_embed"]
    embedded = embedded + positions[:, N_CLS:]
    visible = torch.stack([embedded[i, keep[i]] for i in range(batch)])
    cls = p["backbone.vit.cls_token"] + positions[:, :N_CLS]
    x = torch.cat([cls.expand(batch, -1, -1), visible], dim=1)
    for i in range(2):
        x = plain_block(x, p, f"backbone.vit.blocks.{i}", heads=3)
    x = plain_linear(plain_norm(x, p, "backbone.vit.norm"), p, "decoder.embed")

    rows = []
    for i in range(batch):
        row = p["decoder.mask_token"][0].repeat(N, 1)
        row = row.index_copy(0, keep[i], x[i, N_CLS:])
        rows.append(torch.cat([x[i, :N_CLS], row]))
    x = torch.stack(rows) + p["decoder.pos_embed"]
    for i in range(2):
        x = plain_block(x, p, f"decoder.blocks.{i}", heads=4)
    prediction = plain_linear(plain_norm(x, p, "decoder.norm"), p, "decoder.pred")[:, N_CLS:]

    target = pixels
    if module.norm_pix:
        mean = pixels.mean(-1, keepdim=True)
        variance = ((pixels - mean) ** 2).sum(-1, keepdim=True) / (pixels.shape[-1] - 1)
        target = (pixels - mean) / torch.sqrt(variance + 1e-6)
    hidden = torch.ones(batch, N, dtype=pixels.dtype)
    for i in range(batch):
        hidden[i, keep[i]] = 0
    error = ((prediction - target) ** 2).mean(-1)
    return (error * hidden).sum() / hidden.sum()


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("mask_grid", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_loss_and_gradients_equal_the_plain_form(
    build, batch, mask_grid, norm_pix, dtype, tolerance
):
    module = build(mask_grid=mask_grid, norm_pix=norm_pix).to(dtype)
    plain = copy.deepcopy(module).double()
    result = module(batch["image"], draw_for(batch))
    assert result.mask.keep.shape == (3, N // 4)
    if dtype == torch.float64:  # `pixel_loss` computes in float32
        loss = (result.prediction - result.target).square().mean()
    else:
        loss = pixel_loss(result.prediction, result.target).mean()
    loss.backward()
    expected = plain_loss(plain, module.backbone.normalize(batch["image"]).double(), result.mask[0])
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    named = dict(plain.named_parameters())
    for name, parameter in module.named_parameters():
        gradient = named[name].grad
        error = (parameter.grad.double() - gradient).abs().max() / gradient.abs().max()
        assert error < tolerance, name


def test_masks_follow_key_turn_and_seed(build, batch):
    module = build()
    keep = module(batch["image"], draw_for(batch)).mask.keep
    assert torch.equal(keep, module(batch["image"], draw_for(batch)).mask.keep)
    assert not torch.equal(keep, module(batch["image"], draw_for(batch, epoch=1)).mask.keep)
    assert not torch.equal(keep, module(batch["image"], RandomKey(batch["key"], 1, 0)).mask.keep)
    one = module(batch["image"][1:2], RandomKey(batch["key"][1:2], 0, 0))
    assert torch.equal(one.mask.keep, keep[1:2])


def test_hidden_pixels_do_not_reach_the_prediction(build, batch):
    module = build()
    result = module(batch["image"], draw_for(batch))
    changed = torch.where(hidden_pixels(result.mask), 255 - batch["image"], batch["image"])
    other = module(changed, draw_for(batch))
    assert torch.equal(other.prediction, result.prediction)
    assert not torch.equal(other.target, result.target)


def test_patch_14_predicts_the_resized_pixels(build, batch):
    module = build(patch=14, norm_pix=False)
    result = module(batch["image"], draw_for(batch))
    resized = module.backbone.resize(module.backbone.normalize(batch["image"]))
    assert resized.shape == (3, 3, 56, 56) and result.grid == (4, 4)
    assert torch.equal(result.target, gather_tokens(patchify(resized, 14), result.mask.hide))
    assert result.prediction.shape == (3, 12, 14 * 14 * 3)


def test_patch_14_is_resized_once(build, batch):
    module = build(patch=14)
    with Calls("interpolate") as calls:
        module(batch["image"], draw_for(batch))
    assert len(calls.found) == 1


def test_patch_14_is_resized_once_for_each_mask_of_a_score(build, batch):
    """Also where the noise floor looks at the contrast of what the model saw."""
    module, floor = build(patch=14).eval(), 30.0
    images = batch["image"] // 8 + 100  # so flat that the floor matters
    with Calls("interpolate") as calls:
        found = image_losses(module, images, batch["key"], masks=3, noise_floor=floor)
    assert len(calls.found) == 3
    seen = patchify(module.backbone.resize(module.backbone.normalize(images)), 14)
    noise = sum((floor / 255 / std) ** 2 for std in module.backbone.std.flatten().tolist()) / 3
    expected = torch.zeros(len(images))
    for number in range(3):
        with torch.no_grad():
            result = module(images, RandomKey(batch["key"], 0, -1000 - number))
        # As if the targets were divided by the root of the variance plus that of the noise.
        variance = gather_tokens(seen, result.mask.hide).var(dim=-1, keepdim=True)
        scale = (variance / (variance + noise)).sqrt()
        error = (scale * result.prediction - scale * result.target).square().mean(dim=-1)
        expected += error.mean(dim=1) / 3
    assert torch.allclose(found, expected, rtol=1e-4)
    assert (found < 0.8 * image_losses(module, images, batch["key"], masks=3)).all()


def test_every_parameter_is_trained(build, batch):
    module = build()
    result = module(batch["image"], draw_for(batch))
    pixel_loss(result.prediction, result.target).mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


class Samples(L.LightningDataModule):
    """Four batches of two images."""

    batch_size = 2

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(1)
        size = (8, 3, SIDE * PATCH, SIDE * PATCH)
        images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        samples = [{"image": image, "key": torch.tensor(i)} for i, image in enumerate(images)]
        return DataLoader(samples, batch_size=self.batch_size)


class GradientSizes(L.Callback):
    """Remember norm and largest value of the gradients that each step took."""

    def on_train_start(self, trainer, pl_module):
        self.found = []
        parameters = list(pl_module.parameters())

        def note(*_):
            values = torch.cat([p.grad.flatten() for p in parameters])
            self.found.append((values.norm().item(), values.abs().max().item()))

        trainer.optimizers[0].register_step_post_hook(note)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_in_any_precision(build, precision, accumulate):
    for algorithm, limit in (("norm", 0.05), ("value", 1e-3)):
        sizes = GradientSizes()
        trainer = L.Trainer(
            accelerator="cpu",
            precision=precision,
            max_steps=2,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=limit,
            gradient_clip_algorithm=algorithm,
            callbacks=[sizes],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(build(optim=Optim(lr=1e-3)), datamodule=Samples())
        assert len(sizes.found) == 2
        norms, largest = zip(*sizes.found, strict=True)
        clipped = norms if algorithm == "norm" else largest
        assert clipped == pytest.approx([limit] * 2, rel=1e-4)
        assert algorithm == "norm" or min(norms) > 2 * limit


@pytest.mark.parametrize("norm_pix", [True, False])
def test_validation_beside_its_baselines(build, batch, norm_pix):
    """Every image counts once, padding (weight 0) not at all, and both baselines come out."""
    module = build(norm_pix=norm_pix)
    ramp = torch.linspace(0, 255, SIDE * PATCH).to(torch.uint8).expand(3, SIDE * PATCH, -1)
    batch["image"][:2] = torch.stack([ramp, ramp.transpose(1, 2)])
    samples = [
        {"image": image, "key": key, "weight": torch.tensor(weight)}
        for image, key, weight in zip(batch["image"], batch["key"], [1.0, 1.0, 0.0], strict=True)
    ]
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    (found,) = trainer.validate(module, DataLoader(samples, batch_size=2), verbose=False)
    result = module(batch["image"][:2], RandomKey(batch["key"][:2], 0, -1))
    loss = pixel_loss(result.prediction, result.target).mean().item()
    assert found["val/loss"] == pytest.approx(loss, rel=1e-5)
    assert found["val/zero"] == pytest.approx(result.target.square().mean().item(), rel=1e-5)
    # The loss is what the colour of each patch costs, and the rest.
    error = (result.prediction - result.target).unflatten(-1, (-1, 3))
    assert found["val/hue"] == pytest.approx(error.mean(dim=2).square().mean().item(), rel=1e-4)
    assert found["val/hue"] + found["val/structure"] == pytest.approx(loss, rel=1e-5)
    if norm_pix:
        # Unbiased: (V - 1) / V; the eps of 1e-6 takes another share of the ramp's small variance.
        assert found["val/zero"] == pytest.approx(767 / 768, abs=1e-3)
    images = module.backbone.normalize(batch["image"][:2])
    filled = plain_inverse_distance(images, ~hidden_pixels(result.mask))
    fill, truth = patchify(filled, PATCH), patchify(images, PATCH)
    fills = {"interpolated": fill, "capped": fill}
    if norm_pix:
        # Its own mean is taken off; the truth's deviation, or its own where larger, divides it.
        deviation = truth.std(dim=-1, keepdim=True)
        fill = fill - fill.mean(dim=-1, keepdim=True)
        capped = fill.std(dim=-1, keepdim=True).maximum(deviation)
        fills = {"interpolated": fill / deviation, "capped": fill / capped}
        truth = (truth - truth.mean(dim=-1, keepdim=True)) / deviation
    for name, fill in fills.items():
        error = gather_tokens(fill - truth, result.mask.hide).square().mean().item()
        assert found[f"val/{name}"] == pytest.approx(error, rel=1e-3)


def test_a_baseline_of_nothing_is_compared_with_nothing(build, tmp_path):
    """Pictures of one colour are interpolated without a loss."""
    table = tmp_path / "metrics.csv"
    table.write_text("step,val/loss,val/zero,val/interpolated\n1,0.5,1.0,0.0\n")
    said = build().report(Metrics(table))
    assert sorted(said.values()) == ["0.000", "1.000 (the last loss is 50% below)"] + [
        "first 0.500, last 0.500"
    ]


def test_baselines_are_computed_once_in_a_run(build, batch):
    """Three validations say the same of them; only the first one interpolates."""
    module = build()
    fresh = copy.deepcopy(module)
    samples = [
        {"image": image, "key": key, "weight": torch.tensor(weight)}
        for image, key, weight in zip(batch["image"], batch["key"], [1.0, 1.0, 0.0], strict=True)
    ]
    # The third could not be read, so that another stood for it; now it can.
    repaired = [*samples[:2], samples[2] | {"weight": torch.tensor(1.0)}]
    samples[2] = samples[2] | {"image": samples[0]["image"]}
    # A test set of images that go by the same names.
    others = [sample | {"image": 255 - sample["image"] // 3} for sample in samples]
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )

    def evaluate(verb, samples):
        with Calls("rfft2") as calls:
            (found,) = verb(module, DataLoader(samples, batch_size=2), verbose=False)
        return found, len(calls.found)

    trainer.limit_val_batches = 1  # as a sanity check
    first, _ = evaluate(trainer.validate, samples)
    trainer.limit_val_batches = 1.0
    second, calls = evaluate(trainer.validate, samples)
    assert calls > 0
    third, calls = evaluate(trainer.validate, samples)
    assert calls == 0 and third == second == first  # the third image has no weight
    changed, calls = evaluate(trainer.test, others)
    assert calls > 0
    readable, calls = evaluate(trainer.validate, repaired)
    assert calls > 0
    for found, verb, given in (
        (changed, trainer.test, others),
        (readable, trainer.validate, repaired),
    ):
        (expected,) = verb(copy.deepcopy(fresh), DataLoader(given, batch_size=2), verbose=False)
        assert found == expected


def test_pictures_show_what_the_model_sees(build, batch):
    """A decoder that predicts 0 paints every hidden patch in its true mean."""
    module = build().eval()
    for parameter in module.decoder.pred.parameters():
        torch.nn.init.zeros_(parameter)
    backbone = module.backbone
    means = patchify(backbone.normalize(batch["image"]), PATCH).mean(dim=-1, keepdim=True)
    means = unpatchify(means.expand(-1, -1, PATCH * PATCH * 3), PATCH, (SIDE, SIDE))
    means = (means * backbone.std + backbone.mean) * 255
    rows, titles, caption = module.pictures(batch)[:3]
    assert "true mean and contrast" in caption
    assert len(rows) == 3 and titles[:3] == ["masked input", "reconstruction*", "truth"]
    mask = module(batch["image"], RandomKey(batch["key"], 0, -1)).mask
    visibles = ~hidden_pixels(mask).expand(-1, 3, -1, -1)
    for i, (masked, painted, truth, components) in enumerate(rows):
        assert torch.equal(truth, batch["image"][i])
        visible = visibles[i]
        assert torch.equal(painted[visible], truth[visible])
        assert (painted[~visible] - means[i][~visible]).abs().max() < 0.51  # rounded to uint8
        assert torch.equal(masked[visible], truth[visible])
        assert masked[~visible].view(3, -1).float().std(dim=1).max() == 0
        assert components.shape == truth.shape and components.dtype == torch.uint8


# --- interpolation, the baseline ------------------------------------------------------------------


def plain_inverse_distance(images, visible):
    """Shepard's sum over every pair of pixels, at a distance of half a pixel more."""
    height, width = images.shape[-2:]
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    weights = (torch.cdist(place, place) + 0.5) ** -3
    total = visible.flatten(2).double() @ weights
    filled = (images * visible).flatten(2).double() @ weights / total
    return torch.where(visible, images, filled.view_as(images).to(images.dtype))


@pytest.mark.parametrize("size", [(32, 32), (12, 20), (7, 5)])
def test_interpolation_equals_the_plain_sum(size):
    images, visible = torch.randn(2, 3, *size), torch.rand(2, 1, *size) < 0.25
    filled = inverse_distance(images, visible.float())
    seen = visible.expand_as(images)
    assert torch.equal(filled[seen], images[seen])
    expected = plain_inverse_distance(images, visible)
    torch.testing.assert_close(filled, expected, rtol=0, atol=1e-6)
    # Hidden pixels must not leak into the baseline.
    assert torch.equal(filled, inverse_distance(images.where(seen, 1e3), visible.float()))


def test_interpolation_fills_a_constant_image():
    images = torch.tensor([0.3, -1.7]).view(2, 1, 1, 1).expand(2, 3, 48, 80)
    visible = (torch.rand(2, 1, 48, 80) < 0.1).float()
    filled = inverse_distance(images * visible, visible)
    torch.testing.assert_close(filled, images, rtol=0, atol=1e-6)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        ({"tune": "frozen"}, {}, "set model.backbone.tune to full"),
    ],
)
def test_mistakes(backbone, arguments, message):
    with pytest.raises(UserError, match=message):
        PixelPretraining(
            Backbone("pixio_vitt16", weights="random", **({"tune": "full"} | backbone)), **arguments
        )


class Held(torch.utils.data.Dataset):
    """Two held-out images of the same names, whatever they show."""

    def __init__(self, value, side):
        ramp = torch.arange(side).expand(3, side, side)
        self.image = (value * ramp % 256).to(torch.uint8)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"image": self.image, "key": index, "weight": 1.0}


def test_other_images_of_the_same_names_have_baselines_of_their_own(build, tmp_path):
    def baselines(module, value, side=SIDE * PATCH):
        trainer = L.Trainer(
            accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
        )
        loader = DataLoader(Held(value, side), batch_size=2)
        (found,) = trainer.validate(module, loader, verbose=False)
        return found["val/interpolated"]

    module = build()
    first = baselines(module, 1)
    second = baselines(module, 37)
    assert second == pytest.approx(baselines(build(), 37)) and abs(second - first) > 1e-3


def test_data_of_one_s_own_need_no_weight(build, batch, tmp_path):
    """Every image then counts once."""

    class Own(L.LightningDataModule):
        batch_size = 3

        def val_dataloader(self):
            return DataLoader([batch], batch_size=None)

    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    (found,) = trainer.validate(build(), Own(), verbose=False)
    assert found["val/loss"] > 0
