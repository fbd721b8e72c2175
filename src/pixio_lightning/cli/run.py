"""Lightning's verbs: parse the recipe, open the run folder, train or evaluate."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_only

from pixio_lightning.cli import resume
from pixio_lightning.cli.call import call, refuse_misfit
from pixio_lightning.cli.class_lookup import import_named
from pixio_lightning.cli.lightning_cli import PixioCLI, quieten
from pixio_lightning.cli.options import Options, check_environment, parse_options
from pixio_lightning.cli.resume.chosen import (
    checkpoint_of,
    refuse_untrained,
    without_checkpoint,
)
from pixio_lightning.cli.resume.recall import introduce, recall
from pixio_lightning.cli.resume.start import (
    begun_by_this_job,
    begun_from,
    goes_on,
    note_job,
    refuse_missing,
    refuse_nothing_left,
    start_of,
    step_of,
)
from pixio_lightning.data.datamodule import StreamData
from pixio_lightning.errors import UserError, visible
from pixio_lightning.files import recover_folder, write_text
from pixio_lightning.pretraining import costs
from pixio_lightning.training import results, run_folder
from pixio_lightning.training.callbacks import EvaluationLog, MetricsLog, Preemption
from pixio_lightning.training.callbacks.progress import say
from pixio_lightning.training.callbacks.run_summary import block, outcome, plan
from pixio_lightning.training.checkpoints.checkpoint_io import local_path
from pixio_lightning.training.head import Head
from pixio_lightning.training.strategy import ShardedStrategy


def main(verb: str, argv: list[str]) -> int:
    """Run `pixio fit|validate|test|predict|check`; returns the exit code, alike in all processes.

    It is 128 and the number of the signal of a training that one has stopped.
    """
    options = parse_options(argv)
    run_folder.check_files(options.out)
    refuse_missing(options, verb)
    if options.untrained and verb in ("fit", "check"):
        raise UserError(
            "--ckpt_path none evaluates a model as it is initialised; a training starts from there "
            "by itself: leave it out, or give --fresh where a run is in the folder"
        )
    if options.fresh and verb not in ("fit", "check"):
        raise UserError(
            f"--fresh begins a training anew; pixio {verb} trains nothing: leave it out"
        )
    check_environment()
    if verb == "fit" and not options.fresh:
        run_folder.check_ours(options.out, fresh=False)
    chosen = import_named(options.configs, options.rest)
    quieten()
    if "--help" in options.rest:
        return _print_keys(options, verb, chosen)
    cli = PixioCLI(options, verb)
    if verb == "check":
        return check(cli)
    return fit(cli) if verb == "fit" else evaluate(cli)


def is_first() -> bool:
    """Whether this is the first process of a run."""
    return rank_zero_only.rank == 0


def _print_keys(options: Options, verb: str, chosen: dict[str, str]) -> int:
    """Print every key of a recipe: those that all have, and those of its model and its data."""
    parts = [[f"--{key}.help", name] for key, name in chosen.items() if name]
    for words in (["--help"], *parts):
        with suppress(SystemExit):  # how a parser ends that has printed help
            PixioCLI(options._replace(configs=[], rest=words), verb)
    if not parts:
        say("with a recipe, as in `--help-all -c depth/demo`, those of its model and data are here")
    return 0


def fit(cli: PixioCLI) -> int:
    """Train; resume if the run folder holds a run of the same configuration."""
    folder = cli.options.out
    if cli.options.fresh and begun_by_this_job(folder):
        cli.options = cli.options._replace(fresh=False)
        if cli.trainer.is_global_zero:
            say(f"this job began {folder} anew when it first started: now it goes on")
    with ExitStack() as locks:
        if cli.trainer.is_global_zero:
            run_folder.check_ours(folder, fresh=cli.options.fresh)
            locks.enter_context(run_folder.held(folder))
            if cli.options.fresh:
                _start_anew(cli)
                locks.enter_context(run_folder.held(folder))
        return _fit(cli)


def _start_anew(cli: PixioCLI) -> None:
    folder, asked = cli.options.out, cli.options.ckpt_path
    if asked and local_path(asked).resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"--fresh moves {folder} aside, and with it the checkpoint to start from, '{asked}': "
            "give another --out"
        )
    old = run_folder.set_aside(folder)
    if old:
        say(f"the earlier run is now in {old}")
    note_job(folder)


def _fit(cli: PixioCLI) -> int:
    options, config = cli.options, cli.config_dict()
    folder, primary = options.out, cli.trainer.is_global_zero
    ckpt_path = options.ckpt_path
    batch = _batch(cli)
    # All processes decide alike, though they start one after the other and the first one writes:
    # no checkpoint is saved before all of them are here, and config.yaml says nothing before that
    # any of them would refuse.
    found = [] if options.fresh else run_folder.checkpoints(folder)
    if found and ckpt_path:
        why = goes_on(folder, ckpt_path)
        if primary:
            say(why)
        cli.options = options = options._replace(ckpt_path=None)
    if found:
        _go_on(cli, config, batch, found[0])
        last = folder / "last.ckpt"
        if step := _finished_step(cli, last):
            _refuse_changed_weights(cli)
            if primary:
                title = f"{folder} finished at step {step}; --fresh starts anew"
                say(block(title, outcome(cli.model, folder)))
            return 0
        ckpt_path = str(found[0])
        if found[0] != last and primary:
            say(f"{last} is not there: it goes on from {found[0].name}")
        if primary:
            for path in found:
                recover_folder(path)

    steps, start = cli.trainer.max_steps, None
    if found:
        start = begun_from(folder)
    elif ckpt_path:
        refuse_nothing_left(ckpt_path, steps)
        start = start_of(ckpt_path, config["data"])
    introduce(cli, start)
    recall(cli, ckpt_path)

    def write() -> None:
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        about = {"recipe": " ".join(options.configs), "steps": steps, "monitor": cli.model.monitor}
        about |= {"batch": batch._asdict() if batch else None, "precision": cli.trainer.precision}
        about |= {"commit": results.commit(), "start": start}
        if not found:
            about["samples"] = None
        run_folder.write_state(folder, finished=False, trains=True, **about)

    if found:  # what is there stays true if this start comes to nothing
        started = LambdaCallback(on_train_start=lambda t, _: write() if t.is_global_zero else None)
        cli.trainer.callbacks.append(started)
    elif primary:
        write()
    if isinstance(cli.model, Head):
        cli.model.read_data_attributes(cli.datamodule)  # what it would build depends on it
    if isinstance(cli.model, Head) and not cli.model.trains:
        if primary:
            run_folder.write_state(folder, trains=False)
            say("nothing is trained: the head has no parameters and the backbone is frozen")
        cli.verb = "validate"
        return evaluate(cli)
    if primary and not found:  # of a start that came to nothing, nothing stays
        results.rewind(folder, -1)
        for logger in cli.trainer.loggers:
            if isinstance(logger, MetricsLog):
                logger.metrics.rewind(-1)
    call(cli, cli.trainer.fit, ckpt_path)
    stopped = [c for c in cli.trainer.callbacks if isinstance(c, Preemption) and c.stopping]
    return 128 + (stopped[0].signal or 0) if stopped else 0


def _finished_step(cli: PixioCLI, last: Path) -> int:
    """Return the step a run ended at; 0 if there is more to do.

    The last step is saved after all else, so its checkpoint alone says that the run is complete,
    even where it was killed before it could note that it had finished.
    """
    folder = cli.options.out
    state = run_folder.read_state(folder)
    if state.get("finished"):
        return state["step"]
    step = step_of(last) if last.exists() else 0
    if not 0 < cli.trainer.max_steps <= step:
        return 0
    if cli.trainer.is_global_zero:
        run_folder.write_state(folder, step=step, finished=True)
    return step


def _refuse_changed_weights(cli: PixioCLI) -> None:
    """Refuse to let the results of a finished run stand for weights that have changed since.

    Raises:
        UserError: It read another file than there is now under the same name.
    """
    folder, weights = cli.options.out, cli.model.backbone.weights
    lines = [line for line in results.read(folder) if line["verb"] == "fit"]
    files = results.files_read((), weights, None)
    if lines and (path := results.changed_file(lines[-1], files)):
        raise UserError(
            f"{folder} finished with another '{path}' than there is now, so its results are not of "
            "this one: --fresh starts anew, and keeps the old folder under another name"
        )


def _go_on(cli: PixioCLI, config: dict[str, Any], batch: resume.Batch | None, found: Path) -> None:
    """Refuse to go on with the run in the folder as another one, and note what is changed."""
    folder = cli.options.out
    stored = run_folder.stored_config(folder)
    if stored is None:
        raise UserError(
            f"{folder} holds {found.name} but no config.yaml, so nobody can say what it was "
            "trained with: put config.yaml back to go on, give another --out, or --fresh to start "
            "anew (the old folder is kept under another name)"
        )
    then = _stored_batch(folder, stored)
    per_step = getattr(cli.datamodule, "samples_per_step", None)
    old = cli.completed(stored)
    note = resume.check_changes(folder, old, config, then=then, now=batch, per_step=per_step)
    if note and cli.trainer.is_global_zero:
        say(note)


def _batch(cli: PixioCLI) -> resume.Batch | None:
    """Return the global batch; None where the data module does not say its part."""
    size = getattr(cli.datamodule, "batch_size", None)
    if not isinstance(size, int):
        return None
    return resume.Batch(size, cli.trainer.world_size, cli.trainer.accumulate_grad_batches)


def _stored_batch(folder: Path, stored: dict[str, Any]) -> resume.Batch | None:
    """Return the global batch of the run in a folder; None where it did not say."""
    recorded = run_folder.read_state(folder).get("batch")
    if (
        isinstance(recorded, dict)
        and recorded.keys() == set(resume.Batch._fields)
        and all(isinstance(n, int) and 0 < n < 1 << 31 for n in recorded.values())
    ):
        return resume.Batch(**recorded)
    return None


def evaluate(cli: PixioCLI) -> int:
    """Validate, test or predict with a checkpoint; by default the run folder's best."""
    folder, ckpt_path = cli.options.out, cli.options.ckpt_path
    if ckpt_path is None and cli.model.resumes:
        found = checkpoint_of(cli.options, type(cli.model))
        ckpt_path = str(found) if found else None
        if ckpt_path is None and not cli.options.untrained:
            refuse_untrained(cli.model, cli.datamodule, folder=folder, verb=cli.verb)
        if cli.trainer.is_global_zero:
            say(f"checkpoint: {ckpt_path or without_checkpoint(cli.model)}")
    if cli.taken and cli.trainer.is_global_zero:
        say(cli.taken)
    introduce(cli)
    recall(cli, ckpt_path)
    if cli.verb == "predict" and cli.trainer.is_global_zero:
        (folder / "predictions/bad_files.txt").unlink(missing_ok=True)
        cli.model.note(run_folder.earlier_predictions(folder))
    logged = call(cli, getattr(cli.trainer, cli.verb), ckpt_path)
    if cli.verb == "predict":
        _await_others(cli)
    if cli.trainer.is_global_zero:
        if cli.verb == "predict":
            say(cli.model.predictions_text(folder))
        elif isinstance(cli.model, Head):
            logs = (log for log in cli.trainer.callbacks if isinstance(log, EvaluationLog))
            if (line := next(logs).recorded) is None:
                say(f"{cli.verb}: nothing was evaluated, so nothing is recorded")
            else:
                say(block(cli.verb, results.summary(line)))
                say(f"recorded in {folder / results.FILE}")
        else:
            facts = {k: f"{v:.6g}" for result in logged for k, v in result.items()}
            if facts and (protocol := getattr(cli.model, "protocol", "")):
                facts["protocol"] = protocol
            say(block(cli.verb, facts or {"nothing": "was logged"}))
        for name, reason in getattr(cli.datamodule, "bad", {}).items():
            say(f"unusable: {visible(name)} ({reason})")
        if isinstance(cli.datamodule, StreamData):
            if cli.trainer.world_size > 1 and (listed := cli.datamodule.bad_file).exists():
                say(f"{listed} lists the unusable ones of all {cli.trainer.world_size} processes")
            if left := cli.datamodule.left_out():
                say(left)
    return 0


def _await_others(cli: PixioCLI) -> None:
    """Wait for the processes that this one started: nothing that is predicted is in common.

    Not after an evaluation, as of a suite they then go on to the next one.

    Raises:
        UserError: One of them failed.
    """
    for process in getattr(cli.trainer.strategy.launcher, "procs", ()):
        # Forks, as in a notebook, were joined.
        if isinstance(process, subprocess.Popen) and (code := process.wait()):
            raise UserError(
                f"another process of this run ended with exit code {code}: see what it said last, "
                "then run the same line again"
            )


def _devices(asked: int | str | list[int]) -> int:
    """Return how many devices `trainer.devices` names; where it names none, those of this machine.

    The parser leaves what is typed as text.
    """
    if isinstance(asked, list):
        return len(asked)
    names = str(asked).strip("[] ").split(",")
    if len(names) > 1:
        return sum(bool(name.strip()) for name in names)
    return int(names[0]) if names[0].isdecimal() else max(1, torch.cuda.device_count())


def check(cli: PixioCLI) -> int:
    """Print the plan of a run without allocating it."""
    trainer, data = cli.config_init["trainer"], cli.datamodule
    if asked := cli.options.ckpt_path:
        refuse_nothing_left(asked, trainer["max_steps"])
        recall(cli, asked)
    cli.model.require_of(data)
    with torch.device("meta"):
        cli.model.decoder = cli.model.build(cli.model.backbone)
    if asked:
        refuse_misfit(cli, asked)
    devices = _devices(trainer["devices"])
    world = max(1, devices) * trainer["num_nodes"]
    accumulate, steps = trainer["accumulate_grad_batches"], trainer["max_steps"]
    batch = f"{data.batch_size} x {world} processes x {accumulate} accumulated"
    whole = data.batch_size * world * accumulate
    facts = plan(cli.model, global_batch=whole, batch=batch, steps=steps)
    size = getattr(data, "image_size", None)  # data of a plug-in may be of any size
    if isinstance(cli.model, costs.Counted) and isinstance(size, int):
        facts |= costs.plan(
            cli.model,
            size,
            precision=cli.precision,
            batch=data.batch_size,
            devices=world,
            steps=steps,
            accumulate=accumulate,
            sharded=isinstance(trainer["strategy"], ShardedStrategy),
            on_gpu=trainer["accelerator"] != "cpu",
        )
    path = str(getattr(data, "path", None) or "")
    is_place = path and getattr(data, "source", "") != "hub" and "://" not in path
    if is_place and not Path(path).expanduser().exists():
        facts["data"] = f"not looked at: '{path}' does not exist here"
    say(block("plan", facts | {"run folder": str(cli.options.out)}))
    return 0
