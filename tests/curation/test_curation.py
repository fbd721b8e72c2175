"""What is kept: the right share, the same for everyone, and what the thresholds say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import images, jpeg, keys, pack, write_images

from pixio_lightning.cli.main import main
from pixio_lightning.curation.materialize import materialize
from pixio_lightning.data import parquet
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.data.shards import remote
from pixio_lightning.data.shards.format import ShardIndex, read_group
from pixio_lightning.data.shards.index import build_index, open_index
from pixio_lightning.data.shards.keep_rule import (
    Curation,
    Histogram,
    KeepRule,
    calibrate,
)
from pixio_lightning.data.shards.remote import forget_opened
from pixio_lightning.data.shards.rule_of_run import rule_of
from pixio_lightning.data.shards.score_files import (
    SCORE_SCHEMA,
    Scores,
    about_scores,
    all_scores,
    check_scores,
    check_shard,
    different,
    read_columns,
    score_file,
    scores_of,
    write_scores,
)
from pixio_lightning.data.shards.stream import BlockOrder, ShardImages
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Purpose, key_of, keyed_numbers, uniform

FREE = Curation(scores="inside", min_entropy=0, min_side=0)


def scores_like(losses: np.ndarray) -> Scores:
    n = len(losses)
    return Scores(losses, np.full(n, 9.0), np.full(n, 640), np.full(n, 480))


@pytest.fixture(scope="module")
def million() -> tuple[np.ndarray, np.ndarray]:
    """Keys and log-normal losses of a million images."""
    random_key = np.random.default_rng(0)
    losses = np.exp(random_key.normal(-1.05, 0.45, 1_000_000))
    return random_key.integers(-(2**63), 2**63 - 1, 1_000_000, dtype=np.int64), losses


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.8])
def test_a_fraction_is_kept_without_bias(
    million: tuple[np.ndarray, np.ndarray], fraction: float
) -> None:
    hashes, losses = million
    curation = Curation(scores="x", fraction=fraction, min_entropy=0, min_side=0)
    scores = scores_like(losses)
    # Bit by bit, as from many shards.
    total = Histogram.empty()
    for part in np.array_split(losses, 7):
        total = total.plus(scores_like(part), curation)
    rule = KeepRule(curation, calibrate(total, curation), seed=4)
    p = rule.probability(scores)
    assert abs(p.mean() - fraction) < 1e-3
    keep = rule.draws(hashes, epoch=2) < p
    z = (keep.sum() - p.sum()) / np.sqrt((p * (1 - p)).sum())
    assert abs(z) < 3
    horvitz_thompson = (losses[keep] / p[keep]).sum() / len(losses)
    assert abs(horvitz_thompson / losses.mean() - 1) < 0.005
    # In every band of losses too.
    band = np.digitize(losses, np.quantile(losses, np.linspace(0, 1, 51)[1:-1]))
    expected, got = np.bincount(band, p), np.bincount(band, keep)
    deviation = np.sqrt(np.bincount(band, p * (1 - p)))
    inside = deviation > 0
    assert np.abs((got - expected)[inside] / deviation[inside]).max() < 4.5
    assert np.array_equal(got[~inside], expected[~inside])  # those that are always kept


def test_passes_and_seeds_are_independent(million: tuple[np.ndarray, np.ndarray]) -> None:
    hashes, losses = million
    rows = [
        keyed_numbers(hashes, seed=seed, step=epoch, purpose=Purpose.KEEP)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    bound = 5 / np.sqrt(len(hashes))
    correlation = np.corrcoef([*rows, losses])
    assert np.abs(correlation - np.eye(4)).max() < bound
    for row in rows:
        assert abs(row.mean() - 0.5) < bound and abs(row.var() * 12 - 1) < 2 * bound
        counts = np.bincount((row * 256).astype(int), minlength=256)
        assert abs(((counts - len(row) / 256) ** 2 / (len(row) / 256)).sum() / 255 - 1) < 0.5
    # Keys one after the other are no less random.
    row = keyed_numbers(np.arange(100_000), seed=0, step=0, purpose=Purpose.KEEP)
    assert abs(np.corrcoef(row[1:], row[:-1])[0, 1]) < 0.016


def test_the_numbers_are_pinned_and_those_of_the_scalar_form() -> None:
    hashes = np.array([key_of(key) for key in keys(4)])
    assert hashes[0] == key_of("images/00000.jpg") == 7674881309025095574
    numbers = keyed_numbers(hashes, seed=3, step=5, purpose=Purpose.KEEP)
    assert numbers.round(6).tolist() == [0.536678, 0.758304, 0.559286, 0.340824]
    scalar = [uniform(int(key), 1, seed=3, step=5, purpose=Purpose.KEEP)[0] for key in hashes]
    # The scalar form keeps 24 of the 53 bits.
    assert (numbers * 2**24).astype(int).tolist() == [int(x * 2**24) for x in scalar]


def test_the_official_rule_keeps_min_of_one_and_the_loss() -> None:
    losses = np.array([0.0, 0.1, 0.5, 1.0, 1.7, 30.0])
    official = KeepRule(FREE, calibrate(Histogram.empty(), FREE), seed=0)
    assert official.c == 1.0
    np.testing.assert_allclose(official.probability(scores_like(losses)), np.minimum(1, losses))
    floor = KeepRule(Curation(scores="x", floor=0.2, gamma=2, min_entropy=0, min_side=0), 1.0, 0)
    np.testing.assert_allclose(
        floor.probability(scores_like(losses)), [0, 0, 0.09, 0.64, 1, 1], atol=1e-12
    )


def test_thresholds_are_strict_and_missing_scores_are_never_kept() -> None:
    scores = Scores(
        np.array([0.9, 0.9, 0.9, 0.9, np.nan, -1.0, np.inf]),
        np.array([4.5, 4.51, 9, 9, 9, 9, 9]),
        np.array([320, 320, 319, 1000, 500, 500, 500]),
        np.array([320, 320, 1000, 319, 500, 500, 500]),
    )
    paper = Curation(scores="x")
    assert paper.eligible(scores).tolist() == [False, True, False, False, False, False, False]
    found = Histogram.empty().plus(scores, paper)
    assert (found.counts.sum(), found.unscored, found.dropped) == (1, 3, 3)
    assert found.reasons == (
        "3 dropped, 1 of them by min_entropy and 2 by min_side, 3 without a score"
    )
    assert KeepRule(paper, 1.0, 0).probability(scores).tolist() == [0, 0.9, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"gamma": 0}, "gamma is 0"),
    ],
)
def test_impossible_curations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Curation(**options)


def test_fractions_that_cannot_be_reached_are_refused() -> None:
    nothing = Curation(scores="x", fraction=0.5)
    with pytest.raises(UserError, match="no image passes"):
        calibrate(Histogram.empty(), nothing)
    floor = Curation(scores="x", fraction=0.5, floor=0.8, min_entropy=0, min_side=0)
    losses = np.linspace(0, 1, 1000)
    with pytest.raises(UserError, match="cannot be reached"):
        calibrate(Histogram.empty().plus(scores_like(losses), floor), floor)


# --- score files ----------------------------------------------------------------------------------


def score(index: ShardIndex, folder: Path, losses: dict[int, float], **settings: Any) -> None:
    """Write score files for packed shards, from the losses by key."""
    for number, shard in enumerate(index.shards):
        read = [image for group in index.groups_of(number) for image in read_group(index, group)]
        hashes = [key_of(image.key) for image in read]
        n = len(hashes)
        table = {
            "hash": hashes,
            "loss": [losses[key] for key in hashes],
            "entropy": [6.0] * n,
            "width": [400] * n,
            "height": [400] * n,
        }
        write_scores(folder, shard, table, {"checkpoint": "c", "masks": 4} | settings)


def losses_of(n: int) -> dict[int, float]:
    random_key = np.random.default_rng(1)
    values = np.exp(random_key.normal(-1.05, 0.5, n))
    return {key_of(key): float(np.float32(v)) for key, v in zip(keys(n), values, strict=True)}


def kept_in_pass(
    index: ShardIndex, rule: KeepRule, *, readers: int, epoch: int
) -> tuple[list[int], int]:
    """Read the blocks of one pass as `readers` would; return the keys and what was drawn."""
    order = BlockOrder.of(index, np.arange(index.n_groups), rows=60, seed=rule.seed)
    data = ShardImages(
        index,
        order,
        rule,
        rank=0,
        world_size=1,
        batch_size=1,
        size=16,
        scale=(1, 1),
        ratio=(1, 1),
        max_megapixels=1,
        seed=rule.seed,
    )
    first = epoch * order.blocks_per_pass
    found: list[int] = []
    drawn = 0
    for reader in range(readers):
        for block in range(first + reader, first + order.blocks_per_pass, readers):
            read, _, tallies = data._read(block)
            found += [key_of(image.key) for image in read]
            drawn += sum(tally.drawn for tally in tallies)
    return found, drawn


def test_the_stream_keeps_the_same_images_whoever_reads(tmp_path: Path) -> None:
    index = pack(tmp_path / "shards", 400)
    losses = losses_of(400)
    score(index, tmp_path / "scores", losses)
    rule = KeepRule(Curation(scores=str(tmp_path / "scores")), 1.2, seed=5)
    one, drawn = kept_in_pass(index, rule, readers=1, epoch=3)
    six, _ = kept_in_pass(index, rule, readers=6, epoch=3)
    other, _ = kept_in_pass(index, rule, readers=1, epoch=4)
    assert drawn == 400 and sorted(one) == sorted(six) and sorted(one) != sorted(other)
    hashes = np.array(list(losses))
    p = np.minimum(1, 1.2 * np.array(list(losses.values())))
    expected = hashes[keyed_numbers(hashes, seed=5, step=3, purpose=Purpose.KEEP) < p]
    assert sorted(one) == sorted(expected.tolist())


def test_the_file_of_scores_has_a_name_that_a_file_system_takes(tmp_path: Path) -> None:
    usual = score_file(tmp_path, "data/train-0.parquet")
    assert usual == tmp_path / "data--train-0.parquet.scores.parquet"
    shards = [f"{'deep' * 20}/{'folder' * 20}/{'x' * 200}{i}.parquet" for i in range(2)]
    files = [score_file(tmp_path, shard) for shard in shards]
    for file in files:
        file.touch()
    assert len({*files}) == 2 and all(file.parent == tmp_path for file in files)


def test_no_two_shards_share_a_file_of_scores(tmp_path: Path) -> None:
    names = ["a/b", "a--b", "a/-b", "a-/b", "a---b", "a_-b", "_a--b", "a\\b", "a/b--c", "a--b/c"]
    shards = [f"{name}.parquet" for name in names]
    assert len({score_file(tmp_path, shard) for shard in shards}) == len(shards)


def test_scores_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    index = pack(tmp_path / "shards", 60)
    folder = tmp_path / "scores"
    with pytest.raises(UserError, match="is not a folder"):
        check_scores(index, str(folder))
    score(index, folder, losses_of(60))
    assert check_scores(index, str(folder)) == {"checkpoint": "c", "masks": 4}
    last = ShardIndex(index.root, index.shards[2:])
    score(last, folder, losses_of(60), masks=8)
    with pytest.raises(UserError, match=r"made differently \(masks 4 and 8, first in '2.parquet'"):
        check_scores(index, str(folder))
    score_file(folder, "1.parquet").unlink()
    with pytest.raises(UserError, match="1 of 3 shards have no scores.*'1.parquet'"):
        check_scores(index, str(folder))
    # Files that have changed places.
    score(index, folder, losses_of(60))
    score_file(folder, "0.parquet").rename(folder / "x")
    score_file(folder, "1.parquet").rename(score_file(folder, "0.parquet"))
    rule = KeepRule(Curation(scores=str(folder)), 1.0, seed=0)
    with pytest.raises(UserError, match="are of other images, or in another order"):
        rule.keep(index, 0, images(10), epoch=0)


def test_score_files_are_opened_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start with two hundred thousand of them opens none that was in order before."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    index, folder = pack(tmp_path / "shards", 60), tmp_path / "scores"
    score(index, folder, losses_of(60))
    curation = Curation(scores=str(folder))
    rule_of(index, curation, seed=0)
    path = score_file(folder, "1.parquet")
    then = path.stat()
    path.write_bytes(bytes(then.st_size))  # what nobody can see without opening it
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    rule_of(index, curation, seed=0)
    for other in (ShardIndex(index.root, index.shards, column="right"), index):
        if other is index:
            os.utime(path)
        with pytest.raises(UserError):
            rule_of(other, curation, seed=0)


def test_shards_of_one_size_are_told_apart_by_their_digests(tmp_path: Path) -> None:
    shard = pack(tmp_path / "shards", 10, shards=1).shards[0]
    path = tmp_path / "0.scores.parquet"
    made_of = shard._replace(sha256="a" * 64)
    schema = SCORE_SCHEMA.with_metadata(about_scores({"masks": 4}, made_of))
    pq.write_table(schema.empty_table(), path)
    for same in (made_of, shard):  # whose digest nobody took
        check_shard(same, path)
    for other in (shard._replace(sha256="b" * 64), shard._replace(size=shard.size + 1)):
        with pytest.raises(UserError, match=f"made of another '0.parquet', of {shard.size} bytes"):
            check_shard(other, path)


def test_scores_are_written_for_a_whole_shard(tmp_path: Path) -> None:
    index = pack(tmp_path / "shards", 60)
    shard, folder = index.shards[0], tmp_path / "scores"
    n = np.arange(20)
    columns = {"hash": n, "loss": n / 20, "entropy": n / 5, "width": n, "height": n, "reason": [""]}
    path = write_scores(folder, shard, columns, {"masks": 4})
    assert path == score_file(folder, shard.path) and pq.read_metadata(path).num_row_groups == 1
    hashes, scores = scores_of(index, shard, 1, str(folder))
    assert hashes.tolist() == [*range(10, 20)] and scores.loss[0] == 0.5
    pq.write_table(pq.read_table(path)[:15], path)
    with pytest.raises(UserError, match="has 15 scores, but '0.parquet' has 20 images"):
        scores_of(index, shard, 0, str(folder))
    with pytest.raises(UserError, match=r"loss of shape \(19,\), but the shard has 20 images"):
        write_scores(folder, shard, columns | {"loss": n[1:]}, {})
    del columns["width"]
    with pytest.raises(UserError, match="have no width: expected"):
        write_scores(folder, shard, columns, {})


@pytest.fixture
def two_columns(tmp_path: Path) -> ShardIndex:
    """Twenty pairs of images, of which those in the second column are not read by default."""
    (tmp_path / "pairs").mkdir()
    sides = {
        side: pa.array([jpeg(100 * at + i) for i in range(20)], pa.binary())
        for at, side in enumerate(("left", "right"))
    }
    table = pa.table({"key": keys(20), **sides})
    pq.write_table(table, tmp_path / "pairs" / "0.parquet", row_group_size=5)
    return build_index(str(tmp_path / "pairs"), ["0.parquet"], column="right")


def test_scores_know_the_column_they_are_of(
    two_columns: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "scores"
    score(two_columns, folder, losses_of(20), column="right", precision="32-true")
    assert check_scores(two_columns, str(folder))["column"] == "right"
    curation = Curation(scores=str(folder), min_side=0)
    data = Pixels("shards", two_columns.root, val_images=5, curation=curation)
    with pytest.raises(UserError, match="of column 'right', but those of column 'left' are read"):
        data.setup("fit")
    Pixels("shards", two_columns.root, column="right", curation=curation).setup("fit")
    out, report = str(tmp_path / "binned"), str(tmp_path / "report")
    line = ["curate", two_columns.root, "--scores", str(folder), "--min-side", "0"]
    assert main([*line, "--materialize", out, "--out", report]) == 0
    binned = open_index(out)
    written = {
        image.data for group in range(binned.n_groups) for image in read_group(binned, group)
    }
    assert written == {jpeg(100 + i) for i in range(20)}
    score(two_columns, folder, losses_of(20))  # of another engine, which need not say it
    data.setup("fit")
    assert different({"column": "left"}, {"column": "right", "seed": 1}) == ["column", "seed"]


# --- materialize ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardIndex, dict[int, float]]:
    """Six thousand images, one picture under many keys, with scores as columns."""
    folder = tmp_path_factory.mktemp("scored") / "shards"
    folder.mkdir()
    losses = losses_of(6000)
    (one,) = images(1)
    for number in range(3):
        names = keys(6000)[number * 2000 : (number + 1) * 2000]
        values = np.array([losses[key_of(name)] for name in names], np.float32)
        columns = {
            "loss": values,
            "entropy": np.full(2000, 6, np.float32),
            "width": np.full(2000, 400, np.int32),
            "height": np.where(np.arange(2000) < 10, 300, 400).astype(np.int32),
        }
        entries = [one._replace(key=name) for name in names]
        write_images(folder / f"{number}.parquet", entries, columns, group=100)
    return build_index(str(folder), [f"{number}.parquet" for number in range(3)]), losses


def waste(index: ShardIndex, rule: KeepRule, *, epoch: int) -> tuple[int, int]:
    """Return the bytes of images that a pass reads, and those of them that it keeps."""
    read = kept = 0
    for group in range(index.n_groups):
        if not rule.takes_group(index, group, epoch=epoch):
            continue
        images = read_group(index, group)
        keep = rule.keep(index, group, images, epoch=epoch)
        sizes = np.array([len(image.data) for image in images])
        read += int(sizes.sum())
        kept += int(sizes[keep].sum())
    return read, kept


def test_materialized_shards_waste_little_and_keep_every_probability(
    scored: tuple[ShardIndex, dict[int, float]], tmp_path: Path
) -> None:
    index, losses = scored
    paper = Curation(scores="inside")
    rule = KeepRule(paper, 1.0, seed=0)
    read, kept = waste(index, rule, epoch=0)
    assert read / kept > 2.4  # the keep rate is near 0.38: most was read in vain
    binned = materialize(index, rule, tmp_path / "out")
    assert binned.rows == 5970  # 30 were too small
    assert all(len(shard.group_max_loss) for shard in binned.shards)
    turns = range(40)
    totals = np.array([waste(binned, rule, epoch=epoch) for epoch in turns]).sum(axis=0)
    assert 1 - totals[1] / totals[0] < 0.10
    assert abs(totals[1] / 40 / (read / 6000) / 5970 - kept / read * 6000 / 5970) < 0.02
    # Each image keeps its own probability, though groups come together.
    again = open_index(str(tmp_path / "out"))
    counts: dict[int, int] = dict.fromkeys(losses, 0)
    for epoch in turns:
        for key in kept_in_pass(again, rule, readers=1, epoch=epoch)[0]:
            counts[key] += 1
    p = np.minimum(1, np.array(list(losses.values())))
    share = np.array(list(counts.values())) / 40
    small = {key_of(k) for s in range(3) for k in keys(6000)[s * 2000 : s * 2000 + 10]}
    eligible = np.array([key not in small for key in losses])
    assert not share[~eligible].any()
    band = np.digitize(p, np.linspace(0, 1, 9)[1:-1])
    for number in range(8):
        inside = eligible & (band == number)
        assert abs(share[inside].mean() - p[inside].mean()) < 0.06  # whole groups come and go


@pytest.mark.parametrize("keys", [{"fraction": 0.2, "floor": 0.3}, {"gamma": 2.0}])
def test_what_was_rewritten_is_trained_on_by_its_own_rule(
    scored: tuple[ShardIndex, dict[int, float]],
    keys: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of images that a floor left out none is there to calibrate on."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    index, _ = scored
    curation = Curation(scores="inside", min_side=200, **keys)  # type: ignore[arg-type]
    rule = rule_of(index, curation, seed=0)
    materialize(index, rule, tmp_path / "out")
    again = open_index(str(tmp_path / "out"))
    found = rule_of(again, Curation(scores="inside"), seed=0)
    assert found[:3] == rule[:3] == rule_of(again, curation, seed=0)[:3]
    kept = [
        len(kept_in_pass(i, rule, readers=1, epoch=e)[0]) for i in (index, again) for e in (0, 1)
    ]
    assert abs(sum(kept[:2]) - sum(kept[2:])) < 0.15 * sum(kept[:2])
    with pytest.raises(UserError, match="leave all of data.curation but scores out"):
        rule_of(again, Curation(scores="inside", gamma=3.0), seed=0)
    for damaged in ("{", '{"scores": "inside", "c": 0}', '{"scores": "inside"}'):
        (tmp_path / "out" / "curation.json").write_text(damaged)
        with pytest.raises(UserError, match="is damaged: rewrite the shards"):
            rule_of(again, Curation(scores="inside"), seed=0)


def test_the_rule_of_rewritten_shards_is_found_wherever_they_are(
    scored: tuple[ShardIndex, dict[int, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In an object store, below the folder that is given, or beside a single one of them."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    inside = Curation(scores="inside")
    rule = rule_of(scored[0], Curation(scores="inside", fraction=0.1, gamma=2.0), seed=0)
    out = tmp_path / "above" / "out"
    first = materialize(scored[0], rule, out).shards[0].path
    monkeypatch.setattr(remote, "PROTOCOLS", (*remote.PROTOCOLS, "memory"))
    store = fsspec.filesystem("memory")
    store.put(f"{out}/", f"/{tmp_path.name}/", recursive=True)
    address = f"memory://{tmp_path.name}"
    for place in (address, str(out.parent), str(out / first)):
        assert rule_of(open_index(place), inside, seed=0)[:3] == rule[:3]
    assert main(["curate", str(out), "--out", str(tmp_path / "report")]) == 0
    assert f"{rule.c:.6g}" in capsys.readouterr().out
    assert main(["curate", str(out), "--out", str(tmp_path / "report"), "--gamma", "3"]) == 2
    assert "or of pixio curate these options" in capsys.readouterr().err
    store.rm(f"/{tmp_path.name}/curation.json")
    with pytest.raises(UserError, match="are sorted by loss, but 'curation.json'"):
        rule_of(open_index(address), inside, seed=0)
    write_images(out.parent / "0.parquet", images(10), group=5)
    with pytest.raises(UserError, match="by another rule than others, or by none"):
        rule_of(open_index(str(out.parent)), inside, seed=0)


def test_rewritten_shards_are_sampled_by_the_scores_that_are_given(
    scored: tuple[ShardIndex, dict[int, float]], tmp_path: Path
) -> None:
    """Those of another model find other images hard than the shards were sorted by."""
    rule = KeepRule(Curation(scores="inside"), 1.0, seed=0)
    binned = materialize(scored[0], rule, tmp_path / "out")
    other = np.random.default_rng(2).permutation([*scored[1].values()])
    losses = dict(zip(scored[1], other.tolist(), strict=True))
    score(binned, tmp_path / "scores", losses)
    again = KeepRule(Curation(scores=str(tmp_path / "scores")), 1.0, seed=0)
    found = [scores for _, _, scores in all_scores(binned, str(tmp_path / "scores"))]
    p = np.concatenate([again.probability(scores) for scores in found])
    kept = [len(kept_in_pass(binned, again, readers=1, epoch=epoch)[0]) for epoch in range(10)]
    assert abs(sum(kept) / 10 - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum() / 10)
    assert all(again.takes_group(binned, g, epoch=0) for g in range(binned.n_groups))


def test_new_shards_are_not_written_among_the_old(
    scored: tuple[ShardIndex, dict[int, float]], tmp_path: Path
) -> None:
    rule = KeepRule(Curation(scores="inside"), 1.0, seed=0)
    out = Path(scored[0].root) / "curated"
    with pytest.raises(UserError, match="curated' lies inside .*, to whose shards"):
        materialize(scored[0], rule, out)
    assert not out.exists()
    (tmp_path / "link").symlink_to(scored[0].root)
    with pytest.raises(UserError, match="lies inside"):
        materialize(scored[0], rule, tmp_path / "link" / "curated")


def test_nothing_kept_and_no_numbers_are_refused(
    scored: tuple[ShardIndex, dict[int, float]], tmp_path: Path
) -> None:
    for wrong in ({"gamma": float("nan")}, {"gamma": float("inf")}, {"floor": -1.0}):
        with pytest.raises(UserError, match=f"data.curation.{next(iter(wrong))} is"):
            Curation(**wrong)  # type: ignore[arg-type]
    rule = KeepRule(Curation(scores="inside", floor=50.0), 1.0, seed=0)
    with pytest.raises(UserError, match="no image is kept"):
        materialize(scored[0], rule, tmp_path / "out")


def test_materializing_goes_on_after_a_kill(
    scored: tuple[ShardIndex, dict[int, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixio_lightning.curation import materialize as process

    monkeypatch.setattr(process, "PART", 1)
    index, _ = scored
    rule = KeepRule(Curation(scores="inside"), 1.0, seed=0)
    whole = materialize(index, rule, tmp_path / "out")
    (tmp_path / "out" / ".00001.done").unlink()
    (tmp_path / "out" / ".00001-03.parquet.99-0123abcd.tmp").write_bytes(b"half")
    again = materialize(index, rule, tmp_path / "out", jobs=2)
    assert again.digest == whole.digest
    assert not list((tmp_path / "out").glob(".00001-*"))
    with pytest.raises(UserError, match="another curation"):
        materialize(index, rule._replace(c=0.5), tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    with pytest.raises(UserError, match="is not empty"):
        materialize(index, rule, tmp_path / "used")


def test_images_lost_since_they_were_scored_are_named_and_not_left_out_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "shards"
    folder.mkdir()
    losses = np.linspace(0.1, 2, 40).astype(np.float32)
    for number in range(2):
        columns = {
            "loss": losses,
            "entropy": np.full(40, 6, np.float32),
            "width": np.full(40, 400, np.int32),
            "height": np.full(40, 400, np.int32),
        }
        write_images(folder / f"{number}.parquet", images(40), columns, group=20)
    file = folder / "1.parquet"
    good = file.read_bytes()
    group = pq.ParquetFile(file).metadata.row_group(0)
    columns_of_group = [group.column(at) for at in range(group.num_columns)]
    (chunk,) = (c for c in columns_of_group if c.path_in_schema == "image.bytes")
    start, stop = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size // 2
    open_index(str(folder))
    file.write_bytes(good[:start] + bytes(stop - start) + good[stop:])
    line = ["curate", str(folder), "--scores", "inside", "--out", str(tmp_path / "report")]
    line += ["--materialize", str(tmp_path / "out")]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "images to keep cannot be read since they were scored, the first is" in said
    lost = (tmp_path / "out" / "bad_files.txt").read_text().splitlines()
    assert 0 < len(lost) <= 40
    file.write_bytes(good)
    assert main(line) == 0
    assert "80 images in" in capsys.readouterr().out
    assert not (tmp_path / "out" / "bad_files.txt").exists()


# --- pixio curate ---------------------------------------------------------------------------------


def test_curate_reports_calibrates_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    index = pack(tmp_path / "shards", 200)
    losses = losses_of(200)
    for key in list(losses)[:7]:
        losses[key] = float("nan")
    score(index, tmp_path / "scores", losses)
    line = ["curate", str(tmp_path / "shards"), "--scores", str(tmp_path / "scores")]
    line += ["--fraction", "0.3", "--out", str(tmp_path / "report")]
    assert main(line) == 0
    import json

    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["images"], report["without a score"], report["eligible"]) == (200, 7, 193)
    assert report["expected keep rate"] == pytest.approx(0.3, abs=0.002)
    assert 0.15 < float(report["realised keep rate"].split()[0]) < 0.45
    assert "picture" in capsys.readouterr().out
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "report" / "report.png"))
    assert picture.shape[1] == 1086 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "does not exist"),
        (["shards"], "has no column 'loss'"),
        (["shards", "--scores", "scorez"], "is not a folder"),
        (["shards", "--fraction", "2"], "fraction is 2.0"),
        (["shards", "--scores", "scores", "--min-side", "5000"], "and 30 by min_side"),
    ],
)
def test_mistakes_of_curate_are_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    index = pack(tmp_path / "shards", 30)
    score(index, tmp_path / "scores", losses_of(30))
    assert main(["curate", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_damaged_scores_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever page: a footer that is whole says nothing of it."""
    table = pa.table({"loss": pa.array(np.arange(4096), pa.float32())})
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    assert read_columns(str(tmp_path), "a.parquet", 0, ("loss",))["loss"][-1] == 4095
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "MAX_ROWS", 4095)
        with pytest.raises(UserError, match=r"a.parquet': a row group over 1 GiB or 4,095 rows; r"):
            read_columns(str(tmp_path), "a.parquet", 0, ("loss",))
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:4] + bytes(64) + whole[68:])
    forget_opened()
    damaged = r"a.parquet': file is damaged; restore it, or write the shards again, `pixio curate"
    with pytest.raises(UserError, match=damaged):
        read_columns(str(tmp_path), "a.parquet", 0, ("loss",))
    with pytest.raises(UserError, match=r"b.parquet': file is missing; restore it, or write the s"):
        read_columns(str(tmp_path), "b.parquet", 0, ("loss",))
    with pytest.raises(
        UserError, match=r"a.parquet': file is damaged; .* its scores again, `pixio p"
    ):
        read_columns(str(tmp_path), "a.parquet", None, ("loss",))
