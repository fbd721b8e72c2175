"""Weights fit any number of attention heads, and mean something under one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pixio_lightning.errors import UserError
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.build import build


def check_attention(backbone: Backbone, stored: dict[str, Any], source: Path) -> None:
    """Refuse a backbone of other attention heads than that of a checkpoint.

    Args:
        backbone: That of the model.
        stored: The checkpoint's `identity` of its own.
        source: The checkpoint.

    Raises:
        UserError: A block has another number of heads.
    """
    try:
        with torch.device("meta"):
            then = _heads(build(str(stored["name"]), stored["model_args"]))
    except (KeyError, TypeError, UserError):  # no model that is known: told when it is loaded
        return
    now = _heads(backbone.vit)
    for before, after in zip(then, now, strict=False):
        if before != after:
            raise UserError(
                f"checkpoint '{source}' has a backbone of {before} attention heads a block, but "
                f"it would be read with {after}: give model.backbone.model_args.num_heads {before}"
            )


def _heads(model: nn.Module) -> list[int]:
    found = (getattr(part, "num_heads", None) for part in model.modules())
    return [heads for heads in found if isinstance(heads, int)]
