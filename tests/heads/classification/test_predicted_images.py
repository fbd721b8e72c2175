"""What `pixio predict` makes of images: no neighbour of itself, seen as in evaluation, all told."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from class_runs import words
from PIL import Image

import pixio_lightning
from pixio_lightning.cli.main import main

SHORT = ["--trainer.max_steps=2", "--data.steps_per_epoch=2", "--data.batch_size=4"]
SHORT += ["--panels.every_n_steps=0"]


def table_of(run: Path) -> dict[str, list[str]]:
    with (run / "predictions/predictions.csv").open(newline="") as file:
        return {row[0]: row[1:] for row in list(csv.reader(file))[1:]}


@pytest.mark.parametrize("below", ["", "train/"])
def test_no_image_is_a_neighbour_of_itself(
    below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has one twin, in the other class; the rest is noise."""
    rng = np.random.default_rng(0)
    for i in range(12):
        image = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        for name in ("one", "two"):
            folder = tmp_path / "twins" / below / name
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{i}.png")
    line = words("classification/folder_knn", tmp_path / "twins", tmp_path / "run", "--model.k=[1]")
    assert main(["predict", *line]) == 0
    found = table_of(tmp_path / "run")
    assert len(found) == 24
    wrong = [name for name, (label, _) in found.items() if label != name.split("/")[-2]]
    # Of those whose twin is held out, the nearest one is any.
    assert len(wrong) >= 19
    capsys.readouterr()
    assert main(["predict", *line[:-1], "--model.k=[50]", "--model.temperature=0.001"]) == 0
    found = table_of(tmp_path / "run")  # nor where all there are vote
    assert sum(label == name.split("/")[-2] for name, (label, _) in found.items()) <= 5


def test_images_are_seen_as_the_checkpoint_was_evaluated(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = "--data.image_size=32"
    run = tmp_path / "run"
    line = words("classification/folder_linear", colours, run, *SHORT)
    assert main(["fit", *line, size, "--data.crop_pct=0.5"]) == 0
    (tmp_path / "in").mkdir()
    source = colours / "red/3.png"
    (tmp_path / "in/a.png").write_bytes(source.read_bytes())
    shown = words("classification/folder_linear", tmp_path / "in", run)
    overlay = yaml.safe_load((tmp_path / "run.yaml").read_text())
    del overlay["data"]["image_size"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(overlay))
    capsys.readouterr()
    assert main(["predict", *shown]) == 0
    said = "data.image_size 32, data.crop_pct 0.5: as the checkpoint was evaluated"
    assert said in capsys.readouterr().out
    logits = pixio_lightning.load(run).predict(source)
    share = float(table_of(run)["a.png"][1])
    assert share == pytest.approx(float(logits.softmax(1).max()), abs=1e-4)
    assert main(["predict", *shown, "--data.image_size=48"]) == 0  # asked for, and so taken
    assert "data.crop_pct 0.5: as" in (text := capsys.readouterr().out) and "image_size" not in text
    mine = tmp_path / "mine.yaml"  # or in a file
    mine.write_text("data: {init_args: {image_size: 48, crop_pct: 1.0}}")
    assert main(["predict", *shown, "-c", str(mine)]) == 0
    assert "as the checkpoint was evaluated" not in capsys.readouterr().out


def test_what_is_left_out_and_what_was_there_before_is_told(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    line = words("classification/folder_linear", colours, run, *SHORT)
    assert main(["fit", *line]) == 0
    for name, content in (("a.png", (colours / "red/3.png").read_bytes()), ("b.gif", b"GIF89a")):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in/broken.png").write_bytes(b"damaged")
    shown = words("classification/folder_linear", tmp_path / "in", run)
    capsys.readouterr()
    assert main(["predict", *shown]) == 0
    first = capsys.readouterr().out
    assert "skipped of other formats 1 .gif" in first and "from before" not in first
    assert (run / "predictions/bad_files.txt").read_text().startswith("broken.png\t")
    assert not (run / "bad_files.txt").exists()  # none of the run's own images is bad
    (tmp_path / "in/broken.png").unlink()
    assert main(["predict", *shown]) == 0
    assert "1 files from before: what is not written again stays" in capsys.readouterr().out
    assert not (run / "predictions/bad_files.txt").exists()


def test_a_bank_of_which_too_much_is_unusable_is_refused(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((colours / "red").iterdir()):
        path.write_bytes(b"damaged")
    line = words("classification/folder_knn", colours, tmp_path / "run", "--model.k=[1]")
    assert main(["fit", *line]) == 0
    assert main(["fit", *line, "--data.max_bad=0.1"]) == 2
    assert "images are unusable" in capsys.readouterr().err
