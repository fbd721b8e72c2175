"""Scores of shards: what `pixio predict -c curation/score` writes, one parquet file for each shard.

A file has the rows of its shard in their order, to be joined by position and checked by key. It
says how the scores were made, and of which shard. Shards that were rewritten by their scores have
them as columns of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from pixio_lightning.data.parquet import MAX_ROWS, read_groups, read_rows
from pixio_lightning.data.shards.format import Shard, ShardIndex, column_read, short_reason
from pixio_lightning.data.shards.remote import in_order, join, parquet_file, retried
from pixio_lightning.errors import UserError
from pixio_lightning.files import open_parquet, written_aside
from pixio_lightning.files.naming import output_name
from pixio_lightning.files.text import parse_json

Floats = NDArray[np.float64]

INSIDE = "inside"  # for a folder: the scores are columns of the shards
SCORE_SCHEMA = pa.schema(
    [
        ("hash", pa.int64()),
        ("loss", pa.float32()),
        ("entropy", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
_COLUMNS = tuple(SCORE_SCHEMA.names)


class Scores(NamedTuple):
    """Scores of some images, `(N,)` each; the loss is NaN where an image could not be scored."""

    loss: Floats
    entropy: Floats
    width: NDArray
    height: NDArray

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which images have a score: finite, and not negative."""
        return np.isfinite(self.loss) & (self.loss >= 0)


def score_file(folder: str | Path, shard: str) -> Path:
    """Return where the scores of a shard are kept."""
    flat = shard.replace("/", "--")
    if flat.replace("--", "/") != shard:  # another shard's as well
        flat = "\0" + shard.replace("/", "\0")  # in the name of no file, so that a hash is added
    return Path(folder) / output_name(flat, ".scores.parquet")


# --- writing and reading --------------------------------------------------------------------------


def write_scores(
    folder: str | Path, shard: Shard, columns: Mapping[str, ArrayLike], settings: dict[str, Any]
) -> Path:
    """Write the scores of a shard, complete or not at all.

    Args:
        folder: Of the scores of all shards; made if need be.
        shard: Its entry in the index, see `open_index`.
        columns: `hash`, `loss`, `entropy`, `width` and `height` of its images `(N,)`, as `Scorer`
            returns them, in the order of the shard. Others are left out.
        settings: How they were made, as plain data, see `Scorer.settings`: only scores of equal
            settings may be compared.

    Returns:
        The file.

    Raises:
        UserError: A column is missing, or the shard has not as many images.
    """
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise UserError(f"scores of '{shard.path}' have no {missing[0]}: expected {_COLUMNS}")
    arrays = {name: np.asarray(columns[name]) for name in _COLUMNS}
    for name, values in arrays.items():
        if values.shape != (shard.rows,):
            raise UserError(
                f"scores of '{shard.path}' have {name} of shape {values.shape}, but the shard has "
                f"{shard.rows} images: give one number for each"
            )
    path = score_file(folder, shard.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = SCORE_SCHEMA.with_metadata(about_scores(settings, shard))
    with written_aside(path) as aside:
        # One group, as they are read as a whole: a hundred small ones take twenty times as long.
        pq.write_table(
            pa.Table.from_pydict(arrays, schema=schema),
            aside,
            compression="zstd",
            row_group_size=MAX_ROWS,
        )
    return path


def read_columns(
    root: str, path: str, group: int | None, columns: tuple[str, ...]
) -> dict[str, Any]:
    """Return columns of one row group as numpy arrays, NaN for nulls.

    Args:
        root: Folder or address of the file.
        path: The file.
        group: Number of the group; None reads all groups, of a local file that is opened anew.
        columns: Names of the columns.

    Raises:
        UserError: A column is missing, or the file is, or it is damaged or too large.
    """
    place = join(root, path)

    def read() -> dict[str, Any]:
        file = parquet_file(root, path) if group is not None else open_parquet(place)
        known = file.schema_arrow.names
        missing = [name for name in columns if name not in known]
        if missing:
            raise UserError(
                f"'{place}' has no column '{missing[0]}': give a folder of scores, written "
                "by `pixio predict -c curation/score`"
            )
        if group is not None:
            table = read_rows(file, group, columns)
        else:
            with file:
                table = read_groups(file, range(file.num_row_groups), columns)
        return {name: table[name].to_numpy() for name in columns}

    try:
        return retried(read, place)
    except UserError:
        raise
    except Exception as error:  # what readers raise of damaged bytes has no common class
        again = "its scores again, `pixio predict -c curation/score`"
        if group is not None:  # it is a shard that holds its own
            again = "the shards again, `pixio curate --materialize`"
        reason = short_reason(error, of="file")
        raise UserError(f"'{place}': {reason}; restore it, or write {again}") from None


def scores_of(
    index: ShardIndex, shard: Shard, group: int, folder: str
) -> tuple[NDArray[np.int64], Scores]:
    """Return the keys' hashes and the scores of one group.

    Raises:
        UserError: They are missing or damaged, or not as many as the shard has images.
    """
    if folder == INSIDE:
        return _as_scores(read_columns(index.root, shard.path, group, _COLUMNS))
    hashes, scores = scores_of_shard(index, shard, folder)
    end = int(shard.group_rows[: group + 1].sum())
    rows = slice(end - int(shard.group_rows[group]), end)
    return hashes[rows], Scores(*(part[rows] for part in scores))


def scores_of_shard(
    index: ShardIndex, shard: Shard, folder: str
) -> tuple[NDArray[np.int64], Scores]:
    """Return the keys' hashes and the scores of all images of a shard; see `scores_of`."""
    if folder == INSIDE:
        groups = range(len(shard.group_rows))
        parts = [scores_of(index, shard, group, folder) for group in groups]
        joined = (np.concatenate(part) for part in zip(*(s for _, s in parts), strict=True))
        return np.concatenate([hashes for hashes, _ in parts]), Scores(*joined)
    path = score_file(Path(folder).resolve(), shard.path)
    changed = (0, 0)
    with suppress(OSError):  # that it is missing is said where it is read
        changed = path.stat().st_mtime_ns, path.stat().st_size
    found = _read_file(path, changed)
    if len(found[0]) != shard.rows:
        raise UserError(
            f"'{path}' has {len(found[0])} scores, but '{shard.path}' has {shard.rows} images: "
            "score the shards again"
        )
    return found


# The groups of a shard are asked for one after the other.
@lru_cache(maxsize=2)
def _read_file(path: Path, changed: tuple[int, int]) -> tuple[NDArray[np.int64], Scores]:
    return _as_scores(read_columns(str(path.parent), path.name, None, _COLUMNS))


def _as_scores(columns: dict[str, Any]) -> tuple[NDArray[np.int64], Scores]:
    """Return columns as hashes and scores, the floats in double precision."""
    loss, entropy = (np.asarray(columns[name], np.float64) for name in ("loss", "entropy"))
    sides = (np.asarray(columns[name]) for name in ("width", "height"))
    return np.asarray(columns["hash"]), Scores(loss, entropy, *sides)


def all_scores(index: ShardIndex, folder: str) -> Iterator[tuple[int, NDArray[np.int64], Scores]]:
    """Yield every shard's number, keys' hashes and scores."""
    found = in_order(lambda shard: scores_of_shard(index, shard, folder), index.shards)
    for number, (hashes, scores) in enumerate(found):
        yield number, hashes, scores


# --- what a file says of itself -------------------------------------------------------------------


def about_scores(settings: dict[str, Any], shard: Shard) -> dict[str, str]:
    """Return what is kept in a score file beside the scores: how they were made, and of what."""
    about = {"bytes": shard.size, "sha256": shard.sha256}
    return {"pixio_scores": json.dumps(settings), "pixio_shard": json.dumps(about)}


def settings_of(path: Path) -> dict[str, Any]:
    """Return how a score file was made: checkpoint digest, masks, size.

    Raises:
        UserError: It is no score file.
    """
    return _about(path)["pixio_scores"]


def _about(path: Path) -> dict[str, Any]:
    """Return what a score file says of its scores, and of its shard."""
    found: dict[str, Any] = {}
    with suppress(OSError, pa.ArrowException, ValueError):
        for name, text in (pq.read_schema(path).metadata or {}).items():
            if name in (b"pixio_scores", b"pixio_shard"):
                found[name.decode()] = parse_json(text.decode())
    if len(found) < 2 or not all(isinstance(v, dict) for v in found.values()):
        raise UserError(
            f"'{path}' is no score file of `pixio predict -c curation/score`, nor of `write_scores`"
        )
    return found


def different(some: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Return which settings of scores differ."""
    return sorted(k for k in some.keys() | others.keys() if some.get(k) != others.get(k))


def check_shard(shard: Shard, path: Path) -> None:
    """Refuse a score file that is another shard's of this name.

    Names and keys alone do not tell data sets apart: many number both from nought. Two files are
    the same by their digests, or where the index of one has none, by their sizes.

    Raises:
        UserError: It is.
    """
    _check_shard(shard, path, _about(path))


def _check_shard(shard: Shard, path: Path, about: dict[str, Any]) -> None:
    of = about["pixio_shard"]
    size, digest = of.get("bytes"), of.get("sha256")
    if size != shard.size or (digest and shard.sha256 and digest != shard.sha256):
        raise UserError(
            f"the scores in '{path}' were made of another '{shard.path}', of {size} bytes; this "
            f"one has {shard.size}: score these shards into a folder of their own"
        )


def check_scores(index: ShardIndex, folder: str) -> dict[str, Any]:
    """Return the settings that all score files of a data set share.

    Raises:
        UserError: A shard has no scores or another's, files disagree on how they were made, or they
            are of images of another column.
    """
    if not Path(folder).is_dir():
        raise UserError(f"data.curation.scores '{folder}' is not a folder")
    there = in_order(lambda shard: score_file(folder, shard.path).exists(), index.shards)
    missing = [s.path for s, here in zip(index.shards, there, strict=True) if s.rows and not here]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(index.shards)} shards have no scores in '{folder}', the first "
            f"is '{missing[0]}': run `pixio predict -c curation/score` again, it does the rest"
        )
    shared: dict[str, Any] = {}
    said = in_order(lambda shard: _about(score_file(folder, shard.path)), index.shards)
    for shard, about in zip(index.shards, said, strict=True):
        _check_shard(shard, score_file(folder, shard.path), about)
        found = about["pixio_scores"]
        if shared and (differ := different(shared, found)):
            facts = ", ".join(f"{k} {shared.get(k)} and {found.get(k)}" for k in differ)
            raise UserError(
                f"score files in '{folder}' were made differently ({facts}, first in "
                f"'{shard.path}'): their losses cannot be compared; score into a new folder"
            )
        shared = shared | found
    scored, read = shared.get("column"), column_read(index)
    if None not in (scored, read) and scored != read:
        raise UserError(
            f"the scores in '{folder}' are of the images of column '{scored}', but those of column "
            f"'{read}' are read: set data.column {scored}, or score these"
        )
    return shared


def column_scored(index: ShardIndex, folder: str) -> str | None:
    """Return the column of the images that were scored; None where that is not known."""
    for shard in index.shards[:1]:
        path = score_file(folder, shard.path)
        column = settings_of(path).get("column") if path.exists() else None
        return column if isinstance(column, str) else None
    return None
