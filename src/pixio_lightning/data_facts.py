"""What data says of itself beside what a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
            what = "classes" if name == "class_names" else name
            raise UserError(
                f"the data has other {what} than the checkpoint was trained on "
                f"({_missing(here, there)}): give the same ones"
            )
        raise UserError(
            f"{name} is {here} in the data, but the checkpoint was trained with {there}: give the "
            "data it was trained on, or another checkpoint"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _missing(here: Iterable[Any], there: Iterable[Any]) -> str:
    here, there = [str(x) for x in here], [str(x) for x in there]
    sides = (
        ([name for name in here if name not in there], "only in the data"),
        ([name for name in there if name not in here], "only in the checkpoint"),
    )
    found = [f"{', '.join(names[:3])} {where}" for names, where in sides if names]
    return "; ".join(found) or "in another order"
