"""Every shipped recipe parses, prints, reloads to the same configuration, and runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from PIL import Image
from running import pixio

from pixio_heads.policy import lerobot
from pixio_heads.policy.demonstrations import Demonstration
from pixio_lightning.cli import recipes
from pixio_lightning.cli.config_tree import flatten
from pixio_lightning.cli.main import main
from pixio_lightning.cli.options import folder_name
from pixio_lightning.models.weights import read as weights
from pixio_lightning.training import results

NAMES = [r.name for r in recipes.all_recipes() if r.origin == recipes.BUILT_IN]
RUNS = [name for name in NAMES if not name.startswith(recipes.OVERLAYS)]
OVERLAYS = [name for name in NAMES if name.startswith("with/")]
BACKBONES = [name for name in NAMES if name.startswith("backbone/")]
DEBUG = yaml.safe_load(recipes.find("with/debug").read_text())
# Decoders in a size for two steps on a processor; in their own, `check` builds them without memory.
SMALL = (
    {
        name: ["--model.decoder.depth", "2"]
        for name in RUNS
        if name.startswith("pretrain/") and "/demo" not in name
    }
    | {
        name: ["--model.decoder.depth", "2", "--data.image_size", "128"]
        for name in RUNS
        if name.startswith("video/") and "/demo" not in name
    }
    | {
        name: [
            "--model.sizes",
            "{dim: 48, depth: 2, heads: 2, taps: [0, 1], stages: [8, 8, 8, 8], features: 8}",
            *("--data.image_size", "[96, 64]"),
        ]
        for name in RUNS
        if name.startswith("reconstruction/") and "/demo" not in name
    }
    | {
        name: ["--model.decoder.features", "16", "--model.decoder.stages", "[8,8,8,8]"]
        for name in RUNS
        if "DPTDecoder" in recipes.find(name).read_text()
    }
)
# On the table top, which the debug overlay's source is, from few and small demonstrations.
SMALL |= {
    name: [
        *("--data.task", "reach", "--data.horizon", "12", "--data.image_size", "64"),
        *("--data.demonstrations", "2", "--data.demonstration_starts", "1", "--data.episodes", "2"),
        *("--data.processes", "1", "--data.after_success", "1"),
    ]
    for name in RUNS
    if name.startswith("policy/")
}
_TINY = "{name: pixio_vitt16, weights: random, tune: full}"
SMALL |= {
    name: [
        *("--model.students", f"{{one: {{backbone: {_TINY}}}, two: {{backbone: {_TINY}}}}}"),
        *("--model.backbone.compile", "false"),
    ]
    for name in RUNS
    if name.startswith("distill/vit5b16")
}
# Compiling takes most of a minute, whatever the size: the slow tests do.
_COMPILED = [
    name
    for name in RUNS
    if not name.startswith("distill/") and "compile: true" in recipes.find(name).read_text()
]
_UNCOMPILED = dict.fromkeys(_COMPILED, ["--model.backbone.compile", "false"])
# Large models, which commands of the pages check as well.
_ON_PAGES = {
    *("distill/vit5b16_to_vit1b16_vith16", "distill/vit5b16_to_vitl16_vitb16"),
    *("pretrain/vit5b16_web", "pretrain/vith16_imagenet", "pretrain/vitb16_imagenet"),
}
HEADER = {"reproduces", "run", "hardware", "expect"}


def verb_of(name: str) -> str:
    """Return the verb that a recipe is for: `fit`, or another where nothing is trained."""
    _, fields = recipes.header(recipes.find(name))
    (verb,) = re.findall(rf"pixio (\w+) -c {name}\b", fields["run"])
    return verb


def kind_of(name: str, *, by_source: bool) -> frozenset[str]:
    """Return what a recipe shares with those that differ from it in sizes and numbers alone.

    These are its verb, the classes and the decoder it names, what is tuned and what its trainer is
    told; its source of data, too, where a test reads it and does not replace it by scenes.
    """
    told = dict(flatten(yaml.safe_load(recipes.find(name).read_text())))
    found = {verb_of(name)}
    for key, value in told.items():
        last = key.rpartition(".")[2]
        if last in ("class_path", "decoder"):
            found.add(str(value))
        elif last == "tune" or (by_source and last == "source"):
            found.add(f"{last} {value}")
        elif key in ("trainer.accumulate_grad_batches", "trainer.gradient_clip_val"):
            found.add(key)
    return frozenset(found)


def one_of_each(*, by_source: bool = False) -> set[str]:
    """Return the first recipe of each kind; a new kind of recipe is so run by itself."""
    first: dict[frozenset[str], str] = {}
    for name in sorted(RUNS, key=lambda name: (not name.endswith("/demo"), name)):
        first.setdefault(kind_of(name, by_source=by_source), name)
    return set(first.values())


QUICK, QUICK_BY_SOURCE = one_of_each(), one_of_each(by_source=True)


def cases(names: Iterable[str], among: set[str], *values: Callable[[str], object]) -> list[Any]:
    """Return recipes as the cases of a test, slow where another one of their kind is among them."""
    return [
        pytest.param(
            *(name, *(value(name) for value in values)),
            id=name,
            marks=() if name in among else pytest.mark.slow,
        )
        for name in names
    ]


@pytest.fixture(autouse=True)
def scenes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Render into a folder that all tests of a worker share."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *words, "--print_config"])
    assert not stop.value.code
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("name", cases(RUNS, QUICK))
def test_prints_and_reloads_to_the_same(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = printed(capsys, "-c", name)
    saved = tmp_path / "saved.yaml"
    saved.write_text(yaml.safe_dump(first))
    assert printed(capsys, "-c", str(saved)) == first


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *cases(RUNS, QUICK, lambda name: _UNCOMPILED.get(name, [])),
        *(
            pytest.param(name, [], id=f"{name}, compiled", marks=pytest.mark.slow)
            for name in _COMPILED
        ),
    ],
)
def test_runs_two_steps(
    name: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the recipe's own precision, and with its clipping and accumulation of gradients."""
    small = ["--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}"]
    if name.startswith("policy/"):
        small = []
    line = ["-c", name, "-c", "with/debug", "--out", str(tmp_path / "run"), *small]
    if name == "pretrain/demo_curated":  # on scores that another recipe writes first
        scored = ["-c", "curation/demo", "-c", "with/debug", "--out", str(tmp_path / "scored")]
        assert main(["predict", *scored, *small]) == 0
        line += ["--data.curation.scores", str(tmp_path / "scored" / "scores")]
    if name == "depth/relative_dav2" or name.startswith("depth/zeroshot_"):
        line += ["--model.image_size", "64"]  # of 512, which takes a processor a minute
    if name == "depth/zeroshot_nyuv2":
        line += ["--model.eval_crop", "none"]  # of NYUv2's images alone
    line += [*SMALL.get(name, []), *words]
    if not name.endswith("/demo"):  # whose backbones are small
        line += ["--model.backbone.model_args.depth", "4"]
    line += ["--ckpt_path", "none"] if verb_of(name) == "test" else []
    assert main([verb_of(name), *line]) == 0
    if verb_of(name) == "predict":
        assert len(list((tmp_path / "run" / "scores").glob("*.scores.parquet"))) == 1
        return
    if verb_of(name) == "test":
        assert (tmp_path / "run" / "results.jsonl").exists()
        return
    out = capsys.readouterr().out
    if "nothing is trained" in out:
        assert results.read(tmp_path / "run")[-1]["n"] > 0
        return
    assert "step 2" in out
    assert (tmp_path / "run" / "last.ckpt").exists()
    asked = yaml.safe_load(recipes.find(name).read_text())["trainer"]
    ran = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]
    for key in ("precision", "gradient_clip_val", "accumulate_grad_batches"):
        assert ran[key] == asked.get(key, ran[key])
        assert key not in DEBUG["trainer"]


@pytest.mark.parametrize(
    "name",
    [
        "pretrain/demo",
        pytest.param("pretrain/folder", marks=pytest.mark.slow),
        pytest.param("pretrain/mae_vith14", marks=pytest.mark.slow),
    ],
)
def test_runs_two_steps_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    small = ("--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}")
    out = pixio("fit", "-c", name, "-c", "with/debug", "--out", tmp_path / "run", *small)
    assert "step 2" in out


@pytest.mark.parametrize(
    "name",
    cases((name for name in RUNS if not name.endswith("/continue")), QUICK_BY_SOURCE - _ON_PAGES),
)
def test_checks_without_memory(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The 5B too: on the meta device."""
    source = yaml.safe_load(recipes.find(name).read_text())["data"]["init_args"].get("source")
    for label in ("cat", "dog"):  # where classes are folders, they size the head
        (tmp_path / label).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / label / "0.png")
    if source in ("gym", "lerobot"):
        demonstrations = [
            Demonstration(
                f"{i}",
                np.zeros((2, 3), np.float32),
                np.zeros((2, 4), np.float32),
                lambda step: np.zeros((32, 32, 3), np.uint8),
            )
            for i in range(2)
        ]
        tmp_path /= "demonstrations"
        lerobot.write(tmp_path, demonstrations, fps=10, task="none")
    path = [] if source in ("scenes", "metaworld") else ["--data.path", str(tmp_path)]
    # Not their own, which are downloaded, or come from another run.
    seed = ":0" if name.startswith("distill/") else ""  # a random teacher is asked for by its seed
    given = ["--model.backbone.weights", f"random{seed}"]
    if verb_of(name) == "predict":  # a checkpoint would say which it is
        given += ["--model.backbone.name", "pixio_vitt16"]
    assert main(["check", "-c", name, *path, *given]) == 0
    assert "plan" in capsys.readouterr().out


@pytest.mark.parametrize("name", RUNS)
def test_the_header_is_complete_and_true(name: str) -> None:
    summary, fields = recipes.header(recipes.find(name))
    assert summary.endswith(".") and fields.keys() >= HEADER
    assert verb_of(name) in ("fit", "predict", "test")


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_say_what_they_do(name: str) -> None:
    summary, fields = recipes.header(recipes.find(name))
    assert summary and "run" in fields
    content = yaml.safe_load(recipes.find(name).read_text())
    assert "init_args" not in content.get("model", {}) and "init_args" not in content.get(
        "data", {}
    )


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_says_what_it_is_and_by_which_licence(name: str) -> None:
    summary, fields = recipes.header(recipes.find(name))
    assert summary and fields["run"] == f"pixio fit -c RECIPE -c {name}"
    content = yaml.safe_load(recipes.find(name).read_text())
    assert content.keys() == {"model"} and content["model"].keys() == {"backbone"}
    backbone = content["model"]["backbone"]
    assert backbone.keys() == {"name", "weights", "model_args"}
    if backbone["weights"] == "timm":
        licence = timm.get_pretrained_cfg(backbone["name"]).license
        assert _letters(licence) in _letters(fields["licence"])
    else:
        assert weights.licence_of(backbone["weights"], {}) in fields["licence"]


# The smallest of each family, which differ from the others in sizes.
_FAMILIES = {name.rpartition("_")[0]: name for name in sorted(BACKBONES, reverse=True)}


@pytest.mark.parametrize("name", cases(BACKBONES, set(_FAMILIES.values())))
def test_a_backbone_goes_on_any_recipe_of_a_task(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one with a backbone of hub weights, and on one whose backbone has arguments of its own."""
    backbone = yaml.safe_load(recipes.find(name).read_text())["model"]["backbone"]
    for recipe in ("depth/nyuv2_linear", "classification/demo"):
        words = ["-c", recipe, "-c", name, "--model.backbone.weights", "random", "--data.path"]
        words = words[:-1] if recipe.endswith("demo") else [*words, "DIR"]
        assert main(["check", *words]) == 0
        assert f"backbone      {backbone['name']}," in capsys.readouterr().out


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


def test_debugging_renders_a_handful_of_scenes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "-c", "depth/demo", "-c", "with/debug", "--print_config"])
    scenes = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["scenes"]
    few = {"train": 4, "held_out": 4, "views": 2}
    assert scenes == few | {"size": 64, "places": ["studio"]}, "size and places are the recipe's"


@pytest.mark.parametrize(
    "recipe",
    [
        "classification/imagenet_finetune",
        "depth/relative_dav2",
        "reconstruction/folder",
        "reconstruction/mapanything_v1_vith16",
    ],
)
def test_a_recipe_that_trains_the_backbone_takes_a_frozen_one(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "-c", recipe, "-c", "with/frozen", "-c", "with/debug"]) == 0
    assert "parameters, frozen" in capsys.readouterr().out


def test_a_run_folder_goes_by_the_recipe_and_then_by_what_changes_it() -> None:
    names = ["backbone/mae_l", "depth/nyuv2_linear", "with/frozen"]
    assert folder_name(names) == "depth/nyuv2_linear+mae_l+frozen"
