"""In which precision a run computes that names none."""

from pathlib import Path

import pytest
import tiny_run
import torch
from small_runs import interrupted_after

from pixio_lightning.cli.class_lookup import import_named
from pixio_lightning.cli.lightning_cli import PixioCLI
from pixio_lightning.cli.options import parse_options
from pixio_lightning.training.precision import fastest_precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True, "cpu_name": "Intel(R) Xeon(R) Platinum 8481C CPU"}, "bf16-mixed"),
        ({"avx512_bf16": True, "cpu_name": "Intel(R) Xeon(R) Platinum 8380H CPU"}, "32-true"),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC 9654"}, "bf16-mixed"),
        ({"avx512_bf16": False, "cpu_name": "AMD EPYC 7763"}, "32-true"),
        ({"avx512_bf16": True}, "32-true"),
        ({}, "32-true"),
    ],
)
def test_a_processor_computes_in_half_precision_where_it_has_units_for_it(
    capabilities: dict[str, bool | str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fastest_precision("cpu") == expected


def test_a_gpu_that_only_emulates_half_precision_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, has=supported: has
        )
        assert fastest_precision("auto") == fastest_precision("gpu") == expected


def test_an_older_torch_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fastest_precision("cpu") == "32-true"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-c", "pretrain/folder", "--data.path", "."], "bf16-mixed"),
        (["-c", "pretrain/demo"], "32-true"),
        (["-c", "depth/demo", "--model.backbone.weights", "random"], "32-true"),
    ],
)
def test_pretraining_takes_the_fastest_and_heads_do_not_depend_on_the_device(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_amx = {"amx_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has_amx, raising=False)
    options = parse_options([*words, "--out", str(tmp_path)])
    import_named(options.configs, options.rest)
    cli = PixioCLI(options, "fit")
    assert cli.trainer.precision == expected
    # What is stored is what was asked, so that the run goes on where the device is another one.
    asked = "32-true" if "pretrain/demo" in words else None
    assert cli.config_dict()["trainer"]["precision"] == asked


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_that_has_begun_keeps_its_precision(
    fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on another machine."""
    recipe = tiny_run.write_recipe(tmp_path)
    unset = ("--trainer.precision", "null")
    before = {"amx_bf16": fast}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: before, raising=False)
    assert tiny_run.fit(recipe, tmp_path / "run", *unset, "--trainer.max_steps", 4) == 0
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not fast})
    words = ["-c", str(recipe), "--out", str(tmp_path / "run"), *unset]
    for verb, more, expected in (
        ("fit", [], "bf16-mixed" if fast else "32-true"),
        ("validate", [], "bf16-mixed" if fast else "32-true"),
        ("fit", ["--fresh"], "32-true" if fast else "bf16-mixed"),
    ):
        assert PixioCLI(parse_options([*words, *more]), verb).trainer.precision == expected


def test_a_run_in_half_precision_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the device chose it: on a processor without units for it, too, if slowly."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    recipe = tiny_run.write_recipe(tmp_path)
    unset = ("--trainer.precision", "null")
    assert tiny_run.fit(recipe, tmp_path / "whole", *unset) == 0
    line = ["-c", str(recipe), "--out", str(tmp_path / "part"), *unset]
    interrupted_after(4, line, monkeypatch)
    words = ("--ckpt_path", tmp_path / "part" / "last.ckpt")
    assert tiny_run.fit(recipe, tmp_path / "rest", *unset, *words) == 0
    whole, rest = (
        torch.load(tmp_path / run / "last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "rest")
    )
    assert all(torch.equal(whole[name], rest[name]) for name in whole)
    assert tiny_run.fit(recipe, tmp_path / "full") == 0
    half, full = (
        [row["train/loss"] for row in tiny_run.table(tmp_path / run) if "train/loss" in row]
        for run in ("whole", "full")
    )
    assert half != full and half == pytest.approx(full, rel=2e-2)
