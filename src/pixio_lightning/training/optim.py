"""Optimiser and schedule: AdamW with the field's parameter groups, scaled to the global batch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pixio_lightning.errors import UserError, one_of
from pixio_lightning.models.backbone import Backbone

Schedule = Literal["cosine", "poly", "constant"]


@dataclass(frozen=True)
class Optim:
    """AdamW and its schedule; steps are optimiser steps.

    Attributes:
        blr: Base learning rate for 256 images; the peak is ``blr * global_batch / 256``.
        lr: Peak learning rate, taken as it is; where it is given, `blr` does not count. Of
            recipes and the command line, the one of the two that was given last counts.
        weight_decay: Decay of every parameter but biases, norms and other vectors.
        betas: AdamW's coefficients.
        warmup: Linear warm-up from 0: a share of all steps below 1, a number of steps from 1 on.
        schedule: After warm-up: half a cosine, a polynomial of power 0.9, or constant.
        min_lr: Learning rate at the end, as a share of the peak.
        layer_decay: Factor on the learning rate from one block of the backbone to the one before.
        backbone_lr_scale: Factor on the learning rate of all of the backbone.
    """

    blr: float | None = None
    lr: float | None = None
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.1
    schedule: Schedule = "cosine"
    min_lr: float = 0.0
    layer_decay: float = 1.0
    backbone_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        one_of("optim.schedule", self.schedule, get_args(Schedule))


def peak_lr(optim: Optim, global_batch: int) -> float:
    """Return the peak learning rate.

    Raises:
        UserError: Neither `blr` nor `lr` is given.
    """
    if optim.lr is not None:
        return optim.lr
    if optim.blr is None:
        raise UserError(
            "there is no learning rate: give model.optim.blr, for 256 images, or model.optim.lr, "
            "taken as it is"
        )
    return optim.blr * global_batch / 256


def warmup_steps(optim: Optim, total_steps: int) -> float:
    """Return the steps over which the learning rate rises, given as such or as a share of all."""
    return optim.warmup if optim.warmup >= 1 else optim.warmup * total_steps


def schedule_factor(optim: Optim, total_steps: int) -> Callable[[int], float]:
    """Return the factor on the peak learning rate as a function of the step.

    Raises:
        UserError: A decaying schedule has no end because the number of steps is unknown.
    """
    if total_steps < 1 and optim.schedule != "constant":
        raise UserError(
            f"the {optim.schedule} schedule needs the number of steps: set trainer.max_steps"
        )
    if total_steps < 1 and 0 < optim.warmup < 1:
        raise UserError(
            f"a warm-up of {optim.warmup} is a share of all steps: set trainer.max_steps, or give "
            "model.optim.warmup as a number of steps"
        )
    warmup = warmup_steps(optim, total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        if optim.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if optim.schedule == "cosine":
            left = (1 + math.cos(math.pi * progress)) / 2
        else:
            left = (1 - progress) ** 0.9
        return optim.min_lr + (1 - optim.min_lr) * left

    return factor


def block_depth(name: str, depth: int) -> int:
    """Return how many blocks lie between a backbone's parameter and its end.

    Args:
        name: Parameter name within the LightningModule, `backbone.vit.blocks.3.attn...`.
        depth: Number of blocks that run.
    """
    if not name.startswith("backbone."):
        return 0
    block = re.search(r"\.blocks\.(\d+)\.", name)
    if block:
        return depth - int(block.group(1))
    return 0 if re.match(r"backbone\.vit\.(fc_)?norm\.", name) else depth + 1


def parameter_groups(module: nn.Module, optim: Optim, *, depth: int) -> list[dict[str, Any]]:
    """Sort trainable parameters by weight decay and learning-rate factor.

    Vectors and biases are not decayed; class tokens, mask tokens and positions (three
    dimensions) are.

    Args:
        module: What to train.
        optim: `weight_decay`, `layer_decay` and `backbone_lr_scale` are read.
        depth: Number of the backbone's blocks that run.

    Returns:
        Groups with `params`, `weight_decay` and `lr_factor`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith(".bias")
        decay = 0.0 if plain else optim.weight_decay
        factor = optim.layer_decay ** block_depth(name, depth)
        if name.startswith("backbone."):
            factor *= optim.backbone_lr_scale
        groups.setdefault((decay, factor), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "lr_factor": factor}
        for (decay, factor), params in groups.items()
    ]


class Part(NamedTuple):
    """What is trained with settings of its own.

    Attributes:
        module: Whose parameters they are.
        optim: The settings.
        depth: Number of blocks that run of the backbone in it.
    """

    module: nn.Module
    optim: Optim
    depth: int


def build(
    parts: Sequence[Part], *, global_batch: int, total_steps: int, fused: bool = True
) -> dict[str, Any]:
    """Return one optimiser of all parts and its per-step schedule, in the form Lightning expects.

    AdamW looks at one parameter at a time, so that each part is trained as by one of its own.
    """
    refuse_unread(parts)
    groups, factors = [], []
    for part in parts:
        peak = peak_lr(part.optim, global_batch)
        for group in parameter_groups(part.module, part.optim, depth=part.depth):
            group |= {"lr": peak * group.pop("lr_factor"), "betas": tuple(part.optim.betas)}
            groups.append(group)
            factors.append(schedule_factor(part.optim, total_steps))
    if not groups:
        return {}
    optimizer = torch.optim.AdamW(groups, fused=fused)
    scheduler = LambdaLR(optimizer, factors)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def refuse_unread(parts: Sequence[Part]) -> None:
    """Refuse a factor on the rates of a backbone that is not trained.

    Raises:
        UserError: There is one.
    """
    for part in parts:
        backbones = [inner for inner in part.module.modules() if isinstance(inner, Backbone)]
        for name in ("layer_decay", "backbone_lr_scale"):
            value = getattr(part.optim, name)
            if value != 1.0 and all(backbone.frozen for backbone in backbones):
                raise UserError(
                    f"optim.{name} is {value:g}, but nothing of the backbone is trained: give "
                    "backbone.tune, as full, or leave it out"
                )


# What the configuration decides of a group; all else is state.
_SETTINGS = ("initial_lr", "weight_decay", "betas")


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return what the configuration says of each parameter group, its peak rate among it."""
    return [{key: group[key] for key in _SETTINGS} for group in optimizer.param_groups]


def apply_settings(
    optimizers: Sequence[torch.optim.Optimizer],
    schedulers: Sequence[Any],
    configured: list[dict[str, Any]],
) -> None:
    """Put the configuration's settings in place of those that a checkpoint brought along.

    Those of an optimiser or a schedule of one's own, of `configure_optimizers`, stay as they are.

    Args:
        optimizers: Ours is one alone.
        schedulers: Of the optimisers; the rate follows from the step that ours has reached.
        configured: As `settings` returned of ours; empty of others.
    """
    if not configured or len(optimizers) != 1 or len(schedulers) != 1:
        return
    (optimizer,), (scheduler,) = optimizers, schedulers
    if not isinstance(scheduler, LambdaLR) or len(optimizer.param_groups) != len(configured):
        return
    scheduler.base_lrs = [group["initial_lr"] for group in configured]
    for group, found, factor in zip(
        optimizer.param_groups, configured, scheduler.lr_lambdas, strict=True
    ):
        group.update(found, lr=found["initial_lr"] * factor(scheduler.last_epoch))


def refuse_added(scheduler: Any) -> None:
    """Refuse to go on where parameters were added to an optimiser whose schedule is ours.

    Raises:
        UserError: They were, as by Lightning's BackboneFinetuning.
    """
    if isinstance(scheduler, LambdaLR):
        groups, known = len(scheduler.optimizer.param_groups), len(scheduler.lr_lambdas)
        if groups != known:
            raise UserError(
                f"the optimiser has {groups} groups of parameters, but its schedule knows {known}: "
                "none can be added while a model is trained, as BackboneFinetuning does: let "
                "configure_optimizers return an optimiser and a schedule of your own, or train the "
                "rest in a second fit"
            )
