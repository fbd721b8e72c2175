"""What images are compared by in k-NN classification, and which of them are one file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pixio_lightning.keyed import key_of
from pixio_lightning.models import Features


def feature(features: Features, *, normed: bool = False) -> Tensor:
    """Return what images are compared by: the mean class token, of length one.

    Without class tokens it is the mean patch.

    Args:
        features: Of an encoder.
        normed: Whether tokens are taken after its final norm.

    Returns:
        float32 `(B, C)`.
    """
    layer = features.layers[-1]
    tokens = layer.tokens if normed else layer.raw_tokens
    tokens = tokens[:, : layer.n_cls] if layer.n_cls else tokens
    return F.normalize(tokens.float().mean(dim=1), dim=1)


def file_keys(root: Path | None, names: Sequence[str]) -> Tensor:
    """Return keys of samples `(B,)`, the same for a file by whatever folder and link it is named.

    Args:
        root: What the names are relative to; None where they are of no files, and unique.
        names: Their names.
    """
    files = names if root is None else [_real_file(root / name) for name in names]
    return torch.tensor([key_of(file) for file in files], dtype=torch.int64)


def _real_file(path: Path) -> str:
    """Return where a file lies, through links; of its folder that is found out once."""
    file = os.path.join(_real_folder(path.parent), path.name)
    return os.path.realpath(file) if os.path.islink(file) else file


@lru_cache(maxsize=1 << 14)
def _real_folder(path: Path) -> str:
    return os.path.realpath(path)
