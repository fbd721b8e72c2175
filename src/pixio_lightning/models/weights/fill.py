"""Load the weights that were read into a model, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pixio_lightning.errors import UserError, some_of
from pixio_lightning.models.weights.read import Weights
from pixio_lightning.models.weights.report import Report, matched


def fits(model: nn.Module, weights: Weights) -> Report:
    """Compare a model, which may be on the meta device, with the encoder of `weights`.

    Raises:
        UserError: A tensor is missing, unexpected or of another shape.
    """
    left_out = {"decoder": len(weights.decoder or ()), "others": len(weights.others)}
    report = matched(model.state_dict(), weights.encoder, **left_out)
    report.check(weights.source)
    return report


def fill(model: nn.Module, weights: Weights) -> Report:
    """Load the encoder into `model`, whole or not at all.

    Args:
        model: Real, or on the meta device: then its parameters come to life on the CPU, in the
            model's own dtypes.
        weights: What `read` returned.

    Raises:
        UserError: A tensor is missing, unexpected, of another shape, or holds NaN or infinity.
    """
    encoder, state = weights.encoder, model.state_dict()
    report = fits(model, weights)
    refuse_non_finite(encoder, weights.source)
    on_meta = any(tensor.is_meta for tensor in state.values())
    if on_meta:
        # Copies: the model must not share memory with the file or with a second model.
        encoder = {n: t.to(state[n].dtype, copy=True) for n, t in encoder.items()}
    model.load_state_dict(encoder, strict=True, assign=on_meta)
    return report


def gradients_as(before: nn.Module, model: nn.Module) -> nn.Module:
    """Return `model`, of which the same parameters get gradients as of the one before it.

    What was frozen while there were no weights stays so, and what was not, too.
    """
    asked = {name for name, parameter in before.named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in asked)
    return model


def refuse_non_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights with NaN or infinity, as a run that diverged leaves them.

    Raises:
        UserError: The first such tensor is named, the others counted.
    """
    bad = []
    for name, tensor in state.items():
        # The extremes alone: they carry NaN along, and need no copy of a large tensor.
        if tensor.numel() and not torch.stack(tensor.float().aminmax()).isfinite().all():
            bad.append(name)
    if bad:
        raise UserError(
            f"{source} holds NaN or infinite values, in {some_of(bad, limit=1)}: "
            "the run that wrote it diverged; take an earlier checkpoint"
        )
