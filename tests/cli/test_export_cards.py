"""Every export says what it is, how it was trained and how to load it; what it says runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_run import fit, table, write_recipe

from pixio_lightning import Backbone
from pixio_lightning.cli.export.card import _licence_fields
from pixio_lightning.cli.main import main
from pixio_lightning.files import write_text
from pixio_lightning.models.weights.read import read
from pixio_lightning.training import results, run_folder

SCENES = ("--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}")
SMALL = (
    "{name: pixio_vitt16, weights: 'random:0', model_args: "
    "{img_size: 64, patch_size: 8, embed_dim: 32, depth: 4, num_heads: 2, n_cls_tokens: 2}}"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretraining; returns its folder, with the recipe beside it."""
    folder = tmp_path_factory.mktemp("trained")
    assert fit(write_recipe(folder), folder / "run") == 0
    return folder / "run"


def exported(
    source: object, form: str, out: str, where: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], str]:
    """Export, run the snippet of its README there, and return the front matter and the text."""
    monkeypatch.chdir(where)
    assert main(["export", str(source), "--to", form, "--out", out]) == 0
    path = Path(out)
    beside = path.parent / f"{path.stem}.README.md"
    text = (path / "README.md" if path.is_dir() else beside).read_text()
    assert f"# {path.name if path.is_dir() else path.stem}\n" in text
    assert not (path.is_dir() and beside.exists())
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)
    found = names.get("tokens", names.get("features", names.get("outputs")))
    assert found is not None
    _, front, _ = text.split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.parametrize(
    ("form", "out", "library"),
    [
        ("safetensors", "tiny.safetensors", "pixio-lightning"),
        ("transformers", "tiny-hf", "transformers"),
        ("timm", "tiny-timm", "timm"),
        pytest.param("onnx", "tiny.onnx", "onnx", marks=pytest.mark.slow),  # the next test's is
        ("timm", "tiny.v1.0", "timm"),  # a folder, whatever its name looks like
    ],
)
def test_an_encoder(
    form: str, out: str, library: str, trained: Path, tmp_path: Path, monkeypatch
) -> None:
    front, text = exported(trained / "last.ckpt", form, out, tmp_path, monkeypatch)
    assert front["library_name"] == library and front["license"] == "unknown"
    assert front["base_recipe"].endswith("tiny.yaml")
    state, last = run_folder.read_state(trained), table(trained)[-1]
    for row in (
        "| steps | 8 |",
        "| seed | 0 |",
        f"| commit | {state['commit']} |",
        "| images of a step | 4 |",
        "| class tokens | 8 |",
        "| patch size | 8 |",
    ):
        assert row in text
    for name in ("loss", "zero", "interpolated"):  # the model beside what needs no learning
        assert f"| {name} | {last[f'val/{name}']:.4g} |" in text
    assert ("decoder" in text) == (form == "safetensors")


@pytest.mark.slow  # two graphs of ONNX; the card of a head is read below
def test_figures_of_another_run_s_checkpoint_are_not_the_exported_one_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Evaluations of both stand in one results.jsonl, as they have one recipe, at one step."""
    run, other = tmp_path / "run", tmp_path / "other.ckpt"
    words = ("-c", "depth/demo", "-c", "with/debug", *SCENES, "--model.backbone", SMALL)
    assert main(["fit", *words, "--out", str(run)]) == 0
    stored = torch.load(run / "last.ckpt", weights_only=True)
    for name, tensor in stored["state_dict"].items():
        if name.endswith("weight"):
            stored["state_dict"][name] = -tensor
    torch.save(stored, other)
    shown = {}
    for checkpoint in (other, run / "last.ckpt"):
        given = ("--out", str(run), "--ckpt_path", str(checkpoint))
        assert main(["validate", *words, *given]) == 0
        out = str(tmp_path / f"{checkpoint.stem}.onnx")
        assert main(["export", str(run / "last.ckpt"), "--to", "onnx", "--out", out]) == 0
        text = Path(out).with_suffix(".README.md").read_text()
        shown[checkpoint.stem] = re.findall(r"\| abs_rel \| (\S+)  \(", text)
    lines = results.read(run)
    fitted = [line for line in lines if line["verb"] == "fit"]
    assert len(lines) == len(fitted) + 2 and len({line["steps"] for line in lines}) == 1
    errors = [f"{line['metrics']['abs_rel']:.4g}" for line in (fitted[-1], *lines[-2:])]
    assert errors[0] != errors[1]
    assert shown == {"other": [errors[0]], "last": [errors[2]]}


@pytest.mark.parametrize("name", ["other.pth", "other.ckpt"])
def test_weights_beside_a_run_that_are_none_of_it_get_none_of_its_facts(
    name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    torch.save(Backbone("pixio_vitt16", weights="random:0").load().vit.state_dict(), run / name)
    _, text = exported(run / name, "safetensors", "of.safetensors", tmp_path, monkeypatch)
    assert "Not known: the file says nothing of it." in text and "On held-out images" not in text


@pytest.mark.parametrize("file", ["config.yaml", "state.json", "metrics.csv", "results.jsonl"])
def test_files_of_another_program_beside_weights_refuse_no_export(
    file: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("last.ckpt", "config.yaml"):
        shutil.copy(trained / name, folder / name)
    (folder / file).write_bytes(
        b"epoch: 5\n\xff\n" if file == "results.jsonl" else b"epoch: 5\n3\n"
    )
    source = folder / "last.ckpt"
    _, text = exported(source, "safetensors", "of.safetensors", tmp_path, monkeypatch)
    assert "Not known: the file says nothing of it." in text


def test_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    words = ("-c", "depth/demo", "-c", "with/debug", *SCENES, "--model.backbone", SMALL)
    assert main(["fit", *words, "--out", str(run)]) == 0
    front, text = exported(run, "onnx", "depth.onnx", tmp_path, monkeypatch)
    assert front["base_recipe"] == "depth/demo with/debug" and "| head | Depth |" in text
    assert re.search(r"\| abs_rel \| [\d.]+  \(constant [\d.]+, median map [\d.]+\) \|", text)
    assert "m, crop none, no alignment" in text  # the protocol


def test_encoder_and_decoder_go_on_together(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file, from the checkpoint, and only where it holds a decoder of this size."""
    exported(trained / "last.ckpt", "safetensors", "both.safetensors", tmp_path, monkeypatch)
    recipe = trained.parent / "tiny.yaml"
    words = ("--model.pretrained_decoder", "true", "--model.backbone.weights")
    steps = ("--trainer.max_steps", 1, "--trainer.num_sanity_val_steps", -1)
    losses = []
    for source in ("both.safetensors", trained / "last.ckpt"):
        out = tmp_path / f"from-{Path(source).suffix}"
        assert fit(recipe, out, *words, source, *steps) == 0
        losses.append(table(out)[0]["val/loss"])
    assert losses == [pytest.approx(table(trained)[-1]["val/loss"], rel=1e-5)] * 2
    fresh = ("--model.pretrained_decoder", "false", "--model.backbone.weights")
    assert fit(recipe, tmp_path / "fresh", *fresh, "both.safetensors", *steps) == 0
    assert abs(table(tmp_path / "fresh")[0]["val/loss"] - losses[0]) > 0.01
    reloaded = main(["export", str(tmp_path / "from-.ckpt"), "--to", "onnx", "--out", "on.onnx"])
    assert reloaded == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.backbone.weights", "random"), "holds no decoder"),
        (("--model.decoder.depth", "2"), "the decoder of both.safetensors does not fit"),
        (("--model.decoder.dim", "32"), "the decoder of both.safetensors does not fit"),
    ],
)
def test_a_decoder_that_does_not_fit_is_one_line(
    words: tuple[str, str], said: str, trained: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    exported(trained / "last.ckpt", "safetensors", "both.safetensors", tmp_path, monkeypatch)
    given = ("--model.backbone.weights", "both.safetensors", "--model.pretrained_decoder", "true")
    recipe = trained.parent / "tiny.yaml"
    assert fit(recipe, tmp_path / "run", *given, *words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert main(["check", "-c", str(recipe), *given, *words]) == 2  # a plan, with the same line
    assert capsys.readouterr().err == err


def test_a_run_folder_is_its_best_checkpoint_else_its_last(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = exported(trained, "safetensors", "run.safetensors", tmp_path, monkeypatch)
    assert f"from `{trained / 'best.ckpt'}`" in text and "| steps | 8 |" in text
    run = shutil.copytree(trained, tmp_path / "named")
    (run / "best.ckpt").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["export", "named"]) == 0
    own, last = (read(str(path)).encoder for path in ("named.safetensors", run / "last.ckpt"))
    assert all(own[name].equal(last[name]) for name in last)


def test_weights_of_one_s_own_get_a_licence_once(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["export", str(trained / "last.ckpt"), "--out", "own.safetensors"]
    assert main([*words, "--licence", "Apache-2.0"]) == 0
    assert read("own.safetensors").meta["licence"] == "Apache-2.0"
    text = Path("own.README.md").read_text()
    assert "license: apache-2.0" in text
    assert f"| digest | {Backbone(weights='own.safetensors').digest} |" in text
    capsys.readouterr()
    again = ["export", "own.safetensors", "--out", "other.safetensors", "--licence", "MIT"]
    assert main(again) == 2
    assert "under Apache-2.0, which they keep" in capsys.readouterr().err
    assert not Path("other.safetensors").exists()


def test_a_teacher_s_licence_stays_whatever_is_stated_of_a_student(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = "distilled from pixio_vith16, FAIR Noncommercial Research License v1"
    stored = torch.load(trained / "last.ckpt", weights_only=True)
    stored["pixio"]["backbone"]["licence"] = f"unknown (own file); {teacher}"
    torch.save(stored, "student.ckpt")
    words = ["export", "student.ckpt", "--out"]
    assert main([*words, "as-it-is.safetensors"]) == 0
    assert "license: other" in Path("as-it-is.README.md").read_text()
    assert main([*words, "own.safetensors", "--licence", "Apache-2.0"]) == 0
    licence = read("own.safetensors").meta["licence"]
    assert licence == f"Apache-2.0; {teacher}"
    text = Path("own.README.md").read_text()
    assert "license: other" in text and f"Of the weights: {licence}." in text
    assert main(["export", "own.safetensors", "--out", "x", "--licence", "MIT"]) == 2
    assert f"under {licence}, which they keep" in capsys.readouterr().err


def test_a_file_of_half_the_size_loads_as_nearly_the_same(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for dtype in ("float32", "float16"):
        words = ["export", str(trained / "last.ckpt"), "--out", f"{dtype}.safetensors"]
        assert main([*words, "--dtype", dtype]) == 0
    full, half = (read(f"{dtype}.safetensors") for dtype in ("float32", "float16"))
    assert {t.dtype for t in [*half.encoder.values(), *half.decoder.values()]} == {torch.float16}
    loaded = Backbone(weights="float16.safetensors")
    assert f"| digest | {loaded.digest} |" in Path("float16.README.md").read_text()
    for name, tensor in loaded.vit.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, full.encoder[name], rtol=1e-3, atol=1e-6)


def test_of_weights_without_a_run_nothing_is_claimed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(trained / "last.ckpt", "safetensors", "one.safetensors", tmp_path, monkeypatch)
    _, text = exported("one.safetensors", "timm", "again", tmp_path, monkeypatch)
    assert "Not known: the file says nothing of it." in text and "recipe" not in text
    assert read("again").encoder.keys() == read("one.safetensors").encoder.keys()


def test_a_readme_of_something_else_stays(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(Path("x.README.md"), "mine")
    for form, out in (("safetensors", "x.safetensors"), ("onnx", "x.onnx")):
        assert main(["export", str(trained / "last.ckpt"), "--to", form, "--out", out]) == 2
        assert "x.README.md exists already" in capsys.readouterr().err
        assert not Path(out).exists()
    assert Path("x.README.md").read_text() == "mine"


def test_licences_as_the_hub_names_them() -> None:
    assert _licence_fields("Apache-2.0") == {"license": "apache-2.0"}
    assert _licence_fields("none (random initialisation)") == {"license": "unknown"}
    assert _licence_fields("unknown (own file); distilled from a, MIT")["license"] == "other"
    name = "fair-noncommercial-research-license-v1"
    assert _licence_fields("FAIR Noncommercial Research License v1") == {
        "license": "other",
        "license_name": name,
    }
