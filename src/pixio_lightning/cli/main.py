"""`pixio`: light verbs are answered here at once, training verbs are handed on.

Importing torch and Lightning takes seconds, so nothing in this file does: help, lists and mistakes
that can be seen from the words alone cost a tenth of a second.
"""

from __future__ import annotations

import errno
import os
import select
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from pixio_lightning import __version__
from pixio_lightning.cli import help_pages, recipes
from pixio_lightning.cli.help_pages import VERBS
from pixio_lightning.cli.light_parser import LightParser
from pixio_lightning.cli.options import parse_options, refuse_stray
from pixio_lightning.errors import UserError, nearest, out_of_memory, visible_lines
from pixio_lightning.files import expanded, plugins


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`, by default the process's own, and return its exit code.

    A mistake of the user, and what the system refuses, is one line on standard error and code 2,
    an interrupt is code 130.
    """
    try:
        try:
            return _dispatch(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()  # here, not at exit, where a lost reader cannot be handled
    except UserError as error:
        return _failed(f"{error}{recipes.way_out(error)}")
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, what a shell reports
    except BrokenPipeError:
        if not _reader_is_gone():  # a pipe of the run itself, between processes: a real failure
            raise
        _drop_output()
        return 141  # 128 + SIGPIPE, as of any program in `... | head`
    except (ConnectionError, ChildProcessError, ProcessLookupError):
        raise  # between processes, and none of the user's files
    except OSError as error:
        if error.errno is None:  # of a library, for which it need not be about a file
            raise
        return _failed(_refusal(error))
    except (MemoryError, RuntimeError) as error:
        if not (text := out_of_memory(error)):
            raise
        return _failed(f"{text}: end what else uses it, or ask for less at once")


def _failed(message: str) -> int:
    print(f"pixio: error: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # the output itself is what cannot be written
        _drop_output()
    return 2


def _refusal(error: OSError) -> str:
    """Say which file the system refused, and why."""
    reason = error.strerror or str(error)
    where = f"'{os.fsdecode(error.filename)}': " if isinstance(error.filename, (str, bytes)) else ""
    advice = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "; free some where --out, PIXIO_CACHE and TMPDIR are, then run the same line again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "; give a place that may be written to, such as another --out or PIXIO_CACHE"
    return f"{where}{reason}{advice}"


def _drop_output() -> None:
    # What is still buffered would fail once more when the interpreter flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(help_pages.FRONT_PAGE, end="")
        _print_rows([(f"  {verb}", sentence) for verb, sentence in VERBS.items()])
        return 0
    if argv[0] == "--version":
        print(f"pixio-lightning {__version__}")
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        raise UserError(_no_verb(argv))
    light = {
        **{"heads": heads, "recipes": list_recipes, "cp": copy, "doctor": doctor, "app": app},
        **{"new-head": new_head, "bench": bench, "shard": shard, "curate": curate, "runs": runs},
        "export": export,
    }
    if verb in light:
        return light[verb](rest)
    if {"-h", "--help"} & set(rest):
        print(help_pages.run_page(verb), end="")
        return 0
    if not rest:
        raise UserError(f"{verb} {help_pages.NO_RECIPE}".replace("VERB", verb))
    refuse_stray(verb, rest)
    for name in parse_options(rest).configs:  # a misspelt name need not wait for torch to be told
        recipes.find(name)
    # Read when torch is loaded. Threads that spin while they wait for one another take the cores of
    # data workers and of other programs: beside one such, two threads are seven times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pixio_lightning.cli import run

    code = run.main(verb, rest)
    return code if run.is_first() else 0  # or Lightning kills the first one while it still ends


def _no_verb(argv: list[str]) -> str:
    """Say what is wrong with a command line that does not begin with a verb."""
    if argv[0][:1] != "-":
        return f"unknown verb '{argv[0]}' (there are {', '.join(VERBS)}){nearest(argv[0], VERBS)}"
    later = [at for at, word in enumerate(argv) if word in VERBS]
    if not later:
        return "no verb given, as in `pixio fit -c pretrain/demo`; `pixio` lists the verbs"
    # Right after an option it may well be that option's value.
    alone = [at for at in later if argv[at - 1][:1] != "-" or "=" in argv[at - 1]]
    at = (alone or later)[0]
    return f"the verb comes first: pixio {shlex.join([argv[at], *argv[:at], *argv[at + 1 :]])}"


def heads(argv: list[str]) -> int:
    """`pixio heads`: name, sentence, import path and origin of every installed head."""
    LightParser(
        "pixio heads", description="List the installed heads; none is imported."
    ).parse_args(argv)
    found = plugins.installed(plugins.HEADS)
    _print_rows([(p.name, f"{p.summary} · {p.target} · {p.origin}") for p in found])
    if not found:
        print(
            "No heads are installed. They arrive with distributions: `pip install pixio-lightning`"
            " (in a checkout `pip install -e .`)\nbrings the built-in ones, a plug-in adds its own"
            f" through the entry-point group {plugins.HEADS}."
        )
    return 0


def list_recipes(argv: list[str]) -> int:
    """`pixio recipes [WORD]`: name, summary and promises of the recipes that mention WORD."""
    parser = LightParser("pixio recipes", description="List the recipes, read from their headers.")
    parser.add_argument("word", nargs="?", default="", help="show only recipes that mention it")
    word = parser.parse_args(argv).word
    rows = []
    everything = recipes.all_recipes()
    for recipe in everything:
        summary, fields = recipes.header(recipe.path)
        if word.lower() in " ".join([recipe.name, summary, *fields.values()]).lower():
            shown = [f"{key}: {fields[key]}" for key in ("reproduces", "expect") if key in fields]
            origin = [] if recipe.origin == recipes.BUILT_IN else [f"from {recipe.origin}"]
            rows.append((recipe.name, " · ".join([summary, *shown, *origin])))
    if not everything:
        raise UserError(f"no recipes in {', '.join(str(root.path) for root in recipes.roots())}")
    if not rows:
        names = {part for recipe in everything for part in recipe.name.replace("/", "_").split("_")}
        raise UserError(f"no recipe mentions '{word}'{nearest(word, names)}")
    _print_rows(rows)
    return 0


def copy(argv: list[str]) -> int:
    """`pixio cp RECIPE DEST`: copy a recipe to a new file, or into a folder."""
    parser = LightParser("pixio cp", description="Copy a recipe to a file of your own.")
    parser.add_argument("recipe", type=expanded, help="a recipe by name or path")
    parser.add_argument(
        "destination",
        type=expanded,
        help="a folder, or a file (.yaml is added); never overwritten",
    )
    options = parser.parse_args(argv)
    source = recipes.find(options.recipe)
    destination = Path(options.destination)
    if destination.is_dir():
        destination /= source.name
    elif destination.suffix not in recipes.SUFFIXES:
        destination = destination.with_name(f"{destination.name}.yaml")
    try:
        with destination.open("xb") as file:
            file.write(source.read_bytes())
    except FileExistsError:
        raise UserError(
            f"'{destination}' exists and is not overwritten; give another name"
        ) from None
    print(f"wrote {destination}; use it with `-c {destination}`")
    return 0


def bench(argv: list[str]) -> int:
    """`pixio bench SUITE [--out DIR] [options]` or `pixio bench --compare A B`."""
    parser = LightParser(
        "pixio bench",
        description="Run the recipes of a suite, a file or one of ours by name; print one table.",
        usage="pixio bench SUITE [options, also of every run] | pixio bench --compare A B",
    )
    parser.add_argument("--data", action="append", default=[], metavar="N=DIR", help="or N=none")
    parser.add_argument("--backbones", metavar="A,B", help="weights, or recipes of backbone/")
    parser.add_argument("--out", type=expanded, help="where the runs go; default runs/bench/SUITE")
    about = "folders of two suites, or of two runs"
    parser.add_argument("--compare", nargs=2, type=expanded, metavar=("A", "B"), help=about)
    options, words = parser.parse_known_args(argv)
    from pixio_lightning.cli import bench as suites

    if options.compare:
        if words:
            parser.error(f"unrecognized arguments: {' '.join(words)}")
        if options.data or options.backbones or options.out:
            parser.error("--compare prints what there is: it takes no --data, --backbones or --out")
        print(visible_lines(suites.compare(*map(Path, options.compare))))
        return 0
    # Not an argument of the parser, which would take the value of a run's option for it.
    if not words or words[0][:1] == "-":
        raise UserError("bench needs a suite first, as in `pixio bench demo`")
    suite, *words = words
    del options.compare
    return suites.main(words, suite=expanded(suite), **vars(options))


def runs(argv: list[str]) -> int:
    """`pixio runs [DIR]`: the runs below a folder; `--diff A B`: what differs between two."""
    parser = LightParser(
        "pixio runs",
        description="List the runs below a folder, the newest first: how far each got, its last "
        "and its best metric, its size.",
    )
    parser.add_argument("folder", nargs="?", type=expanded, help="default: runs")
    about = "print the keys in which the configurations of two runs differ"
    parser.add_argument("--diff", nargs=2, type=expanded, metavar=("A", "B"), help=about)
    options = parser.parse_args(argv)
    if options.diff and options.folder:
        parser.error(f"--diff takes two runs and no folder: leave '{options.folder}' out")
    from pixio_lightning.cli import runs as found

    if options.diff:
        print(visible_lines(found.difference(*map(Path, options.diff))))
    else:
        print(found.listed(Path(options.folder or "runs")))
    return 0


def shard(argv: list[str]) -> int:
    """`pixio shard SOURCE OUT`: pack images into parquet shards with an index; or `--verify`."""
    from pixio_lightning.data.shards.command import USAGE
    from pixio_lightning.data.shards.command import main as packing

    return packing(LightParser("pixio shard", description=packing.__doc__ or "", usage=USAGE), argv)


def curate(argv: list[str]) -> int:
    """`pixio curate SHARDS --scores DIR`: report, calibrate, materialize."""
    from pixio_lightning.curation.report import main as curation

    return curation(LightParser("pixio curate", description=curation.__doc__ or ""), argv)


def export(argv: list[str]) -> int:
    """`pixio export CHECKPOINT [--to FORM] [--out PATH]`."""
    parser = LightParser(
        "pixio export",
        description="Write the encoder of a checkpoint in the form another library reads, as in "
        "`pixio export runs/pretrain/demo --to timm`; --to onnx writes a head with its encoder, "
        "too; safetensors has the decoder of pretraining in a second file. A README says what is "
        "inside, how it was trained and how to load it.",
        usage="pixio export CHECKPOINT [--to FORM] [--out PATH] [options]",
    )
    about = "a run folder (its best checkpoint, else the last), a checkpoint (FILE:STUDENT of "
    about += "several students), an exported file, hf:ORG/NAME[@REVISION] or tiny"
    parser.add_argument("checkpoint", type=expanded, help=about)
    forms = ("safetensors", "transformers", "timm", "onnx")
    parser.add_argument("--to", default=forms[0], choices=forms, help="default: safetensors")
    about = "file or folder; default: here, named as the checkpoint"
    parser.add_argument("--out", metavar="PATH", type=expanded, help=about)
    about = "of weights of your own, as Apache-2.0; others keep theirs"
    parser.add_argument("--licence", metavar="NAME", help=about)
    types = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=types, help="of tensors; default: as they are stored")
    about = "side of images, of onnx and timm; default: the model's own"
    parser.add_argument("--image-size", metavar="N", type=int, help=about)
    about = "of a head for onnx whose frozen backbone is not where it was, or would have to be "
    about += "fetched: a path, hf:ORG/NAME or timm"
    parser.add_argument("--weights", metavar="SOURCE", type=expanded, help=about)
    options = parser.parse_args(argv)
    from pixio_lightning.cli import export as exports

    return exports.main(options)


def app(argv: list[str]) -> int:
    """`pixio app [RUN ...]`: a page in the browser."""
    from pixio_lightning.cli.app.server import main as page

    return page(LightParser("pixio app", description=page.__doc__ or ""), argv)


def new_head(argv: list[str]) -> int:
    """`pixio new-head NAME [--dir D]`: write a plug-in project."""
    parser = LightParser("pixio new-head", description="Write a plug-in project for a new head.")
    parser.add_argument("name", help="lower-case letters, digits and underscores")
    parser.add_argument(
        "--dir", default=".", type=expanded, help="where to make the folder; default: here"
    )
    options = parser.parse_args(argv)
    from pixio_lightning.cli.new_head import create

    project = create(options.name, Path(options.dir))
    print(
        f"wrote {project}; next:\n"
        f"  pip install -e '{project}[test]'\n"
        f"  pixio fit -c {options.name}/demo -c with/debug\n"
        f"  pytest {project}"
    )
    return 0


def doctor(argv: list[str]) -> int:
    """`pixio doctor [--imports]`: report on this installation; 1 when something is broken."""
    parser = LightParser("pixio doctor", description="Say what is here and what is broken.")
    parser.add_argument("--imports", action="store_true", help="import every plug-in, apart (slow)")
    options = parser.parse_args(argv)
    from pixio_lightning.cli.doctor import examine

    return examine(imports=options.imports)


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and texts in two columns; texts wrap on a terminal, one line each elsewhere."""
    terminal = shutil.get_terminal_size((0, 0)).columns
    indent = max((len(name) for name, _ in rows), default=0) + 2
    width = max(terminal, indent + 30)  # a column of text below 30 is hard to read
    wrap = textwrap.TextWrapper(width, subsequent_indent=" " * indent, break_on_hyphens=False)
    for name, text in rows:
        line = f"{name:<{indent}}{text}"
        print(wrap.fill(line) if terminal else line)


def _reader_is_gone() -> bool:
    """Tell whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLERR)
    return bool(poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
