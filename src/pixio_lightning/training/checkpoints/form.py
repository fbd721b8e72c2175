"""What a checkpoint of a run consists of: whoever wrote it, no part is of another kind.

Lightning and torch take what they find for what they wrote, and fail where they first use it: in
the middle of a restart or steps later. So all kinds are looked at when the file is read. Parts may
be missing, as in files that hold weights alone, and plug-ins may add parts of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from pixio_lightning.errors import UserError
from pixio_lightning.models.settings import shown

# Where, what is there, what was expected. The first one ends the look: what follows it may rely on
# the kinds that were looked at.
FORMAT = 1  # of what a checkpoint says of its run; raised where a later version reads it otherwise
_Problems = Iterator[tuple[str, Any, str]]
_GREATEST = 1 << 53


def check_form(checkpoint: dict[Any, Any], path: str | os.PathLike) -> None:
    """Refuse a checkpoint of another format, or of which a part is of another kind than it writes.

    Raises:
        UserError: The first such part is named, with what it is and what was expected.
    """
    about = checkpoint.get("pixio")
    if isinstance(about, dict) and about.get("format") != FORMAT:
        raise UserError(
            f"checkpoint '{path}' is of format {shown(about.get('format'))}, and this version "
            f"reads format {FORMAT}: use the version that wrote it, or train anew"
        )
    for name, check in _PARTS.items():
        if name not in checkpoint:
            continue
        for where, value, expected in check(name, checkpoint[name]):
            raise UserError(
                f"checkpoint '{path}' is damaged or of something else: {where} is {shown(value)}, "
                f"expected {expected}"
            )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < _GREATEST  # truth values count as well


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300


def _count(where: str, value: Any) -> _Problems:
    if not _is_count(value) or isinstance(value, bool):
        yield where, value, "a whole number from 0"


def _text(where: str, value: Any) -> _Problems:
    if not isinstance(value, str):
        yield where, value, "a text"


def _table(where: str, value: Any) -> _Problems:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        yield where, value, "values by name"


def _list(where: str, value: Any) -> _Problems:
    if not isinstance(value, list):
        yield where, value, "a list"


def _version(where: str, value: Any) -> _Problems:
    if not isinstance(value, str) or not value[:1].isdigit() or len(value) > 40:
        yield where, value, "a version of Lightning"


def _tensors(where: str, value: Any) -> _Problems:
    if not isinstance(value, dict):
        yield where, value, "tensors by name"
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            yield f"{where}, {shown(name)}", tensor, "a tensor with a name"


def _statistics(where: str, value: Any) -> _Problems:
    yield from _tensors(where, value)
    for name in value:
        if not name.isidentifier():
            yield where, name, "names without dots"


def _tables(where: str, value: Any) -> _Problems:
    yield from _table(where, value)
    for name, inner in value.items():
        yield from _table(f"{where}.{name}", inner)


def _progress(where: str, value: Any) -> _Problems:
    """Look at the counts of a loop: nested tables of whole numbers and truth values."""
    yield from _table(where, value)
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _progress(f"{where}.{name}", inner)
        elif name == "combined_loader":
            if not isinstance(inner, list) or not all(isinstance(state, dict) for state in inner):
                yield f"{where}.{name}", inner, "a list of states"
        elif not _is_count(inner):
            yield f"{where}.{name}", inner, "a whole number from 0"


def _optimizers(where: str, value: Any) -> _Problems:
    yield from _list(where, value)
    for number, state in enumerate(value):
        place = f"{where}.{number}"
        yield from _table(place, state)
        if not isinstance(groups := state.get("param_groups"), list) or not all(
            isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
        ):
            yield f"{place}.param_groups", groups, "a list of groups"
        if not isinstance(states := state.get("state"), dict):
            yield f"{place}.state", states, "values by parameter"
        assert isinstance(states, dict)
        for parameter, values in states.items():
            inside = f"{place}.state.{shown(parameter)}"
            yield from _table(inside, values)
            for name, tensor in values.items():
                if not isinstance(tensor, Tensor) and not _is_number(tensor):
                    yield f"{inside}.{name}", tensor, "a tensor or a number"


def _schedules(where: str, value: Any) -> _Problems:
    yield from _list(where, value)
    for number, state in enumerate(value):
        place = f"{where}.{number}"
        yield from _table(place, state)
        for name in ("last_epoch", "_step_count"):
            if name in state:
                yield from _count(f"{place}.{name}", state[name])
        for name in ("_last_lr", "base_lrs"):
            rates = state.get(name, [])
            if not isinstance(rates, list) or not all(map(_is_number, rates)):
                yield f"{place}.{name}", rates, "a list of numbers"
        if not isinstance(state.get("lr_lambdas", []), list):
            yield f"{place}.lr_lambdas", state["lr_lambdas"], "a list"


def _about(where: str, value: Any) -> _Problems:
    """Look at what a module of ours says of itself."""
    yield from _table(where, value)
    kinds: dict[str, Callable[[str, Any], _Problems]] = {
        **dict.fromkeys(("class", "backbone_digest"), _text),
        **dict.fromkeys(("config", "backbone", "as_trained", "facts"), _table),
        "evaluation_facts": _table,
        "statistics": _statistics,
        "students": _tables,
    }
    for name, check in kinds.items():
        if name in value:
            yield from check(f"{where}.{name}", value[name])


def _means(where: str, value: Any) -> _Problems:
    """Look at sum and weight of each running mean, by process."""
    yield from _list(where, value)
    pairs = [pair for row in value if isinstance(row, list) for pair in row]
    whole = all(isinstance(row, list) and len(row) == len(value[0]) for row in value)
    if not whole or not all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) for pair in pairs
    ):
        yield where, value, "two numbers for each mean, by process"


_PARTS: dict[str, Callable[[str, Any], _Problems]] = {
    "pytorch-lightning_version": _version,
    "global_step": _count,
    "epoch": _count,
    "state_dict": _tensors,
    "pixio": _about,
    "loops": _progress,
    "callbacks": _tables,
    "optimizer_states": _optimizers,
    "lr_schedulers": _schedules,
    "running_means": _means,
}
