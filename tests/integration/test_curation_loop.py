"""The loop: pretrain, score, look, train on what is kept; with real processes and kills."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import process_log
import pyarrow.parquet as pq
import pytest
from running import command, environment, pixio, train_on_shards

from pixio_lightning.cli.main import main
from pixio_lightning.data.shards.score_files import check_scores, settings_of
from pixio_lightning.keyed import key_of


@pytest.fixture(scope="module")
def shards(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated") / "shards"
    shutil.copytree(photographs, folder.parent / "photographs")
    (folder.parent / "photographs" / "broken.jpg").write_bytes(b"no picture")
    line = ["shard", str(folder.parent / "photographs"), str(folder), "--rows", "20"]
    assert main([*line, "--group", "5"]) == 0
    return folder


@pytest.fixture(scope="module")
def checkpoint(shards: Path) -> Path:
    return train_on_shards(shards)


def scored(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    tables = {path.name: pq.read_table(path) for path in sorted(folder.glob("*.scores.parquet"))}
    return {
        name: {column: table[column].to_numpy() for column in table.column_names}
        for name, table in tables.items()
    }


ON_CPU = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
DDP = ("--trainer.devices", 2, "--trainer.strategy", "ddp")


def line(checkpoint: Path, shards: Path, out: Path, *words: object) -> tuple[object, ...]:
    return (
        *("predict", "-c", "curation/score", "--data.path", shards, "--out", out),
        *("--model.backbone.weights", checkpoint, "--data.max_bad", 0.1, "--data.num_workers", 1),
        *(*ON_CPU, *words),
    )


def predict(checkpoint: Path, shards: Path, out: Path, *words: object, **env: str) -> str:
    return pixio(*line(checkpoint, shards, out, *words), **env)


@pytest.fixture(scope="module")
def scores(checkpoint: Path, shards: Path) -> Path:
    out = shards.parent / "scored"
    text = predict(checkpoint, shards, out)
    assert "unusable: 0000" in text and "broken.jpg (no JPEG, PNG, WebP, TIFF or BMP)" in text
    assert f"pixio curate {shards} --scores {out}/scores" in text
    return out / "scores"


def test_every_image_has_a_score_in_the_order_of_its_shard(shards: Path, scores: Path) -> None:
    found = scored(scores)
    assert len(found) == len(list(shards.glob("0*.parquet"))) == 4
    bad = 0
    for path in sorted(shards.glob("0*.parquet")):
        table = found[f"{path.name}.scores.parquet"]
        names = pq.read_table(path, columns=["key"])["key"].to_pylist()
        assert table["hash"].tolist() == [key_of(name) for name in names]
        broken = np.array([name == "broken.jpg" for name in names])
        assert np.isnan(table["loss"][broken]).all() and (table["width"][broken] == 0).all()
        assert ((table["loss"] > 0.2) & (table["loss"] < 3))[~broken].all()
        assert ((table["entropy"] > 1) & (table["entropy"] < 9))[~broken].all()
        assert (table["width"] > 100)[~broken].all()
        bad += broken.sum()
        about = pq.read_metadata(scores / f"{path.name}.scores.parquet")
        assert about.num_row_groups == 1  # which reading them takes a fraction of the time for
    assert bad == 1


def test_two_processes_score_the_same_and_finished_shards_are_skipped(
    checkpoint: Path, shards: Path, scores: Path, tmp_path: Path
) -> None:
    out = tmp_path / "two"
    (out / "scores").mkdir(parents=True)
    all_kept = sorted(scores.glob("*.parquet"))[1:3]
    for kept in all_kept:
        shutil.copy2(kept, out / "scores")
    before = [(out / "scores" / kept.name).stat().st_mtime_ns for kept in all_kept]
    (out / "scores" / ".half.scores.parquet.1").write_bytes(b"half")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {"PROCESS_LOG": str(tmp_path / "log"), "PYTHONPATH": path}
    log = ("--trainer.callbacks+=process_log.ScoresLog", "--data.batch_size", 7)
    predict(checkpoint, shards, out, *DDP, *log, **env)
    after = [(out / "scores" / kept.name).stat().st_mtime_ns for kept in all_kept]
    assert after == before
    # Each looks at how its share of them was made: there may be hundreds of thousands.
    assert [process_log.read(tmp_path / "log", rank) for rank in (0, 1)] == [{"opened": 1}] * 2
    one, two = scored(scores), scored(out / "scores")
    assert one.keys() == two.keys()
    for name in one:
        for column in one[name]:
            np.testing.assert_allclose(one[name][column], two[name][column], rtol=1e-4)
    assert "scores:" in predict(checkpoint, shards, out)  # nothing is left to do


def test_scores_of_other_settings_are_refused(
    checkpoint: Path, shards: Path, scores: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "-c", "curation/score", "--data.path", str(shards), "--model.masks", "2"]
    words += ["--out", str(scores.parent), "--model.backbone.weights", str(checkpoint)]
    assert main([*words, *ON_CPU]) == 2
    error = capfd.readouterr().err
    assert "made differently (masks 4 there, 2 now)" in error
    about = settings_of(next(scores.glob("*.parquet")))
    assert about["masks"] == 4 and len(about["checkpoint"]) >= 8 and about["image_size"] == 64


def test_scores_of_other_settings_that_one_process_finds_are_refused_by_all(
    checkpoint: Path, shards: Path, scores: Path, tmp_path: Path
) -> None:
    """One of two, the second of four files, which the second process looks at."""
    shutil.copytree(scores, tmp_path / "two" / "scores")
    other = sorted((tmp_path / "two" / "scores").glob("*.parquet"))[1]
    table = pq.read_table(other)
    about = json.loads(table.schema.metadata[b"pixio_scores"]) | {"masks": 2}
    metadata = table.schema.metadata | {b"pixio_scores": json.dumps(about).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), other)
    words = command(*line(checkpoint, shards, tmp_path / "two", *DDP))
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 2, done.stderr
    told = {text for text in done.stderr.splitlines() if "error:" in text}
    assert len(told) == 1 and f"{other}' holds scores that were made differently" in told.pop()
    assert "Traceback" not in done.stderr


def test_scores_of_another_set_with_the_same_names_are_refused(
    checkpoint: Path, shards: Path, scores: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Keys number many sets from nought: they fit, and what is kept would be kept by chance."""
    (tmp_path / "others").mkdir()
    for path in shards.glob("0*.parquet"):
        table = pq.read_table(path)  # the images go under other keys
        images = table["image"][::-1].combine_chunks()
        table = table.set_column(table.column_names.index("image"), "image", images)
        pq.write_table(table, tmp_path / "others" / path.name, row_group_size=5)
    words = ["--data.path", str(tmp_path / "others"), *ON_CPU]
    line = ["-c", "curation/score", "--model.backbone.weights", str(checkpoint)]
    assert main(["predict", *line, "--out", str(scores.parent), *words]) == 2
    assert "were made of another" in capfd.readouterr().err
    line = ["-c", "pretrain/folder", "--data.source", "shards", "--out", str(tmp_path / "run")]
    line += ["--data.curation", json.dumps({"scores": str(scores)})]
    assert main(["fit", *line, *words]) == 2
    assert "were made of another" in capfd.readouterr().err


def test_the_scorer_without_lightning_gives_the_same_scores(
    checkpoint: Path, shards: Path, scores: Path, tmp_path: Path
) -> None:
    """What `ray.data.read_parquet(...).map_batches(Scorer, ...)` would call."""
    from pixio_lightning.curation.scoring import Scorer
    from pixio_lightning.data import open_index, write_scores

    scorer = Scorer(str(checkpoint))
    index = open_index(str(shards))
    for shard in index.shards:  # of which the scores can be trained on, as those of `pixio predict`
        table = pq.read_table(shards / shard.path, columns=["key", "image"]).to_pydict()
        write_scores(tmp_path, shard, scorer(table), scorer.settings | {"column": "image"})
    assert check_scores(index, str(tmp_path)) == check_scores(index, str(scores))
    for path in sorted(shards.glob("0*.parquet"))[:2]:
        table = pq.read_table(path, columns=["key", "image"])
        batch = {name: np.array(table[name].to_pylist(), object) for name in table.column_names}
        got = scorer(batch)
        want = scored(scores)[f"{path.name}.scores.parquet"]
        assert "image" not in got and got["key"].tolist() == batch["key"].tolist()
        for column in want:
            np.testing.assert_allclose(got[column], want[column], rtol=1e-4)
            assert got[column].dtype == want[column].dtype
        assert set(got["reason"]) <= {"", "no JPEG, PNG, WebP, TIFF or BMP"}


def test_a_prediction_ends_with_the_last_of_its_processes(
    checkpoint: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    words = ("--trainer.devices", 2, "--trainer.callbacks+=latecomer.LateReader")
    printed = predict(checkpoint, shards, tmp_path / "scored", *words)
    assert -1 < printed.find("the second process is done") < printed.find("pixio curate")
    monkeypatch.setenv("LATE_READER", "fails")
    with pytest.raises(AssertionError, match="another process of this run ended with exit code 5"):
        predict(checkpoint, shards, tmp_path / "again", *words)


def test_the_scorer_may_compute_in_half_precision(checkpoint: Path, shards: Path) -> None:
    from pixio_lightning import Scorer
    from pixio_lightning.errors import UserError

    path = min(shards.glob("0*.parquet"))
    table = pq.read_table(path, columns=["key", "image"])
    batch = {name: np.array(table[name].to_pylist(), object) for name in table.column_names}
    whole, half = Scorer(str(checkpoint)), Scorer(str(checkpoint), precision="bf16-mixed")
    assert whole.settings == half.settings | {"precision": "32-true"}
    losses = [scorer(batch)["loss"] for scorer in (whole, half)]
    np.testing.assert_allclose(*losses, rtol=0.02)
    assert (losses[0] != losses[1]).any()
    with pytest.raises(UserError, match="did you mean 'bf16-mixed'"):
        Scorer(str(checkpoint), precision="bf16-mixd")


def test_a_noise_floor_lowers_what_flat_patches_cost(checkpoint: Path) -> None:
    import torch

    from pixio_lightning.curation.scoring import image_losses, load_model

    model = load_model(str(checkpoint))
    # About 1.4 levels on ground of the mean colour, all of whose normalised channels are equal:
    # in levels it has a spread between its channels that is far larger than the noise.
    ground = torch.tensor([124, 116, 104]).view(3, 1, 1)
    noise = (ground + torch.randint(-2, 3, (2, 3, 64, 64))).to(torch.uint8)
    strong = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    keys = torch.tensor([5, 6])
    plain, floored = (image_losses(model, noise, keys, noise_floor=f) for f in (0.0, 1.4))
    assert torch.allclose(floored / plain, torch.full((2,), 0.5), atol=0.06)
    # The least that can be lost of such patches, whatever is predicted, counts half.
    assert (floored < 0.75).all() and (plain > 0.9).all()
    plain, floored = (image_losses(model, strong, keys, noise_floor=f) for f in (0.0, 1.4))
    assert torch.allclose(floored / plain, torch.ones(2), atol=1e-3)


def test_a_noise_floor_is_of_normalised_pixels(checkpoint: Path, tmp_path: Path) -> None:
    import torch

    from pixio_lightning import Scorer
    from pixio_lightning.errors import UserError

    stored = torch.load(checkpoint, weights_only=True)
    stored["pixio"]["config"]["init_args"]["norm_pix"] = False
    stored["pixio"]["as_trained"]["norm_pix"] = False
    torch.save(stored, tmp_path / "plain.ckpt")
    Scorer(str(tmp_path / "plain.ckpt"))
    with pytest.raises(UserError, match="model.noise_floor is 2, but .* predicts plain pixels"):
        Scorer(str(tmp_path / "plain.ckpt"), noise_floor=2.0)


@pytest.mark.parametrize("weights", ["depth", "missing"])
def test_only_a_pretraining_scores(
    weights: str, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing.ckpt"
    message = "missing.ckpt"
    if weights == "depth":
        small = '{"train": 2, "held_out": 2, "views": 2, "size": 64}'
        out = tmp_path / "depth"
        line = ["fit", "-c", "depth/demo", "-c", "with/debug", "--out", str(out)]
        assert main([*line, "--data.scenes", small]) == 0
        path, message = out / "last.ckpt", "holds a head only"
    words = ["predict", "-c", "curation/score", "--data.path", str(shards), "--out", str(tmp_path)]
    assert main([*words, "--model.backbone.weights", str(path)]) == 2
    assert message in capfd.readouterr().err


def test_training_on_what_is_kept_logs_the_keep_rate(
    shards: Path, scores: Path, tmp_path: Path
) -> None:
    recipe = shards.parent / "tiny.yaml"
    kept = ("--data.curation.min_entropy", 0, "--data.curation.min_side", 0)
    kept += ("--data.curation.scores", scores, "--data.curation.fraction", 0.5)
    out = pixio("fit", "-c", recipe, "--out", tmp_path / "run", *kept)
    assert "step 16" in out
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        logged = [row for row in csv.DictReader(file) if row["data/keep_rate"]]
    assert 0.3 < float(logged[-1]["data/keep_rate"]) < 0.7
    assert all(row["train/loss"] for row in logged)  # in one go: a row that grows is a file anew
    table = (tmp_path / "run" / "keep_rates.csv").read_text().splitlines()
    assert table[0] == "shard,met,kept,rate" and len(table) == 5


def test_the_first_process_tells_the_others_what_it_has_found(
    shards: Path, scores: Path, tmp_path: Path
) -> None:
    """The second one's score files would not be taken, if it looked for itself."""
    for rank in ("0", "1"):
        shutil.copytree(scores, tmp_path / rank / "scores")
    for path in (tmp_path / "1" / "scores").iterdir():
        pq.write_table(pq.read_table(path).replace_schema_metadata(), path)
    words = ("--data.curation.scores", "scores", "--data.curation.fraction", 0.5)
    words += ("--data.curation.min_entropy", 0, "--data.curation.min_side", 0)
    words += (*DDP, "--trainer.max_steps", 2, "--trainer.limit_val_batches", 0)
    words += ("--trainer.callbacks+=latecomer.OwnFolder", "--out", tmp_path / "run")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {"FOLDERS": str(tmp_path), "PYTHONPATH": path}
    assert "step 2/2" in pixio("fit", "-c", shards.parent / "tiny.yaml", *words, **env)


def test_curate_and_materialize_and_train_on_it(shards: Path, scores: Path, tmp_path: Path) -> None:
    free = ("--min-entropy", 0, "--min-side", 0)
    words = ("--scores", scores, "--out", tmp_path / "report", "--materialize", tmp_path / "binned")
    text = pixio("curate", shards, *words, *free)
    assert "shards by keep probability" in text
    assert json.loads((tmp_path / "report" / "report.json").read_text())["without a score"] == 1
    inside = ("--data.path", tmp_path / "binned", "--data.curation.scores", "inside")
    limits = ("--data.curation.min_entropy", 0, "--data.curation.min_side", 0)
    recipe = shards.parent / "tiny.yaml"
    assert "step 16" in pixio("fit", "-c", recipe, "--out", tmp_path / "run", *inside, *limits)
    with (tmp_path / "run" / "keep_rates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Each shard is a bin of images that are kept with between n and n + 1 sixteenths.
    assert rows and {row["shard"] for row in rows} <= set(os.listdir(tmp_path / "binned"))
    for row in rows:
        least = int(re.findall(r"-(\d+)\.parquet", row["shard"])[0]) / 16
        assert 0 < int(row["kept"]) <= int(row["met"]) and float(row["rate"]) > 0.9 * least
    assert sum(int(row["kept"]) for row in rows) >= 16 * 8


@pytest.mark.slow  # as the one that is trained
def test_a_model_that_scores_is_compiled_where_it_is_asked_for(
    checkpoint: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    compiled: list[nn.Module] = []  # without compiling, which takes a minute
    monkeypatch.setattr(nn.Module, "compile", lambda block, **_: compiled.append(block))
    line = ["predict", "-c", "curation/score", "--data.path", str(shards), "--model.masks", "1"]
    line += ["--model.backbone.weights", str(checkpoint)]
    line += ["--data.num_workers", "0", "--data.max_bad", "0.1", *ON_CPU]
    for asked, blocks in (("false", 0), ("true", 2)):
        words = ["--model.backbone.compile", asked, "--out", str(tmp_path / asked)]
        assert main([*line, *words]) == 0
        assert len(compiled) == blocks
