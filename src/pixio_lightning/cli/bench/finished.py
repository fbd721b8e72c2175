"""Which rows of a suite have run already, and whether their results still stand for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixio_lightning.cli import recipes
from pixio_lightning.cli.config_tree import parsed, typed
from pixio_lightning.cli.options import parse_options
from pixio_lightning.errors import UserError
from pixio_lightning.models.weights.students import absolute
from pixio_lightning.training import results
from pixio_lightning.training.run_folder import read_state


def has_run(folder: Path, verb: str) -> bool:
    """Whether a run has finished; one that trains nothing has, once it is evaluated."""
    trained = verb == "fit" and read_state(folder).get("finished")
    return bool(trained) or any(
        line["verb"] == verb and (verb != "fit" or line["checkpoint"] == "untrained")
        for line in results.read(folder)
    )


def last_result(folder: Path, verb: str | None = None) -> dict[str, Any]:
    """Return the evaluation of a training's last step, or the last one that `verb` has made.

    Args:
        folder: Of a run.
        verb: None for what the folder is of: a training, or a checkpoint's evaluation.

    Raises:
        UserError: There is none: a training was stopped after its last evaluation, or is not at its
            end.
    """
    every = results.read(folder)
    if verb is None:
        verbs = ["fit", *(line["verb"] for line in every)]
        verb = "fit" if "fit" in verbs[1:] or read_state(folder) else verbs[-1]
    lines = [
        line
        for line in every
        # A training's own: `validate` of the same folder may be of other weights.
        if line["verb"] == verb and (verb != "fit" or line["checkpoint"] != "best")
    ]
    if not lines:
        raise UserError(f"{folder} holds no result of its last step: run it to its end")
    last, step = lines[-1], read_state(folder).get("step")
    # A training that ends by itself evaluates its last step, of whatever number that is; one that a
    # signal stops saves the step that it has come to and evaluates no more.
    if verb == "fit" and last["checkpoint"] == "running" and last["steps"] != step:
        at = f"stopped at step {step}" if step else "was stopped"
        raise UserError(
            f"{folder} {at} and holds no result of its last step, as it was evaluated at step "
            f"{last['steps']}: run it to its end"
        )
    return last


def ended_early(folder: Path, line: dict[str, Any]) -> str:
    """Return what to say of a training that ended before its number of steps; empty of others.

    Args:
        folder: Of the run.
        line: Its result.
    """
    steps = read_state(folder).get("steps")
    if line["verb"] != "fit" or line["checkpoint"] != "running" or not isinstance(steps, int):
        return ""
    early = f"its training ended at step {line['steps']} of {steps}, as by trainer.max_time"
    return early if steps > 0 else ""


def refuse_stale(
    out: Path, line: dict[str, Any], words: list[str], checkpoint: str | None = None
) -> None:
    """Refuse a finished run of another recipe, other keys, another checkpoint or earlier weights.

    Its result would stand for theirs.

    Args:
        out: Folder of the run.
        line: Its result.
        words: The line that would be run now.
        checkpoint: What would be evaluated; None for a model as it is initialised, and a training.

    Raises:
        UserError: It is one.
    """
    way_out = "remove it, or name another --out"
    options, ran = parse_options(words), typed(line["overrides"] or [])
    now, recipe = typed(options.rest), line.get("recipe")
    if isinstance(recipe, list) and [*map(_recipe, recipe)] != [*map(_recipe, options.configs)]:
        raise UserError(
            f"'{out}' was run with -c {' -c '.join(map(str, recipe))}, but now "
            f"-c {' -c '.join(options.configs)} is given: {way_out}"
        )
    for key in dict.fromkeys([*now, *ran]):
        if not _alike(ran.get(key), now.get(key)):
            was, given = (f"'{x[key]}'" if key in x else "its recipe's" for x in (ran, now))
            raise UserError(f"'{out}' was run with {key} {was}, but now it is {given}: {way_out}")
    evaluated = line.get("checkpoint_path")
    if absolute(evaluated or "") != absolute(checkpoint or ""):
        was, given = (f"checkpoint '{x}'" if x else "untrained" for x in (evaluated, checkpoint))
        raise UserError(f"'{out}' was run with {was}, but now {given} is given: {way_out}")
    weights = line["backbone"]["weights"]
    files = [recipes.find(name) for name in options.configs]
    if file := results.changed_file(line, results.files_read(files, weights, checkpoint)):
        raise UserError(f"'{out}' was run with another '{file}' than there is now: {way_out}")


def _recipe(name: object) -> str:
    """Return a recipe by its name, or by where its file is."""
    path = Path(str(name)).expanduser()
    return str(path.resolve()) if path.is_file() else str(name).removesuffix(".yaml")


def _alike(ran: object, now: object) -> bool:
    """Whether two values are the same; the name of a class may be written out."""
    short, long = sorted((str(ran), str(now)), key=len)
    if short.isidentifier() and short[0].isupper() and long.endswith(f".{short}"):
        return True
    ran, now = (parsed(value) if isinstance(value, str) else value for value in (ran, now))
    return ran == now
