"""No pretraining is judged by images that it was trained on."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from pixio_lightning.errors import UserError, some_of


def refuse_trained_on(
    now: dict[str, Any], begun: dict[str, Any], data: Any, held_out: list[str] | None
) -> None:
    """Refuse to judge a pretraining by images of its own data that it did not hold out.

    Args:
        now: Configuration of the data at hand.
        begun: That of the run.
        data: The data at hand, not yet opened.
        held_out: What its `held_out_names` were in the run, if that is known.

    Raises:
        UserError: More images of the same data are held out now, or others.
    """
    now, begun = now.get("init_args", {}), begun.get("init_args", {})
    same = _place(now) == _place(begun)
    if not same or now.get("source") == "scenes" or now.get("val_path") or now.get("val_split"):
        return
    for key in ("val_path", "val_split"):
        if begun.get(key):
            raise UserError(
                f"the run was begun with data.{key} {begun[key]}, without which images that it was "
                "trained on would be held out: give it again"
            )
    most = begun.get("val_images") or 0
    if (now.get("val_images") or 0) > most and held_out is None:
        raise UserError(
            f"data.val_images is {now['val_images']}, but the run held out at most {most}, and was "
            "trained on the others: give no more"
        )
    if held_out is None:
        return
    opened = deepcopy(data)
    opened.setup("validate")
    known = {*held_out}
    if others := [name for name in opened.held_out_names() or () if name not in known]:
        raise UserError(
            f"data.path '{now.get('path')}' would hold out {some_of(others)}, which the run did "
            "not, and may have been trained on: put the images back as they were, give "
            f"data.val_images {most} at most, or images apart as data.val_path"
        )


def _place(data: dict[str, Any]) -> tuple[Any, ...]:
    """Return where data are, however their path is written."""
    path = Path(data.get("path") or "").expanduser()
    place = path.resolve() if data.get("path") and path.exists() else data.get("path")
    return data.get("source"), place, data.get("split")
