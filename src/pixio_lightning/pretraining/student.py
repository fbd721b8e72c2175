"""A student: a backbone that learns, and its way to the width of the teacher's tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixio_lightning.errors import UserError
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.vit import init_linear
from pixio_lightning.training.optim import Optim

_NAME = re.compile("[A-Za-z][A-Za-z0-9_-]{0,39}")
_TAKEN = {"loss", "lr", "constant", "position"}  # what else is logged, as val/NAME


@dataclass(frozen=True)
class Student:
    """What learns from the teacher, apart from all other students.

    Attributes:
        backbone: The encoder, with `tune: full` and a drop path of its own.
        mask_ratio: Share of the image that is hidden from it; 0 hides nothing.
        mask_grid: Side of a mask block in patches.
        optim: Optimiser and schedule of its own; None takes those of the model.
    """

    backbone: Backbone
    mask_ratio: float = 0.0
    mask_grid: int = 4
    optim: Optim | None = None


class Projector(nn.Sequential):
    """From a student's token to the teacher's: Linear - LayerNorm - GELU - Linear.

    One for class and patch tokens alike (arXiv 2512.15715). Its norm has an eps of
    1e-5, where those of the encoders have 1e-6.

    Args:
        student_dim: Width of the student's tokens.
        teacher_dim: Width of the teacher's.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__(
            nn.Linear(student_dim, teacher_dim),
            nn.LayerNorm(teacher_dim, eps=1e-5),
            nn.GELU(),
            nn.Linear(teacher_dim, teacher_dim),
        )
        self.apply(init_linear)


class ProjectedBackbone(nn.Module):
    """A student's backbone with its projector; it loads the backbone unless it is built empty.

    Args:
        backbone: The student's.
        teacher_dim: Width of the teacher's tokens.
    """

    def __init__(self, backbone: Backbone, teacher_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = Projector(backbone.embed_dim, teacher_dim)
        if torch.get_default_device().type != "meta":
            backbone.load()

    def forward(
        self, images: Tensor, keep: Tensor | None = None, random_key: RandomKey | None = None
    ) -> Tensor:
        """Return normed tokens in the teacher's width.

        Args:
            images: uint8 `(B, 3, H, W)`.
            keep: int64 `(B, n)`, the patches that are seen; None shows all.
            random_key: Random key for drop path.

        Returns:
            `(B, K + n, D)`, class tokens first.
        """
        features = self.backbone(images, keep=keep, random_key=random_key)
        return self.projector(features.tokens)


def check_student(name: str, student: Student, teacher: Backbone) -> None:
    """Refuse a student that cannot learn from a teacher.

    Raises:
        UserError: It is frozen, has other tokens or channels, or a name that cannot be used.
    """
    key, backbone = f"model.students.{name}", student.backbone
    if not _NAME.fullmatch(name) or name in _TAKEN or hasattr(nn.ModuleDict(), name):
        raise UserError(f"a student cannot be called '{name}': give letters, digits, - and _")
    if backbone.frozen:
        raise UserError(f"{key} learns: set {key}.backbone.tune to full")
    if backbone.tapped[-1] != backbone.depth - 1:
        raise UserError(f"{key} learns with its last block: set {key}.backbone.layers to last")
    if backbone.channels != teacher.channels:
        raise UserError(
            f"{key} takes images of {backbone.channels} channels, the teacher of {teacher.channels}"
        )
    if backbone.stride != teacher.stride:
        raise UserError(
            f"{key} has a token for every {backbone.stride} pixels, the teacher for every "
            f"{teacher.stride}: give it another patch_size, so that both have the same tokens"
        )
