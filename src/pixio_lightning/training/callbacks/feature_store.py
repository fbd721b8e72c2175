"""A store of features on disk: entries by name, appended by many processes, read as maps.

Every process that computes appends to a file of its own, `*.bin`, and to an index beside it,
`*.jsonl`, whose line is written after the data: a killed run leaves whole entries, and the next one
computes the rest.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pixio_lightning.data.samples import View
from pixio_lightning.files import parse_json

Entry = dict[str, Any]


class Store(Mapping[str, View]):
    """Entries by name: tensors and plain values, or why a sample cannot be used.

    Args:
        folder: Where the parts are; made when the first entry is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Why a sample cannot be used; or the part, the form, and where each of its tensors begins.
        self._index: dict[str, str | tuple[Any, ...]] = {}
        self._maps: dict[str, np.memmap] = {}
        self.reload()

    def reload(self) -> None:
        """Read the indices of all parts, which other processes may have grown."""
        self._index.clear()
        self._maps.clear()
        forms: dict[str, _Form] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            part, data = path.stem, path.with_suffix(".bin")
            held = data.stat().st_size if data.is_file() else 0
            with path.open("rb") as lines:
                for line in lines:
                    # Cut short by a kill, or damaged: these are computed again.
                    with suppress(ValueError):
                        entry = parse_json(line.decode())
                        if _is_entry(entry, held):
                            self._index[entry["name"]] = _lean(entry, part, forms)

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __getitem__(self, name: str) -> View:
        entry = self._index[name]
        if isinstance(entry, str):
            return name, entry
        part, form, *offsets = entry
        if part not in self._maps:
            # Copy on write: torch wants memory that may be written, and the file stays as it is.
            self._maps[part] = np.memmap(self.folder / f"{part}.bin", np.uint8, mode="c")
        found: Entry = dict(form.plain)
        for (field, dtype, shape, size), offset in zip(form.tensors, offsets, strict=True):
            data = torch.from_numpy(self._maps[part][offset : offset + size])
            found[field] = data.view(dtype).view(shape)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Data workers map the files themselves.
        return self.__dict__ | {"_maps": {}}


class _Form(NamedTuple):
    """What entries share, of which there are millions: plain values, and what tensors they have.

    Attributes:
        plain: The values by name.
        tensors: Name, type, shape and number of bytes of each.
    """

    plain: Entry
    tensors: tuple[tuple[str, torch.dtype, list[int], int], ...]


def _lean(entry: Entry, part: str, forms: dict[str, _Form]) -> str | tuple[Any, ...]:
    """Return an entry of a part as the index keeps it; a form that is new is added to `forms`."""
    if isinstance(bad := entry.get("bad"), str):
        return bad
    tensors, plain = entry["tensors"], entry["plain"]
    kinds = [(field, *place[:2], place[3]) for field, place in tensors.items()]
    key = repr((plain, kinds))
    if key not in forms:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        typed = ((field, getattr(torch, dtype), shape, size) for field, dtype, shape, size in kinds)
        forms[key] = _Form(values, tuple(typed))
    return part, forms[key], *(place[2] for place in tensors.values())


def _is_entry(entry: Any, held: int) -> bool:
    """Whether a line of an index is one of ours, and its data are among so many bytes."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    plain, tensors = entry.get("plain"), entry.get("tensors")
    return isinstance(entry.get("bad"), str) or (
        isinstance(plain, dict)
        and isinstance(tensors, dict)
        and all(_is_place(place, held) for place in tensors.values())
    )


def _is_place(place: Any, held: int) -> bool:
    try:
        name, shape, offset, size = place
        dtype, counts = getattr(torch, name), [*shape, offset, size]
    except (TypeError, ValueError, AttributeError):
        return False
    return (
        isinstance(dtype, torch.dtype)
        and all(isinstance(count, int) and count >= 0 for count in counts)
        and math.prod(shape) * dtype.itemsize == size
        and offset + size <= held
    )


class Writer:
    """Adds entries to a store, in a part of its own.

    Args:
        folder: The store's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / uuid.uuid4().hex
        self._data = part.with_suffix(".bin").open("wb")
        self._lines = part.with_suffix(".jsonl").open("w")

    def add(self, name: str, entry: View) -> None:
        """Append an entry, its data before its line."""
        line: dict[str, Any] = {"name": name}
        if isinstance(entry, tuple):
            line["bad"] = entry[1]
        else:
            line |= {"plain": {}, "tensors": {}}
            for field, value in entry.items():
                if not isinstance(value, Tensor):
                    line["plain"][field] = value
                    continue
                # Whole cache lines, so that any type is aligned in the mapped file.
                self._data.write(bytes(-self._data.tell() % 64))
                data = value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                dtype = str(value.dtype).removeprefix("torch.")
                line["tensors"][field] = [dtype, list(value.shape), self._data.tell(), data.nbytes]
                self._data.write(data.data)
            self._data.flush()
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()

    def close(self) -> None:
        """Close the part."""
        self._data.close()
        self._lines.close()


class NamedViews(Dataset):
    """The views that are still to be encoded, each with its name in the store."""

    def __init__(self, samples: Any, jobs: Sequence[tuple[str, Any]]) -> None:
        self.samples, self.jobs = samples, jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> tuple[str, View]:
        name, where = self.jobs[index]
        return name, self.samples.view(*where)
