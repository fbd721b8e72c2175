"""Future prediction through the command line: exact resume, many processes, damaged files."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import batch_log
import pytest
import torch
import yaml
from running import TINY, kill_when, pixio, same

from pixio_lightning import load
from pixio_lightning.cli.main import main
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.training.run_folder import Metrics

TESTS = Path(__file__).parent
TWO = ("--trainer.devices", 2, "--data.batch_size", 4)
DDP = (*TWO, "--trainer.strategy", "ddp")
_spec = importlib.util.spec_from_file_location(
    "video_files", TESTS.parent / "data" / "clips" / "video_files.py"
)
assert _spec is not None and _spec.loader is not None
video_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(video_files)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["PIXIO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["PIXIO_CACHE"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen good videos, one of a variable rate and one turned among them, and four damaged."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(12):
        good = video_files.write_video(folder / f"{i}.mp4", size=(64, 80))
    ticks = [3 * i + i % 3 for i in range(24)]
    video_files.write_video(folder / "variable.mp4", times=ticks, fps=16, size=(64, 80))
    video_files.write_video(folder / "turned.mp4", rotation=90, size=(80, 64))
    (folder / "truncated.mp4").write_bytes(good.read_bytes()[:500])
    video_files.write_empty(folder / "empty.mkv")
    video_files.write_sound(folder / "sound.mp4")
    data = bytearray(good.read_bytes())
    at = data.index(b"mdat") + 4
    data[at : len(data)] = bytes(len(data) - at)
    (folder / "zeros.mp4").write_bytes(data)  # its packets are listed, but none can be decoded
    return folder


def recipe(folder: Path, source: str, path: Path, **data: object) -> Path:
    tiny = yaml.safe_load(yaml.safe_dump(TINY))
    tiny["model"]["class_path"] = "FuturePrediction"
    del tiny["model"]["init_args"]["mask_grid"]
    tiny["data"] = {
        "class_path": "Clips",
        "init_args": {
            **{"source": source, "path": str(path), "image_size": 64},
            **({"clip_seconds": 1.5} if source == "videos" else {}),
            **{"batch_size": 4, "num_workers": 2, "val_images": 4, "steps_per_epoch": 5},
            **{"val_batch_size": 2, "repeat": 2, "past_frames": 2, "past_step": 0.25},
            **data,
        },
    }
    tiny["trainer"]["callbacks"] = [{"class_path": "batch_log.BatchLog"}]
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    return file


def log(folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return {"BATCH_LOG": str(folder), "PYTHONPATH": path}


@pytest.mark.parametrize("source", ["videos", "shards"])
@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(source: str, videos: Path, tmp_path: Path) -> None:
    path = videos
    if source == "shards":
        path = tmp_path / "shards"
        assert main(["shard", str(videos), str(path), "--clips", "--seconds", "1.5"]) == 0
    tiny = recipe(tmp_path, source, path)
    line = ("fit", "-c", tiny, "--out")
    out = pixio(*line, tmp_path / "whole", **log(tmp_path / "log-whole"))
    assert "verdict" in out
    env = log(tmp_path / "log")
    kill_when("step 8: saved last.ckpt", *line, tmp_path / "run", after=0.3, **env)
    assert "resumed" in pixio(*line, tmp_path / "run", **env)
    whole = batch_log.read(tmp_path / "log-whole", 0)
    assert len(whole) == 16 and batch_log.read(tmp_path / "log", 0) == whole
    assert same(tmp_path / "whole" / "last.ckpt", tmp_path / "run" / "last.ckpt")
    if source == "videos":
        bad = (tmp_path / "whole" / "bad_files.txt").read_text().splitlines()
        names = sorted(text.split("\t")[0] for text in bad)
        assert names == ["empty.mkv", "sound.mp4", "truncated.mp4", "zeros.mp4"]
    else:
        bad = (path / "bad_files.txt").read_text().splitlines()
        assert len(bad) == 4


@pytest.mark.slow
def test_sharded_equals_ddp(videos: Path, tmp_path: Path) -> None:
    tiny = recipe(tmp_path, "videos", videos, batch_size=8, num_workers=0)
    line = ("fit", "-c", tiny, "--trainer.max_steps", 6, "--out")
    pixio(*line, tmp_path / "ddp", *DDP, **log(tmp_path / "log-ddp"))
    pixio(*line, tmp_path / "fsdp", "-c", "with/fsdp", *TWO, **log(tmp_path / "log-fsdp"))
    curves = []
    for run in ("ddp", "fsdp"):
        found = Metrics(tmp_path / run / "metrics.csv").rows
        curves.append(torch.tensor([row["train/loss"] for row in found if "train/loss" in row]))
    assert len(curves[0]) == 6 and (curves[0] - curves[1]).abs().max() < 1e-6


@pytest.mark.slow  # test_distributed.py holds it of a pretraining on images
def test_two_processes_equal_one_and_the_backbone_is_any_other(
    videos: Path, tmp_path: Path
) -> None:
    """Two calls of the backbone a step; in double precision."""
    tiny = recipe(tmp_path, "videos", videos, batch_size=8, num_workers=0)
    line = ("fit", "-c", tiny, "--trainer.max_steps", 6, "--out")
    double = ("--trainer.precision", "64-true")
    pixio(*line, tmp_path / "one", *double, **log(tmp_path / "log-one"))
    pixio(*line, tmp_path / "two", *double, *DDP, **log(tmp_path / "log-two"))
    rows = [Metrics(tmp_path / run / "metrics.csv").rows for run in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 6
    for one, other in zip(*rows, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    checkpoint = tmp_path / "two" / "last.ckpt"
    module = load(checkpoint)
    assert type(module).__name__ == "FuturePrediction" and module.hedged.fitted
    backbone = Backbone(weights=str(checkpoint))
    backbone.load()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(backbone(images).tokens, module.backbone(images).tokens)
    line = ["fit", "-c", "depth/demo", "-c", "with/debug", "--out", str(tmp_path / "head")]
    line += ["--model.backbone.model_args", "{}", "--model.backbone.layers", "last"]
    assert main([*line, "--model.backbone.weights", str(checkpoint)]) == 0
    head = load(tmp_path / "head")
    assert head.predict(images).shape[-2:] == (64, 64)
    exported = tmp_path / "exported"
    assert main(["export", str(checkpoint), "--to", "transformers", "--out", str(exported)]) == 0
