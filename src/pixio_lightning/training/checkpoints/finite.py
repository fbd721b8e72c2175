"""Whether what is trained is finite: a run that diverged must not replace what it saved before."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from pixio_lightning.errors import UserError


def first_not_finite(module: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> str | None:
    """Return the first weight or optimiser state that holds NaN or infinity, None if none does.

    Running means and variances of norms count, too: one bad batch spoils them for good, even where
    a loss scaler leaves its step out. Other buffers do not: a mask may hold infinities on purpose.
    Of a sharded tensor the part of this process is looked at. One pass over the memory, and one
    wait for the device.

    Args:
        module: What is trained.
        optimizers: Theirs are the states.
    """
    named = list(_floating(module, optimizers))
    # The largest magnitude of all is finite exactly if every one is.
    largest = get_total_norm([tensor for _, tensor in named], float("inf"))
    if bool(largest.isfinite()):
        return None
    return next(name for name, tensor in named if not tensor.isfinite().all())


def not_finite(what: str, step: int, last: Path) -> UserError:
    """Return what to tell of a run that diverged: what is safe, and how to go on from there.

    Args:
        what: What is not finite, and that it is not.
        step: The step at which that was seen.
        last: Where the run saves; there may be nothing yet.
    """
    advice = "start anew (--fresh) with a lower model.optim.lr or a longer warm-up"
    if last.exists():
        advice = (
            f"{last} is from before and finite: go on from it with a lower rate in another "
            f"folder, --ckpt_path {shlex.quote(str(last))} --out DIR --model.optim.lr LESS, or "
            "a longer warm-up; if its own loss is not finite either, start anew (--fresh) with "
            "that rate"
        )
    return UserError(f"{what} at step {step}; nothing of that step was saved; {advice}")


def _floating(
    module: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> Iterator[tuple[str, Tensor]]:
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    trained = [(name, p) for p, name in names.items() if p.requires_grad]
    states = [
        (f"{state} of {names.get(parameter, 'a weight')}", value)
        for optimizer in optimizers
        for parameter, found in optimizer.state.items()
        for state, value in found.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    running = [
        (name, buffer)
        for name, buffer in module.named_buffers()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    ]
    for name, tensor in (*trained, *running, *states):
        local = tensor.detach()
        if isinstance(local, DTensor):
            local = local.to_local()
        if local.numel():
            yield name, local
