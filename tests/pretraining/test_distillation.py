"""Students learn from one pass of a frozen teacher, each as if it were alone."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from pixio_lightning.errors import UserError
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.vit import SIZES
from pixio_lightning.pretraining.distillation import Distillation
from pixio_lightning.pretraining.student import ProjectedBackbone, Student
from pixio_lightning.training.optim import Optim
from pixio_lightning.training.run_folder import Metrics

N_CLS, SIDE = 3, 4  # class tokens, patches in an image's side
ARGS = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "n_cls_tokens": N_CLS}


def teacher_of(name="pixio_vitt16", weights="random:0", **changes):
    arguments = ARGS if name.startswith("pixio") else {}
    return Backbone(name, weights=weights, model_args=arguments | changes)


def student_of(width=24, tune="full", drop_path=0.0, layers="last", weights="random", **changes):
    own = {k: changes.pop(k) for k in ("mask_ratio", "mask_grid", "optim") if k in changes}
    args = ARGS | {"embed_dim": width} | changes
    options = {"tune": tune, "drop_path": drop_path, "layers": layers, "model_args": args}
    return Student(Backbone("pixio_vitt16", weights=weights, **options), **own)


def build(students, teacher=None, **changes):
    module = Distillation(teacher or teacher_of(), students, **changes)
    module.configure_model()
    return module


@pytest.fixture
def batch():
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    return {"image": images, "key": torch.tensor([11, -7, 2**40])}


class Samples(L.LightningDataModule):
    """Four batches of two images."""

    batch_size = 2

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=generator)
        samples = [{"image": image, "key": torch.tensor(i)} for i, image in enumerate(images)]
        return DataLoader(samples, batch_size=self.batch_size)


def trainer_of(steps=3, **changes):
    return L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **changes,
    )


@pytest.mark.parametrize(
    ("name", "projector", "total"),
    [
        ("pixio_vitb16", 11_808_768, 97_664_256),
        ("pixio_vitl16", 12_595_200, 315_972_608),
        ("pixio_vith16", 13_381_632, 644_394_752),
        ("pixio_vit1b16", 14_168_064, 1_375_683_072),
    ],
)
def test_sizes_are_the_published_ones(name, projector, total):
    with torch.device("meta"):
        student = Backbone(name, weights="random", tune="full")
        model = ProjectedBackbone(student, SIZES["pixio_vit5b16"].embed_dim)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.projector, model)]
    assert counts == [projector, total]
    assert model.projector[1].eps == 1e-5 and student.vit.norm.eps == 1e-6


def test_the_projector_starts_as_the_encoder_does():
    projector = build({"a": student_of()}).decoder["a"].projector
    for linear in (projector[0], projector[3]):
        limit = (6 / sum(linear.weight.shape)) ** 0.5  # xavier
        assert 0.9 * limit < linear.weight.abs().max() <= limit and not linear.bias.any()


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_the_loss_equals_a_plain_one_in_double_precision(batch, ratio, randomize):
    student = student_of(mask_ratio=ratio, mask_grid=2)
    module = build({"a": student})
    randomize(module)
    random_key = RandomKey(batch["key"], 0, 5)
    loss = module._losses(module(batch["image"], random_key))["a"]
    plain = copy.deepcopy(module).double()
    teacher = plain.backbone(batch["image"]).layers[-1].raw_tokens
    keep = module._keep("a", student, (SIDE, SIDE), random_key._replace(seed=seed_of("a")))
    assert ratio == 0 and keep is None or keep.shape == (3, 8)
    keep = torch.arange(16).expand(3, -1) if keep is None else keep
    p = plain.decoder["a"].projector
    x = plain.students["a"].backbone(batch["image"], keep=keep).tokens
    x = x @ p[0].weight.T + p[0].bias
    centred = x - x.mean(-1, keepdim=True)
    x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    x = F.gelu(x * p[1].weight + p[1].bias) @ p[3].weight.T + p[3].bias
    for i in range(3):
        target = torch.cat([teacher[i, :N_CLS], teacher[i, N_CLS:][keep[i]]])
        cosine = (x[i] * target).sum(-1) / x[i].norm(dim=-1) / target.norm(dim=-1)
        expected = 1 - (cosine[:N_CLS].mean() + cosine[N_CLS:].mean()) / 2
        assert loss[i].item() == pytest.approx(expected.item(), rel=1e-5)


def seed_of(name, seed=0):
    from pixio_lightning.keyed import fold, key_of

    return fold(seed, key_of(name))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_one_pass_of_the_teacher_serves_all_students(precision):
    """In the run's precision, without a gradient, in evaluation mode, and as it was before."""
    module = build({"a": student_of(drop_path=0.3), "b": student_of(12)}, optim=Optim(lr=1e-2))
    before = copy.deepcopy(module.backbone.vit.state_dict())
    passes = []

    def note(teacher, given, out):
        half = torch.is_autocast_enabled("cpu")
        passes.append((torch.is_grad_enabled(), teacher.training, half))

    module.backbone.register_forward_hook(note)
    trainer_of(precision=precision).fit(module, datamodule=Samples())
    assert passes == [(False, False, precision == "bf16-mixed")] * 3
    assert all(torch.equal(t, before[n]) for n, t in module.backbone.vit.state_dict().items())
    (optimizer,) = module.trainer.optimizers
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    assert trained == set(module.decoder.parameters())
    assert all(p.grad is None for p in module.backbone.parameters())


@pytest.mark.parametrize("changes", [{}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}])
def test_together_is_alone_bit_for_bit(changes):
    """With masks, drop path, clipping, accumulation, and an optimiser of its own."""

    def trained(names):
        known = {
            "a": student_of(drop_path=0.4, mask_ratio=0.5, mask_grid=2),
            "b": student_of(12, drop_path=0.4, optim=Optim(lr=3e-3, betas=(0.8, 0.9), warmup=1)),
        }
        torch.manual_seed(len(names))  # nothing of the run's own generator is used
        module = build({n: known[n] for n in names}, optim=Optim(lr=1e-2, warmup=1), seed=3)
        trainer_of(4, accumulate_grad_batches=2, **changes).fit(module, datamodule=Samples())
        return {n: module.decoder[n].state_dict() for n in names}

    both, turned = trained("ab"), trained("ba")
    for name in "ab":
        (alone,) = trained(name).values()
        assert alone.keys() == both[name].keys()
        for key, tensor in alone.items():
            assert torch.equal(tensor, both[name][key]), (name, key)
            assert torch.equal(tensor, turned[name][key]), (name, key)


def test_masks_are_each_students_own_and_follow_step_and_seed(batch):
    students = {n: student_of(mask_ratio=0.5, mask_grid=1) for n in ("a", "b")}
    module = build(students)
    with torch.no_grad():
        first = module(batch["image"], RandomKey(batch["key"], 0, 0))
        again = module(batch["image"], RandomKey(batch["key"], 0, 1))
    target = first.teacher.raw_tokens[:, N_CLS:]
    for name in "ab":
        found = first.matches[name].target_patches
        assert found.shape == (3, 8, 48)
        # Each is the teacher's token at some place, and no place comes twice.
        places = (found[:, :, None] == target[:, None]).all(-1)
        assert (places.sum(-1) == 1).all() and (places.sum(1) <= 1).all()
        assert not torch.equal(found, again.matches[name].target_patches)
    assert not torch.equal(first.matches["a"].target_patches, first.matches["b"].target_patches)


def test_hidden_patches_reach_no_student(batch):
    module = build({"a": student_of(mask_ratio=0.5, mask_grid=2)})
    random_key = RandomKey(batch["key"], 0, 0)
    own = random_key._replace(seed=seed_of("a"))
    keep = module._keep("a", module.students["a"], (SIDE, SIDE), own)
    seen = torch.zeros(3, SIDE * SIDE).scatter_(1, keep, 1.0).view(3, 1, SIDE, SIDE)
    seen = F.interpolate(seen, scale_factor=16).bool()
    changed = torch.where(seen, batch["image"], 255 - batch["image"])
    one, two = (module(images, random_key).matches["a"] for images in (batch["image"], changed))
    assert torch.equal(one.patches, two.patches) and torch.equal(one.cls, two.cls)
    assert not torch.equal(one.target_patches, two.target_patches)


@pytest.mark.parametrize(
    ("name", "args", "pairs"),
    [
        ("vit_small_patch14_reg4_dinov2.lvd142m", {"img_size": 56, "depth": 2}, 1),
        ("vit_small_patch16_dinov3.lvd1689m", {"img_size": 64, "depth": 2}, 1),
        ("vit_base_patch16_224.mae", {"img_size": 64, "depth": 1}, 1),
        ("vit_base_patch16_gap_224", {"img_size": 64, "depth": 1}, 0),
    ],
    ids=["dinov2", "dinov3", "mae", "no class token"],
)
def test_teachers_of_other_families(batch, name, args, pairs):
    """Of other patches, registers and class tokens: the same crop gives the same places."""
    module = build({"a": student_of(mask_ratio=0.5, mask_grid=2)}, teacher_of(name, **args))
    result = module(batch["image"], RandomKey(batch["key"], 0, 0))
    found = result.matches["a"]
    assert result.teacher.grid == (SIDE, SIDE)
    assert found.cls.shape == (3, pairs, module.backbone.embed_dim)
    assert found.patches.shape == found.target_patches.shape == (3, 8, module.backbone.embed_dim)
    module._losses(result)["a"].mean().backward()
    for key, parameter in module.decoder.named_parameters():
        assert parameter.grad is not None, key


def test_every_parameter_of_a_student_is_trained(batch, randomize):
    module = randomize(build({"a": student_of()}))
    module._losses(module(batch["image"], None))["a"].mean().backward()
    for name, parameter in module.decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_validation_beside_constants_that_do_not_look(batch):
    """Every image counts once, padding (weight 0) not at all."""
    students = {"a": student_of(mask_ratio=0.5, mask_grid=2), "b": student_of(12)}
    module = build(students)
    samples = [
        {"image": image, "key": key, "weight": torch.tensor(weight)}
        for image, key, weight in zip(batch["image"], batch["key"], [1.0, 1.0, 0.0], strict=True)
    ]
    (found,) = trainer_of().validate(module, DataLoader(samples, batch_size=2), verbose=False)
    with torch.no_grad():
        result = module(batch["image"][:2], RandomKey(batch["key"][:2], 0, -1))
    losses = {n: loss.mean().item() for n, loss in module._losses(result).items()}
    for name in "ab":
        assert found[f"val/{name}"] == pytest.approx(losses[name], rel=1e-5)
    assert found["val/loss"] == pytest.approx(sum(losses.values()) / 2, rel=1e-5)
    units = F.normalize(result.teacher.raw_tokens, dim=-1)
    # Two images: the best token of a place is half way between the two.
    left = 1 - units.mean(0).norm(dim=-1)
    position = (left[:N_CLS].mean() + left[N_CLS:].mean()) / 2
    assert found["val/position"] == pytest.approx(position.item(), abs=1e-6)
    constant = (left[:N_CLS].mean() + 1 - units[:, N_CLS:].mean((0, 1)).norm()) / 2
    assert found["val/constant"] == pytest.approx(constant.item(), abs=1e-6)


def test_the_report_names_constants_and_students(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text("step,val/loss,val/constant,val/a,val/b\n0,1,.5,1,1\n9,.25,.5,.2,.3\n")
    said = build({"a": student_of(), "b": student_of()}).report(Metrics(table))
    assert said == {
        "held-out loss": "first 1.000, last 0.250",
        "best constant tokens": "0.500 (the last loss is 50% below)",
        "student a": "first 1.000, last 0.200",
        "student b": "first 1.000, last 0.300",
    }


def test_pictures_give_equal_tokens_equal_colours(batch):
    """A student that puts out the teacher's own tokens has its colours, and no distance."""
    module = build({"a": student_of(48), "b": student_of()}).eval()
    model = module.decoder["a"]
    model.forward = lambda images, keep, key: module.backbone(images).layers[-1].raw_tokens
    panel = module.pictures(batch)
    assert panel.titles == [
        *("image", "teacher", "a, projected", "a: distance", "b, projected", "b: distance"),
    ]
    for image, (shown, teacher, a, apart, b, other) in zip(batch["image"], panel.rows, strict=True):
        assert torch.equal(shown, image) and torch.equal(teacher, a) and not apart.any()
        assert not torch.equal(teacher, b) and other.any()


def test_probes_look_at_the_first_student():
    module = build({"b": student_of(), "a": student_of()})
    assert module.probed_backbone is module.decoder["b"].backbone


def test_a_licence_tells_of_the_teacher():
    teacher = teacher_of()
    teacher.licence = "FAIR Noncommercial Research License v1"
    module = Distillation(teacher, {"a": student_of()})
    said = f"distilled from pixio_vitt16, {teacher.licence}"
    assert module.students["a"].backbone.identity["licence"] == said


def test_a_second_teacher_s_licence_stands_beside_the_first_one_s():
    first, second, student = teacher_of(), teacher_of(), student_of()
    first.licence, second.licence = "MIT-0", "MIT"
    for teacher in (first, second, second):  # the last as a student is read again
        Distillation(teacher, {"a": student})
    texts = [f"distilled from pixio_vitt16, {teacher.licence}" for teacher in (first, second)]
    assert student.backbone.licence == "; ".join(texts)


class Images:
    """Data of a given size."""

    image_size = 48
    channels = 3


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ({"weights": "random"}, {}, "teacher's weights are random.*or random:SEED"),
        ({}, {"tune": "frozen"}, r"model\.students\.a learns: set .*tune to full"),
        ({}, {"layers": [0]}, "set model.students.a.backbone.layers to last"),
        ({}, {"patch_size": 8}, "a token for every 8 pixels, the teacher for every 16"),
        ({}, {"in_chans": 1, "mean": [0.5], "std": [0.5]}, "images of 1 channels"),
        ({}, {"mask_ratio": 0.5, "mask_grid": 2}, "model.students.a.mask_grid 2 does not divide"),
        ({}, {"mask_ratio": 0.99, "mask_grid": 1}, "model.students.a.mask_ratio 0.99 keeps 0"),
    ],
)
def test_mistakes(teacher, student, message):
    with pytest.raises(UserError, match=message) as caught:
        Distillation(teacher_of(**teacher), {"a": student_of(**student)}).read_data_attributes(
            Images()
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["loss", "train", "a.b", "", "1b", "a:b", "constant"])
def test_names_that_cannot_be_used(name):
    with pytest.raises(UserError, match="a student cannot be called"):
        Distillation(teacher_of(), {name: student_of()})


def test_there_is_a_student_and_the_teacher_is_frozen():
    with pytest.raises(UserError, match="give model.students"):
        Distillation(teacher_of(), {})
    trained = Backbone("pixio_vitt16", weights="random:0", tune="full", model_args=ARGS)
    with pytest.raises(UserError, match="is the teacher: set model.backbone.tune to frozen"):
        Distillation(trained, {"a": student_of()})
