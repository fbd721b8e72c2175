"""Commands of the pages that train on a reader's own data, run on a few files of each layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from test_docs_commands import PAGES, commands

from pixio_heads.policy import lerobot
from pixio_heads.policy.demonstrations import Demonstration
from pixio_lightning.cli import recipes
from pixio_lightning.cli.main import main

TESTS = Path(__file__).parent
_NOISE = np.random.default_rng(0)


def _picture(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"RGB": ((256, 256, 3), 256, np.uint8), "L": ((256, 256), 2, np.uint8)}
    shape, end, kind = kinds.get(mode, ((256, 256), 5000, np.uint16))
    Image.fromarray(_NOISE.integers(end // 5, end, shape, kind)).save(path)


def pictures(folder: Path) -> None:
    for i in range(12):
        _picture(folder / f"{i}.png")


def pairs(maps: str, mode: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for i in range(12):
            _picture(folder / "images" / f"{i}.png")
            _picture(folder / maps / f"{i}.png", mode)

    return write


def classes(folder: Path) -> None:
    for label in ("cat", "dog"):
        for split in ("train", "val"):
            for i in range(3):
                _picture(folder / split / label / f"{i}.png")


def scenes(folder: Path) -> None:
    from scene_folders import nerfstudio, rendered

    for seed in (3, 4):
        nerfstudio(folder / f"scene-{seed}", rendered(seed))


def robots(folder: Path) -> None:
    def moved(i: int) -> Demonstration:
        return Demonstration(
            f"{i}",
            _NOISE.random((6, 3), np.float32),
            _NOISE.random((6, 4), np.float32),
            lambda step: np.full((32, 32, 3), 20 * i + step, np.uint8),
        )

    lerobot.write(folder, [moved(i) for i in range(3)], fps=10, task="none")


def clips(folder: Path) -> None:
    from video_files import write_video

    for i in range(4):
        write_video(folder / f"{i}.mp4", fps=6)
    for clip in ("a", "b", "c"):
        for i in range(48):
            _picture(folder / clip / f"{i:05d}.png")


# Data of a recipe, and the keys that make two steps of it small.
_DPT = ["--model.decoder.features", "16", "--model.decoder.stages", "[8,8,8,8]"]
OWN: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "pretrain/folder": (pictures, ["--model.decoder.depth", "2"]),
    "pretrain/continue": (pictures, ["--model.decoder.depth", "2"]),
    "video/folder": (clips, ["--model.decoder.depth", "1"]),
    "depth/folder": (pairs("depth", "I;16"), _DPT),
    "segmentation/folder": (pairs("masks", "L"), _DPT),
    "classification/folder_linear": (classes, []),
    "classification/folder_knn": (classes, ["--model.k", "[1]"]),
    "reconstruction/folder": (
        scenes,
        [
            *("--model.sizes", "{dim: 48, depth: 2, heads: 2, taps: [0, 1]}"),
            *("--data.image_size", "[64, 64]", "--data.covisibility", "0.01"),
        ],
    ),
    "policy/lerobot": (robots, ["--data.image_size", "64"]),
}
LINES = {
    " ".join(words): words
    for page in PAGES
    for words in commands(page)
    if words[0] in ("fit", "predict") and set(words) & OWN.keys()
}
assert {name for name in OWN if any(name in line for line in LINES)} == OWN.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_own_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All lines of the pages with one recipe, what trains before what predicts, two steps each."""
    for folder in ("heads/reconstruction", "data/clips"):
        monkeypatch.syspath_prepend(TESTS / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    write, small = OWN[name]
    write(tmp_path / "DIR")
    source = yaml.safe_load(recipes.find(name).read_text())["data"]["init_args"]["source"]
    for line, (verb, *given) in sorted(LINES.items(), key=lambda line: line[1][0]):
        if name not in given or "shards" in given or ":base" in line:
            continue
        words = [verb, "--data.source", source, *given, "-c", "with/debug", "--out", "run"]
        words += ["--data.path", str(tmp_path / "DIR"), "--model.backbone.weights", "random:0"]
        assert main([*words, *small, *(["--fresh"] if verb == "fit" else [])]) == 0, line
    assert any((tmp_path / "run").iterdir())
