"""How a run is begun: from which checkpoint, by which job, and whether the same line goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pixio_lightning.cli import recipes
from pixio_lightning.cli.options import Options
from pixio_lightning.cli.resume.trained_on import trained_on_before
from pixio_lightning.data.sources import digest_of
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.training import results
from pixio_lightning.training.checkpoints.checkpoint_io import local_path, read_plain
from pixio_lightning.training.run_folder import checkpoints, read_state, write_state

# --- the checkpoint -----------------------------------------------------------------------------


def refuse_missing(options: Options, verb: str) -> None:
    """Refuse a checkpoint that is not there, before any data are made.

    Raises:
        UserError: Nothing lies there, or neither a file nor a folder.
    """
    asked = options.ckpt_path
    if not asked:
        return
    path = local_path(asked)
    if path.is_file() or path.is_dir():
        return
    may_go_on = verb == "fit" and (not options.fresh or begun_by_this_job(options.out))
    if may_go_on and _has_begun_from(options.out, path):
        return  # which is not needed any more
    if path.exists():
        raise UserError(f"--ckpt_path '{path}' is neither a file nor a folder")
    names = [p.name for p in path.parent.glob("*.ckpt")]
    hint = nearest(path.name, names) or recipes.made_by(asked)
    raise UserError(f"--ckpt_path '{asked}' does not exist{hint}")


def refuse_nothing_left(asked: str, steps: int) -> None:
    """Refuse to begin from a checkpoint that has taken all steps already.

    Args:
        asked: The checkpoint.
        steps: Of the run, in all.

    Raises:
        UserError: It has.
    """
    if 0 < steps <= (at := step_of(asked)):
        raise UserError(
            f"--ckpt_path '{asked}' is at step {at} and trainer.max_steps is {steps}: there "
            "is nothing to train; raise trainer.max_steps, or leave --ckpt_path out"
        )


def start_of(asked: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return what a state keeps of the checkpoint that a run is begun from.

    Where it lies, a hash of what its files are, its step, and what it was trained on as far as that
    is known: all as they are now, for its run may go on.

    Args:
        asked: The checkpoint.
        data: Configuration of the data that the run is to be trained on.
    """
    path = local_path(asked)
    about = {
        "path": str(path.resolve()),
        "file": digest_of(*results.files_read((), None, asked).values()),
        "step": step_of(path),
    }
    return about | trained_on_before(path, data)


def goes_on(folder: Path, asked: str) -> str:
    """Return why a line that names a checkpoint goes on with the run in a folder.

    The line of a job that is queued again is the same, and so goes on with what it has begun,
    whatever has become of the checkpoint since.

    Args:
        folder: Of a run, with a checkpoint of its own.
        asked: The checkpoint that is named.

    Raises:
        UserError: The run in the folder is another one, which nothing is to be written over.
    """
    path = local_path(asked)
    if path.resolve() == (folder / "last.ckpt").resolve():
        return f"{asked} is this run's own: it goes on from there"
    if _has_begun_from(folder, path):
        return f"the run in {folder} began from {asked}: now it goes on from last.ckpt"
    raise UserError(
        f"{folder} holds a run that did not begin from --ckpt_path '{asked}': leave --ckpt_path "
        "out to go on with it, give another --out, or --fresh to start anew (the old folder is "
        "kept under another name)"
    )


def _has_begun_from(folder: Path, checkpoint: Path) -> bool:
    """Whether the run in a folder began from a checkpoint, and has saved one of its own since."""
    start = begun_from(folder) or {}
    return start.get("path") == str(checkpoint.resolve()) and bool(checkpoints(folder))


def begun_from(folder: Path) -> dict[str, Any] | None:
    """Return what is known of the checkpoint that the run in a folder was begun from, if any."""
    return read_state(folder).get("start")


def step_of(path: str | Path) -> int:
    """Return the step of a checkpoint; 0 where it does not say."""
    return read_plain(local_path(path)).get("global_step", 0)


# --- the job ------------------------------------------------------------------------------------


def _job() -> str | None:
    """Return what the scheduler calls this job, also when it starts it again; None without one."""
    names = [os.environ.get(name, "") for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")]
    return "/".join(names) if any(names) else None


def note_job(folder: Path) -> None:
    """Record that this job has begun a folder anew."""
    if job := _job():
        write_state(folder, begun_by=job)


def begun_by_this_job(folder: Path) -> bool:
    """Whether the scheduler starts this job again, and its earlier start began the folder anew.

    The line of a job that is queued again is the same, `--fresh` included: it would lose at every
    start what it has trained. All processes come to the same end, as the first one moves nothing
    where this holds, and elsewhere they find no checkpoint either way.
    """
    counts = [os.environ.get(n, "") for n in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")]
    if not any(count.isdigit() and int(count) for count in counts):
        return False
    job = _job()
    try:
        return job is not None and read_state(folder).get("begun_by") == job
    except UserError:  # damaged: to be moved aside
        return False
