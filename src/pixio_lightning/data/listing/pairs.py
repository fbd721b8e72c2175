"""Images with files that belong to them, a depth map or labels: found by name, in any task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from glob import escape
from os.path import isfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.decode import BadImage, Orientation, decode_pixels, read_file
from pixio_lightning.data.listing.splits import part_of
from pixio_lightning.data.sources import files_below, held_out, image_files
from pixio_lightning.errors import UserError


class PairedFiles:
    """Numbered pairs of files; a subclass loads them.

    Args:
        root: What names are relative to.
        pairs: Tuples of files with an `image`; None stands for one that is not there.
        max_megapixels: Larger images are bad.
        orientation: How an image is turned that says so by EXIF, see `decode_pixels`.
    """

    def __init__(
        self,
        root: Path,
        pairs: Sequence[Any],
        *,
        max_megapixels: float,
        orientation: Orientation | None,
    ) -> None:
        self.root, self.pairs = root, list(pairs)
        self.max_megapixels, self.orientation = max_megapixels, orientation

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Return the path of the image below the root."""
        return self.pairs[index].image.relative_to(self.root).as_posix()

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Return the image `(H, W, 3)`."""
        return decode_pixels(
            read_file(self.pairs[index].image),
            max_megapixels=self.max_megapixels,
            orientation=self.orientation,
        )

    def partner(self, index: int, field: str) -> Path:
        """Return the file that belongs to an image.

        Raises:
            BadImage: It is not there; the reason says what was looked for, where NAME is the
                image's name, so that it can be counted.
        """
        image, path = self.pairs[index].image, getattr(self.pairs[index], field)
        if path is None:
            raise BadImage(f"no {field} is listed")
        if not isfile(path):  # of `os.path`, to which a name that is too long is no file
            sought = path.with_name(path.name.replace(image.stem, "NAME"))
            sought = sought.relative_to(self.root) if sought.is_relative_to(self.root) else sought
            alike = path.parent.glob(f"{escape(path.stem)}.*")
            others = sorted({p.suffix for p in alike if p != image})
            instead = f", but NAME{others[0]} is, which is not read" if others else ""
            raise BadImage(f"no {field}: {sought.as_posix()} is not there{instead}")
        return path

    def file_facts(self) -> list[tuple[str, int, int]]:
        """Return path, size and time of every file that is there: a digest goes by them."""
        files = [path for pair in self.pairs for path in pair if path is not None]
        stats = [(str(file), file.stat()) for file in files if isfile(file)]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def folders_of_pairs(root: Path, folder: str, *, expected: str) -> tuple[Path, Path]:
    """Return `images/` and another folder below `root`.

    Args:
        root: Of a split, or of all data.
        folder: Name of the other one.
        expected: What it should hold, for the message.

    Raises:
        UserError: One of them is not there.
    """
    images, others = root / "images", root / folder
    if not images.is_dir() or not others.is_dir():
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise UserError(
            f"data.path '{root}' holds {', '.join(found) or 'no folder'}; expected images/ and "
            f"{folder}/ ({expected}), in it or in train/ and val/"
        )
    return images, others


def pairs_of_split(
    root: Path, split: str, pairs_in: Callable[[Path], list[Any]]
) -> tuple[Path, list[Any]]:
    """Return where the pairs of a split are, and the pairs.

    Args:
        root: The folder of the data; a share of it is held out where no folder in it is for that.
        split: `train`, `val` or `test`.
        pairs_in: Lists the pairs of a folder with `images/`, as tuples with an `image`.

    Raises:
        UserError: Of `part_of` and of `pairs_in`.
    """
    folder, whole = part_of(root, split, holds=_holds_images)
    pairs = pairs_in(folder)
    if not whole:
        train, val = held_out(pairs, lambda pair: pair.image.relative_to(folder).as_posix())
        pairs = train if split == "train" else val
    return folder, pairs


def images_to_predict(root: Path) -> tuple[Path, list[Path]]:
    """Return what names are relative to, and the images: of the part to test or validate on.

    Without such a part they are all below the root. Where there is `images/`, they are those in it:
    what lies beside it are maps, which are pictures too.

    Raises:
        UserError: Of `part_of`; or there is no image.
    """
    folder, whole = part_of(root, "test", holds=_holds_images)
    folder = folder if whole else root
    return folder, image_files(folder / "images" if _holds_images(folder) else folder)


def _holds_images(folder: Path) -> bool:
    return (folder / "images").is_dir()


class Partners:
    """The files of a folder, by the images they belong to.

    A file's name is the image's, without the suffix or, as predictions are written, with it; the
    case of its own suffix does not matter.

    Args:
        folder: The folder; one that is not there holds nothing.
        suffixes: Of the files, in lower case.
    """

    def __init__(self, folder: Path, suffixes: Sequence[str]) -> None:
        self.folder, self.suffixes = folder, suffixes
        self.files: dict[str, Path] = {}
        for name in files_below(folder) if folder.is_dir() else ():
            path = PurePosixPath(name)
            self.files.setdefault(str(path.with_suffix(path.suffix.lower())), folder / name)

    def of(self, image: str) -> Path:
        """Return the file of an image, given its name below its own folder.

        Where there is none, it is the path that was looked for first.

        Raises:
            UserError: There are several of one name, and it cannot be told which is meant.
        """
        named = PurePosixPath(image)
        stem = str(named.with_suffix("")) if named.name else image  # of nothing, or of a folder
        for name in (image, stem):
            found = [path for s in self.suffixes if (path := self.files.get(f"{name}{s}"))]
            if len(found) > 1:
                files = " and ".join(f"'{path.relative_to(self.folder)}'" for path in found)
                raise UserError(f"'{self.folder}' holds {files} for one image: keep one of them")
            if found:
                return found[0]
        return self.folder / f"{stem}{self.suffixes[0]}"
