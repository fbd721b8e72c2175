"""Future prediction: what its loss is, what it depends on, and what it is compared with."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from processes import in_processes, metric_of_one
from torch.utils._python_dispatch import TorchDispatchMode

from pixio_lightning import Clips
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.mae_decoder import DecoderSize, normalize_patches, pixel_loss
from pixio_lightning.models.masking import gather_tokens, patchify
from pixio_lightning.pretraining.baselines import capped, errors_of, parts_of
from pixio_lightning.pretraining.future_baselines import HedgedCopy
from pixio_lightning.pretraining.future_decoder import CrossAttention, FutureDecoder, time_features
from pixio_lightning.pretraining.future_frames import FuturePrediction
from pixio_lightning.pretraining.future_report import MeanError, verdict
from pixio_lightning.training.optim import Optim
from pixio_lightning.training.strategy import ShardedStrategy

PATCH, SIDE = 8, 4


def not_built(name="pixio_vitt16", n_cls=2, **changes):
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": SIDE * PATCH}
    args |= {"patch_size": PATCH}
    if name.startswith("pixio"):
        args["n_cls_tokens"] = n_cls
    else:
        args |= {"class_token": False, "global_pool": "avg", "num_classes": 0}
    backbone = Backbone(
        name, weights="random:0", tune="full", model_args=args, drop_path=changes.pop("drop", 0)
    )
    return FuturePrediction(backbone, **{"hide": 0.75, "decoder": DecoderSize(32, 2, 4)} | changes)


@pytest.fixture
def build(randomize):
    def build_module(*args, **changes):
        module = not_built(*args, **changes)
        module.configure_model()
        return randomize(module)

    return build_module


def batch_of(frames=1, count=3):
    size = (3, SIDE * PATCH, SIDE * PATCH)
    gap = torch.tensor([[0.9, 0.5], [1.2, 0.2], [0.8, 0.4]])[:count, 2 - frames :]
    return {
        "past": torch.randint(0, 256, (count, frames, *size), dtype=torch.uint8),
        "future": torch.randint(0, 256, (count, *size), dtype=torch.uint8),
        "gap": gap,
        "key": torch.tensor([11, -7, 2**40])[:count],
    }


def run(module, batch, step=0):
    return module(batch["past"], batch["future"], batch["gap"], RandomKey(batch["key"], 0, step))


def plain_block(block, x, memory, heads):
    """Return a decoder block as its maths are written."""

    def attend(q, k, v):
        mixed = []
        for a, b, c in zip(*(t.chunk(heads, -1) for t in (q, k, v)), strict=True):
            mixed.append((a @ b.transpose(1, 2) / a.shape[-1] ** 0.5).softmax(-1) @ c)
        return torch.cat(mixed, -1)

    normed = block.norm1(x)
    k, v = block.cross.kv(memory).chunk(2, -1)
    x = x + block.cross.proj(attend(block.cross.q(normed), k, v))
    q, k, v = block.attn.qkv(block.norm2(x)).chunk(3, -1)
    x = x + block.attn.proj(attend(q, k, v))
    mlp = block.mlp
    return x + mlp.fc2(F.gelu(mlp.fc1(block.norm3(x))))


@pytest.mark.parametrize("frames", [1, 2])
def test_a_pass_is_what_its_parts_say(build, frames) -> None:
    """Every token in its place, with its position and time; all in double precision."""
    module, batch = build(), batch_of(frames)
    decoder = module.decoder
    result = run(module, batch)
    keep, hide = result.mask
    assert keep.shape == (3, 4) and hide.shape == (3, 12)
    module, decoder = module.double(), decoder.double()
    backbone = module.backbone
    tokens = backbone(batch["past"].flatten(0, 1)).tokens.unflatten(0, (3, frames))
    seen = backbone(batch["future"], keep=keep).tokens
    positions = decoder.pos_embed
    memory = []
    for i in range(frames):
        since = (batch["gap"][:, i] - batch["gap"][:, -1])[:, None]
        offset = decoder.memory_time(time_features(since).double())
        memory.append(decoder.embed(tokens[:, i]) + positions + decoder.past + offset)
    memory = decoder.memory_norm(torch.cat(memory, 1))
    places = positions[:, 2:].expand(3, -1, -1)
    x = [decoder.embed(seen[:, :2]) + positions[:, :2]]
    x += [decoder.embed(seen[:, 2:]) + gather_tokens(places, keep)]
    x += [decoder.mask_token + gather_tokens(places, hide)]
    x = torch.cat(x, 1) + decoder.query_time(time_features(batch["gap"][:, -1:]).double())
    for block in decoder.blocks:
        x = plain_block(block, x, memory, heads=4)
    expected = decoder.pred(decoder.norm(x))[:, -12:]
    assert torch.allclose(result.prediction.double(), expected, atol=1e-4)
    pixels = patchify(backbone.normalize(batch["future"]).double(), PATCH)
    target = normalize_patches(gather_tokens(pixels, hide))[0]
    loss = (expected - target).square().mean(dim=(1, 2))
    assert torch.allclose(pixel_loss(result.prediction, result.target).double(), loss, atol=1e-4)


def test_the_loss_reaches_every_parameter(build) -> None:
    module, batch = build(), batch_of(2)
    result = run(module, batch)
    pixel_loss(result.prediction, result.target).mean().backward()
    missing = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


def test_attention_to_the_past_and_its_gradient_are_of_float32_under_autocast() -> None:
    """As self-attention: of bfloat16 the backward kernel of a processor is many times slower."""
    kinds = []

    class Kernels(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "scaled_dot_product" in str(func):
                kinds.append(args[0].dtype)
            return func(*args, **kwargs or {})

    cross, queries, memory = CrossAttention(32, 4), torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    with Kernels():
        with torch.autocast("cpu", torch.bfloat16):
            found = cross(queries, memory)
        found.float().sum().backward()
        assert kinds == [torch.float32] * 2 and found.dtype == torch.bfloat16
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            cross(queries, memory)
    assert kinds[2:] == [torch.bfloat16]
    torch.testing.assert_close(found.float(), cross(queries, memory), atol=2e-2, rtol=2e-2)


def test_with_all_hidden_the_prediction_does_not_depend_on_the_future(build) -> None:
    module, batch = build(hide=1.0), batch_of()
    calls = []
    module.backbone.register_forward_hook(lambda *_: calls.append(1))
    first = run(module, batch)
    assert len(calls) == 1 and first.prediction.shape[1] == SIDE * SIDE
    second = run(module, batch | {"future": 255 - batch["future"]})
    assert torch.equal(first.prediction, second.prediction)
    assert not torch.equal(first.target, second.target)
    module = build()
    module.hide = 0.9  # one visible patch decides on what it is
    assert not torch.equal(
        run(module, batch).prediction,
        run(module, batch | {"future": 255 - batch["future"]}).prediction,
    )


def test_time_is_told_by_the_gap_alone(build) -> None:
    """An equal past at another distance gives another prediction; so does another past."""
    module, batch = build(), batch_of(2)
    first = run(module, batch).prediction
    assert torch.equal(first, run(module, batch).prediction)
    assert not torch.equal(first, run(module, batch | {"gap": batch["gap"] + 0.3}).prediction)
    # Of the earlier frame the offset to the last one counts.
    earlier = batch["gap"] + torch.tensor([0.2, 0.0])
    assert not torch.equal(first, run(module, batch | {"gap": earlier}).prediction)
    swapped = run(module, batch | {"past": batch["past"].flip(1)}).prediction
    assert not torch.equal(first, swapped)


def test_a_sample_is_masked_and_dropped_by_its_own_key(build) -> None:
    """Whatever batch it is in, and each of its frames apart."""
    module, batch = build(drop=0.4).train(), batch_of(2)
    whole = run(module, batch, step=3)
    for i in range(3):
        alone = run(module, {k: v[i : i + 1] for k, v in batch.items()}, step=3)
        assert torch.equal(alone.mask.hide[0], whole.mask.hide[i])
        assert torch.allclose(alone.prediction[0], whole.prediction[i], atol=1e-5)
    assert not torch.equal(run(module, batch, step=4).mask.hide, whole.mask.hide)
    same = batch | {"past": batch["past"][:, :1].expand(-1, 2, -1, -1, -1)}
    seen = []
    module.backbone.register_forward_hook(lambda m, i, out: seen.append(out.tokens))
    run(module, same, step=3)
    assert not torch.equal(*seen[0].unflatten(0, (3, 2)).unbind(1))


def test_a_backbone_without_class_tokens_is_trained_too(build) -> None:
    module = build("vit_tiny_patch16_224")
    assert module.backbone.n_cls_tokens == 0
    assert run(module, batch_of()).prediction.isfinite().all()


def test_plain_pixels_and_blocks_of_patches(build) -> None:
    module, batch = build(norm_pix=False, mask_grid=2), batch_of()
    result = run(module, batch)
    expected = gather_tokens(result.pixels, result.mask.hide)
    assert torch.equal(result.target, expected)
    assert len({*result.mask.keep[0].tolist()}) == 4  # one block of 2 x 2


def test_mistakes(build) -> None:
    with pytest.raises(UserError, match="model.hide is 1.2"):
        build(hide=1.2)
    with pytest.raises(UserError, match="model.mask_grid is 2, but model.hide is 1, so that all"):
        build(hide=1.0, mask_grid=2)
    module = build(hide=0.99)
    with pytest.raises(UserError, match="model.hide 0.99 keeps 0 of 16"):
        module.check_mask((4, 4))
    with pytest.raises(UserError, match="set data to Clips"):
        module.read_data_attributes(L.LightningDataModule())
    with pytest.raises(UserError, match="tune to full"):
        FuturePrediction(Backbone("pixio_vitt16", weights="random", tune="frozen"))
    with pytest.raises(ValueError, match="does not divide"):
        FutureDecoder(8, 8, n_cls_tokens=0, grid=(2, 2), size=DecoderSize(10, 1, 4))


# --- baselines --------------------------------------------------------------------------------


def test_hue_and_structure_add_up() -> None:
    patches, target = torch.randn(2, 2, 5, 12)
    hue, structure = parts_of(patches, 3)
    assert torch.allclose(hue + structure, patches)
    pixels = structure.unflatten(-1, (4, 3))
    assert pixels.mean(dim=2).abs().max() < 1e-6
    errors = errors_of(patches, target, 3)
    whole = (patches - target).square().mean(-1)
    assert torch.allclose(errors.hue + errors.structure, whole, atol=1e-6)
    grey = torch.ones(1, 1, 12) * torch.tensor([1.0, 2.0, 3.0]).repeat(4)
    assert errors_of(grey, grey * 0, 3).structure.abs().max() < 1e-6


def test_a_static_clip_costs_a_copy_nothing() -> None:
    patches = torch.rand(2, 6, 192)
    target = normalize_patches(patches)[0]
    assert pixel_loss(capped(patches, patches), target).max() < 1e-10
    # A busy copy where there is nothing costs no more than predicting nothing.
    flat = 0.5 + 1e-4 * torch.randn(2, 6, 192)
    wanted = normalize_patches(flat)[0]
    assert pixel_loss(capped(patches, flat), wanted).max() < 2.2
    assert pixel_loss((patches - patches.mean(-1, keepdim=True)) / 1e-4, wanted).min() > 1e4


def test_a_hedged_copy_has_the_best_factor_of_each_gap() -> None:
    """Where the truth is a share of the copy that falls with the gap, it finds that share."""
    copy = torch.randn(64, 5, 12)
    gap = torch.linspace(0.2, 1.0, 64)
    hue, structure = parts_of(copy, 3)
    near = (gap < 0.6).float()[:, None, None]
    target = (0.8 * near + 0.1 * (1 - near)) * hue + (0.5 * near - 0.2 * (1 - near)) * structure
    hedged = HedgedCopy(3)
    assert not hedged.fitted
    sums = hedged.begin(0.2, 1.0)
    for part in range(0, 64, 16):
        own = slice(part, part + 16)
        hedged.add(sums, copy[own], target[own], gap[own])
    hedged.finish(sums)
    assert hedged.fitted
    assert torch.allclose(hedged(copy, gap), target, atol=1e-5)
    assert (hedged(copy, gap) - target).square().mean() < (copy - target).square().mean()
    # No pair between them: the factor of all.
    hedged.finish(hedged.begin(0.2, 1.0) + torch.zeros(8, dtype=torch.float64))
    assert not hedged.factors.any()


class CountedClips(Clips):
    """Clips that say how often training pairs are drawn of them."""

    drawn = 0

    def training_pairs(self, count):
        self.drawn += 1
        return super().training_pairs(count)


def clips_in(folder, *, gap, n=3):
    for video in range(n):
        (folder / str(video)).mkdir(parents=True, exist_ok=True)
        for i in range(24):
            noise = np.random.default_rng(100 * video + i).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(noise).save(folder / str(video) / f"{i}.png")
    about = {"fps": 10.0, "clip_seconds": 2.4, "image_size": 32, "batch_size": 2, "gap": gap}
    return CountedClips("frames", str(folder), num_workers=0, steps_per_epoch=1, **about)


def trained(module, data, out, steps, checkpoint=None, **more):
    trainer = L.Trainer(
        **more,
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=out,
    )
    trainer.fit(module, data, ckpt_path=checkpoint)
    return trainer


def test_a_hedged_copy_is_fitted_anew_to_other_pairs_and_not_where_a_run_goes_on(
    build, tmp_path
) -> None:
    near = clips_in(tmp_path / "v", gap=(0.2, 0.4))
    optim = Optim(lr=1e-3)
    first = build(optim=optim)
    trained(first, near, tmp_path, 1).save_checkpoint(tmp_path / "a.ckpt")
    assert near.drawn == 1 and first.hedged.range.tolist() == pytest.approx([0.2, 0.4])
    again, same = clips_in(tmp_path / "v", gap=(0.2, 0.4)), build(optim=optim)
    trained(same, again, tmp_path, 2, tmp_path / "a.ckpt")
    assert again.drawn == 0 and torch.equal(same.hedged.factors, first.hedged.factors)
    for other in (clips_in(tmp_path / "v", gap=(0.8, 1.4)), clips_in(tmp_path / "w", gap=near.gap)):
        going_on = build(optim=optim)
        trained(going_on, other, tmp_path, 2, tmp_path / "a.ckpt")
        assert other.drawn == 1
        assert going_on.hedged.range.tolist() == pytest.approx(list(other.gap))


def test_a_sharded_run_that_goes_on_with_other_pairs_keeps_no_hedged_copy_of_the_first(
    tmp_path,
) -> None:
    """Its checkpoint is taken up after the copy was fitted."""
    pairs = [clips_in(tmp_path / "v", gap=gap) for gap in ((0.2, 0.4), (0.8, 1.4), (0.8, 1.4))]
    found = []
    for number, data in enumerate(pairs):
        module, before = not_built(optim=Optim(lr=1e-3)), tmp_path / f"{number - 1}.ckpt"
        start = before if number else None
        sharded = {"strategy": ShardedStrategy(), "devices": 1}
        trainer = trained(module, data, tmp_path, number + 1, start, **sharded)
        trainer.save_checkpoint(tmp_path / f"{number}.ckpt")
        assert module.hedged.range.tolist() == pytest.approx(list(data.gap))
        found.append(module.hedged.factors.clone())
    assert not torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])


def test_a_hedged_copy_that_is_not_fitted_is_left_out(build, tmp_path) -> None:
    data, module = clips_in(tmp_path, gap=(0.2, 0.4), n=20), build()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (found,) = trainer.validate(module, data, verbose=False)
    assert "val/zero" in found and not [name for name in found if "hedged" in name]
    assert "val/gain_error" not in found
    batch = data.samples(2)
    assert "hedged copy*" not in module.pictures(batch).titles
    last = {"loss": 0.5, "wrong_past": 1.2, "structure": 0.4}
    assert verdict(last).startswith("none: no hedged copy is fitted")
    module.hedged.factors.fill_(0.5)
    (found,) = trainer.validate(module, data, verbose=False)
    assert {"val/hedged", "val/moving_hedged", "val/gain_error"} <= {*found}


def test_it_says_predicts_only_where_no_copy_does_as_well() -> None:
    last = {"loss": 0.5, "wrong_past": 1.2, "structure": 0.4, "hedged_structure": 0.41}
    last |= {"hedged": 0.55, "gain_error": 0.004}
    assert verdict(last).startswith("predicts")
    for worse in ({"structure": 0.42}, {"wrong_past": 0.5}, {"gain_error": 0.006}):
        assert "predicts" not in verdict(last | worse)
    assert "does not use the past" in verdict(last | {"wrong_past": 0.45})
    for unknown in ("wrong_past", "gain_error"):
        assert verdict({n: v for n, v in last.items() if n != unknown}).startswith("none")


def error_of(values: list[float], weights: list[float], videos: list[int]) -> float:
    metric = MeanError()
    for start in range(0, len(values), 3):  # batches
        own = slice(start, start + 3)
        metric.update(
            torch.tensor(values[own]), torch.tensor(weights[own]), torch.tensor(videos[own])
        )
    return float(metric.compute())


def test_clips_of_one_video_count_as_one_in_the_error_of_a_mean() -> None:
    values = [0.3, -0.1, 0.4, 0.1, 0.2, 0.7, -0.5]
    usual = float(torch.tensor(values).std() / 7**0.5)
    assert error_of(values, [1.0] * 7, [2**62 + i for i in range(7)]) == pytest.approx(usual)
    # Four equal clips of each say no more than one.
    repeated = [value for value in values for _ in range(4)]
    videos = [i for i in range(7) for _ in range(4)]
    assert error_of(repeated, [1.0] * 28, videos) == pytest.approx(usual)
    # What stands for an unusable pair does not count.
    padded = error_of([*values, 9.0], [1.0] * 7 + [0.0], [*range(8)])
    assert padded == pytest.approx(usual)
    assert error_of(values, [1.0] * 7, [5] * 7) == float("inf")


@torch.no_grad()
def test_the_error_of_the_gain_is_of_held_out_videos(build) -> None:
    module, batch = build(), batch_of() | {"weight": torch.ones(3)}
    errors = {}
    for name, video in {"alone": [1, 2, 3], "pairs": [1, 1, 2], "one": [4, 4, 4]}.items():
        module.validation_step(batch | {"video": torch.tensor(video)}, 0)
        errors[name] = float(module.gain_error.compute())
        module.gain_error.reset()
    assert 0 < errors["alone"] != errors["pairs"] > 0 and errors["one"] == float("inf")
    module.validation_step(batch, 0)
    assert float(module.gain_error.compute()) == errors["alone"]


# --- learning ---------------------------------------------------------------------------------


@pytest.mark.slow  # a minute
def test_a_wrong_past_raises_the_loss(tmp_path, monkeypatch) -> None:
    """After 200 steps on rendered clips; and the keys of `load` are those of any backbone."""
    from pixio_lightning.cli.main import main
    from pixio_lightning.training.run_folder import Metrics

    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    words = ["-c", "video/demo", "--trainer.max_steps", "200", "--data.num_workers", "0"]
    words += ["--data.scenes", "{train: 64, held_out: 32, views: 10, size: 64, places: [studio]}"]
    assert main(["fit", *words, "--out", str(tmp_path / "run")]) == 0
    found = Metrics(tmp_path / "run" / "metrics.csv")
    last = {n: found.first_and_last(f"val/{n}")[1] for n in ("loss", "wrong_past", "zero")}
    assert last["loss"] < 0.85 * last["zero"] and last["wrong_past"] > last["loss"] + 0.1


def test_clips_are_what_the_module_reads() -> None:
    assert hasattr(Clips, "training_pairs")


def test_a_process_without_a_pair_has_the_error_of_all(tmp_path: Path) -> None:
    values, weights, videos = torch.randn(6), torch.ones(6), torch.tensor([1, 1, 2, 2, 3, 2**62])
    alone = MeanError()
    alone.update(values, weights, videos)
    in_processes(metric_of_one, str(tmp_path), MeanError, (values, weights, videos))
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone.compute())
