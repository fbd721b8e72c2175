"""Where clips with labels lie: the lists of DAVIS-2017, VIP and JHMDB.

Lists are read when the data are opened; of a clip that lacks its files `clip_samples` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pixio_lightning.data import is_hidden
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files import read_text


class ClipFiles(NamedTuple):
    """A clip in files.

    Attributes:
        name: Of the clip.
        frames: Where its frames should be.
        labels: Its masks, a folder of them; or the file with its joints.
    """

    name: str
    frames: Path
    labels: Path


def davis_clips(root: Path, split: str) -> list[ClipFiles]:
    """List DAVIS-2017: `JPEGImages/480p/NAME`, `Annotations/480p/NAME`, `ImageSets/2017/SPLIT.txt`.

    Raises:
        UserError: A folder or the list is missing.
    """
    images, masks = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
    names = _names(root, (images, masks), root / "ImageSets" / "2017", split, "DAVIS-2017 at 480p")
    return [ClipFiles(name, images / name, masks / name) for name in names]


def vip_clips(root: Path, split: str) -> list[ClipFiles]:
    """List VIP: `Images/NAME`, `Annotations/Category_ids/NAME`, `lists/SPLIT_videos.txt`.

    Raises:
        UserError: A folder or the list is missing.
    """
    images, masks = root / "Images", root / "Annotations" / "Category_ids"
    names = _names(root, (images, masks), root / "lists", f"{split}_videos", "VIP_Fine")
    return [ClipFiles(name, images / name, masks / name) for name in names]


def jhmdb_clips(root: Path) -> list[ClipFiles]:
    """List the test clips of the first split of JHMDB.

    They are those of value 2 in `splits/CLASS_test_split1.txt`, lines of `VIDEO.avi VALUE`; frames
    are in `Rename_Images/CLASS/VIDEO`, joints in
    `joint_positions/CLASS/VIDEO/joint_positions.mat`.

    Raises:
        UserError: A folder or a list is missing, or a list is none.
    """
    images, joints = root / "Rename_Images", root / "joint_positions"
    lists = sorted((root / "splits").glob("*_test_split1.txt"))
    for folder in (images, joints):
        _require(root, folder, "JHMDB")
    lists = [path for path in lists if not is_hidden(path.name)]
    if not lists:
        raise UserError(f"data.path '{root}' has no splits/CLASS_test_split1.txt, as JHMDB has")
    found = []
    for path in lists:
        kind = path.name.removesuffix("_test_split1.txt")
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            words = line.split()
            if not words:
                continue
            if len(words) != 2 or words[1] not in ("0", "1", "2"):
                raise UserError(
                    f"'{path}', line {number}: expected a video and 0, 1 or 2, such as "
                    f"'video.avi 2', not '{line[:80]}'"
                )
            if words[1] == "2":
                name = f"{kind}/{_below(words[0].removesuffix('.avi'))}"
                place = joints / name / "joint_positions.mat"
                found.append(ClipFiles(name, images / name, place))
    if not found:
        raise UserError(f"'{root / 'splits'}' lists no clip of value 2, the test clips")
    return found


def _names(root: Path, folders: Sequence[Path], lists: Path, name: str, like: str) -> list[str]:
    for folder in (*folders, lists):
        _require(root, folder, like)
    table = lists / f"{name}.txt"
    if not table.is_file():
        known = sorted(path.stem for path in lists.glob("*.txt"))
        raise UserError(
            f"'{lists}' has no {table.name}, but {', '.join(known) or 'nothing'}: set data.split"
            f"{nearest(name, known)}"
        )
    names = [_below(word) for word in read_text(table).split()]
    if not names:
        raise UserError(f"'{table}' lists no video")
    return names


def _require(root: Path, folder: Path, like: str) -> None:
    if not folder.is_dir():
        raise UserError(
            f"data.path '{root}' has no {folder.relative_to(root).as_posix()}/, as {like} has"
        )


def _below(name: str) -> str:
    """Return a name from a list as a path below its folder, even where it says otherwise."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
