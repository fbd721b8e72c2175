"""`pixio predict` writes below the run folder, a file for each sample, whatever its name."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import write_recipe

from pixio_heads.depth.data import DepthData
from pixio_lightning.cli.main import main
from pixio_lightning.training import results

DEPTH = ("-c", "depth/demo", "--model.backbone.weights", "random:0", "--model.cache", "false")
UNTRAINED = ("--ckpt_path", "none")
NAMES = [
    *("a.jpg", "a.jpg.png", "a.png", "room/a.jpg", "back\\..\\slash.jpg", "a_colour.jpg"),
    *("new\nline.jpg", "x" * 251 + ".jpg", "é" * 125 + ".jpg", os.fsdecode(b"\xff.jpg")),
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(array).save(path, "PNG" if path.suffix == ".png" else "JPEG")


def folder(root: Path) -> Path:
    for i, name in enumerate(NAMES):
        picture(root / name, i)
    return root


def written(run: Path, everything: Path) -> list[Path]:
    """Return the files of `predictions`; fails if `predict` left one outside of the run folder."""
    found = [p for p in everything.rglob("*") if p.is_file() and "in" not in p.parts]
    assert not [p for p in found if not p.resolve().is_relative_to(run.resolve())]
    return [p for p in found if p.is_relative_to(run / "predictions")]


def test_depth_of_a_folder(tmp_path: Path) -> None:
    """All PNG have one unit, that of the range; they are read back by it, and pair by name."""
    run, source = tmp_path / "run", folder(tmp_path / "in")
    words = ["--data.source", "folder", "--data.path", str(source), "--data.max_depth", "80"]
    words += ["--data.val_batch_size", "5", "--out", str(run)]
    assert main(["predict", *DEPTH, *UNTRAINED, *words]) == 0
    files = written(run, tmp_path)
    colours = [p for p in files if p.name.endswith("_colour.png")]
    maps = [p for p in files if p not in colours]
    assert len(colours) == len(maps) == len(NAMES)
    assert {Image.open(p).info["metres_per_unit"] for p in maps} == {repr(1 / 256)}
    assert len({p.read_bytes() for p in maps}) == len(NAMES)  # no sample has another's

    pairs = tmp_path / "pairs" / "in"
    pairs.mkdir(parents=True)
    (pairs / "images").symlink_to(source)
    (pairs / "depth").symlink_to(run / "predictions")
    samples = DepthData("folder", str(pairs), max_depth=80.0).samples_of("train")
    stored = np.asarray(Image.open(run / "predictions/room/a.jpg.png")).astype(np.float32)
    index = [samples.name(i) for i in range(len(samples))].index("images/room/a.jpg")
    assert np.allclose(samples.load(index)["depth"], stored / 256)


@pytest.mark.parametrize(
    ("task", "words", "files"),
    [
        ("segmentation", ["--model.cache", "false", "--data.num_classes", "3"], 2 * len(NAMES)),
        ("reconstruction", [], 7),  # of all pictures together
    ],
)
def test_other_heads_take_names_of_any_kind(
    task: str, words: list[str], files: int, tmp_path: Path
) -> None:
    run, source = tmp_path / "run", folder(tmp_path / "in")
    words = [*DEPTH[2:4], *words, "--data.source", "folder", "--data.path", str(source)]
    words += ["-c", f"{task}/demo", "--out", str(run), *UNTRAINED]
    assert main(["predict", *words]) == 0
    found = [p for p in tmp_path.rglob("*") if p.is_file() and source not in p.parents]
    assert all(run in p.parents for p in found)
    assert len([p for p in found if run / "predictions" in p.parents]) == files


@pytest.mark.parametrize("task", ["depth", "segmentation", "pretrain"])
def test_photographs_of_any_size(task: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Seen at a size that the windows suit, written at their own, and shown on one sheet."""
    sizes = {"large.jpg": (900, 700), "small.jpg": (70, 40), "long.jpg": (1200, 90)}
    for i, (name, size) in enumerate(sizes.items()):
        array = np.random.default_rng(i).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / "in" / name)
    words = ["-c", f"{task}/demo", *DEPTH[2:4], *UNTRAINED, "--data.source", "folder"]
    words += ["--data.path", str(tmp_path / "in"), "--out", str(tmp_path / "run")]
    words += ["--model.cache", "false"] if task != "pretrain" else []
    words += ["--data.num_classes", "3"] if task == "segmentation" else []
    assert main(["predict", *words]) == 0
    assert "the first 3 on one sheet: " in capsys.readouterr().out
    for name, size in sizes.items():
        with Image.open(tmp_path / f"run/predictions/{name}.png") as found:
            assert found.size == size or task == "pretrain"  # which sees a square of each
        if task == "pretrain":
            continue
        with Image.open(tmp_path / f"run/predictions/{name}_colour.png") as drawn:
            assert max(drawn.size) < 1200
    with Image.open(tmp_path / "run/predictions.png") as sheet:
        assert np.asarray(sheet).std() > 0 and max(sheet.size) < 2400


def test_a_head_that_nothing_trained_predicts_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also one whose classes a checkpoint alone would know, and pretraining."""
    picture(tmp_path / "in/a.jpg", 0)
    words = ["--data.source", "folder", "--data.path", str(tmp_path / "in")]
    words += ["--model.backbone.weights", "random:0", "--out", str(tmp_path / "run")]
    for task in ("depth/demo", "segmentation/demo", "pretrain/demo"):
        for verb in ("predict", "validate"):
            assert main([verb, "-c", task, *words]) == 2
            error = capsys.readouterr().err
            assert "is not trained" in error and "--ckpt_path none" in error
            assert error.count("\n") == 1
    # Of what trains nothing it is the data that is wrong.
    assert main(["predict", "-c", "classification/folder_knn", *words]) == 2
    error = capsys.readouterr().err
    assert "not trained" not in error
    assert "a folder of images for each of two or more classes" in error
    assert not (tmp_path / "run/predictions").exists()
    assert main(["fit", *DEPTH, *words, *UNTRAINED]) == 2
    assert "leave it out" in capsys.readouterr().err


def test_another_unit_than_the_files_say_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from pixio_lightning.data.depth import encode_png

    for i in range(4):
        picture(tmp_path / f"images/{i}.jpg", i)
        (tmp_path / "depth").mkdir(exist_ok=True)
        array = np.full((64, 64), 2.0, np.float32)
        (tmp_path / f"depth/{i}.png").write_bytes(encode_png(array, unit=1 / 256))
    words = ["--data.source", "folder", "--data.path", str(tmp_path), "--data.batch_size", "2"]
    words += ["--trainer.max_steps", "1", "--data.steps_per_epoch", "1"]
    run = ["--panels.every_n_steps", "0", "--out", str(tmp_path / "run")]
    assert main(["fit", *DEPTH, *words, *run, "--data.depth_scale", "0.001"]) == 2
    error = capsys.readouterr().err
    assert "counts in 0.00390625 m, not in 0.001 m of data.depth_scale" in error
    assert error.count("\n") == 1
    assert main(["fit", *DEPTH, *words, *run, "--fresh"]) == 0
    (line,) = {json.dumps(line["baselines"]["constant"]) for line in results.read(tmp_path / "run")}
    assert json.loads(line)["rmse"] == 0.0  # two metres everywhere


def test_depth_that_no_16_bits_hold_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture(tmp_path / "in/a.jpg", 0)
    words = ["--data.source", "folder", "--data.path", str(tmp_path / "in"), "--data.max_depth"]
    words += ["350", "--out", str(tmp_path / "run")]
    assert main(["predict", *DEPTH, *UNTRAINED, *words]) == 2
    assert "depth to 350 m does not fit into a 16-bit PNG" in capsys.readouterr().err
    assert not written(tmp_path / "run", tmp_path)
    assert main(["predict", *DEPTH, *UNTRAINED, *words, "--model.files", "npy"]) == 0
    depth = np.load(tmp_path / "run/predictions/a.jpg.npy")
    assert depth.shape == (64, 64) and (depth > 0).all()


def test_members_of_a_zip_stay_in_the_folder(tmp_path: Path) -> None:
    picture(tmp_path / "in/image.jpg", 0)
    image = (tmp_path / "in/image.jpg").read_bytes()
    depth = tmp_path / "in/depth.png"
    from PIL import PngImagePlugin

    about = PngImagePlugin.PngInfo()
    about.add_text("near", "1.0")
    about.add_text("far", "10.0")
    Image.fromarray(np.full((64, 64), 999, np.uint16)).save(depth, pnginfo=about)
    outside = tmp_path / "outside"
    names = ["room", "../../escaped", str(outside / "absolute"), "..\\..\\back", "x" * 300]
    meta = json.dumps({"intrinsics": [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]})
    with zipfile.ZipFile(tmp_path / "in/set.zip", "w") as file:
        for name in names:
            file.writestr(f"{name}/image.jpg", image)
            file.writestr(f"{name}/depth.png", depth.read_bytes())
            file.writestr(f"{name}/meta.json", meta)
    run = tmp_path / "deep/down/run"
    words = ["--data.source", "moge", "--data.path", str(tmp_path / "in/set.zip")]
    assert main(["predict", *DEPTH, *UNTRAINED, *words, "--out", str(run)]) == 0
    files = written(run, tmp_path)
    assert len(files) == 2 * len(names) and not outside.exists()
    assert run / "predictions/room/image.jpg.png" in files


def test_pictures_of_pretraining(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, source = tmp_path / "run", folder(tmp_path / "in")
    words = ["-c", str(write_recipe(source, source)), "--out", str(run)]
    words += UNTRAINED
    assert main(["predict", *words]) == 0
    assert len(written(run, tmp_path)) == len(NAMES)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in (run / "predictions/room").iterdir():
        file.unlink()
    (run / "predictions/room").rmdir()
    (run / "predictions/room").symlink_to(elsewhere)
    capsys.readouterr()
    assert main(["predict", *words]) == 2
    assert "leads out of it; remove the link" in capsys.readouterr().err
    assert not list(elsewhere.iterdir())


def test_a_fine_tuned_backbone_has_a_tenth_of_the_rate(tmp_path: Path) -> None:
    words = ["-c", "depth/demo", "-c", "with/debug", "-c", "with/finetune", "--data.scenes"]
    words += ["{train: 2, held_out: 2, views: 2, size: 64}", "--panels.every_n_steps", "0"]
    assert main(["fit", *words, "--out", str(tmp_path / "run")]) == 0
    saved = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    (optimizer,) = saved["optimizer_states"]
    groups = {round(group["initial_lr"], 9) for group in optimizer["param_groups"]}
    assert groups == {1e-2, 1e-3}
    slow = [n for g in optimizer["param_groups"] if g["initial_lr"] < 5e-3 for n in g["params"]]
    trained = [n for n in saved["state_dict"] if n.startswith("backbone.vit.")]
    assert len(slow) == len(trained)
