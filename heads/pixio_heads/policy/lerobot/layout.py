"""What a LeRobot folder says of itself: its features, its episodes, and in which files they lie."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from pixio_lightning.data import TooLarge, read_groups
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files import open_parquet, parse_json, read_text

VERSIONS = ("v2.0", "v2.1", "v3.0")
ACTION, STATE = "action", "observation.state"
# A field of a path template; anything more that str.format takes would reach into objects.
_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")


@dataclass(frozen=True)
class Episode:
    """Where an episode lies.

    Attributes:
        index: Its number.
        length: Its steps.
        data: The parquet file that holds its rows, among those of others in version 3.0.
        video: The mp4 that holds its frames, if they are a video.
        start: Seconds in that video at which it begins.
    """

    index: int
    length: int
    data: Path
    video: Path | None
    start: float


@dataclass(frozen=True)
class Layout:
    """The content of `meta/info.json`.

    Attributes:
        folder: The data set.
        version: One of `VERSIONS`.
        fps: Steps a second.
        features: `dtype`, `shape` and more by the name of a feature.
        info: All of it.
    """

    folder: Path
    version: str
    fps: float
    features: dict[str, dict[str, Any]]
    info: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / "meta" / "info.json"

    def is_video(self, camera: str) -> bool:
        return self.features[camera]["dtype"] == "video"

    def camera(self, wanted: str | None) -> str:
        """Return the feature that holds the pictures.

        Args:
            wanted: Its name, or the last part of it; None takes the only one.

        Raises:
            UserError: There is none, it is none of them, or there are several to choose from.
        """
        cameras = [k for k, about in self.features.items() if about["dtype"] in ("image", "video")]
        if not cameras:
            raise UserError(f"'{self.file}' names no feature of dtype image or video")
        if wanted is not None:
            last = [name.rpartition(".")[2] for name in cameras]
            named = [wanted] if wanted in cameras else []
            named = named or [n for n, end in zip(cameras, last, strict=True) if end == wanted]
            if not named:
                hint = nearest(wanted, cameras) or nearest(wanted, last)
                raise UserError(
                    f"data.camera '{wanted}' is none of {', '.join(cameras)} of '{self.file}'{hint}"
                )
            if len(named) > 1:
                raise UserError(
                    f"data.camera '{wanted}' may be {' or '.join(named)} of '{self.file}': give "
                    "the whole name"
                )
            return named[0]
        if len(cameras) > 1:
            raise UserError(
                f"'{self.folder}' has {len(cameras)} cameras: choose with data.camera one of "
                f"{', '.join(cameras)}"
            )
        return cameras[0]

    def episodes(self, camera: str, limit: int | None) -> list[Episode]:
        """Return the first episodes, at most `limit`, in the order of their numbers.

        Raises:
            UserError: One is listed twice, which would be trained on and held out, or they are not
                as many as the data set has.
        """
        listed = list(self._listed_v3(camera) if self.version == "v3.0" else self._listed_v2())
        if not listed:
            raise UserError(f"'{self.folder}' lists no episode in its folder meta")
        counts = Counter(about["episode_index"] for about in listed)
        ((most, times),) = counts.most_common(1)
        if times > 1:
            raise UserError(
                f"'{self.folder}' lists episode {most} {times} times in its folder meta"
            )
        total = self.info.get("total_episodes", len(listed))
        if total != len(listed):
            raise UserError(
                f"'{self.folder}' lists {len(listed)} episodes in its folder meta, but "
                f"total_episodes of '{self.file}' is {total!r}: files are missing or cut short"
            )
        listed = sorted(listed, key=lambda about: about["episode_index"])[:limit]
        return [self._episode(about, camera) for about in listed]

    def _episode(self, about: dict[str, Any], camera: str) -> Episode:
        index, length = about["episode_index"], about["length"]
        if self.version == "v3.0":
            part = _chunk_and_file(about, "data")
            video_part = _chunk_and_file(about, f"videos/{camera}")
            start = about.get(f"videos/{camera}/from_timestamp") or 0.0
        else:
            chunk = index // _positive(self.info.get("chunks_size", 1000), "chunks_size", self.file)
            total = self.info.get("total_episodes", 0)
            part = {"episode_chunk": chunk, "episode_index": index, "total_episodes": total}
            video_part, start = part, 0.0
        video = None
        if self.is_video(camera):
            video = self._path("video_path", {**video_part, "video_key": camera})
        return Episode(index, length, self._path("data_path", part), video, float(start))

    def _path(self, key: str, values: dict[str, Any]) -> Path:
        template = self.info.get(key)
        if not isinstance(template, str):
            raise UserError(f"'{self.file}' has no {key}, so its files cannot be found")

        def fill(field: re.Match[str]) -> str:
            return str(values.get(field[1], field[0])).zfill(int(field[2] or 0))

        path = _FIELD.sub(fill, template)
        if "{" in path or "}" in path:
            raise UserError(
                f"'{self.file}': {key} '{template}' is not understood; expected fields of "
                f"{', '.join(values)}"
            )
        return inside(self.folder, path, f"'{self.file}': {key}")

    def _listed_v2(self) -> Iterator[dict[str, Any]]:
        file = self.folder / "meta" / "episodes.jsonl"
        for number, line in enumerate(_text(file).splitlines(), 1):
            if line.strip():
                yield _checked(_json(line, f"line {number} of '{file}'"), file)

    def _listed_v3(self, camera: str) -> Iterator[dict[str, Any]]:
        files = sorted((self.folder / "meta" / "episodes").glob("*/*.parquet"))
        where = ["data/chunk_index", "data/file_index"]
        if self.is_video(camera):
            parts = ("chunk_index", "file_index", "from_timestamp")
            where += [f"videos/{camera}/{part}" for part in parts]
        for file in files:
            for about in read_table(file, ["episode_index", "length", *where]).to_pylist():
                yield _checked(about, file, where)


def read_layout(folder: Path) -> Layout:
    """Read what a data set says of itself.

    Raises:
        UserError: `meta/info.json` is missing, damaged, or of an unknown version.
    """
    file = folder / "meta" / "info.json"
    if not file.is_file():
        raise UserError(
            f"'{folder}' is no LeRobot data set: it has no meta/info.json; expected the folder "
            "that holds data, meta and, if there are any, videos"
        )
    info = _json(_text(file), f"'{file}'")
    version, fps, features = (info.get(k) for k in ("codebase_version", "fps", "features"))
    if version not in VERSIONS:
        raise UserError(
            f"'{file}' is of codebase_version {version!r}, but expected {', '.join(VERSIONS)}"
        )
    if not isinstance(features, dict) or not all(
        isinstance(about, dict) and isinstance(about.get("dtype"), str)
        for about in features.values()
    ):
        raise UserError(f"'{file}' is damaged: its features are not given by name, with a dtype")
    return Layout(folder, version, _positive(fps, "fps", file), features, info)


def read_table(
    file: Path,
    columns: list[str],
    *,
    unread: Sequence[str] = (),
    where_present: Sequence[str] = (),
) -> pa.Table:
    """Read columns of a parquet file.

    Args:
        file: It.
        columns: What is read.
        unread: Columns that must be there as well, to be read later.
        where_present: Columns that are read if they are there.

    Raises:
        UserError: It is missing or damaged, or has no such column.
    """
    try:
        parquet = open_parquet(file)
        for name in (*columns, *unread):
            if name not in parquet.schema_arrow.names:
                known = nearest(name, parquet.schema_arrow.names)
                raise UserError(f"'{file}' has no column '{name}'{known}")
        more = [name for name in where_present if name in parquet.schema_arrow.names]
        return read_groups(parquet, range(parquet.num_row_groups), [*columns, *more])
    except FileNotFoundError:
        raise UserError(f"'{file}' does not exist, but the data set names it") from None
    except UserError:
        raise
    except TooLarge as error:
        raise UserError(f"'{file}' unpacks to {error}: refused") from None
    except (pa.ArrowException, OSError, ValueError):  # the last of names that are no text
        raise UserError(f"'{file}' cannot be read as parquet: it is damaged or cut short") from None


def inside(folder: Path, path: str, what: str) -> Path:
    """Return a path that a data set names, below its folder.

    Links may lead elsewhere, as they do in the cache of the Hugging Face Hub.

    Raises:
        UserError: It is absolute, or leads upwards.
    """
    if (
        path.startswith(("/", "~"))
        or ".." in PurePosixPath(path).parts
        or re.search(r"[\\\0]", path)
    ):
        raise UserError(f"{what} '{path}' leads out of the data set: refused")
    return folder / path


def _chunk_and_file(about: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {part: about.get(f"{prefix}/{part}", 0) for part in ("chunk_index", "file_index")}


def _checked(about: dict[str, Any], file: Path, where: list[str] | None = None) -> dict[str, Any]:
    for name in ("episode_index", "length", *(where or [])):
        value = about.get(name)
        kinds = int | float if name.endswith("timestamp") else int
        if not isinstance(value, kinds) or not 0 <= value < 1 << 40:
            raise UserError(f"'{file}': {name} of an episode is {value!r}, but expected a number")
    if not about["length"]:
        raise UserError(f"'{file}': episode {about['episode_index']} has no steps")
    return about


def _positive(value: Any, name: str, file: Path) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise UserError(f"'{file}': {name} is {value!r}, but expected a number above 0")
    return value


def _text(file: Path) -> str:
    try:
        return read_text(file)
    except OSError as error:
        raise UserError(f"'{file}' cannot be read ({error.strerror})") from None


def _json(text: str, what: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{what} is no JSON object, so it is damaged")
    return content
