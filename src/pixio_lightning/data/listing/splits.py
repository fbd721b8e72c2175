"""How data are split: by the names of folders and of shards, in any case and in the usual words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pixio_lightning.data.sources import files_below, is_hidden, is_picture, listed
from pixio_lightning.errors import UserError, nearest, some_of

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
# How the Hugging Face Hub names files: train-00000-of-00004.parquet.
_HUB = re.compile(r"(?:.*/)?([^/]*?)-\d{3,}-of-\d{3,}[^/]*")


class Part(NamedTuple):
    """Where the samples of a split are.

    Attributes:
        folder: The folder.
        whole: Whether all that it holds is of the split; otherwise a share of it is held out.
    """

    folder: Path
    whole: bool


def folders_of_splits(root: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the folders of `root` that are named for a split, by that, and all others."""
    named: dict[str, list[Path]] = {}
    others = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not is_hidden(p.name)):
        name = _SPLIT_OF.get(folder.name.lower())
        if name is None:
            others.append(folder)
        else:
            named.setdefault(name, []).append(folder)
    return named, others


def part_of(root: Path, split: str, *, holds: Callable[[Path], bool]) -> Part:
    """Return where the samples of a split are, in folders of `root` or in itself.

    The folders are train or training; val, valid, validation or dev; test or testing. Without the
    second a share of the first is held out; what there is no third for is tested on the second.

    Args:
        root: The folder of the data.
        split: `train`, `val` or `test`.
        holds: Whether a folder holds what that of a split does, as a class of the name train
            does not.

    Raises:
        UserError: Two folders are of one split; there is a folder for the split, but none to train
            on is asked for; or it cannot be told whether a folder is a split.
    """
    folders, others = folders_of_splits(root)
    for name, (first, *more) in folders.items():
        if more:
            raise UserError(
                f"'{root}' holds {first.name}/ and {more[0].name}/, which are both of the split "
                f"{name}: remove or rename one"
            )
    named = {name: path for name, (path,) in folders.items()}
    # Alone they can be nothing else.
    found = {name: path for name, path in named.items() if not others or holds(path)}
    if not found:
        return Part(root, whole=False)
    if len(found) == 1 and others:
        (only,) = found.values()
        shown = some_of(f"{folder.name}/" for folder in others)
        raise UserError(
            f"'{root}' holds {only.name}/ beside {shown}, so it cannot be told whether that is a "
            "split; expected train/ and val/, and everything in these"
        )
    if split in named and split not in found:
        raise UserError(f"'{named[split]}' is not laid out as {min(found.values()).name}/ is")
    order = {"train": ["train"], "val": ["val"], "test": ["test", "val"]}[split]
    whole = next((found[name] for name in order if name in found), None)
    if whole is not None:
        return Part(whole, whole=split != "train" or "val" in found)
    if "train" in found:
        return Part(found["train"], whole=False)
    names = ", ".join(f"{folder.name}/" for folder in found.values())
    raise UserError(f"'{root}' holds {names} but no folder for {split}; expected {split}/")


def split_of(name: str) -> str | None:
    """Return the split that a shard's path names, or None.

    What stands before `-00000-of-00004`, as the Hugging Face Hub names files, is a split whatever
    it is called; anywhere else the usual words are, and the innermost counts.
    """
    stem, *folders = reversed(name.split("/"))
    if of_hub := _HUB.fullmatch(stem):
        return _SPLIT_OF.get(of_hub[1].lower(), of_hub[1]) or None
    for part in (stem, *folders):
        words = [_SPLIT_OF[w] for w in re.split(r"[^a-z]+", part.lower()) if w in _SPLIT_OF]
        if words:
            return words[0]
    return None


def of_split(names: Sequence[str], split: str | None, key: str, path: str) -> list[str]:
    """Return the shards of a split; where no name tells one, all are to train on.

    Args:
        names: Their paths.
        split: The split, in any of its usual words; None takes the only one there is.
        key: What a mistake in the split is blamed on.
        path: Where they are, for the message.

    Raises:
        UserError: There are others but none of this split; or some do not say theirs.
    """
    splits = [split_of(name) for name in names]
    counts = Counter(found or "unnamed" for found in splits)
    wanted = _SPLIT_OF.get((split or "").lower(), split)
    if not any(splits):
        if wanted in (None, "train"):
            return list(names)
        raise UserError(
            f"{key} is {split}, but no name of the shards of '{path}' tells a split, as "
            f"{split}-00000-of-00004.parquet or {split}/0.parquet would: leave it out, or name them"
        )
    if None in splits or (wanted is None and len(counts) > 1):
        raise UserError(
            f"the shards of '{path}' are of several splits ({listed(counts)}), and it cannot be "
            f"told which are meant: give the folder of one, or {key}"
        )
    if wanted is not None and wanted not in counts:
        raise UserError(
            f"{key} is {split}, but the shards of '{path}' are of other splits ({listed(counts)})"
            f"{nearest(str(split), counts)}"
        )
    return [n for n, found in zip(names, splits, strict=True) if wanted in (None, found)]


def pictures_of_splits(root: Path) -> tuple[str, str | None]:
    """Return the folders of pictures to train on and to hold out; None holds out some.

    A folder to test on is neither, whether or not there is one to validate on.

    Raises:
        UserError: Pictures beside train/ and val/, or train/ and test/, would be in neither.
    """
    named, others = folders_of_splits(root)
    train, val, test = (named.get(split, []) for split in ("train", "val", "test"))
    apart = val or test
    if (len(train), len(apart)) != (1, 1):
        return str(root), None
    beside = [folder for folder in others if any(map(is_picture, files_below(folder)))]
    if beside and train[0].name == "train" and apart[0].name in ("val", "test"):
        shown = some_of(f"{folder.name}/" for folder in beside)
        raise UserError(
            f"data.path '{root}' holds train/ and {apart[0].name}/ beside {shown}, whose pictures "
            "are in neither: give the folder to train on, and another one as data.val_path"
        )
    # Of other words than these, folders beside others are more likely classes.
    if beside:
        return str(root), None
    return str(train[0]), str(val[0]) if val else None
