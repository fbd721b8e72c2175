"""The rule of a run: the one that its shards were rewritten by, or one calibrated on scores."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pixio_lightning.data.shards.format import ShardIndex
from pixio_lightning.data.shards.keep_rule import (
    Curation,
    KeepRule,
    calibrate,
    digest_of_scores,
    histogram_of,
)
from pixio_lightning.data.shards.remote import file_system, join
from pixio_lightning.data.shards.score_files import INSIDE, check_scores
from pixio_lightning.data.sources import digest_of
from pixio_lightning.errors import UserError
from pixio_lightning.files import default_cache, parse_json, read_text, write_text

_RULE = "curation.json"  # beside shards that were rewritten by it
_MAX_BYTES = 1 << 16


def write_rule(folder: Path, rule: KeepRule) -> None:
    """Keep what shards were rewritten by beside them, where not all is left to calibrate on."""
    about = asdict(rule.curation) | {"scores": INSIDE, "c": rule.c}
    write_text(folder / _RULE, json.dumps(about) + "\n")


def rule_of(index: ShardIndex, curation: Curation, seed: int) -> KeepRule:
    """Return the rule of a run: that of the shards, if they were rewritten by one.

    Each score file is looked at once: there may be as many as there are shards.

    Raises:
        UserError: The scores do not fit, see `check_scores` and `own_rule`.
    """
    if own := own_rule(index, curation, seed):
        return own._replace(digest=digest_of_scores(index, own.curation))
    digest = digest_of_scores(index, curation)
    return KeepRule(curation, calibrated(index, curation, digest), seed, digest)


def own_rule(index: ShardIndex, curation: Curation, seed: int) -> KeepRule | None:
    """Return the rule that shards were rewritten by; None if by none, or for other scores.

    It lies in the folder of the shards, here or in an object store, and counts as well where a
    folder above or a single one of them is trained on.

    Raises:
        UserError: It cannot be read or is missing, it is not that of all shards, or other keys are
            given than those it has.
    """
    if curation.scores != INSIDE:
        return None
    folders = sorted({shard.path.rpartition("/")[0] for shard in index.shards})
    places = [join(index.root, f"{folder}/{_RULE}".lstrip("/")) for folder in folders]
    found = {_read_rule(index.root, place) for place in places}
    if found <= {None}:
        if any(len(shard.group_max_loss) for shard in index.shards):
            raise UserError(
                f"the shards in '{index.root}' are sorted by loss, but '{_RULE}', the rule that "
                "they were sorted by, is not beside them: copy it there, or rewrite them by pixio "
                "curate"
            )
        return None
    if len(found) > 1:
        raise UserError(
            f"'{index.root}' holds shards that were rewritten by another rule than others, or by "
            "none: give the folder of those of one rule"
        )
    ((own, c),) = filter(None, found)
    if curation not in (own, Curation(scores=INSIDE)):
        raise UserError(
            f"'{index.root}' was rewritten by fraction {own.fraction}, gamma {own.gamma:g}, "
            f"min_entropy {own.min_entropy:g}, min_side {own.min_side}, floor {own.floor:g}, which "
            "is what counts: leave all of data.curation but scores out, or of pixio curate these "
            "options"
        )
    return KeepRule(own, c, seed)


def _read_rule(root: str, place: str) -> tuple[Curation, float] | None:
    """Return a rule's thresholds and constant; None where there is none.

    Raises:
        UserError: It is damaged, or its place cannot be looked at.
    """
    files = file_system(root)
    try:
        if files.info(place)["type"] != "file":
            raise ValueError
        with files.open(place, "rb") as file:
            about = parse_json(file.read(_MAX_BYTES).decode())
        c = float(about.pop("c"))
        if not 0 < c < math.inf:
            raise ValueError
        return Curation(**about), c
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"'{place}' is damaged: rewrite the shards by pixio curate") from None
    except Exception as error:  # of the network, or of who may read
        reason = " ".join(str(error).split())
        raise UserError(f"'{place}' cannot be read: {reason}") from None


def calibrated(index: ShardIndex, curation: Curation, digest: str) -> float:
    """Return the constant of the rule, of scores that are in order; it is kept in the cache.

    A look at each file tells whether it has changed since; to check or to count them, all have to
    be opened, and there are as many as shards.

    Args:
        index: The shards.
        curation: Which of their images are kept.
        digest: Of their scores, see `digest_of_scores`.

    Raises:
        UserError: As `check_scores` and `calibrate`.
    """
    kept = default_cache() / f"calibrated-{digest_of(digest, index.column)}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there, or damaged
        if 0 < (c := float(parse_json(read_text(kept))["c"])) < math.inf:
            return c
    if curation.scores != INSIDE:
        check_scores(index, str(curation.scores))
    c = 1.0
    if curation.fraction is not None:
        c = calibrate(histogram_of(index, curation), curation)
    with suppress(OSError):  # without a cache it is found at each start
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps({"c": c}))
    return c
