"""Modules under a trainer of one's own: what the command line checks, and what is free there."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

import pixio_lightning
from pixio_heads.classification import KNN, Classification
from pixio_lightning import Backbone, Distillation, Optim, PixelPretraining, SampleData, Student
from pixio_lightning.data import Sample
from pixio_lightning.errors import UserError
from pixio_lightning.models.mae_decoder import DecoderSize
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.checkpoints.fill import refuse_other_model

SIDE, SAMPLES = 32, 8
ARGS = {"img_size": SIDE, "embed_dim": 24, "depth": 2, "num_heads": 2}


class Shades:
    """Pictures of two classes, dark and light, each of its own shade."""

    def __len__(self) -> int:
        return SAMPLES

    def name(self, index: int) -> str:
        return f"shade/{index}"

    def load(self, index: int) -> Sample:
        pixels = np.random.default_rng(index).integers(0, 99, (SIDE, SIDE, 3), dtype=np.uint8)
        return {"image": pixels + np.uint8(99 * (index % 2)), "target": np.int64(index % 2)}

    def digest(self) -> str:
        return "shades"


class ShadeData(SampleData):
    multilabel, centre_crop = False, (SIDE, 1.0)

    def __init__(self, *class_names: str) -> None:
        super().__init__(batch_size=2, num_workers=0, steps_per_epoch=4)
        self.class_names = list(class_names or ("dark", "light"))
        self.num_classes = len(self.class_names)

    def open(self, split: str) -> Shades:
        return Shades()


def backbone(tune: Any = "frozen", seed: int = 1) -> Backbone:
    return Backbone("pixio_vitt16", weights=f"random:{seed}", tune=tune, model_args=ARGS)


def head(tune: Any = "frozen", **keys: Any) -> Classification:
    return Classification(backbone(tune), **{"pool": "patches", **keys})


def trainer(folder: Path, *callbacks: L.Callback, **keys: Any) -> L.Trainer:
    torch.manual_seed(0)  # of what it will build
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_steps": 2, "num_sanity_val_steps": 0, "limit_val_batches": 2, **keys},
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a head that a trainer of one's own has trained."""
    folder = tmp_path_factory.mktemp("own")
    own = trainer(folder, limit_val_batches=0)
    own.fit(head(), ShadeData())
    own.save_checkpoint(folder / "own.ckpt")
    return folder / "own.ckpt"


# --- what is trained, and is in the checkpoint ----------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
def test_a_frozen_backbone_is_never_trained(late: bool, tmp_path: Path) -> None:
    """Its weights would be in no checkpoint, and those that were there would be read in place."""
    module = head()
    if late:
        module.backbone.load()
    module.unfreeze()
    with pytest.raises(UserError, match=r"gradients are on for it.*Backbone\(..., tune='full'\)"):
        trainer(tmp_path).fit(module, ShadeData())
    module.backbone.requires_grad_(False)
    own = trainer(tmp_path)
    own.fit(module, ShadeData())
    module.backbone.requires_grad_(True)
    with pytest.raises(UserError, match="no checkpoint holds it"):
        own.save_checkpoint(tmp_path / "x.ckpt")


def test_what_is_trained_is_said_when_a_backbone_is_made() -> None:
    with pytest.raises(AttributeError, match="tune"):
        backbone().tune = "full"  # type: ignore[misc]
    tuned = backbone("full")
    tuned.vit.blocks[0].requires_grad_(False)  # before there are weights
    tuned.load()
    assert not tuned.vit.blocks[0].mlp.fc1.weight.requires_grad
    assert tuned.vit.blocks[1].mlp.fc1.weight.requires_grad


def test_a_training_whose_model_would_be_lost_is_refused(tmp_path: Path) -> None:
    own = trainer(tmp_path, strategy="ddp_fork", devices=1)
    with pytest.raises(Exception, match="the model would be lost: give trainer.strategy ddp"):
        own.fit(head(), ShadeData())


class Uncached(Classification):
    """One that brings callbacks of its own alone."""

    def configure_callbacks(self) -> list[L.Callback]:
        return []


def test_a_cache_that_nothing_fills_is_named(tmp_path: Path) -> None:
    module = Uncached(backbone(), pool="patches", cache=True)
    with pytest.raises(UserError, match="Uncached.configure_callbacks leaves out what fills it"):
        trainer(tmp_path).fit(module, ShadeData())


# --- modes ----------------------------------------------------------------------------------------


class Modes(L.Callback):
    def __init__(self) -> None:
        self.found: list[tuple[bool, bool, bool]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        parts = (pl_module, pl_module.decoder, pl_module.backbone)
        self.found.append(tuple(part.training for part in parts))  # type: ignore[arg-type]


def test_a_head_in_evaluation_mode_is_trained_in_training_mode(tmp_path: Path) -> None:
    modes, module = Modes(), head()
    module.eval()
    trainer(tmp_path, modes, num_sanity_val_steps=1).fit(module, ShadeData())
    assert set(modes.found) == {(True, True, False)}
    modes.found.clear()
    assert module.decoder is not None
    module.decoder.eval()  # on purpose
    trainer(tmp_path, modes).fit(module, ShadeData())
    assert set(modes.found) == {(True, False, False)}


def test_a_refused_picture_leaves_every_mode_as_it_was(saved: Path) -> None:
    module = Classification.load_from_checkpoint(saved, backbone=backbone(), pool="patches")
    module.train()
    with pytest.raises(UserError, match="do not divide into tokens"):
        module.predict(torch.zeros(1, 3, 20, 20, dtype=torch.uint8))
    assert module.training and not module.backbone.training
    module.backbone.eval()
    module.predict(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    assert module.training


# --- other data, and another model, than the weights are made for ---------------------------------


def test_data_of_other_classes_than_the_weights_are_refused(tmp_path: Path) -> None:
    module, own = head(), trainer(tmp_path)
    own.fit(module, ShadeData("dark", "light"))
    other = ShadeData("bright", "dim")
    for verb in (own.validate, own.test, trainer(tmp_path).fit):
        with pytest.raises(
            UserError, match="than the model was trained on .* make a new Classification"
        ):
            verb(module, datamodule=other)
    own.validate(module, datamodule=ShadeData("class 0", "class 1"), verbose=False)  # unnamed


class Scaled(Classification):
    """Classes at a scale that the weights are made for, and evaluations are not."""

    data_attributes = (*Classification.data_attributes, "scale")


def test_what_weights_are_made_for_agrees_where_they_are_trained_further(tmp_path: Path) -> None:
    module, near, far = Scaled(backbone(), pool="patches"), ShadeData(), ShadeData()
    near.scale, far.scale = 10.0, 80.0  # type: ignore[attr-defined]
    trainer(tmp_path).fit(module, near)
    trainer(tmp_path).validate(module, datamodule=far, verbose=False)
    with pytest.raises(UserError, match=r"scale is 80.0 .* trained with 10.0: give the same"):
        trainer(tmp_path).fit(module, far)


def test_a_checkpoint_is_evaluated_by_what_it_was_trained_to_read(
    saved: Path, tmp_path: Path
) -> None:
    message = "model.pool is 'cls', but the checkpoint was trained with 'patches'"
    with pytest.raises(UserError, match=message):
        trainer(tmp_path).validate(head(pool="cls"), datamodule=ShadeData(), ckpt_path=saved)
    with pytest.raises(UserError, match=message):
        Classification.load_from_checkpoint(saved, backbone=backbone(), pool="cls")
    other = Backbone("pixio_vitt16", weights="random:1", layers=[0], model_args=ARGS)
    with pytest.raises(UserError, match=r"model.backbone.layers is \[0\].* with \[1\]"):
        Classification.load_from_checkpoint(saved, backbone=other, pool="patches")


def test_a_checkpoint_of_another_module_is_refused_though_its_tensors_fit(tmp_path: Path) -> None:
    data, module = ShadeData(), Scaled(backbone(), pool="patches")
    data.scale = 10.0  # type: ignore[attr-defined]
    own = trainer(tmp_path)
    own.fit(module, data)
    own.save_checkpoint(tmp_path / "scaled.ckpt")
    with pytest.raises(UserError, match="is one of Scaled, not of Classification: load it into"):
        trainer(tmp_path).validate(head(), datamodule=data, ckpt_path=tmp_path / "scaled.ckpt")


# --- sums -----------------------------------------------------------------------------------------


class Stop(L.Callback):
    """Break off after the first batch of an evaluation, or of a training before its step."""

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken off")

    def on_before_backward(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken off")


def pretraining() -> PixelPretraining:
    size = DecoderSize(16, 1, 2)
    return PixelPretraining(backbone("full"), mask_grid=1, decoder=size, optim=RATE)


def distillation() -> Distillation:
    return Distillation(backbone(), {"a": Student(backbone("full", seed=2))}, optim=RATE)


RATE = Optim(lr=1e-3)


@pytest.mark.parametrize("make", [head, pretraining, distillation])
def test_an_evaluation_that_was_broken_off_does_not_count(
    make: Callable[[], BackboneModule], tmp_path: Path
) -> None:
    module = make()
    with pytest.raises(RuntimeError, match="broken off"):
        trainer(tmp_path, Stop()).validate(module, datamodule=ShadeData(), verbose=False)
    after, whole = (
        trainer(tmp_path).validate(one, datamodule=ShadeData(), verbose=False)
        for one in (module, make())
    )
    assert after == whole
    if isinstance(module, Classification):
        assert module.outcome is not None and module.outcome.n == 4


def test_a_training_that_was_broken_off_is_not_in_the_next_mean(tmp_path: Path) -> None:
    module, losses = pretraining(), []
    with pytest.raises(RuntimeError, match="broken off"):
        trainer(tmp_path, Stop()).fit(module, ShadeData())
    for one in (module, pretraining()):
        own = trainer(tmp_path, max_steps=3, log_every_n_steps=3)
        own.fit(one, ShadeData())
        losses.append(own.callback_metrics["train/loss"].item())
    assert losses[0] == losses[1]


# --- an optimiser of one's own --------------------------------------------------------------------


class Descent(Classification):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.decoder.parameters(), lr=0.25, momentum=0.9)


class Annealed(Classification):
    """Our optimiser with a schedule of one's own."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()["optimizer"]
        for group in optimizer.param_groups:
            group["lr"] = 0.25
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)]


@pytest.mark.parametrize("kind", [Descent, Annealed])
def test_an_optimiser_of_ones_own_trains_and_its_rate_is_logged(
    kind: type[Classification], tmp_path: Path
) -> None:
    module = kind(backbone(), pool="patches")
    own = trainer(tmp_path, log_every_n_steps=1, limit_val_batches=0)
    own.fit(module, ShadeData())
    assert own.global_step == 2 and own.callback_metrics["train/lr"] == 0.25
    own.save_checkpoint(tmp_path / "x.ckpt")
    further = trainer(tmp_path, max_steps=3, limit_val_batches=0)
    further.fit(kind(backbone(), pool="patches"), ShadeData(), ckpt_path=tmp_path / "x.ckpt")
    assert further.global_step == 3


class Decayed(Classification):
    """One that changes what ours has built."""

    def configure_optimizers(self) -> dict[str, Any]:
        built = super().configure_optimizers()
        for group in built["optimizer"].param_groups:
            group["weight_decay"] = 0.25
        return built


def test_what_is_changed_of_our_optimiser_stays_so(tmp_path: Path) -> None:
    own = trainer(tmp_path, limit_val_batches=0)
    own.fit(Decayed(backbone(), pool="patches"), ShadeData())
    assert {group["weight_decay"] for group in own.optimizers[0].param_groups} == {0.25}


class Added(L.Callback):
    """What Lightning's BackboneFinetuning does after some epochs."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.optimizers[0].add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 1.0})


def test_parameters_that_come_later_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its schedule knows .* BackboneFinetuning"):
        trainer(tmp_path, Added(), limit_val_batches=0).fit(head(), ShadeData())


# --- back again -----------------------------------------------------------------------------------


def test_what_was_trained_without_the_command_line_comes_back(saved: Path, tmp_path: Path) -> None:
    message = r"trained without the command line.*Classification.load_from_checkpoint\(path"
    with pytest.raises(UserError, match=message):
        pixio_lightning.load(saved)
    module = Classification.load_from_checkpoint(saved, backbone=backbone(), pool="patches")
    trained = head()
    trainer(tmp_path, limit_val_batches=0).fit(trained, ShadeData())
    images = torch.randint(0, 255, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    assert torch.equal(module.predict(images), trained.predict(images))
    assert module.data_info["class_names"] == ["dark", "light"]
    assert torch.equal(module.statistics["frequency"], torch.tensor([0.5, 0.5]))
    with pytest.raises(UserError, match="is one of Classification, not of KNN"):
        KNN.load_from_checkpoint(saved, backbone=backbone())
    with pytest.raises(UserError, match="digest"):
        Classification.load_from_checkpoint(saved, backbone=backbone(seed=3), pool="patches")


@pytest.mark.parametrize("key", [{"strict": False}, {"weights_only": False}])
def test_a_checkpoint_is_loaded_strictly_and_without_code(
    key: dict[str, bool], saved: Path
) -> None:
    with pytest.raises(UserError, match="leave out hparams_file, strict=False and weights_only"):
        Classification.load_from_checkpoint(saved, backbone=backbone(), pool="patches", **key)
    same = {name: True for name in key}
    Classification.load_from_checkpoint(saved, backbone=backbone(), pool="patches", **same)
    with pytest.raises(UserError, match="does not fit Classification: TypeError: .*backbone"):
        Classification.load_from_checkpoint(saved)


def test_values_below_a_key_are_compared_one_by_one() -> None:
    now = {"sizes": {"dim": 8, "taps": [1, 2]}, "pool": "cls"}
    refuse_other_model(now, {"sizes": {"dim": 8, "taps": (1, 2)}})
    with pytest.raises(UserError, match=r"model.sizes.dim is 8, but .* trained with 9"):
        refuse_other_model(now, {"sizes": {"dim": 9, "taps": (1, 2)}})


def test_a_tuned_backbone_comes_back_whatever_it_began_with(tmp_path: Path) -> None:
    own, module = trainer(tmp_path, limit_val_batches=0), head("full")
    own.fit(module, ShadeData())
    own.save_checkpoint(tmp_path / "x.ckpt")
    begun = backbone("full", seed=5)
    back = Classification.load_from_checkpoint(tmp_path / "x.ckpt", backbone=begun, pool="patches")
    for name, tensor in module.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_both_packages_say_that_they_are_typed() -> None:
    for package in ("pixio_lightning", "pixio_heads"):
        assert files(package).joinpath("py.typed").is_file()
