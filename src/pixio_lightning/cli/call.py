"""A call of Lightning's trainer: what goes wrong becomes one line, and no worker outlives it."""

from __future__ import annotations

import traceback
import warnings
from contextlib import suppress
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pixio_lightning.cli import resume
from pixio_lightning.cli.lightning_cli import PixioCLI
from pixio_lightning.cli.resume.processes import SameStart
from pixio_lightning.data.workers import child_signal_kept, end_workers, worker_failure
from pixio_lightning.errors import UserError, out_of_memory, printable
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.training.callbacks.preemption import is_preempted
from pixio_lightning.training.checkpoints.checkpoint_io import local_path, read_plain
from pixio_lightning.training.strategy import lost_process


def call(cli: PixioCLI, verb: Any, ckpt_path: str | None) -> Any:
    """Call a verb of the trainer; returns what it does, or None of a run that was pre-empted.

    Args:
        cli: The run.
        verb: `fit`, `validate`, `test` or `predict` of its trainer.
        ckpt_path: What is restored; None for nothing.

    Raises:
        UserError: The checkpoint does not fit, a process was lost, memory ran out, or Lightning
            finds a mistake.
    """
    arguments = {"verbose": False} if cli.verb in ("validate", "test") else {}
    if cli.verb == "predict":
        arguments = {"return_predictions": False}
    cli.trainer.callbacks.append(SameStart(ckpt_path))
    with child_signal_kept():
        return _called(cli, verb, ckpt_path, arguments)


def _called(cli: PixioCLI, verb: Any, ckpt_path: str | None, arguments: dict[str, bool]) -> Any:
    ended = False
    try:
        found = verb(
            cli.model,
            datamodule=cli.datamodule,
            ckpt_path=ckpt_path,
            weights_only=True,
            **arguments,
        )
        ended = True
        return found
    except (UserError, OSError):
        end_workers()
        raise
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except Exception as error:
        if failure := _no_memory(cli, error) or lost_process(error) or worker_failure(error):
            end_workers()
            raise failure from error
        if isinstance(error, ValueError) and _is_of_lightning(error):
            end_workers()
            raise UserError(" ".join(str(error).split())) from error
        if not ckpt_path or not resume.while_restoring(error):
            raise
        end_workers()
        text = " ".join(str(error).split())
        if "Error(s) in loading state_dict" in text:
            raise UserError(_misfit(ckpt_path, text)) from None
        raise UserError(
            f"checkpoint '{ckpt_path}' cannot be restored, as a part is missing or of another kind "
            f"({type(error).__name__}: {text})"
        ) from error
    except SystemExit as exit_:  # how Lightning ends an interrupted run
        if is_preempted(cli.trainer):
            end_workers()
            return None
        if isinstance(exit_.code, int) and exit_.code > 128:  # of Preemption, before the first step
            raise
        if cli.trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        # Lightning skips this after an exception, and processes would outlive their use. What was
        # never set up may fail to be taken down: why the run ended is said all the same.
        for part in () if ended else (cli.datamodule, cli.model):
            with suppress(Exception):
                part.teardown(cli.verb)


def _no_memory(cli: PixioCLI, error: Exception) -> UserError | None:
    """Return what to do about memory that ran out; None of any other error."""
    text = out_of_memory(error)
    if not text:
        return None
    advice = []
    per_step, training = getattr(cli.datamodule, "batch_size", None), cli.verb == "fit"
    counts_batches = any(isinstance(cli.config_init["trainer"][key], int) for key in resume.COUNTED)
    if training and isinstance(per_step, int) and per_step % 2 == 0 and not counts_batches:
        parts = 2 * cli.trainer.accumulate_grad_batches
        words = f"--data.batch_size {per_step // 2} --trainer.accumulate_grad_batches {parts}"
        advice.append(f"{words} (the same global batch)")
    trained = [m for m in cli.model.modules() if isinstance(m, Backbone) and not m.frozen]
    if training and cli.model.backbone in trained and not cli.model.backbone.checkpointing:
        advice.append("--model.backbone.checkpointing true")
    elif training and any(not backbone.checkpointing for backbone in trained):
        advice.append("checkpointing true of the students' backbones")
    alone = cli.verb == "predict" and getattr(cli.datamodule, "predict_batch_size", None) == 1
    if hasattr(cli.datamodule, "val_batch_size") and not alone:
        advice.append("a lower --data.val_batch_size" + " (of evaluations)" * training)
    advice.append("a device that nothing else uses")
    return UserError(f"{text}: run the same line again with {', or '.join(advice)}")


def _is_of_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised an error: of an option of its trainer."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").startswith("lightning.")


def refuse_misfit(cli: PixioCLI, ckpt_path: str) -> None:
    """Refuse a checkpoint whose tensors a model that is only planned does not have, or otherwise.

    Args:
        cli: The run, its model on the meta device, with its decoder.
        ckpt_path: The checkpoint; of a sharded one only the whole model would tell.

    Raises:
        UserError: It does not fit.
    """
    stored, own = read_plain(local_path(ckpt_path)).get("state_dict"), cli.model.state_dict()
    if stored is None:
        return
    if cli.model.backbone.frozen:  # which no checkpoint holds
        stored = {key: own[key] for key in own if key.startswith("backbone.")} | stored
    try:
        with warnings.catch_warnings(action="ignore"):  # that nothing is copied
            cli.model.load_state_dict(stored)
    except RuntimeError as error:
        raise UserError(_misfit(ckpt_path, " ".join(str(error).split()))) from None


def _misfit(ckpt_path: str, text: str) -> str:
    return f"checkpoint '{ckpt_path}' does not fit the model: {printable(text, limit=600)}"
