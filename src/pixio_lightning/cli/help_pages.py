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
    "bench": "run a suite of recipes and print one table",
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
  pixio fit -c pretrain/demo                       a small run on this machine, no data needed
  pixio fit -c pretrain/folder --data.path DIR     pretrain on your own images
  pixio fit -c depth/demo --model.backbone.weights runs/pretrain/demo/last.ckpt
                                                   depth on the backbone that the first run trained

Verbs (pixio VERB --help says more):
"""

RUN_PAGE = """\
usage: pixio {verb} -c RECIPE [-c OVERLAY ...] [options]

{sentence}.

  -c, --config NAME            a recipe by name or a YAML file; repeatable, the later wins
  --out DIR                    the run folder; default runs/RECIPE
  --fresh                      fit: start anew in a folder that holds a run
  --ckpt_path PATH             resume from, or evaluate, this one; none: evaluate untrained
  --print_config               print the complete configuration and exit
  --model.backbone.name N      pixio_vit{{t,s,b,l,h,1b,5b}}16 or the name of a timm ViT
  --model.backbone.weights W   a path, hf:ORG/NAME, timm, random or random:SEED
  --data.path P                the data
  --data.batch_size N          images per device and step
  --trainer.max_steps N        fit: length of the training in optimiser steps
  --trainer.devices N          GPUs, or CPU processes
  --help-all                   every key of every part, with its default

Examples:
  pixio {verb} -c pretrain/demo
  pixio {verb} -c pretrain/folder --data.path DIR
  pixio {verb} -c my.yaml -c with/debug
"""

CHECK_PAGE = """\
usage: pixio check -c RECIPE [-c OVERLAY ...] [--run] [options of fit]

Parse the recipe, build the model on the meta device (no memory, no data) and print the plan:
parameters, batch, learning rate, steps, output folder. Exit code 2 when the recipe is wrong.

  --run                        also run two steps on the embedded scenes, on the CPU

Example: pixio check -c my.yaml --trainer.devices 8
"""

EXPORT_PAGE = """\
usage: pixio export CHECKPOINT [--to safetensors|transformers|timm] [--out PATH]

Write the encoder of a checkpoint in the form another library reads.

  CHECKPOINT                   a checkpoint of a run, an exported file or hf:ORG/NAME
  --to FORM                    safetensors (the default), transformers or timm
  --out PATH                   file or folder; default: here, named as the checkpoint

Example: pixio export runs/pretrain/demo/last.ckpt --to timm
"""
