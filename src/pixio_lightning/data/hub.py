"""Hugging Face data sets: opened by hub id or folder, their images left encoded."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from pixio_lightning.data.decode import BadImage, read_file
from pixio_lightning.data.listing.archive import Archive
from pixio_lightning.data.parquet import TooLarge, check_unpacked
from pixio_lightning.data.sources import digest_of, existing_folder, files_below
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files.text import parse_yaml, read_text, unfolded

_ONE = "train"  # the split of what was saved without any


def open_hub(path: str, split: str, *, key: str = "data.path") -> Any:
    """Open a split of a Hugging Face data set: a hub id, or a local folder.

    Raises:
        UserError: The data set or the split does not exist.
    """
    import datasets

    local = Path(path).expanduser()
    if local.is_absolute() or path.startswith(".") or len(local.parts) > 2:  # no hub id
        existing_folder(path, key)
    if local.is_dir():
        _refuse_elsewhere(local, key)
        _refuse_bombs(local, key)
        if special := sorted(set("*?[]") & set(str(local.resolve()))):
            raise UserError(
                f"{key} '{path}' holds {' '.join(special)}, which the library of the data sets "
                "takes for a pattern: rename the folder"
            )
    try:
        if _is_saved(local):
            return _cut(_saved(local), _asked(local, split))
        return datasets.load_dataset(str(local) if local.exists() else path, split=split)
    except Exception as error:  # the library takes what files say for what it wrote itself
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = textwrap.shorten(reason, 200, placeholder=" ...")
        raise UserError(f"{key} '{path}' cannot be read as a data set: {reason}") from error


def _is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`, of splits or of one data set."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _asked(folder: Path, split: str) -> str:
    """Return the split of what was saved; what was saved as one is read as any, all of it."""
    as_any = (folder / "state.json").exists() and not _of_parts(split)
    return _ONE if as_any else split


def _saved(folder: Path) -> dict[str, Any]:
    """Open the splits that were saved in a folder; what was saved as one is `train`."""
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    return loaded if isinstance(loaded, datasets.DatasetDict) else {_ONE: loaded}


def _cut(splits: Mapping[str, Any], split: str) -> Any:
    """Return a split, or parts of splits, of what was saved."""
    import datasets

    if _of_parts(split):
        known = {name: len(rows) for name, rows in splits.items()}
        parts = [splits[name].select(rows) for name, rows in _read_parts(split, known)]
        return datasets.concatenate_datasets(parts)
    if split not in splits:
        raise ValueError(f"no split '{split}'{nearest(split, splits)}")
    return splits[split]


def _read_parts(split: str, known: Mapping[str, int]) -> list[tuple[str, range]]:
    """Read `train[:90%]` and `train+test`: rows of splits, of which the numbers are known."""
    import datasets

    parts = datasets.ReadInstruction.from_spec(split).to_absolute(dict(known))
    return [(part.splitname, range(part.from_, part.to)) for part in parts]


def _refuse_elsewhere(folder: Path, key: str) -> None:
    """Refuse a folder whose card has the library read something else, from any address.

    Raises:
        UserError: It names files outside of the folder.
    """
    for name in ("README.md", ".huggingface.yaml"):
        if (folder / name).is_file():
            _check_card(folder / name, key)


def _refuse_bombs(folder: Path, key: str) -> None:
    """Refuse parquet that fills the memory while the library reads a group of it.

    Raises:
        UserError: A group is larger than one of our own may be.
    """
    for name in files_below(folder, key=key):
        if name.endswith(".parquet"):
            try:
                check_unpacked(folder / name)
            except TooLarge as error:
                size = (folder / name).stat().st_size
                raise UserError(
                    f"{key}: '{folder / name}', of {size:,} bytes, unpacks to {error}: refused"
                ) from None
            except Exception:  # damaged, which the library says as well
                continue


def _check_card(card: Path, key: str) -> None:
    text = read_text(card)
    if card.suffix == ".md":
        text = text.partition("---")[2].partition("\n---")[0] if text.startswith("---") else ""
    try:
        about = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{key}: the heading of '{card}' is no YAML ({error}); remove it") from None
    configs = about.get("configs") if isinstance(about, dict) else None
    for named in unfolded(configs):
        path = PurePosixPath(named) if isinstance(named, str) else PurePosixPath()
        if ":" in str(path) or path.is_absolute() or ".." in path.parts or str(path)[:1] == "~":
            raise UserError(
                f"{key}: '{card}' names {named}, outside of its folder: refused; remove it, or its "
                "key configs"
            )


def open_columns(
    path: str, split: str, columns: Mapping[str, str], *, optional: Collection[str] = ()
) -> Any:
    """Return these columns of a split of a data set, its images undecoded.

    Reading a row reads all of its columns, so that others would cost their bytes and, where they
    are broken, the sample. Undecoded, 16 bits stay 16 bits, and our own decoder counts what is bad.

    Args:
        path: Hub id, or a local folder of parquet.
        split: Split to read.
        columns: The columns that must be there, by the key of `data` that names them.
        optional: Names of columns that are kept where they are there.

    Raises:
        UserError: The data set or a column does not exist.
    """
    data = open_hub(path, split)
    for key, column in columns.items():
        if column not in data.column_names:
            raise UserError(
                f"data.{key} is '{column}', but '{path}' has the columns "
                f"{', '.join(data.column_names)}{nearest(column, data.column_names)}"
            )
    wanted = {*columns.values(), *optional}
    data = data.select_columns([name for name in data.column_names if name in wanted])
    return _undecoded(data)


def _undecoded(data: Any) -> Any:
    """Leave images encoded: our own decoder counts what it cannot read."""
    import datasets

    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data


def content(value: Any) -> bytes:
    """Return the bytes of an encoded image or array; empty where the row has none."""
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            return _read(value["path"])
        value = value["bytes"]
    return value or b""


def _read(path: str) -> bytes:
    """Read a file of a data set, on disk or inside a zip: `zip://a/b.jpg::/folder/train.zip`."""
    if not path.startswith("zip://"):
        return read_file(path)
    member, _, archive = path.removeprefix("zip://").partition("::")
    try:
        return _opened_zip(archive).read(member)
    except UserError:
        raise BadImage("its zip cannot be read") from None


@lru_cache(maxsize=8)
def _opened_zip(path: str) -> Archive:
    return Archive(path, "data.path")


class HubRows:
    """Rows of a split as samples: their number and names; a subclass loads them.

    A name is of the split in the data set and of the row in it, so that a row has the same one in
    whatever part it is read, as in `train[:90%]` or in `train+validation`.

    Args:
        path: Hub id, or a local folder.
        split: Split, or parts of splits.
        data: What was opened there, see `open_columns`.
    """

    def __init__(self, path: str, split: str, data: Any) -> None:
        self.data = data
        self._parts = _parts(path, split, data)

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        for split, rows in self._parts:
            if index < len(rows):
                return _row_name(split, rows[index])
            index -= len(rows)
        raise IndexError(index)

    def rows_digest(self, *facts: Any) -> str:
        """Return a short hash that changes with the files, the rows or the given facts."""
        files = [file["filename"] for file in self.data.cache_files]
        stats = [Path(file).stat() for file in files]
        seen = [(file, s.st_size, s.st_mtime_ns) for file, s in zip(files, stats, strict=True)]
        rows = [(split, rows.start, rows.stop) for split, rows in self._parts]
        return digest_of("hub", seen, rows, *facts)

    def shared(self, other: HubRows) -> tuple[int, str]:
        """Return how many rows others of the same data set have as well, and the first's name."""
        both = [
            (split, range(max(mine.start, theirs.start), min(mine.stop, theirs.stop)))
            for split, mine in self._parts
            for other_split, theirs in other._parts
            if split == other_split
        ]
        first = next((_row_name(split, rows[0]) for split, rows in both if rows), "")
        return sum(len(rows) for _, rows in both), first


def _row_name(split: str, row: int) -> str:
    return f"{split}/{row:08d}"


def _of_parts(split: str) -> bool:
    """Whether what is asked for is no whole split: `train[:10%]`, `train+validation`."""
    return "[" in split or "+" in split


def _parts(path: str, split: str, data: Any) -> list[tuple[str, range]]:
    """Return which rows of which splits of a data set were opened, in their order."""
    folder = Path(path).expanduser()
    if _is_saved(folder):
        known = {name: len(rows) for name, rows in _saved(folder).items()}
        asked = _asked(folder, split)
    else:
        known = {name: about.num_examples for name, about in (data.info.splits or {}).items()}
        asked = "+".join(known) if split == "all" else split
    return _read_parts(asked, known) if _of_parts(asked) else [(asked, range(len(data)))]


class HubSource(HubRows):
    """A map-style Hugging Face data set: a hub id, or a local folder of parquet, arrow or images.

    Args:
        path: Hub id `ORG/NAME`, or a folder.
        split: Split to read.
        column: Column of the images; None takes the first image column.
        key: What a mistake in the path is blamed on.

    Raises:
        UserError: The data set, split or column does not exist.
    """

    def __init__(
        self, path: str | Path, split: str, *, column: str | None = None, key: str = "data.path"
    ) -> None:
        import datasets

        data = open_hub(str(path), split, key=key)
        images = [k for k, v in data.features.items() if isinstance(v, datasets.Image)]
        readable = images + [k for k, v in data.features.items() if _holds_bytes(v)]
        column = column or next(iter(readable), None)
        if column not in readable:
            raise UserError(
                f"data.column is {column!r}, but '{path}' has the columns "
                f"{', '.join(data.column_names)} (images: {', '.join(readable) or 'none'})"
                f"{nearest(column or '', readable)}"
            )
        self.column = column
        labels = [k for k, v in data.features.items() if isinstance(v, datasets.ClassLabel)]
        # Apart, as a row reads its image too; at once, as a column is selected anew for each value.
        self._labels = data.with_format("numpy")[labels[0]][:] if labels else None
        self._names = data.features[labels[0]].names if labels else []
        # Reading a row reads, and decodes, all of its columns.
        super().__init__(str(path), split, _undecoded(data.select_columns([column])))

    def read(self, index: int) -> bytes:
        return content(self.data[index][self.column])

    def label(self, index: int) -> str | None:
        label = -1 if self._labels is None else self._labels[index]
        return self._names[int(label)] if label >= 0 else None  # -1 is kept secret, NaN is none


def _holds_bytes(feature: Any) -> bool:
    """Whether a column that is not declared as images may hold them all the same."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", "") in ("binary", "large_binary")
