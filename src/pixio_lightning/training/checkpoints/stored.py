"""StoredModule: what a checkpoint holds of a module around a backbone, and how it is given back."""

from __future__ import annotations

import os
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor

from pixio_lightning.errors import UserError, printable
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.training.checkpoints import checkpoint_io
from pixio_lightning.training.checkpoints.fill import (
    fill,
    misfit_told,
    plain_values,
    refuse_other_model,
    refuse_thawed,
)
from pixio_lightning.training.checkpoints.form import FORMAT

# Weights fit any number of attention heads, and mean something under one.
HEADS = "backbone.model_args.num_heads"


class StoredModule(L.LightningModule):
    """A LightningModule whose checkpoints describe it in plain data, without a frozen backbone.

    Attributes:
        backbone: The encoder.
        config: The class and the arguments that it was made of by the command line; else empty.
    """

    backbone: Backbone
    config: dict[str, Any]

    # Keys of the model that say what its weights read or give, whose values fit the same weights: a
    # checkpoint is evaluated with those that it was trained with.
    model_as_trained: tuple[str, ...] = ()

    def as_trained(self) -> dict[str, Any]:
        """Return the values of `model_as_trained`, and how many attention heads the backbone has.

        As attributes of these names hold them, or else, as of a decoder, the configuration.
        """
        asked = self.config.get("init_args", {})
        found = {key: asked[key] for key in self.model_as_trained if key in asked}
        found |= plain_values(self, self.model_as_trained)
        if "backbone.layers" in self.model_as_trained:
            found["backbone.layers"] = list(self.backbone.tapped)
        return found | {HEADS: self.backbone.heads}

    def remember(self, about: dict[str, Any]) -> None:
        """Take from the `pixio` entry of a checkpoint what must be known before building."""

    @property
    def attached(self) -> Any:
        """The trainer, or None outside of one."""
        try:
            return self.trainer
        except RuntimeError:
            return None

    @property
    def fitting(self) -> bool:
        """Whether the trainer is one that trains, also while it validates."""
        return self.attached is not None and self.trainer.state.fn == "fit"

    @property
    def restored_late(self) -> bool:
        """Whether a training restores its checkpoint after `on_fit_start`, as if sharded."""
        return self.fitting and self.trainer.strategy.restore_checkpoint_after_setup

    @property
    def backbone_digest(self) -> str:
        """Hash of the backbone's tensors; of a frozen one as they were read."""
        return self.backbone.digest

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the model in plain data; leave a frozen backbone's tensors out.

        Raises:
            UserError: The frozen backbone is trained all the same.
        """
        refuse_thawed(self.backbone)
        checkpoint["pixio"] = {
            "format": FORMAT,
            "class": type(self).__qualname__,
            "config": self.config,
            "as_trained": self.as_trained(),
            "backbone": self.backbone.identity,
        }
        if self.backbone.frozen:
            checkpoint["pixio"]["backbone_digest"] = self.backbone_digest
            checkpoint["state_dict"] = {
                name: tensor
                for name, tensor in checkpoint["state_dict"].items()
                if not name.startswith("backbone.")
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put a frozen backbone's live tensors back, so that loading stays strict.

        Raises:
            UserError: The checkpoint is another module's, or was trained on another frozen
                backbone; or it is evaluated with another value of `model_as_trained`.
        """
        about = checkpoint.get("pixio", {})
        if other := self.other_writer(about):  # its tensors may fit by chance
            raise UserError(
                f"the checkpoint is one of {other}, not of {type(self).__qualname__}: load it "
                "into one of these, or its encoder alone as the weights of a Backbone"
            )
        if (digest := about.get("backbone_digest")) is not None:
            self._put_back(checkpoint["state_dict"], digest)
        if not self.fitting:  # a training may begin with weights that will read something else
            refuse_other_model(self.as_trained(), about.get("as_trained", {}))

    @classmethod
    def other_writer(cls, about: dict[str, Any]) -> str:
        """Return which module a checkpoint is of, to print; nothing if it is one of these.

        Args:
            about: Its `pixio` entry.
        """
        wrote = about.get("class", cls.__qualname__)
        ours = any(wrote == kind.__qualname__ for kind in cls.__mro__)
        return "" if ours else printable(str(wrote))

    def _put_back(self, state: dict[str, Tensor], digest: str) -> None:
        self.configure_model()
        live: dict[str, Tensor] = self.backbone.vit.state_dict()
        if self.backbone_digest != digest:
            raise UserError(
                f"the checkpoint's head was trained on a frozen backbone with digest {digest}, "
                f"but weights '{self.backbone.weights}' have {self.backbone_digest}; "
                "give the backbone it was trained on"
            )
        state |= {f"backbone.vit.{k}": v for k, v in live.items()}

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | os.PathLike,
        map_location: str | torch.device | None = None,
        hparams_file: None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **arguments: Any,
    ) -> Self:
        """Make a module of these arguments and give it the weights of a checkpoint.

        Whoever trained it, and without code that the file names. What `pixio fit` has trained,
        `pixio_lightning.load` brings back without arguments.

        Args:
            checkpoint_path: The checkpoint.
            map_location: The device; None is the CPU.
            hparams_file: Lightning's; refused, as arguments are given.
            strict: Lightning's; always true.
            weights_only: Lightning's; always true.
            arguments: Those that the module was trained with, `backbone` among them: where it is
                frozen, on the same weights, and else on whatever it began with.

        Raises:
            UserError: The file is missing, damaged or of something else; or does not fit the
                arguments.
        """
        if hparams_file is not None or strict is False or weights_only is False:
            raise UserError(
                "a checkpoint is loaded strictly, without code, by the arguments that are given: "
                "leave out hparams_file, strict=False and weights_only=False"
            )
        path = checkpoint_path
        stored = checkpoint_io.read(path)
        about = stored.get("pixio")
        if not isinstance(about, dict) or not isinstance(stored.get("state_dict"), dict):
            raise UserError(f"checkpoint '{path}' is of no module of pixio_lightning")
        if other := cls.other_writer(about):
            raise UserError(
                f"checkpoint '{path}' is one of {other}, not of {cls.__qualname__}: call "
                "load_from_checkpoint of that class"
            )
        with misfit_told(cls, path):
            module = cls(**arguments)
        fill(module, stored, path)
        return module if map_location is None else module.to(map_location)
