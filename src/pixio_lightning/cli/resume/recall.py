"""What a model is told before it runs: where it comes from, and what its checkpoint is made for."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixio_lightning.cli import recipes, resume
from pixio_lightning.cli.config_tree import in_files, typed
from pixio_lightning.cli.resume.trained_on import refuse_trained_on, run_beside
from pixio_lightning.data.sample_data import SampleData
from pixio_lightning.errors import UserError
from pixio_lightning.models.weights.students import absolute
from pixio_lightning.training import results, run_folder
from pixio_lightning.training.checkpoints.checkpoint_io import local_path, read_plain
from pixio_lightning.training.checkpoints.fill import refuse_other_model
from pixio_lightning.training.checkpoints.stored import HEADS
from pixio_lightning.training.head import Head

if TYPE_CHECKING:
    from pixio_lightning.cli.lightning_cli import PixioCLI


def introduce(cli: PixioCLI, start: dict[str, Any] | None = None) -> None:
    """Tell the model where it comes from, for its checkpoints and records.

    Args:
        cli: The run.
        start: What its state says of the checkpoint that it is begun from, if it is from one.
    """
    config = cli.config_dict()
    for _, backbone in run_folder.backbones(config["model"]):
        if backbone["weights"]:  # a checkpoint is loaded from anywhere
            backbone["weights"] = absolute(backbone["weights"])
    cli.model.config = config["model"]
    if isinstance(cli.model, Head):
        cli.model.provenance = {
            "recipe": cli.options.configs,
            # As they are now: they may change while it runs.
            "files": results.files_read(
                [recipes.find(name) for name in cli.options.configs],
                cli.model.backbone.weights,
                None,
            ),
            "overrides": cli.options.rest,
            "seed": config["seed_everything"],
            "start": start and {key: start.get(key) for key in ("path", "file", "step")},
        }


def recall(cli: PixioCLI, ckpt_path: str | None) -> None:
    """Tell a head, before it is built, what the weights that it will load are made for.

    Raises:
        UserError: The data, or what is asked of the model, contradicts it.
    """
    path = local_path(ckpt_path) if ckpt_path else None
    if path is None or not path.exists():
        return
    about = read_plain(path).get("pixio", {})
    verb = "fit" if cli.verb == "check" else cli.verb  # which plans one
    begins = verb == "fit" and cli.options.ckpt_path is not None
    if other := cli.model.other_writer(about):
        # Also where its tensors would fit, as those of two heads of depth do.
        raise UserError(
            f"checkpoint '{ckpt_path}' is one of {other}, but the recipe trains "
            f"{type(cli.model).__qualname__}: to start from its backbone, give "
            f"--model.backbone.weights {shlex.quote(str(ckpt_path))} in its place"
        )
    if verb != "fit" or begins:  # a run that goes on was compared with its own
        ways = "ask for the same, or leave --ckpt_path out to start from what you typed"
        if not begins:
            ways = (
                "ask for the same, give another --out, or --ckpt_path none to "
                f"{verb} what you typed, untrained"
            )
        model, words = cli.config_dict()["model"], cli.options.rest
        resume.check_model(words, model, about, path, trains=begins, ways=ways)
        now = cli.model.as_trained()
        if begins:  # it may begin with weights that will read something else
            now = {HEADS: now[HEADS]}
        refuse_other_model(now, about.get("as_trained", {}), ways=ways)
    if isinstance(cli.model, Head):
        if verb != "predict":  # images to predict say nothing of a head's data
            cli.model.compare(cli.datamodule, about, training=begins)
        elif isinstance(cli.datamodule, SampleData):
            files = [Path(name) for name in cli.options.configs if recipes.find(name) == Path(name)]
            asked = {*typed(cli.options.rest), *in_files(files)}  # recipes by name ask for nothing
            note = cli.datamodule.prepare_as(
                about.get("evaluation_facts", {}), {key.removeprefix("data.") for key in asked}
            )
            cli.model.note(note)
        cli.model.remember(about)
    if cli.verb in ("validate", "test") or (begins and cli.verb == "fit"):
        if path.parent.resolve() == cli.options.out.resolve():  # whose damage is told
            begun, state = run_folder.stored_config(path.parent), run_folder.read_state(path.parent)
        else:
            begun, state = run_beside(path)
        data = cli.config_dict()["data"]
        of_run, split = (begun or {}).get("data", data), "test" if cli.verb == "test" else "val"
        whose = "the run of --ckpt_path" if begins else "the run"
        refuse_trained_on(data, of_run, cli.datamodule, state, split=split, run=whose)
