"""`pixio curate`: look at scores, calibrate a keep rate, rewrite shards by it."""

from __future__ import annotations

import argparse
import heapq
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pixio_lightning.data.shards.format import ShardIndex, column_read, read_group
from pixio_lightning.data.shards.index import open_index
from pixio_lightning.data.shards.keep_rule import (
    Curation,
    Histogram,
    KeepRule,
    calibrate,
    histogram_of,
)
from pixio_lightning.data.shards.rule_of_run import own_rule
from pixio_lightning.data.shards.score_files import (
    INSIDE,
    Scores,
    all_scores,
    check_scores,
    column_scored,
)
from pixio_lightning.errors import UserError, at_least_1
from pixio_lightning.files import expanded, write_text

_SHOWN = 24  # of the hardest and of the easiest images
_PASSES = (0, 1)  # for which the realised keep rate is counted


@dataclass
class Survey:
    """What a pass over the scores found.

    Attributes:
        losses: Histogram of the eligible images.
        entropies: Images by entropy, 80 bins over 0 to 8 bits, all that could be scored.
        kept: Eligible images kept in each of `_PASSES`.
        kept_by_bin: Those of the first pass, by bin of the losses.
        hardest: (loss, shard, row) of eligible images, largest first.
        easiest: And smallest first.
    """

    losses: Histogram
    entropies: np.ndarray
    kept: list[int] = field(default_factory=lambda: [0] * len(_PASSES))
    kept_by_bin: np.ndarray = field(default_factory=lambda: Histogram.empty().counts)
    hardest: list[tuple[float, int, int]] = field(default_factory=list)
    easiest: list[tuple[float, int, int]] = field(default_factory=list)


def main(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Report on scores; with --fraction calibrate, with --materialize rewrite the shards."""
    parser.add_argument(
        "shards", type=expanded, help="folder or address of the shards that were scored"
    )
    parser.add_argument(
        "--scores", default=INSIDE, type=expanded, help="folder of scores; default: in the shards"
    )
    parser.add_argument("--split", help="which shards, where their names tell, such as train")
    parser.add_argument("--fraction", type=float, help="share to keep; default: the paper's rule")
    parser.add_argument("--gamma", type=float, default=1.0, help="exponent of the loss (1)")
    parser.add_argument("--min-entropy", type=float, default=4.5, help="bits, exclusive (4.5)")
    parser.add_argument("--min-side", type=int, default=320, help="pixels (320)")
    parser.add_argument("--floor", type=float, default=0.0, help="subtracted from losses (0)")
    parser.add_argument("--seed", type=int, default=0, help="the run's data.seed (0)")
    parser.add_argument(
        "--out", default="runs/curation/report", type=expanded, help="folder of the report"
    )
    about = "rewrite the shards in 16 bins to DIR"
    parser.add_argument("--materialize", metavar="DIR", type=expanded, help=about)
    parser.add_argument("--jobs", type=int, default=1, help="parts rewritten at a time (1)")
    options = parser.parse_args(argv)
    at_least_1(**{"--jobs": options.jobs})
    if options.jobs > 1 and not options.materialize:
        parser.error("--jobs is for --materialize, which rewrites the shards")
    curation = Curation(
        scores=options.scores,
        fraction=options.fraction,
        gamma=options.gamma,
        min_entropy=options.min_entropy,
        min_side=options.min_side,
        floor=options.floor,
    )
    index, made = _scored(options.shards, options.split, options.scores)
    own = own_rule(index, curation, options.seed)
    curation = curation if own is None else own.curation
    losses = histogram_of(index, curation)
    if not losses.counts.any():
        raise UserError(
            f"no image passes the thresholds ({losses.reasons}): lower --min-entropy or --min-side"
        )
    rule = own or KeepRule(curation, calibrate(losses, curation), options.seed)
    survey = _survey(index, rule, losses)
    facts = _facts(index, rule, survey)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    picture = _draw(index, rule, survey, out / "report.png")
    write_text(out / "report.json", json.dumps(facts | {"scores": made}, indent=1) + "\n")
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        print(
            f"{name:<{width}}{value:.6g}" if isinstance(value, float) else f"{name:<{width}}{value}"
        )
    print(f"{'picture':<{width}}{picture}")
    if options.materialize:
        from pixio_lightning.curation.materialize import materialize

        folder = Path(options.materialize)
        found = materialize(index, rule, folder, jobs=options.jobs)
        print(f"{found.rows} images in {len(found.shards)} shards by keep probability, in {folder}")
        if (bad := folder / "bad_files.txt").exists():
            print(f"images to keep that cannot be read any more: {bad}")
        print("train on them with data.source shards, data.curation.scores inside")
    return 0


def _scored(path: str, split: str | None, scores: str) -> tuple[ShardIndex, dict[str, Any]]:
    """Return the index of the images that were scored, and how they were."""
    opened = partial(open_index, path, split=split, key="the shards", split_key="--split")
    index = opened()
    if scores == INSIDE:
        return index, {}
    column = column_scored(index, scores)
    if column not in (None, column_read(index)):
        index = opened(column=column)
    return index, check_scores(index, scores)


def _survey(index: ShardIndex, rule: KeepRule, losses: Histogram) -> Survey:
    survey = Survey(losses, np.zeros(80, np.int64))
    curation = rule.curation
    for number, hashes, scores in all_scores(index, curation.scores or INSIDE):
        eligible = curation.eligible(scores)
        known = np.isfinite(scores.loss)
        bins = np.clip(scores.entropy[known] * 10, 0, 79).astype(int)
        survey.entropies += np.bincount(bins, minlength=80)
        p = rule.probability(scores)
        for at, epoch in enumerate(_PASSES):
            keep = rule.draws(hashes, epoch=epoch) < p
            survey.kept[at] += int(keep.sum())
            if at == 0:
                kept = Histogram.empty().plus(Scores(*(part[keep] for part in scores)), curation)
                survey.kept_by_bin = survey.kept_by_bin + kept.counts
        rows = np.flatnonzero(eligible)
        order = rows[np.argsort(scores.loss[rows])]
        ends = [(float(scores.loss[row]), number, int(row)) for row in order[:_SHOWN]]
        survey.easiest = heapq.nsmallest(_SHOWN, survey.easiest + ends)
        ends = [(float(scores.loss[row]), number, int(row)) for row in order[-_SHOWN:]]
        survey.hardest = heapq.nlargest(_SHOWN, survey.hardest + ends)
    return survey


def _facts(index: ShardIndex, rule: KeepRule, survey: Survey) -> dict[str, Any]:
    eligible = int(survey.losses.counts.sum())
    p = survey.losses.keep_rate(rule.curation, rule.c)
    rule_is = "official, min(1, loss)" if rule.curation.fraction is None else "calibrated"
    return {
        "images": index.rows,
        "shards": len(index.shards),
        "without a score": survey.losses.unscored,
        "under a threshold": survey.losses.dropped,
        "  min entropy": survey.losses.plain,
        "  min side": survey.losses.small,
        "eligible": eligible,
        "rule": rule_is,
        "c": float(rule.c),
        "expected keep rate": p,
        "realised keep rate": " ".join(f"{kept / eligible:.6g}" for kept in survey.kept),
        "kept of all images": survey.kept[0] / max(1, index.rows),
        "damaged shards": len(index.damaged),
    }


def _draw(index: ShardIndex, rule: KeepRule, survey: Survey, path: Path) -> Path:
    from pixio_lightning.curation.figure import draw

    def images(chosen: list[tuple[float, int, int]]) -> list[tuple[bytes, str]]:
        found = []
        for loss, shard, row in chosen:
            groups = index.groups_of(shard)
            ends = np.cumsum(index.shards[shard].group_rows)
            local = int(np.searchsorted(ends, row, side="right"))
            start = int(ends[local - 1]) if local else 0
            image = read_group(index, groups[local])[row - start]
            found.append((image.data, f"{loss:.3f}"))
        return found

    draw(
        path,
        losses=survey.losses.counts,
        kept=survey.kept_by_bin,
        entropies=survey.entropies,
        min_entropy=rule.curation.min_entropy,
        hardest=images(survey.hardest),
        easiest=images(survey.easiest),
    )
    return path
