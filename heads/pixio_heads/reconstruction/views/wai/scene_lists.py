"""Which scenes of a data set are trained on and which judge: lists, as MapAnything publishes them.

It keeps all scenes of a set in one folder, and beside the data a folder of lists,
`train/NAME_scene_list_train.npy` and so on. These are pickles, which can run anything and are
never opened here: text is read, a scene a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pixio_heads.reconstruction.views.frames import FileScene
from pixio_lightning.errors import UserError, some_of
from pixio_lightning.files import read_text

_SPLITS = ("train", "val", "test")


def listed_scenes(scenes: Sequence[FileScene], folder: Path, split: str) -> list[FileScene]:
    """Return the scenes that are on the lists of a split.

    Where no set has a list to test on, all are tested on the lists of val. A set without a list of
    the split, but with one of another, has no part in it.

    Args:
        scenes: All there are.
        folder: Where the lists are.
        split: `train`, `val` or `test`.

    Raises:
        UserError: A set has no list at all, a list is no text, a scene is on lists of
            two splits, or none of the scenes on the lists is there.
    """
    names = dict.fromkeys(scene.set_name for scene in scenes)
    lists = {name: {part: _read(folder, name, part) for part in _SPLITS} for name in names}
    for name, parts in lists.items():
        if all(found is None for found in parts.values()):
            raise UserError(
                f"data.scene_lists '{folder}' has no list of the set '{name}'; expected "
                f"train/{name}_scene_list_train.txt, one scene a line, and the same of val and test"
            )
        _refuse_twice(folder, name, parts)
    if split == "test" and all(parts["test"] is None for parts in lists.values()):
        split = "val"
    kept = [s for s in scenes if Path(s.name).name in (lists[s.set_name][split] or ())]
    if not kept:
        raise UserError(
            f"no scene on the lists of {split} in data.scene_lists '{folder}' is there, of the "
            f"sets {', '.join(names)}"
        )
    return kept


def _refuse_twice(folder: Path, name: str, parts: dict[str, frozenset[str] | None]) -> None:
    """Raise a UserError where a scene is on two lists of a set."""
    for first, second in (("train", "val"), ("train", "test")):
        if both := (parts[first] or frozenset()) & (parts[second] or frozenset()):
            raise UserError(
                f"the lists of {first} and {second} of '{name}' in '{folder}' share "
                f"{some_of(sorted(both))}: take these out of one"
            )


def _read(folder: Path, name: str, split: str) -> frozenset[str] | None:
    """Return the scenes of a list; None where there is none."""
    path = folder / split / f"{name}_scene_list_{split}.txt"
    if path.is_file():
        lines = map(str.strip, read_text(path).splitlines())
        return frozenset(Path(line).name for line in lines if line)
    if (other := path.with_suffix(".npy")).is_file():
        raise UserError(
            f"'{other}' is not read, as a pickle could run anything: if it is from who you trust, "
            "write it as text once: python -c \"import numpy; print(*numpy.load('"
            f"{other}', allow_pickle=True), sep='\\n')\" > '{path}'"
        )
    if (other := path.with_suffix(".json")).is_file():
        raise UserError(f"'{other}' is not read: write its names into '{path}', one a line")
    return None
