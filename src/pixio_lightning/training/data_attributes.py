"""What data says of itself beside what a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pixio_lightning.errors import UserError


def refuse_other(
    names: Iterable[str], of_data: Mapping[str, Any], of_checkpoint: Mapping[str, Any]
) -> None:
    """Refuse data that contradicts what weights were trained for.

    Args:
        names: Of the facts that must agree, where both sides know them.
        of_data: Facts by name.
        of_checkpoint: Facts by name.

    Raises:
        UserError: A fact differs; both sides are named.
    """
    for name in names:
        if name not in of_data or name not in of_checkpoint:
            continue
        here, there = of_data[name], of_checkpoint[name]
        if _plain(here) == _plain(there):
            continue
        if isinstance(here, (list, tuple)) and isinstance(there, (list, tuple)):
            if _plain(here) == unnamed(len(here)) or _plain(there) == unnamed(len(there)):
                continue  # a side that names nothing contradicts nothing
            what = "classes" if name == "class_names" else name
            raise UserError(
                f"the data has other {what} than the checkpoint was trained on "
                f"({_missing(here, there)}): give the same ones"
            )
        raise UserError(
            f"{name} is {here} in the data, but the checkpoint was trained with {there}: give the "
            "data it was trained on, or another checkpoint"
        )


def unnamed(count: int) -> list[str]:
    """Return names for classes of which only the number is known."""
    return [f"class {i}" for i in range(count)]


def absent_classes(counts: Sequence[float], names: Sequence[str], *, samples: int) -> str:
    """Return which classes no training sample shows, in a line to print; empty if there is none.

    Args:
        counts: How often each class was seen.
        names: Of the classes, in the same order.
        samples: How many samples were looked at.

    Raises:
        UserError: Fewer than two classes occur: every figure would be perfect, and say nothing.
    """
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if len(names) - len(absent) < 2:
        only = ", ".join(name for name in names if name not in absent) or "none"
        raise UserError(
            f"of {len(names)} classes, {samples} training samples show {only}, so nothing would be "
            "told apart; expected two at least: check the labels, and what the data counts as a "
            "class"
        )
    if not absent:
        return ""
    listed = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
    return (
        f"{len(absent)} of {len(names)} classes are in none of {samples} training samples: {listed}"
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _missing(here: Iterable[Any], there: Iterable[Any]) -> str:
    here, there = [str(x) for x in here], [str(x) for x in there]
    if sorted(here) == sorted(there):
        first = next(i for i, pair in enumerate(zip(here, there, strict=True)) if len({*pair}) > 1)
        return (
            f"in another order: number {first} is {here[first]} in the data, {there[first]} in the "
            "checkpoint"
        )
    counts = f"{len(here)} in the data, {len(there)} in the checkpoint"
    sides = (
        ([name for name in here if name not in there], "only in the data"),
        ([name for name in there if name not in here], "only in the checkpoint"),
    )
    found = [f"{', '.join(names[:3])} {where}" for names, where in sides if names]
    return "; ".join([counts, *found] if len(here) != len(there) else found) or counts
