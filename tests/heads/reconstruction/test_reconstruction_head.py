"""The head through the command line: records, pictures, the wrong reference, and exports."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import scene_folders
import torch
import yaml
from PIL import Image
from skimage import data

from pixio_heads.reconstruction import reconstructed
from pixio_lightning import load
from pixio_lightning.cli import recipes
from pixio_lightning.cli.main import main
from pixio_lightning.training import results, run_folder
from pixio_lightning.training.checkpoints import checkpoint_io

SMALL = ["--data.scenes", "{train: 6, held_out: 4, views: 2, size: 48, places: [den]}"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("demo")
    return ["-c", "reconstruction/demo", "-c", "with/debug", "--out", str(folder / "run"), *SMALL]


@pytest.fixture(scope="module")
def trained(words: list[str]) -> Path:
    """Two steps of the demo with its own small backbone."""
    cache = Path(words[words.index("--out") + 1]).parent / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXIO_CACHE", str(cache))
        assert main(["fit", *words, "--data.val_images", "4", "--data.val_batch_size", "2"]) == 0
    return Path(words[words.index("--out") + 1])


def test_the_record_has_all_figures_beside_their_baselines(trained: Path) -> None:
    line = results.read(trained)[-1]
    assert line["task"] == "reconstruction" and line["n"] == 4
    assert {"scale_rel", "points_tau", "pose_auc5", "rotation_median"} <= line["metrics"].keys()
    assert line["baselines"].keys() == {"constant", "wrong_reference"}
    constant = line["baselines"]["constant"]
    assert constant["points_rel"] < line["metrics"]["points_rel"]
    assert constant["true_rotation_q2"] == line["metrics"]["true_rotation_q2"]
    wrong = line["baselines"]["wrong_reference"]
    assert wrong["points_rel"] != line["metrics"]["points_rel"]
    assert "no other alignment" in line["protocol"]


def test_sets_that_come_one_by_one_have_the_reference_of_the_one_before(
    trained: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(trained.parent / "cache"))
    two = results.read(trained)[-1]["baselines"]["wrong_reference"]
    given = [*words, "--ckpt_path", str(trained / "last.ckpt"), "--data.val_images", "4"]
    assert main(["validate", *given, "--data.val_batch_size", "1"]) == 0
    line = results.read(trained)[-1]
    one = line["baselines"]["wrong_reference"]
    assert math.isfinite(one["points_rel"]) and one["points_rel"] != line["metrics"]["points_rel"]
    assert one["points_rel"] == pytest.approx(two["points_rel"], rel=0.5)


def test_a_panel_is_drawn(trained: Path) -> None:
    (panel,) = (trained / "panels").glob("*.png")
    with Image.open(panel) as picture:
        assert picture.width > 8 * 190


def test_the_head_works_outside_of_a_trainer(trained: Path) -> None:
    head = load(trained / "last.ckpt")
    images = torch.randint(0, 255, (1, 3, 3, 48, 48), dtype=torch.uint8)
    found = head.predict(images)
    assert found.distance.shape == (1, 3, 48, 48) and found.quaternion.shape == (1, 3, 4)
    geometry = found.compose()
    assert geometry.points.shape == (1, 3, 48, 48, 3)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Photographs of different sizes, one of them turned by its EXIF orientation."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pictures = [data.astronaut(), data.chelsea(), data.coffee()]
    for number, pixels in enumerate(pictures):
        image = Image.fromarray(pixels)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        image.save(folder / f"{number}.jpg", exif=exif)
    return folder


def test_photographs_become_a_scene(
    trained: Path, words: list[str], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    line = ["predict", *words, "--data.source", "folder", "--data.path", str(photographs)]
    assert main([*line, "--data.image_size", "[48, 48]"]) == 0
    out = trained / "predictions" / "photos"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"points.ply", "scene.glb", "transforms.json", "reconstruction.npz"} <= names
    assert "sparse/0/images.txt" in names
    assert "broken.jpg" in capsys.readouterr().out
    found = reconstructed.read(out / "reconstruction.npz")
    assert found.names == ["0.jpg", "1.jpg", "2.jpg"]
    height, width = data.chelsea().shape[:2]
    assert found.original_size[1].tolist() == [width, height]  # turned
    assert found.depth.shape == (3, 48, 48) and np.isfinite(found.points).all()
    frames = json.loads((out / "transforms.json").read_text())["frames"]
    # One is turned, so all lie beside the file as they are seen.
    assert [frame["file_path"] for frame in frames] == found.names
    with Image.open(out / "1.jpg") as picture:
        assert picture.size == (frames[1]["w"], frames[1]["h"]) == (height, width)


def test_photographs_are_seen_at_the_size_that_the_checkpoint_was_evaluated_at(
    trained: Path,
    words: list[str],
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = yaml.safe_load(recipes.find("reconstruction/demo").read_text())
    del keys["data"]["init_args"]["image_size"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(keys))
    mine = str(tmp_path / "mine.yaml")
    line = [mine if word == "reconstruction/demo" else word for word in words]
    line += ["--data.source", "folder", "--data.path", str(photographs)]
    assert main(["predict", *line]) == 0
    assert "data.image_size (48, 48): as the checkpoint was evaluated" in capsys.readouterr().out
    found = reconstructed.read(trained / "predictions/photos/reconstruction.npz")
    assert found.depth.shape == (3, 48, 48)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_mask_that_was_not_trained_hides_nothing(
    weight: float, trained: Path, words: list[str], photographs: Path, tmp_path: Path
) -> None:
    """Whatever the recipe that predicts says: the weights are those of the checkpoint's run."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    stored = checkpoint_io.read(run / "last.ckpt")
    stored["pixio"]["config"]["init_args"]["weights"]["mask"] = weight
    (last,) = (tensor for tensor in stored["state_dict"].values() if tensor.shape == (6,))
    last[5] = -100
    torch.save(stored, run / "last.ckpt")
    line = [word if word != str(trained) else str(run) for word in words]
    line += ["--data.source", "folder", "--data.path", str(photographs)]
    assert main(["predict", *line, "--ckpt_path", str(run / "last.ckpt")]) == 0
    found = reconstructed.read(run / "predictions/photos/reconstruction.npz")
    assert found.mask.all() if weight == 0 else not found.mask.any()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no image"),
        ({"a.jpg": "photo"}, "at least 2"),
        ({"a.jpg": "broken", "b.jpg": "broken"}, "0 of 2 pictures"),
        ({"clip.mp4": "broken"}, "clip.mp4"),
    ],
)
def test_what_gives_no_scene_is_one_line(
    files: dict[str, str],
    said: str,
    trained: Path,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, kind in files.items():
        if kind == "photo":
            Image.fromarray(data.coffee()).save(folder / name)
        else:
            (folder / name).write_bytes(b"nothing of the kind")
    path = folder / "clip.mp4" if "clip.mp4" in files else folder
    line = ["predict", *words, "--data.source", "folder", "--data.path", str(path)]
    assert main(line) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert said in error


def test_a_run_whose_pictured_sets_cannot_be_used_draws_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for room, seed in (("train/a", 1), ("val/a", 2), ("val/b", 3)):
        scene_folders.nerfstudio(tmp_path / room, scene_folders.rendered(seed))
    for depth in (tmp_path / "val/a/depth").iterdir():
        depth.write_bytes(b"")
    line = [word if not word.endswith("/run") else str(tmp_path / "run") for word in words]
    line += ["--data.source", "folder", "--data.path", str(tmp_path), "--panels.images", "1"]
    code = main(["fit", *line, "--data.image_size", "[48, 48]"])
    assert code == 0, capsys.readouterr().err
    assert (tmp_path / "run/last.ckpt").exists() and not (tmp_path / "run/panels").exists()
    assert results.read(tmp_path / "run")[-1]["n"] == 1


def test_sets_of_two_kinds_train_together(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {"skymask": np.zeros((48, 48), bool), "pred_mask/moge2": np.ones((48, 48), bool)}
    for room in ("train/spring/a", "train/mine/a", "val/spring/b", "val/mine/b"):
        views = scene_folders.rendered(len(room))
        scene_folders.wai(tmp_path / "data" / room, views, masks=masks)
    line = [word if not word.endswith("/run") else str(tmp_path / "run") for word in words]
    line += ["--data.source", "wai", "--data.path", str(tmp_path / "data")]
    line += ["--data.image_size", "[48, 48]"]
    assert main(["fit", *line]) == 2
    assert "a set 'mine'" in capsys.readouterr().err
    flags = ["--data.sets", "{mine: {metric: false, synthetic: false}, spring: {weight: 0.5}}"]
    assert main(["fit", *line, *flags, "--fresh"]) == 0, capsys.readouterr().err
    assert "mine 66.7 %, spring 33.3 %" in capsys.readouterr().out
    run = tmp_path / "run"
    assert run_folder.read_state(run)["trained_anywhere"] == ["spring/a"]
    # A scene of a known data set is known again wherever it lies.
    for room in ("train/spring/a", "val/spring/b"):
        shutil.copytree(tmp_path / "data" / room, tmp_path / "apart/spring" / room[-1])
    words = [*line, "--data.path", str(tmp_path / "apart/spring"), "--data.hold_out", "1"]
    words += ["--ckpt_path", str(run / "last.ckpt")]
    assert main(["test", *words]) == 2
    error = capsys.readouterr().err
    assert "apart/spring' holds 'spring/a', which the run was trained on" in error
    shutil.rmtree(tmp_path / "apart/spring/a")
    assert main(["test", *words]) == 0, capsys.readouterr().err


def test_the_recipe_s_header_is_its_global_batch() -> None:
    path = recipes.find("reconstruction/mapanything_v1_vith16")
    keys = yaml.safe_load(path.read_text())
    data, trainer = keys["data"]["init_args"], keys["trainer"]
    gpus = trainer["devices"] * trainer["num_nodes"]
    each = data["batch_size"] * data["min_views"]
    hardware = recipes.header(path).fields["hardware"]
    assert f"{gpus} GPUs of 80 GB in {trainer['num_nodes']} nodes" in hardware
    assert f"{each} images each, {gpus * each} in all" in hardware
