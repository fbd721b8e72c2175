"""What a command line adds to a suite, and figures of others that stand in it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import yaml
from PIL import Image

from pixio_lightning.cli import bench, recipes
from pixio_lightning.cli.bench.finished import refuse_stale
from pixio_lightning.cli.bench.given import over_backbones, with_data
from pixio_lightning.cli.bench.suite import check
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError
from pixio_lightning.training import results

SUITES = Path(__file__).parents[2] / "benchmarks"
REAL = ("depth", "segmentation", "classification", "reconstruction", "policy", "paper")
NOT_ALIKE = {"name": "Another", "abs_rel": 0.2, "source": "a table", "comparable": "no: why"}
SMALL = (
    "{name: pixio_vitt16, model_args: "
    "{img_size: 64, patch_size: 8, embed_dim: 32, depth: 4, num_heads: 2, n_cls_tokens: 2}}"
)
TINY = [
    *("--trainer.max_steps=2", "--data.steps_per_epoch=2", "--data.batch_size=2"),
    *("--data.num_workers=0", "--panels.every_n_steps=0", "--data.image_size=64"),
    *("--model.window=64", "--model.stride=64", "--trainer.accelerator=cpu"),
    *("--model.decoder=LinearDecoder", "--model.backbone.layers=last"),
]
ROWS = {"near": {"fit": "depth/folder", "data": "one", "published": [NOT_ALIKE]}}
SUITE = {
    "metrics": {"abs_rel": "min"},
    "baselines": ["constant"],
    "data": {"one": "a folder with images/ and depth/", "two": "another"},
    "rows": ROWS,
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(SUITE | changes))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Pictures with depth, twelve of each."""
    noise = np.random.default_rng(0)
    for name in ("images", "depth"):
        (tmp_path / "DIR" / name).mkdir(parents=True)
    for i in range(12):
        pixels = noise.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"DIR/images/{i}.png")
        depth = noise.integers(1000, 5000, (64, 64), np.uint16)
        Image.fromarray(depth).save(tmp_path / f"DIR/depth/{i}.png")
    return tmp_path / "DIR"


def test_all_data_that_miss_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ROWS | {"far": {"fit": "depth/folder", "data": "two"}}
    path = str(write(tmp_path, rows=rows))
    assert main(["bench", path, "--data", f"one={tmp_path / 'nowhere'}"]) == 2
    err = capsys.readouterr().err
    assert "not given: --data two=PATH (another)" in err and "not there: one=" in err
    assert err.count("\n") == 1
    for words, said in (
        (["--data", "onne=x"], "did you mean 'one'"),
        (["--data", "one"], "expected NAME=PATH"),
        (["--data", "one=none", "--data", "two=none"], "every row of the suite is left out"),
    ):
        assert main(["bench", path, *words]) == 2
        assert said in capsys.readouterr().err


def test_rows_without_their_data_are_left_out(tmp_path: Path) -> None:
    suite = bench.read_suite(write(tmp_path, rows=ROWS | {"far": ROWS["near"] | {"data": "two"}}))
    kept = with_data(suite, {"one": str(tmp_path), "two": "none"})["rows"]
    assert list(kept) == ["near"] and kept["near"]["set"] == {"data.path": str(tmp_path)}


def test_each_backbone_is_a_group_of_rows(tmp_path: Path) -> None:
    rows = {
        "linear": {"fit": "depth/demo", "published": [NOT_ALIKE]},
        "tuned": {"fit": "depth/demo", "with": ["with/finetune", "backbone/mae_l"]},
        "tuned, random": {
            "fit": "depth/demo",
            "with": ["with/finetune"],
            "set": {"model.backbone.weights": "random"},
        },
        "trained": {"test": "depth/demo", "checkpoint": "last.ckpt"},
    }
    rows["blind"] = {"fit": "depth/demo", "reads_backbone": False}
    suite = bench.read_suite(write(tmp_path, rows=rows))
    over = over_backbones(suite, ["dinov2_l", "random:{seed}"])
    found, notes = over["rows"], over["notes"]
    assert notes == [
        "--backbones leaves rows as they are, those that evaluate a checkpoint: trained; those "
        "that read no backbone: blind"
    ]
    assert list(found) == [
        *("linear, dinov2_l", "linear, random:{seed}"),
        *(f"depth/demo with/finetune, {name}" for name in ("dinov2_l", "random:{seed}")),
        *("trained", "blind"),
    ]
    tuned = found["depth/demo with/finetune, dinov2_l"]
    assert tuned["with"] == ["with/finetune", "backbone/dinov2_l"]
    assert found["linear, random:{seed}"]["set"] == {"model.backbone.weights": "random:{seed}"}
    assert found["trained"] == rows["trained"] and found["blind"] == rows["blind"]
    assert [name for name, row in found.items() if "published" in row] == ["linear, random:{seed}"]
    one = bench.read_suite(SUITES / "demo.yaml")
    assert list(over_backbones(one, ["a.ckpt", "random"])["rows"]) == ["a.ckpt", "random"]
    with pytest.raises(UserError, match="no backbone 'backbone/dinov2_x', did you mean"):
        over_backbones(suite, ["backbone/dinov2_x"])
    with pytest.raises(UserError, match="each once"):
        over_backbones(suite, ["random", "random"])
    suite["rows"] = {name: rows[name] for name in ("trained", "blind")}
    with pytest.raises(UserError, match=r"no row of the suite takes one \(those that evaluate a"):
        over_backbones(suite, ["random"])
    with pytest.raises(UserError, match="reads_backbone is 0; expected true or false"):
        bench.read_suite(write(tmp_path, rows={"a": {"fit": "x", "reads_backbone": 0}}))


def test_a_row_that_a_backbone_cannot_run_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a linear map from class tokens of an encoder without any; what is published stays."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    sizes = {"depth": 1, "embed_dim": 32, "num_heads": 2, "class_token": False, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", global_pool="avg", **sizes)
    timm.models.save_for_hf(model, "bare", model_args=sizes | {"global_pool": "avg"})
    rows = {
        "linear": {"validate": "classification/demo", "set": {"model.pool": "cls"}},
        "patches": {"validate": "classification/demo", "set": {"model.pool": "patches"}},
    }
    rows["linear"]["published"] = [{k: v for k, v in NOT_ALIKE.items() if k != "abs_rel"}]
    rows["linear"]["published"][0]["top1"] = 0.2
    path = str(write(tmp_path, rows=rows, metrics={"top1": "max"}, baselines=[], data={}))
    few = ["--data.scenes={train: 2, held_out: 2, views: 2, size: 64}", "--data.num_workers=0"]
    assert main(["bench", path, "--out", "out", *few, "--backbones", "random:0,bare"]) == 0
    table = Path("out/table.md").read_text()
    names = re.findall(r"^\| ([^|]+?) \| \**[\d.]+", table, re.MULTILINE)
    published = "Another, published † (linear)"
    assert names == ["linear, random:0", published, "patches, random:0", "patches, bare"]
    assert "left out: linear, bare: model.pool is cls, but vit_tiny_patch16_224" in table
    with pytest.raises(UserError, match="row bare: model.pool is cls"):
        suite = bench.read_suite(write(tmp_path, rows={"linear": rows["linear"]}, data={}))
        check(over_backbones(suite, ["bare"]), tmp_path / "other", words=few)


def test_what_is_not_the_backbone_stays_with_a_row_and_names_it(tmp_path: Path) -> None:
    """A control of another backbone would stand there as a result of this one."""
    rows = {
        "trained": {"fit": "depth/demo", "data": "one"},
        "random, frozen": {
            "fit": "depth/demo",
            "data": "one",
            "set": {"model.backbone": {"weights": "random:0", "tune": "frozen"}},
        },
        "random, tuned": {
            "fit": "depth/demo",
            "set": {
                "model.backbone.tune": 2,
                "model.backbone.model_args.depth": 3,
                "model.observe": "blind",
            },
        },
    }
    suite = with_data(bench.read_suite(write(tmp_path, rows=rows)), {"one": str(tmp_path)})
    found = over_backbones(suite, ["dinov2_l"])["rows"]
    assert {name: row.get("set") for name, row in found.items()} == {
        "trained, dinov2_l": {"data.path": str(tmp_path)},
        "depth/demo, backbone.tune frozen, data one, dinov2_l": {
            "model.backbone.tune": "frozen",
            "data.path": str(tmp_path),
        },
        "depth/demo, backbone.tune 2, observe blind, dinov2_l": {
            "model.backbone.tune": 2,
            "model.observe": "blind",
        },
    }


def test_rows_that_become_one_keep_the_seeds_and_the_published_figures_of_all(
    tmp_path: Path,
) -> None:
    another = NOT_ALIKE | {"name": "A third"}
    rows = {
        "base": {"fit": "depth/demo", "with": ["backbone/mae_b"], "published": [NOT_ALIKE]},
        "large": {
            **{"fit": "depth/demo", "with": ["backbone/mae_l"], "seeds": [0, 1]},
            "published": [NOT_ALIKE, another],
        },
    }
    suite = bench.read_suite(write(tmp_path, rows=rows))
    found = over_backbones(suite, ["dinov2_l", "random"])["rows"]
    assert list(found) == ["dinov2_l", "random"]
    assert [row["seeds"] for row in found.values()] == [[0, 1], [0, 1]]
    assert found["random"]["published"] == [NOT_ALIKE, another]
    assert suite["rows"]["base"]["published"] == [NOT_ALIKE]  # what was read is not changed


def test_a_suite_over_two_backbones_beside_published_figures(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words = ["bench", str(write(tmp_path)), "--data", f"one={pairs}", *TINY]
    words += [f"--model.backbone={SMALL}", "--backbones"]
    assert main([*words, "random:0,random:1", "--out", "first"]) == 0
    table = Path("first/table.md").read_text()
    assert table.splitlines()[2] == "| | one abs_rel ↓ | seeds |"
    rows = re.findall(r"^\| ([^|]+) \| \**([\d.]+)", table, re.MULTILINE)
    names = ["constant", "random:0", "random:1", "Another, published † (near)"]
    assert [name for name, _ in rows] == names and rows[-1][1] == "0.2"
    assert "**0.2" not in table  # nothing of others is the best
    assert "Another, published † (near): a table; not to be compared, why" in table
    page = Path("first/index.html").read_text()
    assert '<tr class="paper"><td>Another, published † (near)</td>' in page
    assert page.count('<rect class="paper"') == 1
    assert main([*words, "random:0,random:2", "--out", "second"]) == 0
    capsys.readouterr()
    assert main(["bench", "--compare", "first", "second"]) == 0
    assert "random:2: only in second" in capsys.readouterr().out


def test_a_checkpoint_is_evaluated_by_the_verb_of_its_row(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data", f"one={pairs}", *TINY, f"--model.backbone={SMALL}"]
    words += ["--model.backbone.weights=random:0"]
    row = {"test": "depth/folder", "checkpoint": "run/last.ckpt", "data": "one"}
    path = str(write(tmp_path, rows={"trained": row}))
    assert main(["bench", path, *words]) == 2
    assert "row trained: checkpoint 'run/last.ckpt' does not exist" in capsys.readouterr().err
    trained = ["-c", "depth/folder", "--data.path", str(pairs), *words[2:]]
    assert main(["fit", *trained, "--out", "run"]) == 0
    for _ in range(2):  # the second time from its result
        assert main(["bench", path, *words, "--out", "out"]) == 0
    (line,) = results.read(tmp_path / "out" / "trained-0")
    assert line["verb"] == "test" and line["split"] == "val"  # there is no part to test on
    assert len(line["samples"]) == 16
    shutil.copytree("out", "two")
    line |= {"n": line["n"] + 1, "metrics": line["metrics"] | {"abs_rel": 9.0}}
    Path("two/trained-0/results.jsonl").write_text(json.dumps(line) + "\n")
    n = line["n"]
    with pytest.raises(UserError, match=f"may not be compared: n is {n - 1} and {n}"):
        bench.compare(Path("out/trained-0"), Path("two/trained-0"))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"source": ""}, "expected name, source, comparable"),
        ({"comparable": "perhaps"}, "expected name, source, comparable"),
        ({"abs_rel": "0.2"}, "and figures by metric"),
    ],
)
def test_published_figures_say_whose_they_are(entry: dict, said: str, tmp_path: Path) -> None:
    rows = {"near": ROWS["near"] | {"published": [NOT_ALIKE | entry]}}
    with pytest.raises(UserError, match=said):
        bench.read_suite(write(tmp_path, rows=rows))


@pytest.mark.parametrize(  # the paper's rows are of the recipes of the others
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "paper" else n for n in REAL]
)
def test_suites_of_real_data_are_planned(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row, with its own recipe, metrics and data, and weights that need no download."""
    monkeypatch.chdir(tmp_path)
    for label in ("cat", "dog"):  # where classes are folders, they size the head
        (tmp_path / label).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / label / "0.png")
    suite = bench.read_suite(SUITES / f"{name}.yaml")
    for checkpoint in {row.get("checkpoint") for row in suite["rows"].values()} - {None}:
        Path(checkpoint).parent.mkdir(parents=True)
        Path(checkpoint).touch()
    suite = with_data(suite, dict.fromkeys(suite.get("data", {}), str(tmp_path)))
    check(suite, tmp_path / "out", words=["--model.backbone.weights=random"])
    if name == "reconstruction":
        with pytest.raises(UserError, match="no row of the suite takes one"):
            over_backbones(suite, ["dinov2_b"])
        return
    over = over_backbones(suite, ["dinov2_b", "mae_h"])
    fixed = [row for row in suite["rows"].values() if "checkpoint" in row]
    fixed += [row for row in suite["rows"].values() if not row.get("reads_backbone", True)]
    assert len(over["rows"]) == 2 * len(suite["rows"]) - len(fixed)
    assert len(fixed) == {"paper": 9, "policy": 1}.get(name, 0)


def test_published_figures_of_pixio_are_those_of_the_recipes() -> None:
    """A header has per cent where a suite has shares, and leaves out a leading zero."""
    seen = 0
    for name in REAL:
        for row in bench.read_suite(SUITES / f"{name}.yaml")["rows"].values():
            recipe = row.get("fit", row.get("test"))
            said = recipes.header(recipes.find(recipe)).fields["expect"] if recipe else ""
            figures = {float(text) for text in re.findall(r"\d*\.\d+", said)}
            for entry in row.get("published", []):
                if not entry["name"].startswith("Pixio"):
                    continue
                for key, value in entry.items():
                    if key not in ("name", "source", "comparable"):
                        seen += 1
                        assert figures & {value, round(100 * value, 1)}, (recipe, key, value)
    assert seen > 60


@pytest.mark.parametrize("size", [1, 2 << 20])
def test_a_finished_run_does_not_stand_for_files_whose_place_others_took(
    size: int, tmp_path: Path
) -> None:
    """Whenever they were written; small ones of the same content may lie elsewhere."""
    weights, recipe, out = tmp_path / "a.ckpt", tmp_path / "mine.yaml", tmp_path / "row-0"
    out.mkdir()
    weights.write_bytes(bytes(size))
    recipe.write_text("a: 1")
    line = {"recipe": [str(recipe)], "overrides": [], "backbone": {"weights": str(weights)}}
    line["files"] = results.files_read([recipe], str(weights), None)
    words = ["-c", str(recipe), "--out", str(out)]
    os.utime(recipe)
    refuse_stale(out, line, words)
    recipe.write_text("a: 2")
    os.utime(recipe, ns=(0, 10**9))
    with pytest.raises(UserError, match="was run with another '.*mine.yaml' than there is now"):
        refuse_stale(out, line, words)
    recipe.write_text("a: 1")
    weights.write_bytes(bytes([1]) * size)
    os.utime(weights, ns=(0, 10**9))
    with pytest.raises(UserError, match="was run with another '.*a.ckpt' than there is now"):
        refuse_stale(out, line, words)


def test_a_finished_run_does_not_stand_for_weights_that_were_trained_since(tmp_path: Path) -> None:
    weights, out = tmp_path / "last.ckpt", tmp_path / "row-0"
    out.mkdir()
    weights.touch()
    words = ["-c", "depth/demo", "--out", str(out), f"--model.backbone.weights={weights}"]
    line = {"recipe": ["depth/demo"], "overrides": words[4:]}
    line |= {"backbone": {"weights": str(weights)}}
    line["files"] = results.files_read([recipes.find("depth/demo")], str(weights), None)
    refuse_stale(out, line, [*words, "--fresh"])  # no key of the model
    refuse_stale(out, line, [*words[:4], f"--model.init_args.backbone={{weights: {weights}}}"])
    with pytest.raises(
        UserError, match="was run with -c depth/demo, but now -c depth/demo -c with"
    ):
        refuse_stale(out, line, [*words, "--config", "with/debug"])
    with pytest.raises(UserError, match="model.seed its recipe's, but now it is '1': remove"):
        refuse_stale(out, line, [*words, "--model.seed", "1"])
    named = {
        "overrides": ["--model.decoder=pixio_lightning.models.DPTDecoder"],
        "backbone": {"weights": None},
        "files": {},
    }
    refuse_stale(out, named, ["--model.decoder=DPTDecoder"])
    with pytest.raises(UserError, match=r"decoder 'pixio.*DPTDecoder', but now it is its recipe's"):
        refuse_stale(out, named, [])
    named["overrides"] = ["--model.optim.lr=0.5", "--model.flag=true"]
    refuse_stale(out, named, ["--model={optim: {lr: 0.50}, flag: true}"])
    with pytest.raises(UserError, match=r"model.optim.lr '0.5', but now it is '5'"):
        refuse_stale(out, named, ["--model.optim.lr=5", "--model.flag=true"])


def test_a_finished_evaluation_does_not_stand_for_another_checkpoint(tmp_path: Path) -> None:
    """Nor for the same one that was trained since, students among them."""
    first, second, out = tmp_path / "a.ckpt", tmp_path / "b.ckpt", tmp_path / "row-0"
    folder = tmp_path / "exported"
    for place in (out, folder):
        place.mkdir()
    for place in (first, second, folder / "model.safetensors"):
        place.touch()

    def evaluated(weights: str, checkpoint: Path | None) -> dict:
        files = results.files_read([recipes.find("depth/demo")], weights, checkpoint)
        line = {"recipe": ["depth/demo"], "overrides": [], "backbone": {"weights": weights}}
        return line | {"checkpoint_path": checkpoint and str(checkpoint), "files": files}

    words, line = ["-c", "depth/demo"], evaluated("tiny", first)
    refuse_stale(out, line, words, str(first))
    with pytest.raises(UserError, match=r"with checkpoint '.*a.ckpt', but now checkpoint '.*b.c"):
        refuse_stale(out, line, words, str(second))
    with pytest.raises(UserError, match=r"with checkpoint '.*a.ckpt', but now untrained is given"):
        refuse_stale(out, line, words)
    first.write_text("trained on")
    with pytest.raises(UserError, match=r"was run with another '.*a.ckpt' than there is now"):
        refuse_stale(out, line, words, str(first))
    for weights, file in ((f"{second}:small", second), (str(folder), folder / "model.safetensors")):
        line = evaluated(weights, None)
        refuse_stale(out, line, words)
        file.write_text("trained on")
        with pytest.raises(UserError, match=r"was run with another '.*' than there is now"):
            refuse_stale(out, line, words)


def test_a_finished_run_does_not_stand_for_other_data(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    words = ["bench", str(write(tmp_path)), "--out", str(tmp_path / "out"), *TINY]
    words += [f"--model.backbone={SMALL}", "--model.backbone.weights=random", "--data"]
    for _ in range(2):
        assert main([*words, f"one={pairs}"]) == 0
    other = shutil.copytree(pairs, tmp_path / "OTHER")
    assert main([*words, f"one={other}"]) == 2
    said = capsys.readouterr().err
    assert f"was run with data.path '{pairs}', but now it is '{other}': remove it" in said
    # Nor for other keys, however they are written, or for weights that were trained anew.
    assert main([*words, f"one={pairs}", "--model.optim.lr", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "was run with model.optim.lr its recipe's, but now it is '0.5'" in said
