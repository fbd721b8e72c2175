"""Where images come from: a folder, a Hugging Face data set, or the rendered scenes.

A source is a numbered list of encoded images with stable keys; decoding is done elsewhere.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from pixio_lightning.data.decode import read_file
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files.text import parse_yaml, read_text, unfolded
from pixio_lightning.keyed import key_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Source(Protocol):
    """A numbered list of encoded images."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the image's name: unique, stable, and a relative path where there are files."""
        ...

    def read(self, index: int) -> bytes:
        """Return the encoded image."""
        ...

    def label(self, index: int) -> str | None:
        """Return the image's class, where the source knows one."""
        ...


class FolderSource:
    """All JPEG, PNG and WebP files below a folder; the parent folder is an image's class.

    Args:
        path: The folder.
        key: What a mistake is blamed on.

    Raises:
        UserError: The folder does not exist, cannot be read or holds no image.
    """

    def __init__(self, path: str | Path, *, key: str = "data.path") -> None:
        self.root = existing_folder(path, key)
        # Plain strings: a million Path objects would cost most of a gigabyte in every worker.
        self.names = sorted(_walk(self.root, key))
        if not self.names:
            raise UserError(
                f"{key} '{path}' holds no image; expected {', '.join(SUFFIXES)} at any depth"
            )

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> bytes:
        return read_file(self.root / self.names[index])

    def label(self, index: int) -> str | None:
        return Path(self.names[index]).parent.name or None


def existing_folder(path: str | Path, key: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.glob("*/")]
        raise UserError(f"{key} '{path}' is not a folder{nearest(folder.name, siblings)}")
    return folder


def _walk(root: Path, key: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{key}: folder '{error.filename}' cannot be read ({error.strerror})")

    found: list[str] = []
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above, or to one that was visited
            subfolders.clear()
            continue
        seen.add(real)
        # In order, so that a folder with two names always goes by the same one.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for file in files:
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                found.append(os.path.relpath(os.path.join(folder, file), root).replace(os.sep, "/"))
    return found


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
    try:
        if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            loaded = datasets.load_from_disk(str(local))
            if not isinstance(loaded, datasets.DatasetDict):
                return loaded
            if split not in loaded:
                raise ValueError(f"no split '{split}'{nearest(split, loaded)}")
            return loaded[split]
        return datasets.load_dataset(str(local) if local.exists() else path, split=split)
    except Exception as error:  # the library takes what files say for what it wrote itself
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = textwrap.shorten(reason, 200, placeholder=" ...")
        raise UserError(f"{key} '{path}' cannot be read as a data set: {reason}") from error


def _refuse_elsewhere(folder: Path, key: str) -> None:
    """Refuse a folder whose README.md has the library read something else, from any address.

    Raises:
        UserError: It names files outside of the folder.
    """
    card = folder / "README.md"
    if not card.is_file():
        return
    text = read_text(card)
    _, _, rest = text.partition("---")
    try:
        about = parse_yaml(rest.partition("\n---")[0]) if text.startswith("---") else None
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


class HubSource:
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

        self.split = split
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
        self._labels = data[labels[0]] if labels else None  # apart: a row reads its image too
        self._names = data.features[labels[0]].names if labels else []
        data = data.select_columns([column])  # reading a row reads, and decodes, all of its columns
        if isinstance(data.features[column], datasets.Image):
            # Undecoded: our own decoder counts what it cannot read.
            data = data.cast_column(column, datasets.Image(decode=False))
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        return f"{self.split}/{index:08d}"

    def read(self, index: int) -> bytes:
        value = self.data[index][self.column]
        if isinstance(value, dict):
            if value["bytes"] is None and value.get("path"):
                return read_file(value["path"])
            value = value["bytes"]
        return value or b""

    def label(self, index: int) -> str | None:
        label = None if self._labels is None else self._labels[index]
        return None if label is None or label < 0 else self._names[label]  # -1: kept secret


def _holds_bytes(feature: Any) -> bool:
    """Whether a column that is not declared as images may hold them all the same."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


class ScenesSource:
    """Views of the rendered scenes; the class is the kind of scene.

    Args:
        shards: Their parquet files, in order.
    """

    def __init__(self, shards: list[Path]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = ["key", "image", "room_type"]
        self.table = pa.concat_tables(pq.read_table(shard, columns=columns) for shard in shards)

    def __len__(self) -> int:
        return len(self.table)

    def name(self, index: int) -> str:
        return self.table["key"][index].as_py()

    def read(self, index: int) -> bytes:
        return self.table["image"][index].as_py()

    def label(self, index: int) -> str | None:
        return str(self.table["room_type"][index].as_py())


class Subset:
    """Some images of a source, under their own names."""

    def __init__(self, source: Source, indices: list[int]) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def read(self, index: int) -> bytes:
        return self.source.read(self.indices[index])

    def label(self, index: int) -> str | None:
        return self.source.label(self.indices[index])


def hold_out(source: Source, *, most: int, share: float = 0.1) -> tuple[Source, Source]:
    """Split off images by the hash of their names, the same ones every time.

    Args:
        source: What to split.
        most: At most this many are held out.
        share: And at most this share, but at least one.

    Returns:
        The images to train on and those held out.

    Raises:
        UserError: There are fewer than two images.
    """
    if len(source) < 2:
        raise UserError(f"{len(source)} image is too few to train on one and hold one out")
    count = max(1, min(most, int(len(source) * share)))
    order = sorted(range(len(source)), key=lambda i: key_of("hold out " + source.name(i)))
    return Subset(source, sorted(order[count:])), Subset(source, sorted(order[:count]))
