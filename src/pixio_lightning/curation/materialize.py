"""Shards rewritten by keep probability, so that little is read in vain.

Thresholds are applied once, and every image goes to one of 16 files by the probability that it is
kept. A group of such a file is read with the probability of its hardest image and then thinned
(`KeepRule.takes_group`): each image keeps its own probability, and of the bytes that are read
little more than those of kept images. The price: the images of a group come together.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
from tqdm import tqdm

from pixio_lightning.data.shards.digests import Digests
from pixio_lightning.data.shards.format import Encoded, Shard, ShardIndex, read_group
from pixio_lightning.data.shards.index import INDEX, refuse_inside, write_index
from pixio_lightning.data.shards.keep_rule import KeepRule, digest_of_scores
from pixio_lightning.data.shards.pack import (
    entry_of,
    list_left_out,
    shard_schema,
    shard_writer,
    table_of,
)
from pixio_lightning.data.shards.rule_of_run import write_rule
from pixio_lightning.data.shards.score_files import INSIDE, SCORE_SCHEMA, Scores, scores_of
from pixio_lightning.errors import UserError
from pixio_lightning.files import write_text
from pixio_lightning.files.atomic import aside_of, put_in_place, sweep
from pixio_lightning.keyed import fold, permuted

BINS = 16
PART = 32  # input shards that are rewritten together, and redone together after a kill
MAX_LOST = (
    1e-3  # share of the images to keep that may have become unreadable since they were scored
)
_BUFFER = 512  # images of a bin that are shuffled before they are written: 30 MB each
_SCHEMA = shard_schema({name: SCORE_SCHEMA.field(name).type for name in Scores._fields})


def materialize(
    index: ShardIndex, rule: KeepRule, out: Path, *, group: int = 100, jobs: int = 1
) -> ShardIndex:
    """Rewrite shards in bins of keep probability, with their scores as columns.

    A finished part is left alone, so the same line again goes on. Images to keep that cannot be
    read any more are listed in bad_files.txt, and their parts are rewritten by the next call.

    Args:
        index: The shards.
        rule: Thresholds, and the probabilities that decide the bins.
        out: Folder to write to.
        group: Images of a row group.
        jobs: Parts rewritten at a time.

    Returns:
        The index of the new shards, written beside them.

    Raises:
        UserError: The folder holds something else, or lies among the shards; or more than
            `MAX_LOST` of the images to keep cannot be read.
    """
    refuse_inside(out, index)
    out.mkdir(parents=True, exist_ok=True)
    about = f"{digest_of_scores(index, rule.curation)} c {rule.c:.9g} group {group}"
    stamp = out / ".materialized"
    if stamp.exists() and stamp.read_text() != about:
        raise UserError(f"'{out}' holds shards of another curation: give a new folder")
    if not stamp.exists() and any(out.iterdir()):
        raise UserError(f"'{out}' is not empty: give a new folder")
    write_text(stamp, about)
    sweep(out)
    n = len(index.shards)
    order = [permuted(i, n, seed=0, step=0) for i in range(n)]
    parts = [order[start : start + PART] for start in range(0, n, PART)]
    digests = Digests(out)
    with ThreadPoolExecutor(jobs) as pool:
        running = pool.map(
            lambda at: _part(index, rule, out, at, parts[at], group, digests), range(len(parts))
        )
        found = list(tqdm(running, "rewriting shards", len(parts), disable=None))
    result = ShardIndex(str(out), [entry for entries, _ in found for entry in entries])
    lost = [image for _, images in found for image in images]
    list_left_out(out, lost)
    if len(lost) > MAX_LOST * (result.rows + len(lost)):
        name, reason = lost[0]
        raise UserError(
            f"{len(lost):,} of {result.rows + len(lost):,} images to keep cannot be read since "
            f"they were scored, the first is {name} ({reason}), all are in "
            f"{out / 'bad_files.txt'}: "
            "bring their shards back and run the same line again, or score the shards anew"
        )
    if not result.n_groups:
        raise UserError("no image is kept: none of the losses is above --floor")
    write_rule(out, rule)
    write_index(result, out / INDEX)
    return result


def _part(
    index: ShardIndex,
    rule: KeepRule,
    out: Path,
    number: int,
    part: list[int],
    group: int,
    digests: Digests,
) -> tuple[list[Shard], list[tuple[str, str]]]:
    """Return the shards of a part, and the images to keep that were lost, each with the reason."""
    done = out / f".{number:05d}.done"
    lost: list[tuple[str, str]] = []
    if done.exists():
        names = json.loads(done.read_text())
    else:
        paths = [out / f"{number:05d}-{b:02d}.parquet" for b in range(BINS)]
        bins = [_Bin(path, seed=fold(number, b), group=group) for b, path in enumerate(paths)]
        for shard in part:
            for local, at in enumerate(index.groups_of(shard)):
                images = read_group(index, at)
                _, scores = scores_of(
                    index, index.shards[shard], local, rule.curation.scores or INSIDE
                )
                p = rule.probability(scores)
                for row, image in enumerate(images):
                    if p[row] > 0 and image.reason:
                        lost.append((image.key, image.reason))
                    elif p[row] > 0:
                        bins[min(BINS - 1, int(p[row] * BINS))].add(image, scores, row)
        names = [name for bin in bins if (name := bin.close())]
        if not lost:
            write_text(done, json.dumps(names))
    return [entry_of(out / name, digests) for name in names], lost


class _Bin:
    """A file that grows by shuffled row groups and appears when it is complete."""

    def __init__(self, path: Path, *, seed: int, group: int) -> None:
        self.path, self.seed, self.group = path, seed, group
        self.aside = aside_of(path)
        self.held: list[tuple[Encoded, list[float]]] = []
        self.writer: pq.ParquetWriter | None = None
        self.flushed = 0

    def add(self, image: Encoded, scores: Scores, row: int) -> None:
        self.held.append((image, [column[row] for column in scores]))
        if len(self.held) >= max(_BUFFER, self.group):
            self._flush(len(self.held) // self.group * self.group)

    def _flush(self, count: int) -> None:
        """Write `count` of the held images, in a random order that is always the same."""
        n = len(self.held)
        order = [permuted(i, n, seed=self.seed, step=self.flushed) for i in range(n)]
        mixed = [self.held[i] for i in order]
        chosen, self.held = mixed[:count], mixed[count:]
        self.flushed += 1
        if self.writer is None:
            self.writer = shard_writer(self.aside, _SCHEMA)
        for start in range(0, len(chosen), self.group):
            images, scores = zip(*chosen[start : start + self.group], strict=True)
            columns = dict(zip(Scores._fields, zip(*scores, strict=True), strict=True))
            self.writer.write_table(table_of(images, columns, _SCHEMA))

    def close(self) -> str:
        """Write what is left; return the file's name, empty where nothing was added."""
        if self.held:
            self._flush(len(self.held))
        if self.writer is None:
            return ""
        self.writer.close()
        put_in_place(self.aside, self.path)
        return self.path.name
