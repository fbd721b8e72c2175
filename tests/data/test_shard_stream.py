"""The stream over shards: every image once in a pass, whoever reads, and the same after a stop."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_files import images, jpeg, keys, pack, write_images

from pixio_lightning.data.clips.pack import Form, pack_clips
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.data.shards import remote
from pixio_lightning.data.shards import stream as shard_stream
from pixio_lightning.data.shards.format import ShardIndex, read_group
from pixio_lightning.data.shards.held_out import held_out_groups
from pixio_lightning.data.shards.index import INDEX, open_index, write_index
from pixio_lightning.data.shards.keep_rule import Curation, digest_of_scores
from pixio_lightning.data.shards.rule_of_run import calibrated
from pixio_lightning.data.shards.score_files import write_scores
from pixio_lightning.data.shards.set import ShardSet, next_pass
from pixio_lightning.data.shards.stream import BlockOrder, ShardImages, ShardLoader
from pixio_lightning.data.workers import WorkerContext, start_worker
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import key_of

Batches = list[dict[str, torch.Tensor]]


def loader_of(
    index: ShardIndex,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    batch_size: int = 8,
    rows: int = 30,
    timeout: float = 60,
    bad: dict[str, str] | None = None,
) -> ShardLoader:
    order = BlockOrder.of(index, np.arange(index.n_groups), rows=rows, seed=3)
    data = ShardImages(
        index,
        order,
        None,
        rank=rank,
        world_size=world,
        batch_size=batch_size,
        size=16,
        scale=(0.3, 1.0),
        ratio=(0.75, 1.33),
        max_megapixels=64,
        seed=3,
    )
    arguments: dict[str, Any] = {"num_workers": workers, "worker_init_fn": start_worker}
    arguments |= {"timeout": timeout if workers else 0, "persistent_workers": workers > 0}
    arguments["multiprocessing_context"] = WorkerContext() if workers else None
    found = {} if bad is None else bad
    return ShardLoader(
        data,
        lambda new, seen: found.update(new),
        tally=lambda tallies: None,
        batches=10,
        arguments=arguments,
    )


def take(loader: ShardLoader, n: int) -> Batches:
    iterator = iter(loader)
    return [next(iterator) for _ in range(n)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return pack(tmp_path_factory.mktemp("stream") / "shards", 240, shards=3, group=10)


@pytest.mark.parametrize(
    ("world", "workers"),
    [
        *((1, 0), (1, 3), (2, 1), (3, 3)),
        *(
            pytest.param(*s, marks=pytest.mark.slow)
            for s in ((1, 1), (2, 0), (2, 3), (3, 0), (3, 1))
        ),
    ],
)
def test_every_image_comes_once_in_a_pass(index: ShardIndex, world: int, workers: int) -> None:
    """Readers are followed over two passes; their batches straddle the passes' ends."""
    by_pass: dict[int, Counter[int]] = {0: Counter(), 1: Counter(), 2: Counter(), 3: Counter()}
    straddling = 0
    for rank in range(world):
        loader = loader_of(index, rank=rank, world=world, workers=workers, batch_size=7)
        blocks = loader.images.order.blocks_per_pass
        iterator = iter(loader)
        before = list(loader.cursors)
        # Until every reader of the process has left the second pass.
        while min(block for block, _ in loader.cursors) < 2 * blocks:
            reader = loader.batches_read % loader.readers
            batch = next(iterator)
            assert len(batch["key"]) == 7 and batch["image"].shape == (7, 3, 16, 16)
            assert len(loader.cursors) == max(1, workers)
            for epoch, key in passes_of(loader, before[reader], reader, batch, world):
                by_pass[epoch][key] += 1
            straddling += (
                len({t for t, _ in passes_of(loader, before[reader], reader, batch, world)}) > 1
            )
            before = list(loader.cursors)
        loader.close()
    whole = Counter(key_of(key) for key in keys(240))
    assert by_pass[0] == whole and by_pass[1] == whole
    assert straddling


def passes_of(
    loader: ShardLoader, start: Any, reader: int, batch: dict[str, torch.Tensor], world: int
) -> list[tuple[int, int]]:
    """Return the pass of each image of a batch, by reading the reader's blocks again."""
    images = loader.images
    block, position = start
    found: list[tuple[int, int]] = []
    while len(found) < len(batch["key"]):
        read, _, _ = images._read(block)
        epoch = images.order.epoch(block)
        found += [(epoch, key_of(image.key)) for image in read[position:]]
        block, position = block + world * loader.readers, 0
    found = found[: len(batch["key"])]
    assert [key for _, key in found] == batch["key"].tolist()
    return found


def test_the_order_changes_with_pass_and_seed_and_mixes_shards(index: ShardIndex) -> None:
    loader = loader_of(index, batch_size=240)
    first, second = (batch["key"].tolist() for batch in take(loader, 2))
    assert sorted(first) == sorted(second) and first != second
    shard = {key_of(key): i // 80 for i, key in enumerate(keys(240))}
    thirds = [Counter(shard[key] for key in first[i : i + 80]) for i in (0, 80, 160)]
    assert all(len(third) == 3 for third in thirds)
    place = {key_of(key): i for i, key in enumerate(keys(240))}
    neighbours = np.abs(np.diff([place[key] for key in first])) == 1
    assert neighbours.mean() < 0.1


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stream_goes_on_exactly_where_it_stopped(index: ShardIndex, workers: int) -> None:
    """At any batch, over the end of a pass, twice in a row: keys and pixels."""
    whole = take(loader_of(index, world=2, rank=1, workers=workers), 45)
    parts: Batches = []
    state: dict[str, Any] | None = None
    for n in (13, 14, 18):
        loader = loader_of(index, world=2, rank=1, workers=workers)
        if state is not None:
            loader.go_to(state)
        parts += take(loader, n)
        state = loader.state()
        loader.close()
    assert len(parts) == len(whole)
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a["key"], b["key"]) and torch.equal(a["image"], b["image"])
    assert loader.cursors[0].block > loader.images.order.blocks_per_pass


def test_a_new_epoch_goes_on_with_the_same_workers(index: ShardIndex) -> None:
    whole = take(loader_of(index, workers=2), 12)
    loader = loader_of(index, workers=2)
    parts = [batch for _ in range(3) for batch in take(loader, 4)]
    assert all(torch.equal(a["key"], b["key"]) for a, b in zip(whole, parts, strict=True))


def test_fewer_groups_than_readers_still_give_everything_once(tmp_path: Path) -> None:
    """Readers then work on different passes; each pass is still whole."""
    small = pack(tmp_path / "shards", 6, shards=2, group=10)
    found: Counter[int] = Counter()
    for rank in range(3):
        loader = loader_of(small, rank=rank, world=3, workers=0, batch_size=3)
        found.update(key for batch in take(loader, 4) for key in batch["key"].tolist())
    # 12 batches are 12 blocks of 3, which are 6 passes.
    assert found == Counter({key_of(key): 6 for key in keys(6)})


def test_blocks_are_shuffled_even_where_there_are_few(index: ShardIndex) -> None:
    order = BlockOrder.of(index, np.arange(24), rows=2048, seed=0)
    assert order.blocks_per_pass == 8
    groups = [group for block in range(8) for group in order.groups_of(block)]
    assert sorted(groups) == list(range(24)) and groups != sorted(groups)


def test_held_out_groups_are_never_trained_on(index: ShardIndex) -> None:
    chosen = held_out_groups(index, limit=15)
    assert len(chosen) == 2
    shards = ShardSet(index, val_path=None, val_images=15, curation=Curation(), seed=0)
    assert len(shards.held_out) == 15
    assert not set(chosen) & set(shards.order.groups) and len(shards.order.groups) == 22
    with pytest.raises(UserError, match="single group"):
        held_out_groups(ShardIndex(index.root, []), limit=1)


def test_of_shards_of_clips_whole_videos_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    for video in range(4):
        (tmp_path / "frames" / f"v{video}").mkdir(parents=True)
        for number in range(36):
            data = jpeg(100 * video + number)
            (tmp_path / "frames" / f"v{video}" / f"{number:03d}.jpg").write_bytes(data)
    out = tmp_path / "shards"
    form = Form(fps=24.0, seconds=0.25, side=16)
    index, clips = pack_clips(str(tmp_path / "frames"), out, form, rows=50, shuffled=True, jobs=1)
    assert clips == index.n_groups == 24

    def videos(groups: np.ndarray) -> set[str]:
        read = (image for group in groups for image in read_group(index, int(group)))
        return {image.key.split("@")[0] for image in read}

    shards = ShardSet(index, val_path=None, val_images=10, curation=Curation(), seed=0)
    held, trained = videos(shards.held_out.groups), videos(shards.order.groups)
    assert (len(held), len(trained), len(held | trained)) == (1, 3, 4)
    assert len(shards.held_out) == 10 and len(shards.order.groups) == 18
    # Where nothing tells which video a frame is of, none is held out.
    above = open_index(str(tmp_path))
    (out / "_clips.parquet").write_bytes(b"half")
    for untold in (above, index):
        with pytest.raises(UserError, match="no _clips.parquet beside them tells which video"):
            held_out_groups(untold, limit=10)
    apart = {"val_images": 10, "curation": Curation(), "seed": 0}
    other = pack(tmp_path / "val", 20)
    assert len(ShardSet(index, val_path=other.root, **apart).order.groups) == 24  # type: ignore[arg-type]


def state_of(data: Pixels) -> dict[str, Any]:
    take(data.train_dataloader(), 3)
    return data.state_dict()


class FakeTrainer:
    """What a data module asks of its trainer."""

    global_rank, world_size, accumulate_grad_batches, global_step = 0, 1, 1, 0
    log_every_n_steps, loggers, is_global_zero = 1, (), True
    limit_train_batches, fast_dev_run = 1.0, False
    callbacks, overfit_batches, reload_dataloaders_every_n_epochs = (), 0, 0

    class strategy:
        root_device = torch.device("cpu")
        broadcast = staticmethod(lambda found: found)

    class state:
        fn = "fit"

    def __init__(self, folder: Path) -> None:
        self.default_root_dir = str(folder)


def pixels(index: ShardIndex, folder: Path, **changes: Any) -> Pixels:
    options: dict[str, Any] = {
        "image_size": 16,
        "batch_size": 8,
        "num_workers": 0,
        "val_images": 10,
    }
    data = Pixels("shards", index.root, **(options | changes))
    data.trainer = FakeTrainer(folder)  # type: ignore[assignment]
    data.prepare_data()
    data.setup("fit")
    return data


def test_another_layout_is_refused_or_begins_the_next_pass(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    state = state_of(pixels(index, tmp_path))
    changed = pixels(index, tmp_path, num_workers=2)
    changed.load_state_dict(state)
    with pytest.raises(UserError, match=r"workers 1 then, 2 now.*restart_pass"):
        changed.train_dataloader()
    free = pixels(index, tmp_path, num_workers=2, restart_pass=True)
    free.load_state_dict(state)
    loader = free.train_dataloader()
    blocks = loader.images.order.blocks_per_pass
    assert [tuple(cursor) for cursor in loader.cursors] == [(blocks, 0), (blocks + 1, 0)]
    # In the fourth pass of a data set that had a fifth of the blocks.
    small = {"groups": 2, "groups per block": 1}
    state["states"][0]["cursors"] = [[7, 3]]
    free = pixels(index, tmp_path, num_workers=2, restart_pass=True)
    free.load_state_dict(state | {"layout": state["layout"] | small})
    loader = free.train_dataloader()
    assert loader.cursors[0] == (4 * blocks, 0) and loader.images.order.epoch(4 * blocks) == 4
    states = [{"cursors": [[5, 1], [16, 0]]}]
    assert next_pass(states, before=8, now=8) == 24
    assert next_pass(states, before=8, now=100) == 300  # the data has grown
    free.teardown("fit")


def test_what_the_order_of_shards_follows_from_is_told_wherever_they_lie(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))

    def order(folder: Path | str, **changes: Any) -> str:
        data = Pixels("shards", str(folder), **{"val_images": 10} | changes)
        data.setup("fit")
        assert data.listing() == ""  # a run goes on with more of them, from the next pass
        return data.training_order()

    here = order(index.root)
    shutil.copytree(index.root, tmp_path / "there")
    assert order(tmp_path / "there") == here
    listed = [shard._replace(sha256="of this file") for shard in index.shards]
    write_index(ShardIndex(index.root, listed), tmp_path / "there" / INDEX)
    assert order(tmp_path / "there") == here
    (tmp_path / "there" / INDEX).unlink()
    assert order(index.root, val_images=30) != here  # more groups are held out
    (tmp_path / "there" / "1.parquet").unlink()
    assert order(tmp_path / "there") != here


def test_the_first_process_of_a_node_looks_at_shards_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    for name in ("train", "val"):
        write_index(pack(tmp_path / name, 60), tmp_path / name / INDEX)

    def data(local_rank: int) -> Pixels:
        made = Pixels("shards", str(tmp_path / "train"), val_path=str(tmp_path / "val"))
        made.trainer = FakeTrainer(tmp_path)  # type: ignore[assignment]
        made.trainer.local_rank = local_rank  # type: ignore[misc]
        return made

    first = data(0)
    first.prepare_data()
    for name in ("val", "train"):
        with (tmp_path / name / "1.parquet").open("ab") as shard:
            shard.write(b"more")
        with pytest.raises(UserError, match=f"{name}/1.parquet' has .* bytes, but"):
            data(0).prepare_data()
    for ready in (first, data(1)):
        ready.setup("fit")
        assert ready.training_size() == 60


def test_score_files_are_looked_at_once_and_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be as many as shards, on a disk that hundreds of processes share."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    index, folder = pack(tmp_path / "shards", 60), tmp_path / "scores"
    paths = []
    for number, shard in enumerate(index.shards):
        read = [image for group in index.groups_of(number) for image in read_group(index, group)]
        columns = {"hash": [key_of(image.key) for image in read], "loss": np.ones(shard.rows)}
        columns |= dict.fromkeys(("entropy", "width", "height"), np.full(shard.rows, 400))
        paths.append(write_scores(folder, shard, columns, {}))
    looked: list[Path] = []
    stat = Path.stat

    def noted(path: Path, **options: Any) -> os.stat_result:
        looked.append(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", noted)

    def opened(rule: Any = None) -> tuple[dict[str, Any], list[Path], Any]:
        looked.clear()
        curation = Curation(scores=str(folder), fraction=0.5)
        data = Pixels("shards", index.root, val_images=10, curation=curation)
        data.trainer = FakeTrainer(tmp_path)  # type: ignore[assignment]
        if rule is None:
            data.prepare_data()
        else:
            data.trainer.strategy = FakeTrainer.strategy()  # type: ignore[misc]
            data.trainer.strategy.broadcast = lambda found: rule  # type: ignore[method-assign]
        data.setup("fit")
        assert data._shards is not None
        layout = data._shards.layout(2, 1)
        return layout, [path for path in looked if path in paths], data._shards.rule

    opened()  # each is opened, to see that it fits
    layout, of_first, rule = opened()
    assert sorted(of_first) == sorted(paths) and layout["curation"] == rule.digest
    assert opened(rule) == (layout, [], rule)


def test_what_was_kept_is_counted_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    columns: dict[str, Any] = {
        "loss": np.linspace(0.1, 1, 240, dtype=np.float32),
        "entropy": np.full(240, 7, np.float32),
        "width": np.full(240, 400, np.int32),
        "height": np.full(240, 400, np.int32),
    }
    for part in range(3):
        rows = slice(80 * part, 80 * part + 80)
        scores = {name: values[rows] for name, values in columns.items()}
        write_images(tmp_path / f"{part}.parquet", images(240)[rows], scores, group=10)
    index = open_index(str(tmp_path))

    def counted(before: dict[str, Any], batches: int) -> tuple[dict[str, Any], float | None, str]:
        data = pixels(index, tmp_path, curation=Curation(scores="inside"))
        if before:
            data.load_state_dict(before)
        take(data.train_dataloader(), batches)
        state = data.state_dict()
        assert data._shards is not None
        return state, data._shards.keep_rate, (tmp_path / "keep_rates.csv").read_text()

    _, rate, table = counted({}, 20)
    state, part, _ = counted({}, 12)
    assert rate is not None and 0.3 < rate < 0.8 and part != rate
    assert counted(state, 8)[1:] == (rate, table)
    # What was counted for a share to keep is counted again where it is no number.
    halved = Curation(scores="inside", fraction=0.5)
    digest = digest_of_scores(index, halved)
    before = {*(tmp_path / "cache").glob("calibrated-*.json")}
    constant = calibrated(index, halved, digest)
    (stored,) = {*(tmp_path / "cache").glob("calibrated-*.json")} - before
    for text in ("", "[", '{"c": "x"}', '{"c": NaN}', '{"c": -1}', "[5]", "\x80"):
        stored.write_text(text)
        assert calibrated(index, halved, digest) == constant
    # Of shards that are others now, or damaged, none of the counts are taken.
    for wrong in (torch.ones(2, 2, dtype=torch.int64), torch.full((3, 2), -1), "x", None):
        assert counted(state | {"tally": wrong}, 8)[1] not in (rate, None)


PLACES: list[Any] = [
    5,
    {"layout": 5, "states": []},
    {"states": []},
    {"layout": {"processes": 1, "workers": 0, "groups": 10, "groups per block": 0}},
    {"states": [{"cursors": [], "turn": 0}]},
    {"states": [{"cursors": [[-1, 0]], "turn": 0}]},
    {"states": [{"cursors": [[0, 10**30]], "turn": 0}]},
    {"states": [{"cursors": [[0, 0]], "turn": "x"}]},
    {"states": [{"cursors": "x", "turn": 0}]},
]


@pytest.mark.parametrize("place", PLACES, ids=range(len(PLACES)))
def test_a_place_that_is_none_is_refused(
    place: Any, index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    state = state_of(pixels(index, tmp_path))
    data = pixels(index, tmp_path)
    data.load_state_dict(state | place if isinstance(place, dict) else place)
    with pytest.raises(UserError, match="does not say where its readers stand"):
        data.train_dataloader()
    data.teardown("fit")


def test_no_state_is_kept_but_for_shards(tmp_path: Path) -> None:
    assert Pixels("folder", str(tmp_path)).state_dict() == {}


def test_the_run_stops_above_max_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    index = pack(tmp_path / "shards", 300)
    damaged = tmp_path / "shards" / "1.parquet"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    monkeypatch.setattr(shard_stream, "_LEAST_BLOCKS", 1)
    remote.forget_opened()
    # Indexed while it was whole, and of the same size, so its images are missed one by one.
    data = Pixels("shards", index.root, image_size=16, batch_size=8, num_workers=0, val_images=10)
    data.trainer = FakeTrainer(tmp_path / "run")  # type: ignore[assignment]
    assert data.max_bad == 0.001
    write_index(index, tmp_path / "shards" / INDEX)
    data.setup("fit")
    with pytest.raises(UserError, match=r"images are unusable \(.* shard is damaged\), more than"):
        take(data.train_dataloader(), 60)
    lines = (tmp_path / "run" / "bad_files.txt").read_text().splitlines()
    assert len(lines) >= 80 and all(line.endswith("\tshard is damaged") for line in lines)


def test_groups_that_are_lost_with_their_scores_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    scores: dict[str, Any] = {
        "loss": np.full(80, 2, np.float32),
        "entropy": np.full(80, 7, np.float32),
        "width": np.full(80, 400, np.int32),
        "height": np.full(80, 400, np.int32),
    }
    for part in range(3):
        rows = images(240)[80 * part : 80 * part + 80]
        write_images(tmp_path / f"{part}.parquet", rows, scores, group=10)
    index = open_index(str(tmp_path))
    write_index(index, tmp_path / INDEX)
    damaged = tmp_path / "1.parquet"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    remote.forget_opened()
    data = pixels(index, tmp_path / "run", curation=Curation(scores="inside"), max_bad=1.0)
    batches = take(data.train_dataloader(), 40)  # more than a pass
    assert {len(batch["key"]) for batch in batches} == {8}
    places = (f"1.parquet#{group}:{row}" for group in range(8) for row in range(10))
    assert set(data.bad) <= {*places} and len(data.bad) in (70, 80)  # a group is held out


def test_lost_groups_do_not_stop_a_run_that_is_under_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of shards are lost by groups: one of the first would be above it by chance."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    index = pack(tmp_path / "shards", 300)
    data = Pixels("shards", index.root, image_size=16, num_workers=0, val_images=10)
    data.trainer = FakeTrainer(tmp_path / "run")  # type: ignore[assignment]
    data.setup("fit")
    group = int(index.group_rows.max())
    assert data.lost_together == group > 1 and data.max_bad == 0.001
    rng, names = np.random.default_rng(0), range(50_000)
    data.bad = dict.fromkeys(names, "shard is damaged")  # type: ignore[arg-type]
    for share, stops in ((0.0005, False), (0.005, True)):
        stopped = False
        lost = np.cumsum(rng.random(5_000_000 // group) < share) * group  # images
        for read, count in zip(np.arange(1, len(lost) + 1) * group, lost, strict=True):
            try:
                data.judge(names[:count], int(read), 1 << 40)
            except UserError:
                stopped = True
                break
        assert stopped == stops


@pytest.mark.parametrize(("max_bad", "said"), [(0.2, True), (0.4, False)])
def test_images_of_shards_that_cannot_be_indexed_count_as_many(
    max_bad: float, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three shards is a third of the images, though nobody knows how many it held."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    root = Path(pack(tmp_path / "shards", 300).root)
    (root / "1.parquet").write_bytes(b"damaged")
    remote.forget_opened()
    data = Pixels("shards", str(root), image_size=16, num_workers=0, max_bad=max_bad)
    data.trainer = FakeTrainer(tmp_path / "run")  # type: ignore[assignment]
    if not said:
        data.setup("fit")
        return
    with pytest.raises(UserError, match=r"about 33\.33% of the images .* \(1.parquet: "):
        data.setup("fit")


def test_what_truncated_archives_lost_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    root = Path(pack(tmp_path / "shards", 300, kind="tar").root)
    content = (root / "1.tar").read_bytes()
    (root / "1.tar").write_bytes(content[: len(content) // 2])
    remote.forget_opened()
    data = Pixels("shards", str(root), image_size=16, num_workers=0, max_bad=0.1)
    data.trainer = FakeTrainer(tmp_path / "run")  # type: ignore[assignment]
    for _ in range(2):  # asking again does not help
        with pytest.raises(UserError, match=r"about 1\d\.\d\d% .* \(1.tar: truncated after \d+ im"):
            data.setup("fit")


# --- reading ahead --------------------------------------------------------------------------------


def test_workers_that_read_ahead_yield_what_one_process_does(index: ShardIndex) -> None:
    """Images and cursors, over the end of a pass, from a place in the second half of a block."""
    alone, apart = loader_of(index, batch_size=7), loader_of(index, workers=1, batch_size=7)
    for loader in (alone, apart):
        loader.go_to({"cursors": [[1, 20]], "turn": 0})
    for one, other in zip(take(alone, 60), take(apart, 60), strict=True):
        assert torch.equal(one["key"], other["key"]) and torch.equal(one["image"], other["image"])
    assert alone.state() == apart.state()
    apart.close()


def test_a_worker_reads_its_next_block_before_the_last_image_of_this_one(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, ahead = multiprocessing.Value("i", 0), multiprocessing.Event()
    never, others = threading.Event(), multiprocessing.active_children()

    def read(index: ShardIndex, group: int) -> list[Any]:
        with groups.get_lock():
            groups.value += 1
            if groups.value > 3:
                ahead.set()
                never.wait()
        return read_group(index, group)

    monkeypatch.setattr(shard_stream, "read_group", read)
    loader = loader_of(index, workers=1, batch_size=6)
    assert loader.images.order.per_block == 3
    # Two more than are taken are made, so that 6 of 30 images are left in the worker.
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
    assert ahead.wait(20)
    # It ends by itself, and not with what it reads.
    (worker,) = set(multiprocessing.active_children()) - set(others)
    del iterator
    loader.close()
    worker.join(20)
    assert worker.exitcode == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_next_block_comes_after_the_images_of_this_one(
    workers: int, index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For how long torch waits for a worker to end that it cannot tell to.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    loader = loader_of(index, workers=workers, batch_size=6)
    wrong = loader.images.order.groups_of(1)

    def read(index: ShardIndex, group: int) -> list[Any]:
        if group in wrong:
            raise UserError("the scores are of other images")
        return read_group(index, group)

    monkeypatch.setattr(shard_stream, "read_group", read)
    iterator = iter(loader)
    assert len({key for _ in range(5) for key in next(iterator)["key"].tolist()}) == 30
    with pytest.raises(UserError, match="the scores are of other images"):
        next(iterator)


# --- workers that die or hang ---------------------------------------------------------------------


def test_a_killed_worker_is_one_clear_line(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For how long torch waits for a worker to end that it cannot tell to.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    others = set(multiprocessing_children())
    loader = loader_of(index, workers=2)
    iterator = iter(loader)
    next(iterator)
    worker = min(set(multiprocessing_children()) - others)
    threading.Timer(0.2, os.kill, (worker, signal.SIGKILL)).start()
    with pytest.raises(UserError, match="a data worker was killed"):
        for _ in range(10_000):
            next(iterator)
    loader.close()
    gc.collect()  # the error's frames hold the workers, whose end would disturb later tests


def multiprocessing_children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


def test_a_worker_that_hangs_is_noticed(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    released = multiprocessing.Event()

    def hang(*args: Any) -> list[Any]:
        released.wait()
        return []

    # For how long torch waits for a worker to end that it cannot tell to.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    monkeypatch.setattr(shard_stream, "read_group", hang)
    loader = loader_of(index, workers=1, timeout=2)
    with pytest.raises(UserError, match="gave no batch for 2 s"):
        take(loader, 1)
    released.set()
    loader.close()


def test_nothing_to_keep_ends_in_one_line(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixio_lightning.data.shards.format import Encoded

    # For how long torch waits for a worker to end that it cannot tell to.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    monkeypatch.setattr(shard_stream, "_LONGEST_SEARCH", 50)
    monkeypatch.setattr(
        shard_stream, "read_group", lambda index, group: [Encoded("k", b"", "lost")] * 10
    )
    for workers in (0, 1):
        with pytest.raises(UserError, match="none of .* images is kept.*lost"):
            take(loader_of(index, workers=workers), 1)
