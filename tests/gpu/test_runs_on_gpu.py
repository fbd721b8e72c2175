"""Every head and every pretraining on a GPU: trained, interrupted, resumed, evaluated, applied."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import HEADS, UNTRAINED, interrupted_after, last_metrics, losses, words_of

from pixio_lightning.cli.main import main
from pixio_lightning.training import results
from pixio_lightning.training.checkpoints import checkpoint_io

TRAINED = [name for name in HEADS if name not in UNTRAINED]
# Of eight pairs, rounding turns some to which a head of two steps gives nearly equal depths.
_NEAR = {"ordinal depth": 0.26}


@pytest.mark.parametrize("name", HEADS)
def test_a_run_ends_with_the_numbers_of_the_cpu(
    name: str, gpu: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fit", *words_of(name, tmp_path / "cpu")]) == 0
    out = tmp_path / "gpu"
    words = [*words_of(name, out), *gpu]
    if name not in UNTRAINED:
        interrupted_after(1, words, monkeypatch)
        assert checkpoint_io.read(out / "last.ckpt")["global_step"] == 1
    for verb in ("fit", "validate", "test", "predict"):
        assert main([verb, *words]) == 0
    assert list((out / ("episodes" if name == "policy" else "predictions")).rglob("*"))
    expected, near = last_metrics(tmp_path / "cpu"), _NEAR.get(name, 2e-3)
    for line in results.read(out):
        if line["split"] == "val" and line["checkpoint"] in ("last", "untrained"):
            assert line["metrics"] == pytest.approx(expected, rel=1e-3, abs=near, nan_ok=True)
    if name not in UNTRAINED:
        assert losses(out) == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.parametrize("name", TRAINED)
def test_bfloat16_and_compiled_blocks_train_as_float32_does(
    name: str, gpu: tuple[str, ...], tmp_path: Path
) -> None:
    found = {}
    for run, more in {
        "float32": (),
        "bfloat16": ("--trainer.precision", "bf16-mixed"),
        "compiled": ("--model.backbone.compile", "true"),
        "both": ("--trainer.precision", "bf16-mixed", "--model.backbone.compile", "true"),
    }.items():
        out = tmp_path / run
        assert main(["fit", *words_of(name, out), *gpu, *more]) == 0
        found[run] = losses(out)
    assert len(found["float32"]) == 2
    assert found["compiled"] == pytest.approx(found["float32"], rel=1e-3)
    for run in ("bfloat16", "both"):  # two to three digits a product
        assert found[run] == pytest.approx(found["float32"], rel=0.05)


@pytest.mark.parametrize("name", ["pretraining", "future prediction", "segmentation, tuned"])
def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_interrupted(
    name: str, gpu: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in bfloat16, from the masks and the drop path to the moments of the optimiser."""
    more = [*gpu, "--trainer.max_steps", "4", "--trainer.precision", "bf16-mixed"]
    if name == "segmentation, tuned":  # where maps are scaled, sums of floats have no order
        more += ["--trainer.deterministic", "warn"]
    runs = {run: [*words_of(name, tmp_path / run), *more] for run in ("straight", "resumed")}
    interrupted_after(2, runs["resumed"], monkeypatch)
    for words in runs.values():
        assert main(["fit", *words]) == 0
    one, two = (checkpoint_io.read(tmp_path / run / "last.ckpt") for run in runs)
    assert one["global_step"] == two["global_step"] == 4
    assert one["state_dict"].keys() == two["state_dict"].keys()
    other = two["state_dict"]
    apart = {k: float((v - other[k]).abs().max()) for k, v in one["state_dict"].items()}
    assert {name: most for name, most in apart.items() if most} == {}
