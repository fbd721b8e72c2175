"""The words of a command line that are ours: recipes, run folder, checkpoint. Imports no torch."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pixio_lightning.cli import recipes
from pixio_lightning.errors import UserError, nearest
from pixio_lightning.files import expanded


class Options(NamedTuple):
    """The words of a command line that are ours, and all others.

    Attributes:
        configs: Recipes by name or path, the later wins.
        out: Run folder.
        fresh: Whether to start anew.
        ckpt_path: Checkpoint to resume from or to evaluate, or None.
        untrained: Whether the model is to be evaluated as it is initialised, `--ckpt_path none`.
        print_config: Whether the configuration is printed, and nothing done.
        rest: What LightningCLI parses.
    """

    configs: list[str]
    out: Path
    fresh: bool
    ckpt_path: str | None
    untrained: bool
    print_config: bool
    rest: list[str]


def parse_options(argv: list[str]) -> Options:
    """Take our own options out of a command line.

    Raises:
        UserError: An option lacks its value, or has one that it does not take.
    """
    parser = argparse.ArgumentParser("pixio", add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[], type=expanded)
    parser.add_argument("--out", type=expanded)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--ckpt_path", type=expanded)
    parser.add_argument("--print_config", action="store_true")
    parser.exit_on_error = False
    try:
        known, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        said = str(error).replace("ignored explicit argument", "it takes no value, leave out")
        raise UserError(said) from None
    rest = ["--help" if word == "--help-all" else word for word in rest]
    out = Path(known.out) if known.out else Path("runs") / folder_name(known.config)
    untrained = known.ckpt_path == "none"
    ckpt_path = None if untrained else known.ckpt_path
    return Options(
        configs=known.config,
        out=out,
        fresh=known.fresh,
        ckpt_path=ckpt_path,
        untrained=untrained,
        print_config=known.print_config,
        rest=rest,
    )


def refuse_stray(verb: str, argv: list[str]) -> None:
    """Refuse a word that no option takes, such as a recipe without `-c`.

    Raises:
        UserError: The first such word is named.
    """
    for before, word in pairwise(["", *parse_options(argv).rest]):
        if word.startswith("-") or (before.startswith("-") and "=" not in before):
            continue
        begin = f"'{word}' stands where no option takes it"
        names = [recipe.name for recipe in recipes.all_recipes()]
        if word in names or Path(word).is_file():
            at = argv.index(word)
            line = shlex.join(["pixio", verb, *argv[:at], "-c", *argv[at:]])
            raise UserError(f"{begin}, did you mean `{line}`?")
        raise UserError(
            f"{begin}: a recipe is named by -c, and a value with spaces is quoted"
            f"{nearest(word, names)}"
        )


def folder_name(configs: list[str]) -> str:
    """Name a run folder after its recipes: `pretrain/demo+debug`."""
    names = [Path(c).stem if c.endswith(recipes.SUFFIXES) else c for c in configs]
    first = [name for name in names if not name.startswith(recipes.OVERLAYS)][:1] or ["run"]
    overlays = [name.split("/")[-1] for name in names if name != first[0]]
    return "+".join([first[0], *overlays])


def check_environment() -> None:
    """Refuse what launchers say of a process's place where it is no number.

    Raises:
        UserError: The variable is named.
    """
    tasks, per_node = (os.environ.get(f"SLURM_NTASKS{end}") for end in ("", "_PER_NODE"))
    by_srun = os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    by_srun = by_srun and "TORCHELASTIC_RUN_ID" not in os.environ  # torchrun divides its own
    if tasks not in (None, "1") and not per_node and by_srun:
        raise UserError(
            f"SLURM gives {tasks} tasks by --ntasks, which Lightning does not divide among nodes: "
            "ask for #SBATCH --ntasks-per-node=N instead, with trainer.devices N, and start by srun"
        )
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_PORT"):
        value = os.environ.get(name, "0")
        if not re.fullmatch("[0-9]{1,9}", value):
            raise UserError(
                f"the environment variable {name} is {value!r:.40}, but expected a number: unset "
                "it, or start the run by torchrun or srun, which set it"
            )
