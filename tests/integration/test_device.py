"""Every way a run can go, with all tensors of the model on a pretended CUDA device.

A tensor made or restored on the CPU meets one on the device and is refused, as on a GPU; what goes
through ends with the numbers of the CPU.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from pretend_cuda import CUDA, OnCuda, pretend_cuda

from pixio_lightning.cli.main import main
from pixio_lightning.training import results
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.checkpoints import checkpoint_io
from pixio_lightning.training.run_folder import Metrics

_SCENES = ("--data.scenes", "{train: 4, held_out: 4, views: 2, size: 64}")
_BACKBONE = (
    "--model.backbone",
    "{name: pixio_vitt16, weights: random, model_args: "
    "{img_size: 64, patch_size: 8, embed_dim: 32, depth: 4, num_heads: 2, n_cls_tokens: 2}}",
)
_TEACHER = (_BACKBONE[0], _BACKBONE[1].replace("random", "'random:0'"))
_STUDIO = "{train: 12, held_out: 4, views: 1, size: 64, places: [studio]}"
_SMALL_DPT = ("--model.decoder.features", "8", "--model.decoder.stages", "[8, 8, 8, 8]")
_DEN = "{train: 4, held_out: 5, views: 2, size: 48, places: [den]}"

# A recipe for each head, and what makes it small.
HEADS: dict[str, tuple[str, ...]] = {
    "depth": ("-c", "depth/demo", *_BACKBONE, *_SCENES),
    "depth, DPT through windows": (
        *("-c", "depth/nyuv2_dpt", *_BACKBONE, *_SCENES, *_SMALL_DPT),
        *("--model.window", "32"),
    ),
    "relative depth": ("-c", "depth/relative_scenes", *_BACKBONE, *_SCENES, *_SMALL_DPT),
    "ordinal depth": (
        *("-c", "depth/zeroshot_da2k", *_BACKBONE, *_SCENES, *_SMALL_DPT),
        *("--model.image_size", "64", "--model.optim.lr", "1e-4"),
    ),
    "segmentation": ("-c", "segmentation/demo", *_BACKBONE, *_SCENES),
    "segmentation, tuned": (
        *("-c", "segmentation/demo", *_BACKBONE, *_SCENES),
        *("--model.backbone.tune", "2", "--model.backbone.drop_path", "0.2"),
        *("--model.cache", "false"),
    ),
    "classification": ("-c", "classification/demo", *_BACKBONE, *_SCENES),
    "classification, several": (
        *("-c", "classification/demo", *_BACKBONE, *_SCENES, "--data.target", "objects"),
    ),
    "knn": ("-c", "classification/folder_knn", *_BACKBONE, *_SCENES),
    "attributes": (
        *("-c", "attributes/demo", *_BACKBONE),
        *("--data.scenes", "{train: 12, held_out: 4, views: 1, size: 64}"),
    ),
    "propagation": (
        *("-c", "propagation/demo", *_BACKBONE),
        *("--data.scenes", "{held_out: 2, views: 3, size: 64}"),
    ),
    "policy": (
        *("-c", "policy/demo", *_BACKBONE, "--data.demonstrations", "2", "--data.episodes", "2"),
        *("--data.horizon", "8", "--data.processes", "1"),
    ),
    "reconstruction": (
        *("-c", "reconstruction/demo", "--data.scenes", _DEN),
        *("--model.sizes.pose_pool", "mean", "--model.weights.normal", "1.0"),
    ),
    "pretraining": (
        *("-c", "pretrain/demo", *_BACKBONE, "--model.backbone.drop_path", "0.2"),
        *(
            "--data.scenes",
            "{train: 12, held_out: 4, views: 1, size: 64, places: [studio, street]}",
        ),
        *("--model.decoder", "{dim: 16, depth: 1, heads: 2}"),
        *("--trainer.callbacks+=OnlineProbe", "--trainer.callbacks.every_n_steps=1"),
    ),
    "future prediction": (
        *("-c", "video/demo", *_BACKBONE, "--model.backbone.drop_path", "0.2"),
        *("--data.scenes", "{train: 4, held_out: 4, views: 5, size: 64, places: [studio]}"),
        *("--model.decoder", "{dim: 16, depth: 1, heads: 2}", "--data.past_frames", "2"),
    ),
    "distillation": (
        *("-c", "distill/demo", *_TEACHER, "--model.students.small.backbone.drop_path", "0.2"),
        *("--model.students.small.mask_ratio", "0.5", "--data.scenes", _STUDIO),
    ),
}

# Those that train nothing.
_UNTRAINED = ("knn", "propagation", "attributes")
# Those that differ from another one in few lines.
_ALIKE = (
    *("depth, DPT through windows", "relative depth", "ordinal depth"),
    *("segmentation, tuned", "classification, several"),
)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.getbasetemp() / "pixio-cache"
    monkeypatch.setenv("PIXIO_CACHE", str(cache))


def _words(name: str, folder: Path) -> list[str]:
    recipe, *rest = HEADS[name][1:]
    words = ["-c", recipe, "-c", "with/debug", *rest, "--out", str(folder)]
    words += ["--trainer.precision", "32-true"]  # on both devices
    return [*words, "--checkpoint.every_n_steps", "1", "--panels.every_n_steps", "1"]


def _last(folder: Path) -> dict[str, float]:
    return results.read(folder)[-1]["metrics"] if (folder / results.FILE).exists() else {}


def _losses(folder: Path) -> list[float]:
    rows = Metrics(folder / "metrics.csv").rows
    return [row["train/loss"] for row in rows if "train/loss" in row]


def _interrupted_after(step: int, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train and press Ctrl-C in the middle of the step after `step`."""
    log = BackboneModule.log_training

    def stop(module: BackboneModule, loss: torch.Tensor) -> None:
        if module.global_step == step:
            raise KeyboardInterrupt
        log(module, loss)

    with monkeypatch.context() as patch:
        patch.setattr(BackboneModule, "log_training", stop)
        assert main(["fit", *words]) == 130


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _ALIKE else n for n in HEADS]
)
def test_a_run_goes_through_on_the_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fit", *_words(name, tmp_path / "cpu")]) == 0
    out = tmp_path / "cuda"
    with pretend_cuda(monkeypatch) as device:
        words = [*_words(name, out), *device]
        if name not in _UNTRAINED:
            _interrupted_after(1, words, monkeypatch)
            assert checkpoint_io.read(out / "last.ckpt")["global_step"] == 1
        assert main(["fit", *words]) == 0
        for verb in ("validate", "test"):
            assert main([verb, *words]) == 0
        assert main(["predict", *words]) == 0
    assert list((out / ("episodes" if name == "policy" else "predictions")).rglob("*"))
    expected = _last(tmp_path / "cpu")
    # Of eight pairs, rounding turns some to which a head of two steps gives nearly equal depths.
    near = 0.26 if name == "ordinal depth" else 2e-3
    for line in results.read(out):
        if line["split"] == "val" and line["checkpoint"] in ("last", "untrained"):
            assert line["metrics"] == pytest.approx(expected, rel=1e-3, abs=near, nan_ok=True)
    if name not in _UNTRAINED:
        cpu, cuda = (_losses(tmp_path / run) for run in ("cpu", "cuda"))
        assert len(cpu) == 2 and cuda == pytest.approx(cpu, rel=1e-3)


def test_images_are_scored_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*("-c", "curation/demo", *_SCENES, "--data.num_workers", "0")]
    words += ["--model.backbone", "{name: pixio_vitt16, weights: 'random:0'}"]
    words += ["--model.noise_floor", "2.0"]
    scores = []
    assert main(["predict", *words, "--out", str(tmp_path / "cpu")]) == 0
    with pretend_cuda(monkeypatch) as device:
        assert main(["predict", *words, "--out", str(tmp_path / "cuda"), *device]) == 0
    import pyarrow.parquet as pq

    for run in ("cpu", "cuda"):
        (file,) = (tmp_path / run / "scores").glob("*.parquet")
        scores.append(pq.read_table(file)["loss"].to_numpy())
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_a_generated_head_runs_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["new-head", "slope", "--dir", str(tmp_path)]) == 0
    source = tmp_path / "pixio-slope" / "src"
    monkeypatch.syspath_prepend(str(source))
    recipe = source / "pixio_slope" / "recipes" / "slope" / "demo.yaml"
    importlib.invalidate_caches()
    module = importlib.import_module("pixio_slope.head")
    words = ["-c", str(recipe), "-c", "with/debug", *_BACKBONE, *_SCENES]
    words += ["--model", f"pixio_slope.head.{module.Slope.__name__}"]
    words += ["--data", "pixio_slope.data.SlopeData", "--out", str(tmp_path / "run")]
    with pretend_cuda(monkeypatch) as device:
        for verb in ("fit", "validate", "test", "predict"):
            assert main([verb, *words, *device]) == 0
    sys.modules.pop("pixio_slope.head")


# --- the device itself: a test that cannot fail shows nothing ---------------------------------


def test_the_pretended_device_refuses_what_cuda_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_cuda(monkeypatch):
        there = torch.arange(6.0, device="cuda").view(2, 3)
        assert isinstance(there, OnCuda) and there.device == CUDA
        for mix in (
            lambda: there + torch.ones(3),
            lambda: torch.cat([there, torch.ones(2, 3)]),
            lambda: there.scatter(1, torch.zeros(2, 1, dtype=torch.long), 0.0),
            lambda: torch.ones(3)[torch.ones(3, device="cuda") > 0],
            lambda: there.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                mix()
        assert (there + torch.tensor(1.0)).tolist() == [[1, 2, 3], [4, 5, 6]]
        assert there[there > 2].tolist() == [3, 4, 5]
        assert there[:, torch.tensor([0])].device == CUDA  # indices may come from the CPU
        assert there.cpu().numpy().sum() == 15 and float(there.max()) == 5
