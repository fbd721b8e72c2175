"""Self-curation: images that are hard to reconstruct are kept more often (Pixio, section 3.3).

An image is kept in a pass with probability ``p = min(1, c * max(loss - floor, 0)^gamma)``, decided
by a hash of its key, the seed and the pass. Nothing is drawn from a generator, so the choice is the
same for any number of processes and workers, and nothing has to be saved. The paper's rule is
``c = 1, gamma = 1``; a wanted fraction is reached by calibrating c on a histogram of the losses.

Scores come from `pixio predict -c curation/score`, see `score_files`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pixio_lightning.data.shards.format import Encoded, Shard, ShardIndex
from pixio_lightning.data.shards.remote import in_order
from pixio_lightning.data.shards.score_files import (
    INSIDE,
    Floats,
    Scores,
    all_scores,
    score_file,
    scores_of,
)
from pixio_lightning.data.sources import digest_of
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Purpose, key_of, keyed_numbers

BINS = 4096
# Losses above the last edge are counted in the last bin: with c near 1 they are always kept.
MAX_LOSS = 4.0


@dataclass(frozen=True)
class Curation:
    """Which images of a scored data set are trained on.

    Attributes:
        scores: Folder of score files, or `inside` for the score columns of the shards themselves,
            which `pixio curate --materialize` writes; null keeps all images.
        fraction: Share of the eligible images to keep on average; null is the paper's rule, c = 1.
        gamma: Exponent of the loss.
        min_entropy: Images whose colour histogram has at most this entropy, in bits, are dropped.
        min_side: Images with a side under so many pixels are dropped.
        floor: Subtracted from the loss: what noise alone costs, 0 in the paper.
    """

    scores: str | None = None
    fraction: float | None = None
    gamma: float = 1.0
    min_entropy: float = 4.5
    min_side: int = 320
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UserError(f"data.curation.fraction is {self.fraction}, but expected 0 to 1")
        if not 0 < self.gamma < math.inf:
            raise UserError(f"data.curation.gamma is {self.gamma}, but expected more than 0")
        if not 0 <= self.floor < math.inf:
            raise UserError(f"data.curation.floor is {self.floor}, but expected 0 or more")

    def eligible(self, scores: Scores) -> NDArray[np.bool_]:
        """Return which images pass the thresholds and have a score."""
        side = np.minimum(scores.width, scores.height)
        return scores.known & (scores.entropy > self.min_entropy) & (side >= self.min_side)

    def power(self, loss: Floats) -> Floats:
        """Return ``max(loss - floor, 0)^gamma``."""
        return np.maximum(loss - self.floor, 0) ** self.gamma


class Histogram(NamedTuple):
    """Losses of eligible images in bins, which add up over shards, and what was left out.

    Attributes:
        counts: int64 `(BINS,)` over [0, MAX_LOSS].
        unscored: Images without a finite, non-negative score.
        dropped: Images under a threshold, or under both.
        plain: Those up to `min_entropy`.
        small: Those under `min_side`.
    """

    counts: NDArray[np.int64]
    unscored: int = 0
    dropped: int = 0
    plain: int = 0
    small: int = 0

    @property
    def reasons(self) -> str:
        """Return how many were dropped, by what, and how many have no score."""
        return (
            f"{self.dropped} dropped, {self.plain} of them by min_entropy and {self.small} by "
            f"min_side, {self.unscored} without a score"
        )

    @classmethod
    def empty(cls) -> Histogram:
        """Return one that counts nothing yet."""
        return cls(np.zeros(BINS, np.int64))

    def plus(self, scores: Scores, curation: Curation) -> Histogram:
        """Return this with more images in it."""
        known = scores.known
        eligible = curation.eligible(scores)
        bins = np.minimum(scores.loss[eligible] / MAX_LOSS * BINS, BINS - 1).astype(np.int64)
        return Histogram(
            self.counts + np.bincount(bins, minlength=BINS),
            self.unscored + int((~known).sum()),
            self.dropped + int((known & ~eligible).sum()),
            self.plain + int((known & (scores.entropy <= curation.min_entropy)).sum()),
            self.small
            + int((known & (np.minimum(scores.width, scores.height) < curation.min_side)).sum()),
        )

    def keep_rate(self, curation: Curation, c: float) -> float:
        """Return the expected share of the eligible images that is kept."""
        middle = (np.arange(BINS) + 0.5) / BINS * MAX_LOSS
        p = np.minimum(1, c * curation.power(middle))
        return float((self.counts * p).sum() / max(1, self.counts.sum()))


def calibrate(histogram: Histogram, curation: Curation) -> float:
    """Return the c at which the expected keep rate is `curation.fraction`; 1 without one.

    Raises:
        UserError: No image passes the thresholds, or even keeping all above the floor is too few.
    """
    if curation.fraction is None:
        return 1.0
    if not histogram.counts.any():
        raise UserError(
            f"no image passes data.curation's thresholds ({histogram.reasons}): lower min_entropy "
            "or min_side"
        )
    low, high = 0.0, 1e9
    if histogram.keep_rate(curation, high) < curation.fraction:
        raise UserError(
            f"data.curation.fraction {curation.fraction} cannot be reached: only "
            f"{histogram.keep_rate(curation, high):.3f} of the images lie above the floor"
        )
    for _ in range(200):
        middle = (low + high) / 2
        if histogram.keep_rate(curation, middle) < curation.fraction:
            low = middle
        else:
            high = middle
    return high


class KeepRule(NamedTuple):
    """The decision, ready for a reader.

    Attributes:
        curation: Thresholds and exponent.
        c: The calibrated constant.
        seed: The run's seed.
        digest: Of the scores that a run follows, see `digest_of_scores`.
    """

    curation: Curation
    c: float
    seed: int
    digest: str = ""

    def probability(self, scores: Scores) -> Floats:
        """Return the probability `(N,)` that each image is kept in a pass."""
        p = np.minimum(1, self.c * self.curation.power(np.nan_to_num(scores.loss)))
        return np.where(self.curation.eligible(scores), p, 0)

    def draws(self, hashes: NDArray[np.int64], *, epoch: int) -> Floats:
        """Return the number in [0, 1) that each image of a pass has to stay under."""
        return keyed_numbers(hashes, seed=self.seed, step=epoch, purpose=Purpose.KEEP)

    def takes_group(self, index: ShardIndex, group: int, *, epoch: int) -> bool:
        """Whether a group is read at all: always, but where shards are sorted by these losses.

        There a group is taken with the probability of its hardest image, and its images are
        thinned by the rest, so that each keeps its own probability and little is read in vain.
        """
        ceiling = self._ceiling(index, group)
        if ceiling is None:
            return True
        number, local = index.locate(group)
        key = key_of(f"{index.shards[number].path}#{local}")
        draw = keyed_numbers(
            np.array([key], np.int64), seed=self.seed, step=epoch, purpose=Purpose.KEEP_GROUP
        )
        return bool(draw[0] < ceiling)

    def _ceiling(self, index: ShardIndex, group: int) -> float | None:
        """Return the largest probability in a group; None where it is not known."""
        if self.curation.scores not in (None, INSIDE):
            return None  # of other losses than those that the shards were sorted by
        number, local = index.locate(group)
        largest = index.shards[number].group_max_loss
        if not len(largest):
            return None
        power = self.curation.power(largest[local : local + 1].astype(np.float64))
        return min(1.0, self.c * float(power[0]))

    def keep(
        self, index: ShardIndex, group: int, images: list[Encoded], *, epoch: int
    ) -> NDArray[np.bool_]:
        """Return which images of a group are kept in a pass, and which cannot be read.

        What cannot be read is always let through, to be counted as bad. Of a whole group that is
        lost no score is read, which may be lost with it.

        Raises:
            UserError: The scores are missing, or of other images.
        """
        lost = np.array([bool(image.reason) for image in images])
        if lost.all():
            return lost
        number, local = index.locate(group)
        shard = index.shards[number]
        hashes, scores = scores_of(index, shard, local, self.curation.scores or INSIDE)
        own = np.array([key_of(image.key) for image in images], np.int64)
        readable = np.array([not image.key.startswith(f"{shard.path}#") for image in images])
        if len(own) != len(hashes) or (own != hashes)[readable].any():
            raise UserError(
                f"the scores of '{shard.path}' in '{self.curation.scores}' are of other images, "
                "or in another order: score the shards again"
            )
        p = self.probability(scores) / (self._ceiling(index, group) or 1.0)
        return (self.draws(hashes, epoch=epoch) < p) | lost


def histogram_of(index: ShardIndex, curation: Curation) -> Histogram:
    """Count the losses of a whole data set, with a progress bar."""
    total = Histogram.empty()
    with tqdm(total=index.rows, desc="reading scores", unit="image", disable=None) as bar:
        for _, hashes, scores in all_scores(index, curation.scores or INSIDE):
            total = total.plus(scores, curation)
            bar.update(len(hashes))
    return total


def digest_of_scores(index: ShardIndex, curation: Curation) -> str:
    """Hash of the curation and of the sizes of its score files, for caches and fingerprints."""
    facts: list[Any] = [index.digest, vars(curation)]

    def look(shard: Shard) -> list[Any]:
        file = score_file(str(curation.scores), shard.path)
        try:
            about = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [file.name, about.st_size, about.st_mtime_ns]

    if curation.scores not in (None, INSIDE):
        facts += filter(None, in_order(look, index.shards))
    return digest_of(*facts)
