"""What `pixio` and `pixio VERB --help` print, and the verbs there are."""

from __future__ import annotations

RUN_VERBS = {
    "fit": "train; the same line again resumes",
    "validate": "evaluate on the validation split",
    "test": "evaluate on the test split",
    "predict": "write predictions to files",
    "check": "parse a recipe, build it without memory, print the plan",
}
VERBS = RUN_VERBS | {
    "runs": "list runs, and what differs between two",
    "app": "try runs on your own pictures, in the browser",
    "bench": "run a suite of recipes: a table, and a page for the browser",
    "shard": "pack a folder of images, or tar shards, into parquet shards",
    "curate": "report on scores, calibrate a keep rate, rewrite shards by it",
    "export": "write a checkpoint's encoder for other libraries",
    "heads": "list the installed heads",
    "new-head": "write a plug-in project for a head of your own",
    "recipes": "list the recipes, or those that mention a WORD",
    "cp": "copy a recipe to a file of your own",
    "doctor": "versions, devices, caches, plug-ins: what is here and what is broken",
}

FRONT_PAGE = """\
pixio: masked pixel pretraining, and one encoder shared by every task

Try first:
  pixio fit -c depth/demo --model.backbone.weights tiny
                                                   depth on the backbone that comes with it
  pixio fit -c pretrain/demo                       pretrain here in minutes, no data needed
  pixio fit -c pretrain/folder --data.path DIR     on your own images

Verbs (pixio VERB --help says more):
"""

# What a verb that runs a recipe answers to nothing at all.
NO_RECIPE = (
    "needs a recipe: `pixio VERB -c pretrain/demo` takes no data, `pixio VERB -c pretrain/folder "
    "--data.path DIR` your own images; `pixio recipes` lists them all"
)

_WHAT = {
    "fit": """\
Train, and keep in the run folder: last.ckpt and best.ckpt, metrics.csv, panels/ (pictures),
results.jsonl (evaluations), config.yaml. The same line again goes on where the run stopped, also
after Ctrl-C, and says so where it has finished.
""",
    "validate": """\
Evaluate best.ckpt of the run folder, or --ckpt_path, on the validation split; a head adds a line to
results.jsonl there.
""",
    "test": """\
Evaluate best.ckpt of the run folder, or --ckpt_path, on the test split; a head adds a line to
results.jsonl there.
""",
    "predict": """\
Write what best.ckpt of the run folder, or --ckpt_path, makes of every image of --data.path, into
predictions/ in the run folder (scores/ for curation/score), under the name of the image.
""",
    "check": """\
Parse the recipe, build the model without memory and print the plan: parameters, batch, learning
rate, steps, run folder. Data are named as for fit, and need not be there yet. Exit code 2 when the
recipe is wrong, or what is typed beside it. `pixio fit -c RECIPE -c with/debug` takes two steps.
""",
}
# An option, what it does, and the verbs that have it; None: all.
_OPTIONS: tuple[tuple[str, str, str | None], ...] = (
    ("-c, --config NAME", "a recipe by name or a YAML file; repeatable, the later wins", None),
    ("--out DIR", "the run folder; default runs/RECIPE", None),
    ("--fresh", "start anew in a folder that holds a run, which is kept under another name", "fit"),
    ("--ckpt_path PATH", "go on from this checkpoint, in a folder of its own", "fit check"),
    (
        "--ckpt_path PATH",
        "this one; none: the model as initialised",
        "validate test predict",
    ),
    ("--model.backbone.name N", "pixio_vit{t,s,b,l,h,1b,5b}16 or the name of a timm ViT", None),
    ("--model.backbone.weights W", "a path, hf:ORG/NAME, tiny, timm, random or random:SEED", None),
    ("--data.path P", "the data", None),
    ("--data.batch_size N", "images per device and step", "fit check"),
    ("--data.val_batch_size N", "images per device and batch", "validate test"),
    (
        "--data.val_batch_size N",
        "images per device and batch; 1 where sizes differ",
        "predict",
    ),
    ("--trainer.max_steps N", "length of the training in optimiser steps", "fit check"),
    ("--trainer.devices N", "GPUs, or CPU processes", None),
    ("--print_config", "print the complete configuration and exit", None),
    ("--help-all", "every key; with -c RECIPE, those of its model and data too", None),
    ("--model.help CLASS", "the keys of a class, as Depth; data: --data.help", None),
)


def run_page(verb: str) -> str:
    """Return what `pixio VERB --help` prints for a verb that runs a recipe."""
    options = "".join(
        f"  {name:<28} {what}\n" for name, what, verbs in _OPTIONS if verb in (verbs or verb)
    )
    return (
        f"usage: pixio {verb} -c RECIPE [-c OVERLAY ...] [options]\n\n{_WHAT[verb]}\n{options}\n"
        f"Examples:\n  pixio {verb} -c pretrain/demo\n  pixio {verb} -c pretrain/folder "
        f"--data.path DIR\n  pixio {verb} -c my.yaml -c with/debug\n"
    )
