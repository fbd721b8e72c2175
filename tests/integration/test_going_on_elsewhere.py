"""A run goes on with other devices and workers; no run writes over what is not its own."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from running import TINY, kill_when, pixio, same, started

from pixio_lightning.cli.main import main
from pixio_lightning.training import run_folder
from pixio_lightning.training.run_folder import Metrics

# In double precision, where six steps of Adam do not amplify the rounding of sums.
DOUBLE = ("--trainer.precision", "64-true")
SHORT = ("--trainer.max_steps", 6, "--checkpoint.every_n_steps", 3)
DDP = ("--trainer.strategy", "ddp", "--trainer.devices", 2, "--data.batch_size", 4)
ONE = ("--trainer.devices", 1)


def weights(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([tensor.flatten() for tensor in state.values()])


def words(*parts: object) -> list[str]:
    return [str(part) for part in parts]


@pytest.fixture(scope="module")
def line(recipe: Path) -> tuple[object, ...]:
    return ("fit", "-c", recipe, *DOUBLE, *SHORT)


@pytest.fixture(scope="module")
def whole(line: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of two processes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    pixio(*line, *DDP, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def stopped(line: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, both killed after the third step."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert kill_when("step 3: saved last.ckpt", *line, *DDP, "--out", folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "noted"),
    [
        (
            (*ONE, "--data.batch_size", 8, "--data.num_workers", 2, "--trainer.strategy", "auto"),
            "now 8 = data.batch_size 8 x 1 process",
        ),
        (
            (*ONE, "--data.batch_size", 4, "--trainer.accumulate_grad_batches", 2),
            "now 8 = data.batch_size 4 x 1 process x 2 accumulated",
        ),
    ],
)
def test_two_processes_go_on_as_one(
    line: tuple[object, ...],
    whole: Path,
    stopped: Path,
    tmp_path: Path,
    changes: tuple[object, ...],
    noted: str,
) -> None:
    """The samples of a step are the same; sums of gradients are added in another order."""
    shutil.copytree(stopped, tmp_path / "run")
    printed = pixio(*line, *changes, "--checkpoint.every_n_steps", 2, "--out", tmp_path / "run")
    notes = [text for text in printed.splitlines() if text.startswith("goes on with other ")]
    assert len(notes) == 1 and noted in notes[0]
    assert "trainer.devices: 2 -> 1" in notes[0] and "checkpoint.every_n_steps: 3 -> 2" in notes[0]
    assert "at step 3" in printed
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["trainer"]["devices"] in (1, "1") and config["checkpoint"]["every_n_steps"] == 2

    assert (weights(whole) - weights(tmp_path / "run")).abs().max() < 1e-9
    first, second = (Metrics(folder / "metrics.csv").rows for folder in (whole, tmp_path / "run"))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        # Of accumulated batches the loss of the last is logged.
        skipped = {"train/loss"} if "accumulated" in noted else set()
        a, b = ({k: v for k, v in row.items() if k not in skipped} for row in (a, b))
        assert a == pytest.approx(b, abs=1e-6)


def test_another_global_batch_is_refused(
    line: tuple[object, ...], stopped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    assert main(words(*line, *ONE, "--data.batch_size", 4, "--out", tmp_path / "run")) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "set data.batch_size 8 or trainer.accumulate" in error
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


@pytest.mark.slow
def test_sharded_processes_go_on_as_fewer(recipe: Path, tmp_path: Path) -> None:
    fsdp = ("fit", "-c", recipe, "-c", "with/fsdp", *SHORT)
    two = ("--trainer.devices", 2, "--data.batch_size", 4)
    one = (*ONE, "--data.batch_size", 8)
    pixio(*fsdp, *two, "--out", tmp_path / "whole")
    assert kill_when("step 3: saved last.ckpt", *fsdp, *two, "--out", tmp_path / "run")
    assert "at step 3" in pixio(*fsdp, *one, "--out", tmp_path / "run")
    first, second = (
        [
            row["train/loss"]
            for row in Metrics(tmp_path / run / "metrics.csv").rows
            if row["step"] and "train/loss" in row
        ]
        for run in ("whole", "run")
    )
    assert len(first) > 3 and first == pytest.approx(second, abs=1e-5)


@pytest.mark.slow
def test_shards_go_on_with_other_workers_where_that_is_asked_for(
    photographs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    assert main(words("shard", photographs, shards, "--rows", 30, "--group", 5)) == 0
    tiny = yaml.safe_load(yaml.safe_dump(TINY))
    tiny["data"]["init_args"] |= {"source": "shards", "path": str(shards), "num_workers": 1}
    tiny["data"]["init_args"]["val_images"] = 8
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    line = ("fit", "-c", tmp_path / "tiny.yaml", "--out", tmp_path / "run", *SHORT)
    assert kill_when("step 3: saved last.ckpt", *line)
    line = (*line, "--data.num_workers", 2)
    assert main(words(*line)) == 2
    assert "set data.restart_pass true" in capfd.readouterr().err
    assert main(words(*line, "--data.restart_pass", "true")) == 0
    out = capfd.readouterr().out
    assert "goes on with other data.num_workers: " in out and "data.restart_pass: " in out
    assert "at step 3" in out


# --- the run folder -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And the first one's processes, one of them a data worker that outlives it, hold no other."""
    line = ("fit", "-c", recipe, "--out", tmp_path / "run", "--trainer.devices", 2)
    long = ("--trainer.strategy", "ddp", "--data.num_workers", 1, "--data.batch_size", 4)
    first = started("step 4: saved last.ckpt", *line, *long, "--trainer.max_steps", 5000)
    try:
        for more in ((), ("--fresh",)):
            assert main(words(*line, *long, "--trainer.max_steps", 5000, *more)) == 2
            error = capfd.readouterr().err
            assert error.count("\n") == 1 and f"in use by another run (process {first.pid}" in error
        assert first.poll() is None and os.listdir(tmp_path) == ["run"]
    finally:
        first.kill()
        first.wait()
    try:  # its rank and workers may still be there
        assert main(words(*line, *long, "--trainer.max_steps", 5)) == 2
        assert "trainer.max_steps: 5000 -> 5" in capfd.readouterr().err
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        assert first.stdout is not None
        first.stdout.close()


def test_nothing_that_is_not_the_runs_is_overwritten(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = words("fit", "-c", recipe, "--trainer.max_steps", 2, "--out")

    def refused(why: str, *more: str, folder: Path) -> None:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        capfd.readouterr()
        assert main([*line, str(folder), *more]) == 2
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and why in error
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        after.pop(folder / ".lock", None)
        before.pop(folder / ".lock", None)
        assert after == before

    server = tmp_path / "server"
    server.mkdir()
    (server / "config.yaml").write_text("port: 80\n")
    refused("is no configuration of a run", folder=server)
    refused("is no configuration of a run", "--fresh", folder=server)
    table = tmp_path / "table"
    table.mkdir()
    (table / "metrics.csv").write_text("time,value\n1,2\n")
    refused("metrics.csv' is of no run", folder=table)
    refused("holds files but no run", "--fresh", folder=table)

    run = tmp_path / "run"
    assert main([*line, str(run)]) == 0
    ckpt = ("--ckpt_path", str(run / "last.ckpt"))
    refused("--fresh moves", "--fresh", *ckpt, folder=run)
    refused("model.mask_grid: 2 -> 4", "--model.mask_grid", "4", *ckpt, folder=run)
    monkeypatch.chdir(run)
    refused("this command runs in it", "--fresh", folder=Path("."))
    monkeypatch.undo()
    (run / "config.yaml").rename(tmp_path / "config.yaml")
    refused("holds last.ckpt but no config.yaml", folder=run)
    # What was not read as metrics is whole, too: the advice can be followed.
    assert main([*line, str(run), "--fresh"]) == 0
    kept = [path for path in tmp_path.glob("run.*") if (path / "last.ckpt").exists()]
    assert len(kept) == 1
    (tmp_path / "config.yaml").rename(kept[0] / "config.yaml")
    capfd.readouterr()
    assert main([*line, str(kept[0])]) == 0
    assert "finished at step 2" in capfd.readouterr().out
    assert same(kept[0] / "last.ckpt", run / "last.ckpt")


def test_keys_of_a_later_version_are_as_their_defaults(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run of a version that did not know them yet goes on, but not with other values."""
    run = tmp_path / "run"
    line = words("fit", "-c", recipe, "--trainer.max_steps", 2, "--out", run)
    assert main(line) == 0
    stored = yaml.safe_load((run / "config.yaml").read_text())
    del stored["preemption"], stored["model"]["init_args"]["norm_pix"], stored["trainer"]["plugins"]
    del stored["model"]["init_args"]["decoder"]["pos_init"], stored["data"]["init_args"]["curation"]
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    assert main(line) == 0
    out = capfd.readouterr().out
    assert "finished at step 2" in out and "goes on with other" not in out

    assert main([*line, "--model.norm_pix=false", "--preemption.requeue=true"]) == 2
    error = capfd.readouterr().err
    assert "(model.norm_pix: True -> False)" in error and error.count("\n") == 1
    # A key that is gone did something then.
    stored["model"]["init_args"]["of_old"] = 3
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    assert main(line) == 2
    assert "model.of_old: 3 -> None" in capfd.readouterr().err


@pytest.mark.slow
def test_a_job_that_is_queued_again_does_not_begin_anew(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its line, with --fresh, is the same; and it did as that says when it first started."""
    line = words("fit", "-c", recipe, *SHORT, "--out", tmp_path / "run")
    assert main([*line, "--trainer.max_steps=2"]) == 0
    line.append("--fresh")
    assert kill_when("step 3: saved last.ckpt", *line, SLURM_JOB_ID="7")
    assert len(os.listdir(tmp_path)) == 2
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    capfd.readouterr()
    assert main(line) == 0
    out = capfd.readouterr().out
    assert "this job began" in out and "at step 3" in out and "step 6: saved" in out
    assert len(os.listdir(tmp_path)) == 2
    # One that was killed before it could begin has still to do so.
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert main(line) == 0
    assert "the earlier run is now in" in capfd.readouterr().out
    assert len(os.listdir(tmp_path)) == 3


def test_a_run_from_a_checkpoint_goes_on_from_its_own(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The line of a job that is queued again names the checkpoint again."""
    first, out = tmp_path / "first", tmp_path / "second"
    line = words("fit", "-c", recipe, "--checkpoint.every_n_steps", 3, "--trainer.max_steps")
    assert main([*line, "3", "--out", str(first)]) == 0
    line += words(9, "--out", out, "--ckpt_path", first / "last.ckpt")
    assert kill_when("step 6: saved last.ckpt", *line)
    capfd.readouterr()
    assert main(line) == 0
    told = capfd.readouterr().out
    assert f"began from {first / 'last.ckpt'}: now it goes on from last.ckpt" in told
    assert "step 6: saved" not in told and "step 9: saved" in told
    assert main(line) == 0
    assert "finished at step 9" in capfd.readouterr().out
    # Whatever becomes of that checkpoint, whose run may go on or be removed.
    os.utime(first / "last.ckpt")
    shutil.copy(first / "last.ckpt", tmp_path / "other.ckpt")
    (first / "last.ckpt").unlink()
    assert main(line) == 0
    assert "finished at step 9" in capfd.readouterr().out
    # Its own last one goes on; from any other, no run begins over it.
    line[-1] = str(out / "last.ckpt")
    assert main(line) == 0
    assert "finished at step 9" in capfd.readouterr().out
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    for other in (tmp_path / "other.ckpt", out / "best.ckpt"):
        line[-1] = str(other)
        assert main(line) == 2
        error = capfd.readouterr().err
        assert f"{out} holds a run that did not begin from --ckpt_path '{other}'" in error
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in out.rglob("*.*") if path in before} == before


def test_a_queued_job_that_began_anew_needs_its_checkpoint_no_longer(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, out = tmp_path / "first", tmp_path / "second"
    line = words("fit", "-c", recipe, "--trainer.max_steps")
    assert main([*line, "2", "--out", str(first)]) == 0
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    line += words(3, "--out", out, "--fresh", "--ckpt_path", first / "last.ckpt")
    assert main(line) == 0
    (first / "last.ckpt").unlink()
    assert main(line) == 2
    assert "last.ckpt' does not exist" in capfd.readouterr().err
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(line) == 0
    assert "finished at step 3" in capfd.readouterr().out


def test_a_start_that_came_to_nothing_leaves_nothing_to_the_next(
    recipe: Path, tmp_path: Path, photographs: Path
) -> None:
    """Killed before it saved; then its line is another one, of other pictures."""
    first, out = tmp_path / "first", tmp_path / "second"
    line = words("fit", "-c", recipe, "--trainer.max_steps")
    assert main([*line, "2", "--out", str(first)]) == 0
    line += words(4, "--out", out, "--ckpt_path", first / "last.ckpt")
    assert main(line) == 0
    for name in ("last.ckpt", "best.ckpt"):
        (out / name).unlink()
    shutil.copytree(photographs, tmp_path / "fewer")
    next((tmp_path / "fewer").iterdir()).unlink()
    run_folder.Metrics(out / "metrics.csv").add(1, {"train/loss": 9.0})
    assert main([*line, f"--data.path={tmp_path}/fewer"]) == 0
    assert [row["step"] for row in Metrics(out / "metrics.csv").rows] == [2, 3]


def test_a_link_to_nothing_is_named(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    for more in ((), ("--fresh",)):
        assert main(words("fit", "-c", recipe, "--out", tmp_path / "run", *more)) == 2
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and f"is a link to '{tmp_path}/gone'" in error
    assert not (tmp_path / "gone").exists()


def test_a_tilde_in_any_option_is_the_home_folder(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(recipe, tmp_path / "tiny.yaml")
    photographs = yaml.safe_load(recipe.read_text())["data"]["init_args"]["path"]
    (tmp_path / "photographs").symlink_to(photographs)
    steps = ("--trainer.max_steps", 2)
    line = words("fit", "-c", "~/tiny.yaml", "--data.path=~/photographs", "--out=~/run", *steps)
    assert main(line) == 0
    assert "finished" not in capfd.readouterr().out
    assert main(line) == 0
    assert "finished at step 2" in capfd.readouterr().out
    more = words("--ckpt_path=~/run/last.ckpt", "--data.path=~/photographs", "--out=~/seen")
    assert main(["validate", "-c", "~/tiny.yaml", *more]) == 0
    assert os.listdir() == [] and (tmp_path / "run" / "last.ckpt").exists()
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"]["init_args"]["path"] == f"{tmp_path}/photographs"


def test_what_the_system_refuses_is_one_line(
    recipe: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["fit", "-c", str(recipe), "--out", "/dev/null/run"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "'/dev/null/run" in error and "Not a directory" in error
    monkeypatch.setenv("PIXIO_CACHE", "/dev/null/cache")
    debug = words("fit", "-c", "pretrain/demo", "-c", "with/debug", "--out", tmp_path / "run")
    assert main(debug) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "'/dev/null/cache" in error and "Not a directory" in error


def test_rows_have_the_number_of_their_step(recipe: Path, tmp_path: Path) -> None:
    """Also those of validations: in an epoch of five steps, at the end, after a finished run."""
    line = ("fit", "-c", recipe)
    assert main(words(*line, "--trainer.max_steps", 4, "--out", tmp_path / "a")) == 0
    longer = ("--trainer.max_steps", 8, "--ckpt_path", tmp_path / "a/last.ckpt")
    assert main(words(*line, *longer, "--out", tmp_path / "b")) == 0
    assert main(words(*line, "--trainer.max_steps", 8, "--out", tmp_path / "c")) == 0
    for run, trained, validated in (
        ("a", range(4), {3}),
        ("b", range(4, 8), {7}),
        ("c", range(8), {4, 7}),
    ):
        rows = Metrics(tmp_path / run / "metrics.csv").rows
        assert [row["step"] for row in rows] == [*trained], run
        assert validated <= {row["step"] for row in rows if "val/loss" in row}, run
