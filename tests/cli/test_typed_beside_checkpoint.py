"""What is typed of a model is never ignored in favour of the checkpoint of a run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny_run
from PIL import Image
from small_runs import SCENES, words_of

from pixio_lightning.cli.main import main
from pixio_lightning.training import results, run_folder

SMALL = ("--model.decoder.features=8", "--model.decoder.stages=[8, 8, 8, 8]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and `run`, a pretraining of two steps from `random:1`."""
    folder = tmp_path_factory.mktemp("typed")
    recipe = tiny_run.write_recipe(folder)
    words = ("--trainer.max_steps", 2, "--model.backbone.weights", "random:1")
    assert tiny_run.fit(recipe, folder / "run", *words) == 0
    return folder


def call(folder: Path, verb: str, *words: object, out: str = "run") -> int:
    run = ["--out", str(folder / out)]
    return main([verb, "-c", str(folder / "tiny.yaml"), *run, *map(str, words)])


@pytest.mark.parametrize("verb", ["validate", "predict"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.backbone.weights", "random:2"], "model.backbone.weights: random:1 -> random:2"),
        (["--model.init_args.backbone.init_args.weights=random"], "weights: random:1 -> random)"),
        (["--model.init_args={backbone: {weights: random}}"], "weights: random:1 -> random)"),
        (
            ["--model.backbone", "{name: pixio_vitt16, weights: 'random:2', tune: 1}"],
            "model.backbone.tune: full -> 1",
        ),
        (["--model.pretrained_decoder", "true"], "model.pretrained_decoder: False -> True"),
        (["--model.optim.lr", 1], "model.optim.lr: 0.001 -> 1"),
        (
            ["--model.norm_pix", "false"],
            "model.norm_pix is false, but the checkpoint was trained with true",
        ),
    ],
)
def test_what_contradicts_the_run_is_refused(
    verb: str, words: list[object], said: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(trained, verb, *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert "--ckpt_path none" in error and "another --out" in error
    assert not (trained / "run/predictions").exists()


def test_each_way_out_is_one(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ("--model.backbone.weights", "random:2")
    assert call(trained, "validate", *other, "--ckpt_path", "none") == 0
    assert call(trained, "validate", *other, out="new") == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert call(trained, "validate") == 0


def test_images_that_were_trained_on_are_not_held_out_of_the_same_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_run.write_recipe(tmp_path)
    few = ("--trainer.max_steps", 2, "--data.val_images", 1)
    assert tiny_run.fit(recipe, tmp_path / "run", *few) == 0
    assert call(tmp_path, "validate", "--data.val_images", 1) == 0
    capsys.readouterr()
    assert call(tmp_path, "validate") == 2
    assert "png', which the run did not, and was trained on" in capsys.readouterr().err
    written_otherwise = ("--data.path", tmp_path / "photos/../photos")
    assert call(tmp_path, "validate", *written_otherwise) == 2
    assert "give data.val_images 1 at most" in capsys.readouterr().err
    assert call(tmp_path, "validate", *written_otherwise, "--data.val_images", 1) == 0
    (tmp_path / "others").mkdir()
    for path in sorted((tmp_path / "photos").iterdir())[:5]:
        path.rename(tmp_path / "others" / path.name)
    apart = ("--data.val_path", tmp_path / "others")
    assert call(tmp_path, "validate", *apart) == 0  # data of its own are free
    assert tiny_run.fit(recipe, tmp_path / "apart", "--trainer.max_steps", 2, *apart) == 0
    capsys.readouterr()
    assert call(tmp_path, "validate", out="apart") == 2
    assert "without which images that it was trained on" in capsys.readouterr().err


def test_no_training_from_a_checkpoint_is_judged_by_what_that_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_run.write_recipe(tmp_path)
    few = ("--trainer.max_steps", 2, "--data.val_images", 1)
    assert tiny_run.fit(recipe, tmp_path / "run", *few) == 0
    start = ("--ckpt_path", tmp_path / "run/last.ckpt", "--trainer.max_steps", 3)
    capsys.readouterr()
    assert tiny_run.fit(recipe, tmp_path / "on", *start, "--data.val_images", 5) == 2
    error = capsys.readouterr().err
    assert "which the run of --ckpt_path did not, and was trained on" in error
    assert error.count("\n") == 1 and not (tmp_path / "on/config.yaml").exists()
    assert tiny_run.fit(recipe, tmp_path / "on", *start, "--data.val_images", 1) == 0
    then, now = (run_folder.read_state(tmp_path / run) for run in ("run", "on"))
    assert then["held_out"] == now["held_out"] and {*then["trained_on"]} == {*now["trained_on"]}
    # Fewer pictures are trained on now; the weights have seen the others all the same.
    gone = tmp_path / "photos" / then["trained_on"][0]
    gone.unlink()
    assert tiny_run.fit(recipe, tmp_path / "less", *start, "--data.val_images", 1) == 0
    assert gone.name in run_folder.read_state(tmp_path / "less")["trained_on"]


def test_a_checkpoint_beside_another_programs_files_is_begun_from_and_evaluated(
    trained: Path, tmp_path: Path
) -> None:
    """As one that was copied into a project with a config.yaml of Hydra's."""
    shutil.copy(trained / "run/last.ckpt", tmp_path / "copied.ckpt")
    start = ("--ckpt_path", tmp_path / "copied.ckpt", "--trainer.max_steps", 3)
    for number, theirs in enumerate(("defaults: [base]", None)):
        if theirs:
            (tmp_path / "config.yaml").write_text(theirs)
        else:
            (tmp_path / "config.yaml").unlink()
        assert call(trained, "fit", *start, out=f"{tmp_path}/on{number}") == 0
        began = run_folder.read_state(tmp_path / f"on{number}")["start"]
        assert began["trained_on"] is None and began["step"] == 2
        assert call(trained, "validate", *start, out=f"{tmp_path}/seen{number}") == 0


def test_images_that_take_the_place_of_those_held_out_were_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_run.write_recipe(tmp_path)
    assert tiny_run.fit(recipe, tmp_path / "run", "--trainer.max_steps", 2) == 0
    held_out = run_folder.read_state(tmp_path / "run")["held_out"]
    trained_on = next(p for p in (tmp_path / "photos").iterdir() if p.name not in held_out)
    trained_on.unlink()
    assert call(tmp_path, "validate") == 0
    for name in held_out:
        (tmp_path / "photos" / name).unlink()
    assert call(tmp_path, "validate") == 2
    assert "which the run did not, and was trained on" in capsys.readouterr().err


def test_a_head_is_not_judged_by_samples_that_it_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "DIR" / name).mkdir(parents=True)
    for i in range(30):
        pixels = noise.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"DIR/images/{i}.png")
        labels = noise.integers(0, 3, (64, 64), np.uint8)
        Image.fromarray(labels).save(tmp_path / f"DIR/masks/{i}.png")
    words = ["-c", "segmentation/folder", "--data.path", str(tmp_path / "DIR"), "--out"]
    words += [str(tmp_path / "run"), "--model.backbone", "{weights: tiny, tune: frozen}"]
    words += ["--model.window=64", "--model.stride=64", "--data.image_size=64", *SMALL]
    words += ["--data.num_classes=3", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    short = ["--trainer.max_steps=1", "--data.steps_per_epoch=1", "--data.batch_size=2"]
    assert main(["fit", *words, *short, "--panels.every_n_steps=0"]) == 0
    held_out = run_folder.read_state(tmp_path / "run")["held_out"]
    assert len(held_out) == 3
    for verb in ("validate", "test"):
        assert main([verb, *words]) == 0
    for i in range(30, 60):  # what is added since is free
        for name in ("images", "masks"):
            shutil.copy(tmp_path / f"DIR/{name}/0.png", tmp_path / f"DIR/{name}/{i}.png")
    assert main(["validate", *words]) == 0
    for i in range(30, 60):
        (tmp_path / f"DIR/images/{i}.png").unlink()
    for name in held_out:
        (tmp_path / "DIR" / name).unlink()
    capsys.readouterr()
    for verb in ("validate", "test"):
        assert main([verb, *words]) == 2
        assert "did not, and was trained on: put the files" in capsys.readouterr().err


def write_voc(root: Path) -> None:
    lists, noise = root / "ImageSets/Segmentation", np.random.default_rng(0)
    for folder in (lists, root / "JPEGImages", root / "SegmentationClass"):
        folder.mkdir(parents=True)
    for name in "abcdef":
        pixels = noise.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg")
        labels = noise.integers(0, 3, (64, 64), np.uint8)
        Image.fromarray(labels).save(root / f"SegmentationClass/{name}.png")
    for name, listed in (("trainaug", "abcd"), ("val", "ef"), ("trainval", "de"), ("more", "f")):
        (lists / f"{name}.txt").write_text("\n".join(listed))


def write_rows(root: Path) -> None:
    noise = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 4)):
        images = [noise.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(count)]
        masks = [noise.integers(0, 3, (64, 64), np.uint8) for _ in range(count)]
        features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
        table = datasets.Dataset.from_dict({"image": images, "mask": masks}, features=features)
        table.to_parquet(root / f"{split}.parquet")


@pytest.mark.parametrize(
    ("source", "keys", "trained_on", "free"),
    [
        pytest.param(  # of lists, whose names are told apart as those of splits are
            "voc",
            ["--data.num_classes=null"],
            {"trainaug": "JPEGImages/a.jpg", "trainval": "JPEGImages/d.jpg"},
            "more",
            marks=pytest.mark.slow,
        ),
        (
            "hub",
            ["--data.num_classes=3", "--data.split=train[:6]"],
            {"train": "train/00000000", "train[5:]": "train/00000005"},
            "validation[:2]+train[6:]",
        ),
    ],
)
def test_nor_by_other_lists_and_splits_that_hold_them(
    source: str,
    keys: list[str],
    trained_on: dict[str, str],
    free: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "DIR"
    {"voc": write_voc, "hub": write_rows}[source](folder)
    words = ["-c", "segmentation/folder", f"--data.source={source}", "--data.path", str(folder)]
    words += ["--out", str(tmp_path / "run"), "--model.backbone", "{weights: tiny, tune: frozen}"]
    words += ["--model.window=64", "--model.stride=64", "--data.image_size=64", *keys, *SMALL]
    words += ["--data.num_workers=0", "--trainer.accelerator=cpu"]
    short = ["--trainer.max_steps=1", "--data.steps_per_epoch=1", "--data.batch_size=2"]
    assert main(["fit", *words, *short, "--panels.every_n_steps=0"]) == 0
    assert main(["test", *words]) == 0
    assert main(["test", *words, f"--data.val_split={free}"]) == 0
    capsys.readouterr()
    for listed, first in trained_on.items():
        for given in ([], ["--data.split", free]):  # whatever it would be trained on now
            assert main(["test", *words, *given, f"--data.val_split={listed}"]) == 2
            error = capsys.readouterr().err
            assert f"DIR/{first}'" in error and "which the run was trained on: evaluate on" in error


def test_images_in_a_folder_of_their_own_may_be_others(tmp_path: Path) -> None:
    recipe = tiny_run.write_recipe(tmp_path)
    photos = tmp_path / "photos"
    for part, numbers in (("train", range(15)), ("val", range(15, 20))):
        (photos / part).mkdir()
        for i in numbers:
            (photos / f"{i}.png").rename(photos / part / f"{i}.png")
    few = ("--trainer.max_steps", 2, "--data.val_images", 3)
    assert tiny_run.fit(recipe, tmp_path / "run", *few) == 0
    (photos / "train/0.png").unlink()
    assert call(tmp_path, "validate", "--data.val_images", 5) == 0


def test_what_an_evaluation_may_choose_is_free_and_told(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model.backbone.weights", "random:1", "--model.backbone.checkpointing", "true")
    assert call(trained, "validate", *words, "--model.mask_ratio", 0.5, "--data.batch_size", 2) == 0
    told = capsys.readouterr().out
    assert re.search(r"protocol +pixels normalised by patch, 0.5 of each image hidden in bl", told)


def test_a_training_from_a_checkpoint_takes_other_rates_but_no_other_weights(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("--ckpt_path", trained / "run/last.ckpt", "--trainer.max_steps", 3)
    words = (*start, "--model.backbone.weights", "random:2")
    assert call(trained, "fit", *words, out=f"{tmp_path}/on") == 2
    assert "leave --ckpt_path out" in capsys.readouterr().err
    words = (*start, "--model.backbone.weights", "random:1", "--model.optim.lr", 1e-4)
    assert call(trained, "fit", *words, out=f"{tmp_path}/on") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trainer.max_steps", 2], "is at step 2 and trainer.max_steps is 2: there is nothing"),
        (["--model.backbone.weights", "random:2"], "weights: random:1 -> random:2"),
        (["--model.decoder.dim", 32], "last.ckpt' does not fit the model: "),
    ],
)
def test_what_a_training_from_a_checkpoint_would_refuse_its_plan_does(
    words: list[object], said: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("--ckpt_path", trained / "run/last.ckpt", "--model.backbone.weights", "random:1")
    assert call(trained, "check", *start) == 0
    assert call(trained, "check", *start, *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert call(trained, "check", "--ckpt_path", trained / "tiny.yaml") == 2


def test_the_plan_of_a_head_takes_its_checkpoint_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frozen, so that it holds no backbone."""
    start = ["--ckpt_path", str(tmp_path / "run/last.ckpt"), "--trainer.max_steps", "2"]
    assert classify(tmp_path, "fit") == 0
    assert classify(tmp_path, "check", *start) == 0
    capsys.readouterr()
    line = ["check", "-c", "pretrain/demo", *start]
    assert main(line) == 2
    assert "is one of Classification, but the recipe trains PixelPre" in capsys.readouterr().err


def test_a_frozen_backbone_may_lie_elsewhere(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is read from there, and its digest tells whether it is the same."""
    words = [
        "-c",
        "depth/demo",
        *SCENES,
        "--out",
        str(tmp_path / "depth"),
        "--model.cache",
        "false",
    ]
    words += ["--trainer.max_steps", "1", "--data.steps_per_epoch", "1", "--panels.every_n_steps=0"]
    words += ["--model.backbone.layers", "last", "--model.backbone.weights"]
    assert call(trained, "fit", "--trainer.max_steps", 1, out="other") == 0
    shutil.copy(trained / "run/last.ckpt", tmp_path / "moved.ckpt")
    assert main(["fit", *words, str(trained / "run/last.ckpt")]) == 0
    (line, *_) = results.read(tmp_path / "depth")
    assert str((trained / "run/last.ckpt").resolve()) in line["files"]
    assert main(["validate", *words, str(tmp_path / "moved.ckpt")]) == 0
    assert main(["validate", *words, str(trained / "other/last.ckpt")]) == 2
    assert "with digest" in capsys.readouterr().err
    # Where the recipe said what the weights are, and these are typed later.
    overlay = tmp_path / "w.yaml"
    overlay.write_text("model: {backbone: {weights: tiny}}")
    line = [*words[:-1], "--out", str(tmp_path / "again"), "-c", str(overlay)]
    assert main(["fit", *line]) == 0
    assert main(["validate", *line, words[-1], "tiny"]) == 0


@pytest.mark.parametrize("verb", ["validate", "predict"])
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("decoder: {dim: 16, depth: 1, heads: 4}", "model.decoder.heads is 4, but .* with 1"),
        (
            f"backbone: {{model_args: {tiny_run.VIT | {'num_heads': 2}}}}",
            "model_args.num_heads is 2, but .* with 1",
        ),
    ],
)
def test_what_fits_the_weights_and_reads_them_otherwise_is_that_of_the_run(
    verb: str, part: str, said: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = trained / "overlay.yaml"
    overlay.write_text(f"model: {{init_args: {{{part}}}}}")
    assert call(trained, verb, "-c", str(overlay)) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("head", "words", "said"),
    [
        pytest.param(
            "policy",
            "--model.normalize_actions=true",
            "model.normalize_actions is true, but",
            marks=pytest.mark.slow,
        ),
        ("reconstruction", "--model.sizes.taps=[1, 0]", "model.sizes.taps is [1, 0], but"),
    ],
)
def test_a_head_is_evaluated_as_it_was_trained(
    head: str, words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words_of(head, tmp_path / "run")
    assert main(["fit", *line]) == 0
    capsys.readouterr()
    assert main(["validate", *line, words]) == 2
    assert said in capsys.readouterr().err


def test_so_is_what_its_decoder_is_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which the configuration alone says."""
    line = [*words_of("segmentation", tmp_path / "run"), "--model.decoder=LinearDecoder"]
    assert main(["fit", *line, "--model.decoder.positions=[2, 2]"]) == 0
    assert main(["validate", *line, "--model.decoder.positions=[2, 2]"]) == 0
    capsys.readouterr()
    assert main(["validate", *line, "--model.decoder.positions=[4, 4]"]) == 2
    assert "model.decoder.positions is [4, 4], but" in capsys.readouterr().err


def test_so_is_one_that_takes_the_checkpoints_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *words_of("relative depth", tmp_path / "run")]) == 0
    line = ["test", *words_of("ordinal depth", tmp_path / "ordinal")]
    at = line.index("--model.optim.lr")
    del line[at : at + 2]
    line += ["--ckpt_path", str(tmp_path / "run/last.ckpt")]
    assert main(line) == 0
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {init_args: {backbone: {layers: [1, 3]}}}")
    capsys.readouterr()
    assert main([*line, "-c", str(overlay)]) == 2
    assert "model.backbone.layers is [1, 3], but" in capsys.readouterr().err


def classify(folder: Path, verb: str, *words: str) -> int:
    line = [verb, "-c", "classification/demo", *SCENES, "--out", str(folder / "run")]
    line += ["--trainer.max_steps", "1", "--data.steps_per_epoch", "1", "--panels.every_n_steps=0"]
    return main([*line, "--model.backbone.weights", "random", "--model.cache", "false", *words])


@pytest.mark.parametrize(
    "verb", ["validate", *(pytest.param(v, marks=pytest.mark.slow) for v in ("test", "predict"))]
)
def test_what_trained_weights_read_is_that_of_the_run_wherever_it_is_asked_for(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights fit a token of the same width as well, and would be scored on it."""
    assert classify(tmp_path, "fit", "--model.pool", "patches") == 0
    before = (tmp_path / "run/results.jsonl").read_text()
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {pool: cls}")
    assert classify(tmp_path, verb, "-c", str(overlay)) == 2
    assert (
        "model.pool is 'cls', but the checkpoint was trained with 'patches'"
        in capsys.readouterr().err
    )
    overlay.write_text("model: {backbone: {layers: [0]}}")
    assert classify(tmp_path, verb, "-c", str(overlay), "--model.pool", "patches") == 2
    assert "model.backbone.layers is [0], but" in capsys.readouterr().err
    assert (tmp_path / "run/results.jsonl").read_text() == before
    assert classify(tmp_path, verb, "--model.pool", "patches") == 0
