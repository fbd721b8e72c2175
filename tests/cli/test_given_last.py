"""What is given last counts: lr or blr, and the seed of a run for its model and data, too."""

import enum
from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace
from PIL import Image

from pixio_lightning.cli import main as cli
from pixio_lightning.cli import recipes
from pixio_lightning.cli.class_lookup import import_named
from pixio_lightning.cli.config_tree import in_files
from pixio_lightning.cli.lightning_cli import PixioCLI
from pixio_lightning.cli.options import parse_options
from pixio_lightning.training.run_folder import nested

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Pictures of two classes, as folders."""
    root = tmp_path_factory.mktemp("classes")
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(8):
            Image.new("RGB", (32, 32), (20 * i, 0, 0)).save(root / name / f"{i}.png")
    return root


def as_main_parses(words: list[str], verb: str) -> PixioCLI:
    """Return what a command line makes, once what it names is imported."""
    options = parse_options(words)
    import_named(options.configs, options.rest)
    return PixioCLI(options, verb)


def written(folder: Path, name: str, pictures: Path, optim: dict) -> str:
    """Write a recipe for a head, whose own default is an `lr`."""
    backbone = {"name": "pixio_vitt16", "weights": "random:0", "model_args": TINY}
    model = {"backbone": backbone, "optim": optim}
    data = {"source": "folder", "path": str(pictures), "image_size": 32, "batch_size": 8}
    recipe = {
        "model": {"class_path": "Classification", "init_args": model},
        "data": {"class_path": "ClassificationData", "init_args": data | {"num_workers": 0}},
        "trainer": {"max_steps": 2, "accelerator": "cpu"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


BLR = {"blr": 0.032}  # 0.001 at a batch of 8
FOR_8 = "0.001 (0.032 x 8 / 256)"


@pytest.mark.parametrize(
    ("optims", "words", "peak"),
    [
        ([{}], [], "0.001 (as given)"),
        ([BLR], [], FOR_8),
        ([{"lr": 0.02}], ["--model.optim.blr", "0.032"], FOR_8),
        ([BLR], ["--model.optim.lr=0.02"], "0.02 (as given)"),
        ([BLR], ["--model.optim", "{lr: 0.02}"], "0.02 (as given)"),
        ([BLR, {"lr": 0.02}], [], "0.02 (as given)"),
        ([{"lr": 0.02}, BLR], [], FOR_8),
        ([{"lr": 0.02}, BLR, {"warmup": 0.2}], [], FOR_8),
    ],
)
def test_the_rate_that_is_given_last_counts(
    optims: list[dict], words: list[str], peak: str, pictures: Path, tmp_path: Path, capsys
) -> None:
    files = [written(tmp_path, f"r{i}", pictures, optim) for i, optim in enumerate(optims)]
    chosen = [word for file in files for word in ("-c", file)]
    assert cli.main(["check", *chosen, "--out", str(tmp_path / "run"), *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "peak lr" in line]
    assert line.split(None, 2)[2] == peak


@pytest.mark.parametrize("where", ["recipe", "command line"])
def test_both_in_one_place_are_refused(where: str, pictures: Path, tmp_path: Path, capsys) -> None:
    both = {"lr": 0.02, "blr": 0.032}
    file = written(tmp_path, "both", pictures, both if where == "recipe" else {})
    words = [f"--model.optim.{name}={rate}" for name, rate in both.items()]
    argv = ["check", "-c", file, "--out", str(tmp_path / "run")]
    assert cli.main(argv + words * (where == "command line")) == 2
    assert "model.optim has both lr 0.02, taken as it is, and blr 0.032" in capsys.readouterr().err


# The defaults of heads are an `lr`.
WITH_BLR = [
    recipe.name
    for recipe in recipes.all_recipes()
    if recipe.name.startswith("classification/") and "model.optim.blr" in in_files([recipe.path])
]


@pytest.mark.parametrize("name", WITH_BLR)
def test_the_rate_of_a_shipped_probe_follows_the_batch(
    name: str, pictures: Path, tmp_path: Path, capsys
) -> None:
    words = ["--model.backbone.weights", "random:0", "--data.batch_size", "64"]
    words += ["--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    given = in_files([recipes.find(name)])
    words += ["--trainer.num_nodes", "1", "--trainer.accumulate_grad_batches", "1"]
    words += ["--data.source", "folder", "--data.path", str(pictures)]
    assert cli.main(["check", "-c", name, "--out", str(tmp_path / "run"), *words]) == 0
    peak = f"{given['model.optim.blr'] * 128 / 256:g} ("
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "peak lr" in line]
    assert line.split(None, 2)[2].startswith(peak)


def test_values_of_any_type_are_passed_over() -> None:
    class Mode(enum.Enum):
        a = 1

    config = {"model": Namespace(mode=Mode.a, init_args=Namespace(optim={"lr": 1, "blr": None}))}
    assert [key for key, _ in nested(config, having=("lr", "blr"))] == ["model.optim"]


def test_a_seed_in_a_recipe_counts_unless_that_of_the_run_comes_later(
    pictures: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(Path(written(tmp_path, "plain", pictures, {})).read_text())
    content |= {"seed_everything": 5}
    content["data"]["init_args"]["seed"] = 4
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    for words, seeds in {(): (4, 5), ("--seed_everything", "1"): (1, 1)}.items():
        line = ["-c", str(tmp_path / "own.yaml"), *words]
        config = as_main_parses(line, "check").config_dict()
        assert tuple(config[part]["init_args"]["seed"] for part in ("data", "model")) == seeds


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        ("", (0, 0)),
        ("--seed_everything 3", (3, 3)),
        ("--seed_everything 3 --data.seed 1", (1, 3)),
        ("--model.seed=2", (0, 2)),
        ("--seed_everything false", (0, 0)),
    ],
)
def test_data_and_model_follow_the_seed_of_the_run(
    words: str, seeds: tuple[int, int], pictures: Path, tmp_path: Path
) -> None:
    file = written(tmp_path, "seeded", pictures, {})
    line = ["-c", file, "--out", str(tmp_path / "run"), *words.split()]
    config = as_main_parses(line, "check").config_dict()
    found = tuple(config[part]["init_args"]["seed"] for part in ("data", "model"))
    assert found == seeds


@pytest.mark.parametrize(
    ("optim", "words"),
    [
        ({}, ["--seed_everything", "7"]),
        (BLR, []),
        ({"lr": 0.02}, ["--model.optim.blr", "0.032"]),
    ],
)
def test_the_configuration_that_is_printed_is_that_of_the_run(
    optim: dict, words: list[str], pictures: Path, tmp_path: Path, capsys
) -> None:
    line = ["-c", written(tmp_path, "line", pictures, optim), *words]
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *line, "--print_config"])
    assert not stop.value.code
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    printed = ["-c", str(tmp_path / "printed.yaml")]
    of_line, of_printed = (as_main_parses(given, "fit") for given in (line, printed))
    assert of_printed.config_dict() == of_line.config_dict()
    assert yaml.safe_load((tmp_path / "printed.yaml").read_text()) == of_line.config_dict()


def test_the_configuration_is_printed_with_every_key(
    pictures: Path, tmp_path: Path, capsys
) -> None:
    words = ["-c", written(tmp_path, "plain", pictures, {}), "--print_config=skip_null"]
    assert cli.main(["check", *words]) == 2
    assert "--print_config: it takes no value, leave out 'skip_null'" in capsys.readouterr().err
