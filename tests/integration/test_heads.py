"""Heads through the real command line: many processes, the cache, plug-ins of strangers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import process_log
import pytest
import torch
from running import command, environment, pixio

from pixio_lightning.cli.main import main
from pixio_lightning.training import results
from pixio_lightning.training.run_folder import Metrics

SMALL = ("--data.scenes", "{train: 6, held_out: 4, views: 2, size: 64}")
RANDOM = ("--model.backbone.weights", "random:0", "--model.cache", "false")
DEPTH = ("-c", "depth/demo", *SMALL, "--panels.every_n_steps", 0, "--trainer.log_every_n_steps", 1)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def gradients(folder: Path) -> torch.Tensor:
    """Adam's running means of them: weights may differ where a gradient is zero but for rounding,
    as that of a bias before a normalisation."""
    (optimizer,) = torch.load(folder / "last.ckpt", weights_only=True)["optimizer_states"]
    return torch.cat([state["exp_avg"].flatten() for state in optimizer["state"].values()])


@pytest.mark.parametrize("tune", [pytest.param("frozen", marks=pytest.mark.slow), "2"])
def test_one_process_of_four_equals_two_of_two(tune: str, tmp_path: Path) -> None:
    """Losses, gradients, statistics of the synchronised batch norm, metrics of uneven batches."""
    steps = ("--trainer.max_steps", 4, "--data.steps_per_epoch", 4, "--data.val_images", 7)
    words = (
        "fit",
        *DEPTH,
        *RANDOM,
        *steps,
        "--model.backbone.tune",
        tune,
        "--model.optim.lr",
        1e-4,
    )
    pixio(*words, "--out", tmp_path / "one", "--data.batch_size", 4, "--data.val_batch_size", 4)
    two = ("--data.batch_size", 2, "--data.val_batch_size", 3, "--trainer.devices", 2)
    pixio(*words, "--out", tmp_path / "two", *two, "--trainer.strategy", "ddp")
    one, other = (Metrics(tmp_path / run / "metrics.csv").rows for run in ("one", "two"))
    assert len(one) == len(other) == 4
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in {"train/loss", "val/loss", "val/abs_rel", "val/rmse", "val/images"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
    first, second = state(tmp_path / "one"), state(tmp_path / "two")
    assert any("running_var" in name for name in first)
    assert any(name.startswith("backbone.") for name in first) == (tune != "frozen")
    for name in first:
        if "running" in name:
            assert torch.allclose(first[name], second[name], atol=1e-3), name
    a, b = (gradients(tmp_path / run) for run in ("one", "two"))
    assert (a - b).abs().max() < 1e-4 * a.abs().max()
    assert results.read(tmp_path / "two")[-1]["n"] == 7


def test_a_frozen_backbone_is_not_sharded(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [*map(str, (*DEPTH, *RANDOM)), "-c", "with/fsdp", "--out", str(tmp_path / "run")]
    assert main(["fit", *words]) == 2
    assert "the backbone is frozen: leave it out" in capsys.readouterr().err


@pytest.mark.slow  # test_sharded_checkpoints.py shards one, test_distributed.py holds DDP equal
def test_a_tuned_backbone_is_sharded_and_measured_as_by_ddp(tmp_path: Path) -> None:
    """The record needs the digest of all of it, which no process holds."""
    words = (*DEPTH, *RANDOM, "--model.backbone.tune", "full", "--data.batch_size", 2)
    words += ("--trainer.max_steps", 2, "--data.steps_per_epoch", 2)
    found = []
    for name, strategy in (("ddp", ("--trainer.strategy", "ddp")), ("fsdp", ("-c", "with/fsdp"))):
        pixio("fit", *words, "--trainer.devices", 2, *strategy, "--out", tmp_path / name)
        found.append(results.read(tmp_path / name)[-1])
    assert found[1]["metrics"] == pytest.approx(found[0]["metrics"], rel=1e-4)
    assert all(len(line["backbone"]["digest"]) == 16 for line in found)


@pytest.mark.slow
def test_a_tuned_backbone_is_hashed_by_one_process_at_the_end(tmp_path: Path) -> None:
    """In three steps; or not at all in two epochs, where no step is known as the last."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    words = (*DEPTH, *RANDOM, "--model.backbone.tune", 2, "--data.steps_per_epoch", 1)
    words += ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.batch_size", 2)
    words += ("--trainer.callbacks+=process_log.DigestLog",)
    constant = ("--model.optim.schedule", "constant", "--model.optim.warmup", 0)
    for run, length, once, digests in (
        ("steps", ("--trainer.max_steps", 3), 1, [0, 0, 16]),
        ("epochs", ("--trainer.max_steps", -1, "--trainer.max_epochs", 2), 0, [0, 0]),
    ):
        env = {"PROCESS_LOG": str(tmp_path / f"log-{run}"), "PYTHONPATH": path}
        pixio("fit", *words, *constant, *length, "--out", tmp_path / run, **env)
        lines = [x for x in results.read(tmp_path / run) if x["checkpoint"] != "best"]
        assert [len(line["backbone"]["digest"] or "") for line in lines] == digests
        hashed = [process_log.read(tmp_path / f"log-{run}", rank=rank) for rank in (0, 1)]
        assert hashed == [{"hashed": once}, {"hashed": 0}]


@pytest.mark.slow
def test_a_suite_over_two_processes_is_told_once(tmp_path: Path) -> None:
    """Both processes go through all rows, the second of which they launch no more."""
    suite = tmp_path / "suite.yaml"
    suite.write_text("title: a suite\nrows: {one: {fit: depth/demo}, two: {fit: depth/demo}}\n")
    steps = ("--trainer.max_steps", 2, "--data.steps_per_epoch", 2, "--data.batch_size", 2)
    two = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
    out = tmp_path / "out"
    said = pixio("bench", suite, "--out", out, *DEPTH[2:], *RANDOM, *steps, *two)
    assert [said.count(text) for text in ("one, seed 0", "two, seed 0", "a suite")] == [1, 1, 1]
    lines = [results.read(out / row) for row in ("one-0", "two-0")]
    assert [len(line) for line in lines] == [2, 2]
    assert lines[0][-1]["metrics"] == lines[1][-1]["metrics"]


@pytest.mark.slow
def test_a_suite_of_evaluations_goes_on_over_two_processes(tmp_path: Path) -> None:
    """Each reads what the first one has recorded, also where a line of before is there."""
    suite = tmp_path / "suite.yaml"
    suite.write_text("rows: {one: {validate: depth/demo}, two: {validate: depth/demo}}\n")
    two = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
    words = ("bench", suite, "--out", tmp_path / "out", *DEPTH[2:6], *RANDOM, *two)
    for count, more in ((1, ()), (2, ("--fresh",))):
        assert "Evaluated on val" in pixio(*words, *more)
        lines = [results.read(tmp_path / "out" / row) for row in ("one-0", "two-0")]
        assert [len(line) for line in lines] == [count, count]
        assert lines[0][-1]["metrics"] == lines[1][-1]["metrics"]


def evaluate(folder: Path, *words: object) -> dict:
    steps = ("--trainer.max_steps", 6, "--data.steps_per_epoch", 3, "--data.batch_size", 4)
    assert main(["fit", *map(str, (*DEPTH, *steps, *words)), "--out", str(folder)]) == 0
    return results.read(folder)[-1]["metrics"]


def test_cached_features_give_the_same_and_decode_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    plain = evaluate(tmp_path / "plain", *CACHED, "--model.cache", "false")
    assert evaluate(tmp_path / "first", *CACHED) == pytest.approx(plain, rel=1e-6)
    assert "encoding 12 train views" in capsys.readouterr().out

    def decode(*arguments: object) -> None:
        raise AssertionError("a hit decodes an image")

    from pixio_lightning.data.scenes import store as scene_store

    with monkeypatch.context() as patch:
        patch.setattr(scene_store, "decode_field", decode)
        assert evaluate(tmp_path / "second", *CACHED, "--model.optim.lr", 0.02)
        seeds = [f"--{name}=3" for name in ("seed_everything", "data.seed", "model.seed")]
        assert evaluate(tmp_path / "seed", *CACHED, *seeds) != plain  # another order, for one
    assert "encoding" not in capsys.readouterr().out


CACHED = ("--data.num_workers", 0, "--model.backbone.weights", "random:0")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the features of a run, in the folder that all tests of this file share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        evaluate(tmp_path_factory.mktemp("first") / "run", *CACHED)


@pytest.mark.usefixtures("encoded")
@pytest.mark.parametrize(
    "change",
    [
        ("--model.backbone.weights", "random:1"),
        ("--model.backbone.layers", "last"),
        (
            *("--data.scenes", "{train: 6, held_out: 4, views: 2, size: 48}"),
            *("--model.window", 48, "--model.stride", 48),
        ),
        ("--data.image_size", 32, "--data.views", 2),
        ("--data.max_depth", 20),
    ],
    ids=["backbone", "layers", "data", "crop", "range"],
)
def test_what_changes_the_features_never_hits(
    change: tuple, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    capsys.readouterr()
    evaluate(tmp_path / "second", *CACHED, *change)
    out = capsys.readouterr().out
    assert f"encoding {24 if '--data.views' in change else 12} train views" in out


def test_fixed_views_are_those_of_a_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    views = (*CACHED, "--data.image_size", 32, "--data.views", 2)
    for seed, encoded in ((0, True), (1, True), (1, False)):
        capsys.readouterr()
        evaluate(tmp_path / f"{seed}-{encoded}", *views, "--data.seed", seed)
        assert ("encoding 24 train views" in capsys.readouterr().out) is encoded


def test_random_crops_are_not_cached(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("--model.backbone.weights", "random:0", "--data.flip", "true", "--data.num_workers", 0)
    assert main(["fit", *map(str, (*DEPTH, *words)), "--out", str(tmp_path / "run")]) == 2
    assert "set data.views" in capsys.readouterr().err


SHALLOW = "weights: random, model_args: {embed_dim: 96, depth: 4, num_heads: 4}"
BACKBONES = {
    "pixio": f"{{name: pixio_vitt16, {SHALLOW}}}",
    "mae": f"{{name: vit_base_patch16_224.mae, {SHALLOW}}}",
    "dinov2": f"{{name: vit_small_patch14_dinov2.lvd142m, {SHALLOW}}}",
    "dinov3": f"{{name: vit_small_patch16_dinov3.lvd1689m, {SHALLOW}}}",
}


@pytest.mark.parametrize("name", BACKBONES)
def test_one_recipe_over_four_backbones_through_windows(name: str, tmp_path: Path) -> None:
    """NYUv2 in its layout, 426x560 after its crop; only the backbone key changes."""
    import numpy as np
    from PIL import Image

    for folder, rgb in (("sync/a", "rgb_00001"), ("official_splits/test/b", "rgb_00002")):
        (tmp_path / folder).mkdir(parents=True)
        rng = np.random.default_rng(0)
        image = rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / folder / f"{rgb}.jpg")
        depth = rng.integers(500, 9000, (480, 640)).astype(np.uint16)
        file = f"{rgb.replace('rgb', 'sync_depth')}.png"
        Image.fromarray(depth).save(tmp_path / folder / file)
    words = ["-c", "depth/nyuv2_linear", "--data.path", str(tmp_path), "--data.num_workers", "0"]
    words += ["--trainer.max_steps", "1", "--data.steps_per_epoch", "1", "--data.batch_size", "2"]
    words += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
    words += ["--panels.every_n_steps", "0", "--out", str(tmp_path / "run")]
    assert main(["fit", *words, "--model.backbone", BACKBONES[name]]) == 0
    line = results.read(tmp_path / "run")[-1]
    assert line["metrics"]["images"] == 1 and "windows of 256 px every 170" in line["protocol"]


def test_predictions_of_a_folder_are_written(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image
    from skimage import data

    (tmp_path / "in/cats").mkdir(parents=True)
    Image.fromarray(data.chelsea()).save(tmp_path / "in/cats/chelsea.jpg")
    words = ["-c", "depth/demo", *RANDOM, "--data.source", "folder", "--data.path"]
    words += [str(tmp_path / "in"), "--data.num_workers", "0", "--out", str(tmp_path / "run")]
    assert main(["predict", *words, "--ckpt_path", "none"]) == 0
    folder = tmp_path / "run/predictions/cats"
    depth = Image.open(folder / "chelsea.jpg.png")
    assert np.asarray(depth).dtype == np.uint16 and depth.size == data.chelsea().shape[1::-1]
    assert float(depth.text["metres_per_unit"]) in (1e-3, 1 / 256)
    assert (folder / "chelsea.jpg_colour.png").exists()


PLUGIN = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{name}"
version = "2.0"
[project.entry-points."pixio_lightning.heads"]
{entries}
[tool.hatch.build.targets.wheel]
packages = ["{module}"]
"""


@pytest.fixture
def strangers(tmp_path: Path) -> dict[str, str]:
    """A generated head, one that fails to import, and one that claims the generated head's name."""
    site = tmp_path / "site"
    assert main(["new-head", "tilt", "--dir", str(tmp_path)]) == 0
    for name, entries, code in (
        ("broken-head", 'cracked = "cracked:Cracked"', "raise RuntimeError('no such device')\n"),
        ("second-tilt", 'tilt = "other:Tilt"', "class Tilt:\n    '''Another tilt.'''\n"),
    ):
        module = entries.partition('"')[2].partition(":")[0]
        folder = tmp_path / name
        (folder / module).mkdir(parents=True)
        (folder / module / "__init__.py").write_text(code)
        text = PLUGIN.format(name=name, entries=entries, module=module)
        (folder / "pyproject.toml").write_text(text)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    install += ["--no-index", "--target"]
    for project, where in (
        ("pixio-tilt", site),
        ("broken-head", site),
        ("second-tilt", tmp_path / "b"),
    ):
        done = subprocess.run([*install, where, tmp_path / project], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return {"good": str(site), "both": os.pathsep.join([str(site), str(tmp_path / "b")])}


def test_a_stranger_s_head_is_listed_and_trains_beside_a_broken_one(
    strangers: dict[str, str], tmp_path: Path
) -> None:
    alone = {"PYTHONPATH": strangers["good"]}
    listed = pixio("heads", **alone)
    assert "pixio-tilt 0.1.0" in listed and "cracked" in listed and "depth " in listed
    assert "tilt/demo" in pixio("recipes", **alone)
    words = ("-c", "tilt/demo", "-c", "with/debug", "--out", tmp_path / "run")
    assert "mae" in pixio(
        "fit", *words, "--data.scenes", "{train: 2, held_out: 2, size: 64}", **alone
    )
    for verb, words, expected in (
        ("check", ("-c", "tilt/demo", "--model.class_path", "Cracked"), "no such device"),
        ("check", ("-c", "tilt/demo", "--model", "Tlit"), "did you mean 'Tilt'"),
        ("check", ("-c", "tilt/demo", "--model", "tilt"), "did you mean 'Tilt'"),
    ):
        done = subprocess.run(
            command(verb, *words), capture_output=True, text=True, env=environment(**alone)
        )
        assert done.returncode == 2 and expected in done.stderr, done.stderr
    done = subprocess.run(
        command("check", "-c", "tilt/demo"),
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=strangers["both"]),
    )
    assert done.returncode == 2, done.stdout
    assert "claimed by" in done.stderr and "second-tilt 2.0" in done.stderr


def test_a_sharded_model_evaluates_images_of_any_sizes(tmp_path: Path) -> None:
    """The process with the smaller image runs the model as often as the one with the larger."""
    import numpy as np
    from PIL import Image

    for split, sizes in (("train", [(64, 64)] * 4), ("val", [(64, 64), (200, 300)] * 2)):
        for i, size in enumerate(sizes):
            pixels = np.random.default_rng(i).integers(1, 255, (*size, 3), dtype=np.uint8)
            for name, array in (
                ("images", pixels),
                ("depth", pixels[..., 0].astype(np.uint16) * 9),
            ):
                (tmp_path / "set" / split / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / "set" / split / name / f"{i}.png")
    words = (
        "-c",
        "depth/demo",
        *RANDOM,
        "--model.backbone.tune",
        "full",
        "--data.source",
        "folder",
    )
    words += ("--data.path", tmp_path / "set", "--data.val_batch_size", 1, "--trainer.max_steps", 1)
    words += ("--data.steps_per_epoch", 1, "--model.windows_per_chunk", 2, "--data.num_workers", 0)
    words += ("--panels.every_n_steps", 0)
    pixio("fit", *words, "--data.batch_size", 2, "--out", tmp_path / "one")
    two = ("-c", "with/fsdp", "--trainer.devices", 2, "--data.batch_size", 1)
    pixio("fit", *words, *two, "--out", tmp_path / "two")
    one, other = (results.read(tmp_path / run)[-1]["metrics"] for run in ("one", "two"))
    assert one["images"] == 4 and other == pytest.approx(one, rel=1e-4)
