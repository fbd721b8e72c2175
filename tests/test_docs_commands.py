"""Every command, key and Python block of README and docs is run, or parsed against small data."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pixio_heads.policy import lerobot
from pixio_heads.policy.demonstrations import Demonstration
from pixio_lightning.cli.app.server import add_arguments
from pixio_lightning.cli.bench import find_suite, read_suite
from pixio_lightning.cli.bench.given import over_backbones, read_places, with_data
from pixio_lightning.cli.bench.suite import check as check_suite
from pixio_lightning.cli.config_tree import flatten
from pixio_lightning.cli.help_pages import RUN_VERBS, VERBS
from pixio_lightning.cli.light_parser import LightParser
from pixio_lightning.cli.main import main
from pixio_lightning.data import Scenes

ROOT = Path(__file__).parents[1]
WRITTEN = ("recipes", "results")  # by docs/conf.py, of headers and tables that have their own tests
PAGES = {
    path.stem: path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.stem not in WRITTEN
}
# What stands for a word of the reader's own; folders are made below.
WORDS = {
    **{
        "RECIPE": "pretrain/demo",
        "W": "runs/pretrain/demo/last.ckpt",
        "FILE": "runs/pretrain/demo/last.ckpt",
        "N": "3",
        "WORD": "depth",
        "NAME": "normals",
    },
    **{"TWICE_AS_MANY": "16", "SCORES": "runs/curation/score/scores"},
}
ALONE = ("heads", "doctor", "recipes", "runs", "new-head")  # verbs that a sentence names whole
DEBUG = ("-c", "with/debug", "--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}")
SMALL = "{img_size: 64, patch_size: 8, embed_dim: 32, depth: 4, num_heads: 1}"
STUDENT = f"{{backbone: {{name: pixio_vitt16, weights: random, tune: full, model_args: {SMALL}}}}}"
ROBOT = (
    *("--data.path", "DEMONSTRATIONS", "--data.image_size", "32", "--out", "runs/policy/lerobot"),
    *("--model.backbone.name", "pixio_vitt16", "--model.backbone.weights", "random:0"),
    *("--model.backbone.model_args", SMALL, "--trainer.max_steps", "2"),
    *("--trainer.accelerator", "cpu", "--data.num_workers", "0", "--data.steps_per_epoch", "2"),
    *("--data.batch_size", "2", "--trainer.log_every_n_steps", "1"),
)
NO_HUB = "is not in the cache, and the Hub cannot be reached"
# Between them they have all classes of models and data.
CLASSES = (
    *("pretrain/demo", "distill/demo", "video/demo", "video/folder", "curation/score"),
    *("depth/demo", "depth/relative_dav2", "segmentation/demo", "classification/demo"),
    *("classification/folder_knn", "reconstruction/folder", "propagation/demo", "policy/demo"),
    *("pretrain/demo_curated", "policy/gym", "attributes/demo"),
)
CHECKED: dict[str, str] = {}  # commands, by the first page that has them
FREE = re.compile(r"\.(model_args|students)\b")  # below them stand names of the user's


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def lines(page: str) -> Iterator[list[str]]:
    """Yield the words of each command in a block; comments are left out."""
    indented = re.findall(r"^    (?:pixio|pip|make|python) .*", PAGES[page], re.MULTILINE)
    for block in [*blocks(page, "bash"), *(line.strip() for line in indented)]:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("#"):
                continue
            text = shlex.shlex(line, posix=True, punctuation_chars=";&")
            text.whitespace_split = True
            words: list[str] = []
            for word in text:
                if set(word) <= {";", "&"}:
                    yield words
                    words = []
                else:
                    words.append(word)
            yield words


def commands(page: str) -> Iterator[list[str]]:
    """Yield the words of every `pixio` command; of those in a sentence, what runs a recipe."""
    for words in lines(page):
        for program in ("pixio", ".venv/bin/pixio", "pixio_lightning.cli.main"):
            if program in words:
                yield [WORDS.get(w, w) for w in words[words.index(program) + 1 :] if w != "..."]
    for text in re.findall(r"`pixio ([^`]+)`", re.sub(r"(?s)```.*?```", "", PAGES[page])):
        words = [WORDS.get(word, word) for word in text.split()]
        if "..." not in text and ("-c" in words or words[0] in ALONE):
            yield words


def is_large(words: list[str]) -> bool:
    """Whether a command distils from billions of parameters, whose plan takes ten seconds."""
    return any("vit5b16_to_" in word for word in words)


# The plan of such a one is made quickly in test_yaml_of_a_page.
CASES = [
    *(pytest.param(page, False, id=page) for page in PAGES),
    *(
        pytest.param(page, True, id=f"{page}, large", marks=pytest.mark.slow)
        for page in PAGES
        if any(map(is_large, commands(page)))
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the pages speak of: pictures, shards, and runs of two steps."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PIXIO_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        noise = np.random.default_rng(0)
        for label in ("cat", "dog"):
            Path("DIR", label).mkdir(parents=True)
            for i in range(4):
                pixels = noise.integers(0, 256, (320, 320, 3), np.uint8)  # what curation keeps
                Image.fromarray(pixels).save(f"DIR/{label}/{i}.png")
        table = [f"{label}/{i}.png,{i},{label}" for label in ("cat", "dog") for i in range(4)]
        Path("DIR/attributes.csv").write_text("\n".join(["name,size,kind", *table]) + "\n")
        Path("benchmarks").symlink_to(ROOT / "benchmarks")
        Path("ImageNet").symlink_to("DIR")  # whose classes size the head
        one = [
            Demonstration(
                f"{i}",
                np.zeros((2, 3), np.float32),
                np.zeros((2, 4), np.float32),
                lambda step: np.zeros((32, 32, 3), np.uint8),
            )
            for i in range(2)
        ]
        lerobot.write(Path("DEMONSTRATIONS"), one, fps=10, task="none")
        weights = ("--model.backbone.weights", "runs/pretrain/demo/last.ckpt")
        pair = ("--model.students", f"{{large: {STUDENT}, base: {STUDENT}}}")
        for words in (
            ("shard", "DIR", "SHARDS"),
            ("fit", "-c", "pretrain/demo", *DEBUG, "--out", "runs/pretrain/demo"),
            ("fit", "-c", "depth/demo", *DEBUG, "--out", "runs/depth/demo"),
            ("fit", "-c", "distill/demo", *DEBUG, "--out", "runs/distill/demo"),
            ("fit", "-c", "distill/demo", *DEBUG, "--out", "runs/distill/pair", *pair),
            ("predict", "-c", "curation/score", "--data.path", "SHARDS", *weights),
            ("fit", "-c", "policy/lerobot", *ROBOT),
        ):
            assert main(list(words)) == 0, words
        table = '{"better": {"rmse": "min"}, "rows": {"a row": {"rmse": [1.0]}}}'
        for name in ("a", "b"):
            Path("runs/bench", name).mkdir(parents=True)
            Path("runs/bench", name, "table.json").write_text(table)
        Path("runs/depth/relative_dav2").symlink_to(folder / "runs/depth/demo")
        yield folder


def failed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run `pixio`; returns what it says where it fails."""
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:  # of --print_config
        code = int(stop.code or 0)
    err = capsys.readouterr().err
    return "" if code == 0 else err or str(code)


def check(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Plan a run, or run a verb that trains nothing; returns what it says where it fails."""
    verb, *rest = words
    if "policy/lerobot" in rest:
        rest = ["DEMONSTRATIONS" if word == "DIR" else word for word in rest]
    if verb == "bench" and "--compare" not in rest:  # its runs take minutes
        return planned(rest)
    if verb == "app":  # it is served until Ctrl-C; tests/app opens it
        parser = LightParser("pixio app", description="")
        add_arguments(parser)
        parser.parse_args(rest)
        return ""
    if verb not in RUN_VERBS or "--print_config" in rest:
        return failed([verb, *rest], capsys)
    if verb != "fit" and "--ckpt_path" in rest:  # what is planned is a training
        at = rest.index("--ckpt_path")
        rest = [*rest[:at], *rest[at + 2 :]]
    said = failed(["check", *rest], capsys)
    if "wandb" in said and importlib.util.find_spec("wandb") is None:
        at = rest.index("with/wandb")
        said = failed(["check", *rest[: at - 1], *rest[at + 1 :]], capsys)
    if NO_HUB in said:  # the one clear line; all but the weights is checked without a network
        free = ["--model.backbone.weights", "random:0", "--model.backbone.name", "pixio_vitt16"]
        said = failed(["check", *rest, *free], capsys)
    return said


def planned(words: list[str]) -> str:
    """Plan every row of a suite."""
    parser = argparse.ArgumentParser()
    parser.add_argument("suite", type=find_suite)
    parser.add_argument("--data", action="append", default=[])
    for name in ("--out", "--backbones"):
        parser.add_argument(name)
    options, rest = parser.parse_known_args(words)
    suite = with_data(read_suite(options.suite), read_places(options.data))
    if options.backbones:
        suite = over_backbones(suite, options.backbones.split(","))
        of_the_hub = ("pixio_h", "dinov3_h")
        free = [name for name in suite["rows"] if name.endswith(of_the_hub)]
        for name in free:
            suite["rows"][name]["set"]["model.backbone.weights"] = "random"
    check_suite(suite, Path("bench"), words=rest)
    return ""


@pytest.mark.parametrize(("page", "large"), CASES)
def test_commands_of_a_page(
    page: str, large: bool, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands(page):
        assert words[0] in VERBS, words
        if is_large(words) == large and CHECKED.setdefault(" ".join(words), page) == page:
            assert not check(words, capsys), words


def test_every_verb_stands_in_a_page() -> None:
    assert {words[0] for page in PAGES for words in commands(page)} >= set(VERBS) - {"validate"}


@pytest.mark.parametrize(
    "line",
    [
        "fit -c pretrain/demo --model.mask_gird 2",
        "fit -c pretrain/continue --data.pth DIR --model.backbone.weights hf:facebook/pixio-vitb16",
        "fit -c pretrain/dmeo",
        "recipe",
        "check -c pretrain/demo --trainer.max_step 2",
    ],
)
def test_a_misspelt_word_is_found(
    line: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean" in check(line.split(), capsys)


def test_other_commands_name_what_exists() -> None:
    """Targets of make, extras of pip, scripts and modules of Python."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for page, text in PAGES.items():
        found = [words for words in lines(page) if words]
        found += [code.split() for code in re.findall(r"`((?:make|python|pip) [^`\n]+)`", text)]
        for words in found:
            if words[0] == "make":
                assert set(words[1:]) <= set(targets), words
            elif words[0] == "python" and words[1] == "-m":
                assert importlib.util.find_spec(words[2]), words
            elif words[0] == "python":
                assert (ROOT / words[1]).is_file(), words
            elif words[0] == "pip":
                for extra in re.findall(r"(?:lightning|\.)\[([\w,]+)\]", words[2]):
                    assert set(extra.split(",")) <= set(extras["optional-dependencies"]), words


def test_keys_that_pages_name_exist(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known: set[str] = set()
    for recipes in (*([name] for name in CLASSES), ["pretrain/demo", "with/fsdp"]):
        capsys.readouterr()
        chosen = [word for name in recipes for word in ("-c", name)]
        with pytest.raises(SystemExit):
            main(["fit", *chosen, "--print_config"])
        for key, _ in flatten(yaml.safe_load(capsys.readouterr().out)):
            parts = key.replace("init_args.", "").split(".")
            known |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    for page, text in PAGES.items():
        named = re.findall(r"`(?:--)?((?:model|data|trainer|checkpoint|panels)\.\w[\w.]*)", text)
        for key in named:
            assert key in known or FREE.search(key), f"{page}: {key}"


PYTHON = [
    pytest.param(page, code, id=f"{page}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"))
]

IMPORTS = """
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection
from pixio_lightning import Backbone, Features, Head, load
from pixio_lightning.files import output_path, write_text
from pixio_lightning.training import Panel
"""


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_of_a_page(page: str, code: str, place: Path) -> None:
    if "import ray" in code:
        pytest.skip("tests/cluster/test_ray.py runs it")
    if "trifinger" in code:
        pytest.skip("tests/heads/policy/test_cortexbench.py has such a folder")
    code = re.sub(r"hf:[\w/-]+", "runs/pretrain/demo/last.ckpt", code)
    code = re.sub(r"max_steps=\d+", "max_steps=2", code)
    code = code.replace("DepthData(batch_size=8", "DepthData(batch_size=2, scenes=FEW")
    shutil.copy("DIR/cat/0.png", "photo.jpg")
    names: dict[str, Any] = {
        "images": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8),
        "clip": torch.randint(0, 256, (1, 3, 3, 64, 64), dtype=torch.uint8),
        "mask": torch.ones(1, 1, 64, 64, dtype=torch.long),
        "folder": Path("DEMONSTRATIONS"),
        "picture": np.zeros((48, 64, 3), np.uint8),
        "state": np.zeros(3),
        "out": Path("written"),
        "older": Path("written-older"),
        "FEW": Scenes(train=2, held_out=2, views=2),
    }
    exec(IMPORTS, names)
    exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs/notebooks").glob("*.ipynb")))
def test_a_notebook_runs(
    notebook: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells in their order, in a folder without any run, for two steps; none has an output."""
    monkeypatch.chdir(tmp_path)
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        code = "".join(cell["source"]).replace("STEPS = 200", "STEPS = 2")
        exec(compile(code, f"{notebook.name}, cell {number}", "exec"), names)
    shown = names.get("colours", names.get("line", {}).get("metrics"))
    assert shown is not None and len(shown)


def test_yaml_of_a_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = blocks("distillation", "yaml")
    Path("pair.yaml").write_text(text.replace("runs/pretrain/mine/last.ckpt", '"random:0"'))
    recipe = "distill/vit5b16_to_vitl16_vitb16"
    assert not failed(["check", "-c", recipe, "-c", "pair.yaml", "--data.path", "DIR"], capsys)
