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
from small_runs import (
    BACKBONE,
    HEADS,
    SCENES,
    UNTRAINED,
    interrupted_after,
    last_metrics,
    losses,
    words_of,
)

from pixio_lightning.cli.main import main
from pixio_lightning.training import results
from pixio_lightning.training.checkpoints import checkpoint_io

# A pretraining and a head; the tests below, and test_no_waiting.py, train most others there.
_QUICK = ("pretraining", "depth")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.getbasetemp() / "pixio-cache"
    monkeypatch.setenv("PIXIO_CACHE", str(cache))


@pytest.mark.parametrize(
    "name", [n if n in _QUICK else pytest.param(n, marks=pytest.mark.slow) for n in HEADS]
)
def test_a_run_goes_through_on_the_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fit", *words_of(name, tmp_path / "cpu")]) == 0
    out = tmp_path / "cuda"
    with pretend_cuda(monkeypatch) as device:
        words = [*words_of(name, out), *device]
        if name not in UNTRAINED:
            interrupted_after(1, words, monkeypatch)
            assert checkpoint_io.read(out / "last.ckpt")["global_step"] == 1
        assert main(["fit", *words]) == 0
        for verb in ("validate", "test"):
            assert main([verb, *words]) == 0
        assert main(["predict", *words]) == 0
    assert list((out / ("episodes" if name == "policy" else "predictions")).rglob("*"))
    expected = last_metrics(tmp_path / "cpu")
    # Of eight pairs, rounding turns some to which a head of two steps gives nearly equal depths.
    near = 0.26 if name == "ordinal depth" else 2e-3
    for line in results.read(out):
        if line["split"] == "val" and line["checkpoint"] in ("last", "untrained"):
            assert line["metrics"] == pytest.approx(expected, rel=1e-3, abs=near, nan_ok=True)
    if name not in UNTRAINED:
        cpu, cuda = (losses(tmp_path / run) for run in ("cpu", "cuda"))
        assert len(cpu) == 2 and cuda == pytest.approx(cpu, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("attributes", ()),
        ("relative depth", ("--model.form", "least_squares")),
        ("reconstruction", ()),
        pytest.param("pretraining", (), marks=pytest.mark.slow),  # as the one that follows
        ("future prediction", ()),
    ],
)
def test_a_device_without_float64_gives_the_figures_of_one_that_has_it(
    name: str, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Apple's MPS: what takes double precision is computed on the CPU."""
    # Of quantiles, which pictures take, the pretended device makes numbers that no real one makes.
    more = (*more, "--panels.every_n_steps", "0")
    assert main(["fit", *words_of(name, tmp_path / "cpu"), *more]) == 0
    with pretend_cuda(monkeypatch, float64=False) as device:
        assert main(["fit", *words_of(name, tmp_path / "mps"), *more, *device]) == 0
    for figures in (last_metrics, losses):
        found, expected = (figures(tmp_path / run) for run in ("mps", "cpu"))
        assert found == pytest.approx(expected, rel=1e-3, abs=2e-3, nan_ok=True)


def test_images_are_scored_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*("-c", "curation/demo", *SCENES, "--data.num_workers", "0")]
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
    words = ["-c", str(recipe), "-c", "with/debug", *BACKBONE, *SCENES]
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
        assert there.double().dtype == torch.float64
        assert (there + torch.tensor(1.0)).tolist() == [[1, 2, 3], [4, 5, 6]]
        assert there[there > 2].tolist() == [3, 4, 5]
        assert there[:, torch.tensor([0])].device == CUDA  # indices may come from the CPU
        assert there.cpu().numpy().sum() == 15 and float(there.max()) == 5
    with pretend_cuda(monkeypatch, float64=False):
        there = torch.ones(2, device="cuda")
        for make in (there.double, lambda: torch.ones(2, device="cuda", dtype=torch.float64)):
            with pytest.raises(TypeError, match="would give float64"):
                make()
        assert there.cpu().double().sum() == 2
