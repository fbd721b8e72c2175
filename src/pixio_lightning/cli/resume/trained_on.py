"""No training is judged by samples that it was trained on."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from pixio_lightning.data.datamodule import StreamData
from pixio_lightning.data.sample_data import SampleData
from pixio_lightning.errors import UserError, some_of
from pixio_lightning.training.run_folder import read_state, stored_config


def refuse_trained_on(
    now: dict[str, Any],
    begun: dict[str, Any],
    data: Any,
    state: dict[str, Any],
    *,
    split: str,
    run: str = "the run",
) -> None:
    """Refuse to judge a training by samples of its own data that it was trained on.

    In other folders, and in splits that are given, it is judged by anything but samples that are
    known to be the same: by where a file lies, by the row of a data set, or by a name.

    Args:
        now: Configuration of the data at hand.
        begun: That of the run.
        data: The data at hand, not yet opened.
        state: Of the run folder: the names that it held out and trained on, if they are known.
        split: What is evaluated, "val" or "test".
        run: What to call that training.

    Raises:
        UserError: More samples of the same data are held out now, or others; or some were trained
            on in another folder.
    """
    now, begun = now.get("init_args", {}), begun.get("init_args", {})
    if now.get("source") == "scenes":
        return
    if _place(now) == _place(begun):
        _refuse_no_longer_held_out(now, begun, data, state, split=split, run=run)
    anywhere = {*(state.get("trained_anywhere") or ())}
    here: list[str] = []
    if anywhere and isinstance(data, StreamData):
        with suppress(UserError):  # a training need hold nothing out
            here = data.names_anywhere(split)
    if again := [name for name in here if name in anywhere]:
        raise UserError(
            f"data.path '{now.get('path')}' holds {some_of(again)}, which {run} was trained on: "
            "evaluate on others, or train without these"
        )


def trained_on_before(checkpoint: Path, data: dict[str, Any]) -> dict[str, list[str] | None]:
    """Return what a checkpoint was trained on, by the folder of its run, as a state keeps it.

    Args:
        checkpoint: What another training begins from.
        data: Configuration of the data of that training.

    Returns:
        `trained_on`, names in the place that these data are in: None where they are not known; and
        `trained_anywhere`.
    """
    begun, state = run_beside(checkpoint)
    if begun is None:
        names = None
    elif _place(data.get("init_args", {})) == _place(begun["data"].get("init_args", {})):
        names = state.get("trained_on")
    else:
        names = []
    return {"trained_on": names, "trained_anywhere": state.get("trained_anywhere") or []}


def run_beside(checkpoint: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return configuration and state of the run that a checkpoint is of; None and empty if unknown.

    One that was copied may lie anywhere, beside files of another program too.
    """
    with suppress(UserError):
        return stored_config(checkpoint.parent), read_state(checkpoint.parent)
    return None, {}


def _refuse_no_longer_held_out(
    now: dict[str, Any],
    begun: dict[str, Any],
    data: Any,
    state: dict[str, Any],
    *,
    split: str,
    run: str,
) -> None:
    """Refuse to hold more samples of the same data out than a training did, or others."""
    held_out, trained_on = state.get("held_out"), state.get("trained_on")
    ways = "put the files back as they were, or give a folder val/ of its own"
    if not isinstance(data, SampleData):
        if now.get("val_path") or now.get("val_split"):
            return
        ways = _refuse_more(now, begun, held_out, run)
    if held_out is None or not isinstance(data, StreamData):
        return
    if not isinstance(data, SampleData):
        data = deepcopy(data)
        data.setup("validate")
    known = {*held_out}
    others = [name for name in data.names_of(split) or () if name not in known]
    sure = trained_on is not None
    if sure:  # and files that were added since are free
        trained = {*(trained_on or ())}
        others = [name for name in others if name in trained]
    if others:
        raise UserError(
            f"data.path '{now.get('path')}' would hold out {some_of(others)}, which {run} did "
            f"not, and {'was' if sure else 'may have been'} trained on: {ways}"
        )


def _refuse_more(
    now: dict[str, Any], begun: dict[str, Any], held_out: list[str] | None, run: str
) -> str:
    """Refuse to hold more images out than a pretraining did; returns what else may be done."""
    for key in ("val_path", "val_split"):
        if begun.get(key):
            raise UserError(
                f"{run} was begun with data.{key} {begun[key]}, without which images that it was "
                "trained on would be held out: give it again"
            )
    most = begun.get("val_images") or 0
    if (now.get("val_images") or 0) > most and held_out is None:
        raise UserError(
            f"data.val_images is {now['val_images']}, but {run} held out at most {most}, and was "
            "trained on the others: give no more"
        )
    return (
        f"put the images back as they were, give data.val_images {most} at most, or images apart "
        "as data.val_path"
    )


def _place(data: dict[str, Any]) -> tuple[Any, ...]:
    """Return where data are, however their path is written."""
    path = Path(data.get("path") or "").expanduser()
    place = path.resolve() if data.get("path") and path.exists() else data.get("path")
    return data.get("source"), place, data.get("split")
