"""Which scenes of a data set are trained on and which judge: lists, as MapAnything publishes them.

It keeps all scenes of a set in one folder, and beside the data a folder of lists,
`train/NAME_scene_list_train.npy` and so on. Its own are pickles, which can run anything and are
never opened here: text, JSON and npy of text are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixio_heads.reconstruction.views.frames import FileScene
from pixio_lightning.errors import UserError, some_of
from pixio_lightning.files import parse_json, read_text

_SPLITS = ("train", "val", "test")
_SUFFIXES = (".txt", ".json", ".npy")


def listed_scenes(scenes: Sequence[FileScene], folder: Path, split: str) -> list[FileScene]:
    """Return the scenes that are on the lists of a split.

    Where no set has a list to test on, all are tested on the lists of val. A set without a list of
    the split, but with one of another, has no part in it.

    Args:
        scenes: All there are.
        folder: Where the lists are.
        split: `train`, `val` or `test`.

    Raises:
        UserError: A set has no list at all, a list is damaged or a pickle, a scene is on lists of
            two splits, or none of the scenes on the lists is there.
    """
    names = dict.fromkeys(scene.set_name for scene in scenes)
    lists = {name: {part: _read(folder, name, part) for part in _SPLITS} for name in names}
    for name, parts in lists.items():
        if all(found is None for found in parts.values()):
            raise UserError(
                f"data.scene_lists '{folder}' has no list of the set '{name}'; expected "
                f"train/{name}_scene_list_train.txt, one scene a line (or .json, or .npy of text), "
                "and the same of val and test"
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
    paths = (folder / split / f"{name}_scene_list_{split}{suffix}" for suffix in _SUFFIXES)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            found = array.tolist() if array.dtype.kind == "U" else None
        elif path.suffix == ".json":
            found = parse_json(read_text(path))
        else:
            found = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (ValueError, OSError) as error:
        if path.suffix == ".npy" and "object" in str(error).lower():
            raise UserError(
                f"'{path}' is a pickle, which could run anything: if it is from who you trust, "
                "write it as text once: python -c \"import numpy; print(*numpy.load('"
                f"{path}', allow_pickle=True), sep='\\n')\" > '{path.with_suffix('.txt')}'"
            ) from None
        raise UserError(f"'{path}' is no list of scenes: {error}") from None
    if not isinstance(found, list) or not all(isinstance(scene, str) for scene in found):
        raise UserError(f"'{path}' is no list of scenes; expected a list of their names")
    return frozenset(Path(scene).name for scene in found)
