"""What a checkpoint was trained on, beside the data it is evaluated on: which of them counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from pixio_heads.depth.head import Depth
from pixio_lightning import load
from pixio_lightning.cli.main import main
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.training import results

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
STEPS = ("--trainer.max_steps=2", "--data.steps_per_epoch=2", "--panels.every_n_steps=0")


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random backbone, images seen through one window, all in this process."""
    backbone = {"name": "pixio_vitt16", "weights": "random:0", "model_args": SMALL}
    backbone |= {"layers": "last", "tune": "full"}
    head = {"backbone": backbone, "window": 64, "stride": 64, "decoder": "LinearDecoder"}
    data = {"image_size": 64, "batch_size": 2, "num_workers": 0, "flip": False}
    trainer = {"accelerator": "cpu", "precision": "32-true", "logger": False}
    path = tmp_path_factory.mktemp("overlay") / "tiny.yaml"
    path.write_text(yaml.safe_dump({"model": head, "data": data, "trainer": trainer}))
    return path


def pairs(root: Path, truth: str, array: np.ndarray) -> Path:
    """Write four images to train on and two held out, each with the same truth."""
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            for name, content in (("images", pixels), (truth, array)):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(root / split / name / f"{i}.png")
    return root


# --- depth: the range ---------------------------------------------------------------------------


class Steps(Depth):
    """Depth whose decoder has as many weights as the range has metres."""

    def build(self, backbone: Backbone) -> nn.Module:
        decoder = super().build(backbone)
        decoder.steps = nn.Parameter(torch.zeros(int(self.data_info["max_depth"])))
        return decoder


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two metres to the left, forty to the right."""
    depth = np.full((64, 64), 2000, np.uint16)
    depth[:, 32:] = 40_000
    return pairs(tmp_path_factory.mktemp("room"), "depth", depth)


@pytest.fixture(scope="module")
def line(overlay: Path, room: Path) -> list[str]:
    return ["-c", "depth/folder", "-c", str(overlay), f"--data.path={room}"]


@pytest.fixture(scope="module")
def to_three_metres(line: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on what of the room is nearer than three metres."""
    out = tmp_path_factory.mktemp("depth") / "run"
    assert main(["fit", *line, *STEPS, "--data.max_depth=3", f"--out={out}"]) == 0
    return out


@pytest.mark.parametrize(("greatest", "wrong"), [(3, 0.0), (80, 0.5 * 38 / 40)])
def test_depth_is_scored_within_the_range_of_the_data(
    line: list[str], to_three_metres: Path, tmp_path: Path, greatest: int, wrong: float
) -> None:
    """The constant, two metres, is right to the left; what lies to the right counts to 80 m."""
    more = [f"--data.max_depth={greatest}", f"--out={tmp_path}"]
    checkpoint = to_three_metres / "last.ckpt"
    assert main(["validate", *line, *more, f"--ckpt_path={checkpoint}"]) == 0
    found = results.read(tmp_path)[-1]
    assert found["protocol"].startswith(f"depth 0.001 to {greatest} m"), found["protocol"]
    assert found["baselines"]["constant"]["abs_rel"] == pytest.approx(wrong, abs=1e-6)
    # The model's greatest depth stays its own: it is at least 37 m short to the right.
    error = found["metrics"]["rmse"]
    assert error > (37**2 / 2) ** 0.5 if greatest == 80 else error < 3
    assert found["n"] == 2 and found["steps"] == 2
    assert len(results.read(tmp_path)) == 1  # and no best, of a single evaluation


def test_depth_is_predicted_in_the_range_of_the_checkpoint(
    line: list[str], to_three_metres: Path, room: Path, tmp_path: Path
) -> None:
    """Of plain images, whatever the recipe says; and so in Python."""
    out = ("--data.max_depth=80", f"--data.path={room}/val/images", f"--out={tmp_path}")
    checkpoint = to_three_metres / "last.ckpt"
    assert main(["predict", *line, *out, f"--ckpt_path={checkpoint}"]) == 0
    files = [p for p in (tmp_path / "predictions").glob("*.png") if "_colour" not in p.name]
    assert len(files) == 2
    for path in files:
        with Image.open(path) as image:
            assert float(image.info["metres_per_unit"]) == 1e-3
            assert 0 < np.asarray(image).max() <= 3000
    head = load(checkpoint)
    assert isinstance(head, Depth) and head.data_info == {"max_depth": 3.0}
    depth = head.predict(torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8))
    assert 0 < depth.max() <= 3


def test_what_is_built_is_what_the_checkpoint_was_trained_on(
    line: list[str], tmp_path: Path
) -> None:
    words = [*line, "--model.class_path=test_facts_of_data.Steps", f"--out={tmp_path}/run"]
    assert main(["fit", *words, *STEPS, "--data.max_depth=3"]) == 0
    for verb in ("validate", "test", "predict"):
        assert main([verb, *words, "--data.max_depth=80"]) == 0
    assert "to 80 m" in results.read(tmp_path / "run")[-1]["protocol"]


# --- depth: a training that begins from a checkpoint --------------------------------------------


def begin(line: list[str], run: Path, out: Path, *words: str, verb: str = "fit") -> int:
    """Take a third step from what was trained to three metres."""
    start = (f"--ckpt_path={run}/last.ckpt", f"--out={out}", "--trainer.max_steps=3")
    return main([verb, *line, *STEPS, "--data.max_depth=3", *start, *words])


def test_weights_that_end_at_three_metres_are_not_trained_to_eighty(
    line: list[str], to_three_metres: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    for verb in ("fit", "check"):
        asked = "--data.max_depth=80"
        assert begin(line, to_three_metres, tmp_path / "on", asked, verb=verb) == 2
        error = capfd.readouterr().err
        assert "max_depth is 80.0 in the data, but the checkpoint was trained with 3.0" in error
        assert "give the same, or leave --ckpt_path out" in error and error.count("\n") == 1
    assert not (tmp_path / "on/config.yaml").exists()


def test_a_training_takes_the_baselines_of_its_own_data(
    line: list[str], to_three_metres: Path, tmp_path: Path
) -> None:
    other = pairs(tmp_path / "other", "depth", np.full((64, 64), 1000, np.uint16))
    assert load(to_three_metres).statistics["constant"] == 2
    assert begin(line, to_three_metres, tmp_path / "on", f"--data.path={other}") == 0
    assert load(tmp_path / "on").statistics["constant"] == 1
    found = results.read(tmp_path / "on")[-1]
    assert found["baselines"]["constant"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    # Evaluated elsewhere, it is beside what its training knew.
    words = ["validate", *line, "--data.max_depth=3", f"--out={tmp_path}/seen"]
    assert main([*words, f"--ckpt_path={tmp_path}/on/last.ckpt"]) == 0
    baselines = results.read(tmp_path / "seen")[-1]["baselines"]
    assert baselines["constant"]["abs_rel"] == pytest.approx(0.5, abs=1e-6)


def test_records_say_from_which_checkpoint_a_training_began(
    line: list[str],
    to_three_metres: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert begin(line, to_three_metres, tmp_path) == 0
    start = f"{to_three_metres / 'last.ckpt'} at step 2"
    assert f"begun from    {start}" in capsys.readouterr().out
    assert results.began(results.read(tmp_path)[-1]["start"]) == start
    assert results.read(to_three_metres)[-1]["start"] is None
    for words, said in (
        (["runs", "--diff"], f"--ckpt_path: no checkpoint -> {start}"),
        (["bench", "--compare"], f"{to_three_metres} from no checkpoint; {tmp_path} from {start}"),
    ):
        assert main([*words, str(to_three_metres), str(tmp_path)]) == 0
        assert said in capsys.readouterr().out


# --- segmentation: the classes ------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stripes = np.repeat(np.arange(3, dtype=np.uint8), 22)[:64]
    return pairs(tmp_path_factory.mktemp("masks"), "masks", np.tile(stripes, (64, 1)))


@pytest.fixture(scope="module")
def coast(overlay: Path, masks: Path) -> list[str]:
    return ["-c", "segmentation/folder", "-c", str(overlay), f"--data.path={masks}"]


@pytest.fixture(scope="module")
def of_names(coast: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("names") / "run"
    classes = ("--data.num_classes=3", "--data.classes=[sea, sand, rock]")
    assert main(["fit", *coast, *STEPS, *classes, f"--out={out}"]) == 0
    yield out / "last.ckpt"


@pytest.fixture(scope="module")
def of_a_number(coast: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("number") / "run"
    assert main(["fit", *coast, *STEPS, "--data.num_classes=3", f"--out={out}"]) == 0
    yield out / "last.ckpt"


@pytest.mark.parametrize(
    ("trained", "classes", "told"),
    [
        (
            "of_names",
            ("4", "[sea, sand, rock, ship]"),
            ("4 in the data, 3 in the checkpoint", "'ship' only in the data"),
        ),
        ("of_names", ("4", "null"), ("num_classes is 4 in the data", "trained with 3")),
        ("of_a_number", ("4", "null"), ("num_classes is 4 in the data", "trained with 3")),
        (
            "of_names",
            ("3", "[sea, sand, ship]"),
            ("'ship' only in the data", "'rock' only in the checkpoint"),
        ),
        (
            "of_names",
            ("3", "[sea, rock, sand]"),
            ("another order", "number 1 is rock in the data, sand in the checkpoint"),
        ),
    ],
)
def test_segmentation_of_other_classes_is_refused(
    request: pytest.FixtureRequest,
    coast: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    trained: str,
    classes: tuple[str, str],
    told: tuple[str, ...],
) -> None:
    start = f"--ckpt_path={request.getfixturevalue(trained)}"
    words = [f"--data.num_classes={classes[0]}", f"--data.classes={classes[1]}", start]
    capfd.readouterr()
    for verb in ("validate", "fit"):
        assert main([verb, *coast, *words, f"--out={tmp_path}/{verb}"]) == 2
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and all(text in error for text in told), error


def test_classes_without_names_contradict_none(
    coast: list[str], of_names: Path, of_a_number: Path, tmp_path: Path
) -> None:
    """Neither where the data has none nor where the checkpoint has none."""
    for start, names in ((of_names, "null"), (of_a_number, "[sea, sand, rock]")):
        words = ["--data.num_classes=3", f"--data.classes={names}", f"--ckpt_path={start}"]
        assert main(["validate", *coast, *words, f"--out={tmp_path}"]) == 0
    assert [line["n"] for line in results.read(tmp_path)] == [2, 2]


def test_masks_of_a_single_class_are_no_evaluation(
    coast: list[str], of_a_number: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 0 and 255, say: all that is scored is 0, and 0 everywhere is perfect."""
    mask = np.full((64, 64), 255, np.uint8)
    mask[:20] = 0
    data = pairs(tmp_path / "set", "masks", mask)
    words = ["--data.num_classes=3", f"--data.path={data}", f"--ckpt_path={of_a_number}"]
    assert main(["validate", *coast, *words, f"--out={tmp_path}/run"]) == 0
    assert "1 of 3 classes occur in what was evaluated" in capsys.readouterr().out


def test_a_sharded_checkpoint_knows_its_classes(coast: list[str], tmp_path: Path) -> None:
    """Where a folder of images says nothing of them."""
    images = tmp_path / "in"
    images.mkdir()
    Image.new("RGB", (64, 64), "teal").save(images / "sea.png")
    words = [*coast, "-c", "with/fsdp", "--trainer.devices=1", f"--out={tmp_path}/run"]
    assert main(["fit", *words, *STEPS, "--data.num_classes=3"]) == 0
    assert (tmp_path / "run/last.ckpt").is_dir()
    more = (f"--data.path={images}", "--data.num_classes=null")
    assert main(["predict", *words, *more]) == 0
    with Image.open(tmp_path / "run/predictions/sea.png.png") as found:
        assert np.asarray(found).max() < 3
