"""How many labels pretraining is worth: error over labelled scenes, from scratch and pretrained.

    the three backbones of demo_seeds.yaml, then
    python benchmarks/labels.py depth            trains what results/labels_depth.jsonl lacks
    python benchmarks/labels.py depth --draw     the page and its chart, from that file

Every cell is a run of its own: the recipe of the task on so many scenes of two views, judged on the
recipe's held-out scenes after the last step. Of ways that train the backbone, each has the best of
three rates for it on 64 scenes with a seed of its own. It is chosen on the held-out scenes that
all cells are judged on, which favours those ways a little over the ones that train the head alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import child_run
import numpy as np
import pages
from line_chart import Line, draw

from pixio_lightning.training import results

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/labels")
LABELS = (16, 64, 256, 1024)
SEEDS = (0, 1, 2)
# Rates of the backbone as shares of the head's, 1e-2.
RATES = (0.03, 0.1, 0.3)


class Task(NamedTuple):
    """A recipe, its metric, and which end of it is better."""

    recipe: str
    metric: str
    better: str
    baseline: str


TASKS = {
    "depth": Task("depth/demo", "abs_rel", "lower", "median_map"),
    "segmentation": Task("segmentation/demo", "miou", "higher", "majority_map"),
}


class Way(NamedTuple):
    """A way to use the labels: what the backbone starts from, whether it is trained, how long."""

    weights: str
    tuned: bool
    steps: int


_PRETRAINED = "runs/pretrain/demo-{seed}/last.ckpt"
# 2400 steps of pretraining, whose encoder sees a quarter of the patches, take the operations of
# 1300 steps that train the backbone on all of them.
WAYS = {
    "random-init, linear": Way("random:{seed}", False, 800),
    "pretrained, linear": Way(_PRETRAINED, False, 800),
    "from scratch": Way("random:{seed}", True, 600),
    "from scratch, and as long as pretraining": Way("random:{seed}", True, 1900),
    "pretrained, tuned": Way(_PRETRAINED, True, 600),
}


def words(task: Task, way: Way, labels: int, seed: int, rate: float) -> list[str]:
    """Return the command line of a cell, without its folder."""
    line = ["fit", "-c", task.recipe, "--data.scenes", _SCENES.format(labels=labels)]
    line += ["--model.backbone.weights", way.weights.format(seed=seed)]
    line += ["--seed_everything", str(seed), "--data.seed", str(seed), "--model.seed", str(seed)]
    line += ["--trainer.max_steps", str(way.steps), "--data.steps_per_epoch", str(way.steps)]
    line += ["--panels.every_n_steps", "0", "--data.num_workers", "0"]
    line += ["--trainer.num_sanity_val_steps", "0"]
    if way.tuned:
        line += ["--model.backbone.tune", "full", "--model.cache", "false"]
        line += ["--model.optim.backbone_lr_scale", str(rate)]
    return line


_SCENES = "{{train: {labels}, held_out: 300, views: 2, size: 64, places: [studio]}}"


def value(task: Task, path: Path, way: str, labels: int, seed: int, rate: float) -> float:
    """Return the metric of a cell, which is run if it was not."""
    cell = {"way": way, "labels": labels, "seed": seed, "rate": rate}
    for entry in pages.stored(path):
        if all(entry[name] == wanted for name, wanted in cell.items()):
            return entry["value"]
    line = words(task, WAYS[way], labels, seed, rate)
    name = "-".join(str(part).replace(" ", "_").replace(",", "") for part in cell.values())
    took = child_run.run(line, RUNS / path.stem / name)
    record = results.read(RUNS / path.stem / name)[-1]
    found = record["metrics"][task.metric]
    baseline = record["baselines"][task.baseline][task.metric]
    entry = cell | {"value": found, "baseline": baseline, "cpu_s": round(took)}
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    print(json.dumps(entry), flush=True)
    return found


def fill(task: Task, path: Path) -> None:
    """Run the cells that are missing: all ways at one number of labels before the next."""
    best = min if task.better == "lower" else max
    rates = {
        name: best(RATES, key=lambda rate: value(task, path, name, 64, 3, rate))  # noqa: B023
        for name, way in WAYS.items()
        if way.tuned
    }
    for seed in SEEDS:
        for labels in LABELS:
            for name in WAYS:
                value(task, path, name, labels, seed, rates.get(name, 0.0))


def rows(path: Path) -> Iterator[tuple[str, int, list[float]]]:
    """Yield a way, a number of labels, and the values of the seeds that were run."""
    entries = [entry for entry in pages.stored(path) if entry["seed"] in SEEDS]
    for name in WAYS:
        for labels in LABELS:
            own = [e for e in entries if e["way"] == name and e["labels"] == labels]
            if own:
                yield name, labels, [e["value"] for e in own]


def page(task: Task, path: Path) -> None:
    """Write the table between the marks of the page, and its chart beside it."""
    lines: dict[str, Line] = {name: Line([], [], []) for name in WAYS}
    table = [f"| {task.metric} ({task.better} is better) | " + " | ".join(map(str, LABELS)) + " |"]
    table.append("|---" * (len(LABELS) + 1) + "|")
    cells: dict[str, dict[int, str]] = {name: {} for name in WAYS}
    for name, labels, values in rows(path):
        mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if values[1:] else 0.0
        cells[name][labels] = f"{mean:.3f} +- {spread:.3f}" if values[1:] else f"{mean:.3f} (1)"
        for part, number in zip(lines[name], (labels, mean, spread), strict=True):
            part.append(number)
    for name, own in cells.items():
        table.append(f"| {name} | " + " | ".join(own.get(n, "") for n in LABELS) + " |")
    entries = pages.stored(path)
    base = [
        [e["baseline"] for e in entries if e["labels"] == n and e["seed"] in SEEDS] for n in LABELS
    ]
    means = [f"{np.mean(values):.3f}" if values else "" for values in base]
    table.append(f"| {task.baseline.replace('_', ' ')} | " + " | ".join(means) + " |")
    hours = sum(entry["cpu_s"] for entry in entries) / 3600
    table += ["", f"CPU time of all runs: {hours:.1f} hours of one core."]
    table += ["", "Of ways that train the backbone, its rate is the best of three on 64 scenes, as"]
    table += ["the held-out scenes say that all are judged on: it favours these ways a little."]
    pages.fill(path.with_suffix(".md"), table)
    lines = {name: line for name, line in lines.items() if line.x}
    draw(path.with_suffix(".png"), lines, x="labelled scenes", y=task.metric)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--draw", action="store_true", help="run nothing")
    wanted = parser.parse_args()
    path = RESULTS / f"labels_{wanted.task}.jsonl"
    if not wanted.draw:
        fill(TASKS[wanted.task], path)
    page(TASKS[wanted.task], path)


if __name__ == "__main__":
    main()
