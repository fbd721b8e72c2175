"""A run that is killed and started again ends as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from running import kill_when, pixio, same

from pixio_lightning.training.checkpoints import checkpoint_io


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    pixio("fit", "-c", recipe, "--out", folder)
    return folder


# Saves are at 4, 8, 12, 16 and an epoch has 5 steps: 4 and 12 are inside an epoch, and the last
# pair interrupts twice. Steps of 5 put the save at the very end of an epoch.
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(["step 4"], marks=pytest.mark.slow),
        pytest.param(["step 12"], marks=pytest.mark.slow),
        ["step 8", "step 12"],
    ],
)
def test_resumes_bit_for_bit(
    recipe: Path, uninterrupted: Path, tmp_path: Path, workers: int, killed: list[str]
) -> None:
    line = ("fit", "-c", recipe, "--out", tmp_path / "run", "--data.num_workers", workers)
    for step in killed:
        assert kill_when(f"{step}: saved last.ckpt", *line), "the run ended before it was killed"
    assert "resumed" in pixio(*line)
    assert same(uninterrupted / "last.ckpt", tmp_path / "run" / "last.ckpt")
    curves = [(folder / "metrics.csv").read_text() for folder in (uninterrupted, tmp_path / "run")]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_mean_over_steps_is_of_those_before_the_kill_too(
    recipe: Path, tmp_path: Path, processes: int
) -> None:
    every = (
        "--trainer.log_every_n_steps",
        3,
        "--trainer.max_steps",
        6,
        "--data.steps_per_epoch",
        6,
    )
    several = ("--trainer.strategy", "ddp", "--trainer.devices", 2) if processes == 2 else ()
    line = ("fit", "-c", recipe, *every, *several, "--checkpoint.every_n_steps", 4)
    pixio(*line, "--out", tmp_path / "whole")
    assert kill_when("step 4: saved last.ckpt", *line, "--out", tmp_path / "run")
    pixio(*line, "--out", tmp_path / "run")
    whole, run = ((tmp_path / name / "metrics.csv").read_text() for name in ("whole", "run"))
    assert run == whole and whole.count("\n") == 4  # a head, and the held-out loss before


def test_without_its_last_checkpoint_a_run_goes_on_from_its_best(
    recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    line = ("fit", "-c", recipe, "--out", tmp_path / "run")
    assert kill_when("step 8: saved last.ckpt", *line)
    (tmp_path / "run" / "last.ckpt").unlink()
    best = checkpoint_io.read(tmp_path / "run" / "best.ckpt")["global_step"]
    printed = pixio(*line)
    assert "goes on from best.ckpt" in printed and 0 < best <= 8
    assert f"resumed at step {best}" in " ".join(printed.split())
    assert same(uninterrupted / "last.ckpt", tmp_path / "run" / "last.ckpt")
    curves = [(folder / "metrics.csv").read_text() for folder in (uninterrupted, tmp_path / "run")]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_resumes_at_the_end_of_an_epoch(recipe: Path, uninterrupted: Path, tmp_path: Path) -> None:
    line = ("fit", "-c", recipe, "--out", tmp_path / "run", "--checkpoint.every_n_steps", 5)
    kill_when("step 10: saved last.ckpt", *line)
    pixio(*line)
    assert same(uninterrupted / "last.ckpt", tmp_path / "run" / "last.ckpt")


def test_a_finished_run_says_so_and_a_changed_key_is_refused(
    recipe: Path, uninterrupted: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from pixio_lightning.cli.main import main

    before = (uninterrupted / "last.ckpt").stat().st_mtime_ns
    assert "finished at step 16" in pixio("fit", "-c", recipe, "--out", uninterrupted)
    changed = ["fit", "-c", str(recipe), "--out", str(uninterrupted), "--model.mask_grid", "4"]
    assert main(changed) == 2
    error = capfd.readouterr().err
    assert "model.mask_grid: 2 -> 4" in error and "--fresh" in error
    assert (uninterrupted / "last.ckpt").stat().st_mtime_ns == before


def test_fresh_keeps_the_earlier_run(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = ("fit", "-c", recipe, "--out", folder, "--trainer.max_steps", 2)
    pixio(*line)
    pixio(*line, "--fresh")
    assert len([path for path in tmp_path.iterdir() if (path / "last.ckpt").exists()]) == 2


def test_a_checkpoint_never_overrides_the_command_line(
    recipe: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    words = ("--ckpt_path", uninterrupted / "last.ckpt", "--trainer.max_steps", 18)
    printed = pixio("fit", "-c", recipe, "--out", tmp_path / "run", *words, "--model.seed", 7)
    assert "resumed" in printed and "step 18" in printed
    assert "seed: 7" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_the_last_checkpoint_survives_thirty_kills(recipe: Path, tmp_path: Path) -> None:
    """Every step saves; two kills of three wait for a save; TMPDIR lies on another file system."""
    folder = tmp_path / "run"
    line = (
        *("fit", "-c", recipe, "--out", folder, "--checkpoint.every_n_steps", 1),
        *("--trainer.max_steps", 100_000, "--model.optim.schedule", "constant"),
        *("--model.decoder.dim", 512, "--model.decoder.depth", 4, "--model.decoder.heads", 8),
    )

    def saving(process: int) -> bool:
        return any(folder.glob(f".last.ckpt.{process}-*.tmp"))

    inside, last = 0, 0
    moments = random.Random(0)
    for kill in range(30):
        wait = {"until": saving, "after": moments.uniform(0, 0.1)}
        if kill % 3 == 0:
            wait = {"after": moments.uniform(0, 2)}
        process = kill_when("saved last.ckpt", *line, TMPDIR="/dev/shm", **wait)
        assert process, "the run ended before it was killed"
        inside += saving(process)
        step = checkpoint_io.read(folder / "last.ckpt")["global_step"]
        assert step > last, "a kill lost steps that had been saved"
        last = step
    assert inside >= 10, f"only {inside} of 30 kills fell into a save"
