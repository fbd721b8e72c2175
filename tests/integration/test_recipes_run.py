"""Every shipped recipe parses, prints, reloads to the same configuration, and runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from running import pixio

from pixio_lightning import recipes
from pixio_lightning.cli import main

NAMES = [r.name for r in recipes.all_recipes() if r.origin == recipes.BUILT_IN]
RUNS = [name for name in NAMES if not name.startswith("with/")]
OVERLAYS = [name for name in NAMES if name.startswith("with/")]
HEADER = {"reproduces", "run", "hardware", "expect"}


@pytest.fixture(autouse=True)
def scenes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Render into a folder that all tests of a worker share."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def verb_of(name: str) -> str:
    """Return the verb that a recipe is for: `fit`, or `predict` where nothing is trained."""
    _, fields = recipes.header(recipes.find(name))
    (verb,) = re.findall(rf"pixio (\w+) -c {name}\b", fields["run"])
    return verb


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    with pytest.raises(SystemExit) as stop:
        main(["fit", *words, "--print_config"])
    assert not stop.value.code
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("name", RUNS)
def test_prints_and_reloads_to_the_same(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = printed(capsys, "-c", name)
    saved = tmp_path / "saved.yaml"
    saved.write_text(yaml.safe_dump(first))
    assert printed(capsys, "-c", str(saved)) == first


@pytest.mark.parametrize("name", RUNS)
def test_runs_two_steps(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}"]
    line = ["-c", name, "-c", "with/debug", "--out", str(tmp_path / "run"), *small]
    if name == "pretrain/demo_curated":  # on scores that another recipe writes first
        scored = ["-c", "curation/demo", "-c", "with/debug", "--out", str(tmp_path / "scored")]
        assert main(["predict", *scored, *small]) == 0
        line += ["--data.curation.scores", str(tmp_path / "scored" / "scores")]
    assert main([verb_of(name), *line]) == 0
    if verb_of(name) == "predict":
        assert len(list((tmp_path / "run" / "scores").glob("*.scores.parquet"))) == 1
        return
    assert "step 2" in capsys.readouterr().out
    assert (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize("name", ["pretrain/demo", "pretrain/folder", "pretrain/mae_vith14"])
def test_runs_two_steps_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    small = ("--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}")
    out = pixio("fit", "-c", name, "-c", "with/debug", "--out", tmp_path / "run", *small)
    assert "step 2" in out


@pytest.mark.parametrize("name", [n for n in RUNS if n != "pretrain/continue"])
def test_checks_without_memory(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The 5B too: on the meta device."""
    source = yaml.safe_load(recipes.find(name).read_text())["data"]["init_args"].get("source")
    path = [] if source == "scenes" else ["--data.path", "DIR"]
    # Not their own, which are downloaded, or come from another run.
    weights = ["--model.backbone.weights", "random"]
    if verb_of(name) == "predict":  # a checkpoint would say which it is
        weights += ["--model.backbone.name", "pixio_vitt16"]
    assert main(["check", "-c", name, *path, *weights]) == 0
    assert "plan" in capsys.readouterr().out


@pytest.mark.parametrize("name", RUNS)
def test_the_header_is_complete_and_true(name: str) -> None:
    summary, fields = recipes.header(recipes.find(name))
    assert summary.endswith(".") and fields.keys() >= HEADER
    assert verb_of(name) in ("fit", "predict")


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_say_what_they_do(name: str) -> None:
    summary, fields = recipes.header(recipes.find(name))
    assert summary and "run" in fields
    content = yaml.safe_load(recipes.find(name).read_text())
    assert "init_args" not in content.get("model", {}) and "init_args" not in content.get(
        "data", {}
    )
