"""How many labels pretraining is worth: error over labelled scenes, from scratch and pretrained.

    the three backbones of demo_seeds.yaml, then
    python benchmarks/labels.py depth            trains what results/labels_depth.jsonl lacks
    python benchmarks/labels.py depth --draw     the page and its chart, from that file

Every cell is a run of its own: the recipe of the task on so many scenes of two views, judged on the
recipe's held-out scenes after the last step. A frozen backbone has the recipe's linear head, or a
larger one: DPT of maps, an attentive probe of classes. Of ways that train this or the backbone,
each has the best of three rates for it on 64 scenes with another seed; what trains as long
as pretraining has that of the shorter run. A rate is chosen on the held-out scenes that all cells
are judged on, which favours those ways a little over the linear heads.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import child_run
import numpy as np
import pages
import yaml
from line_chart import Line, draw

from pixio_lightning.training import results

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/labels")
RECIPES = Path(__file__).parents[1] / "recipes"
LABELS = (16, 64, 256, 1024)
SEEDS = (0, 1, 2)
SEARCH_SEED = 3  # of the runs that choose a rate
# Rates of the backbone, and of a larger head, as shares of the recipe's, the linear head's. With
# all of it DPT is best on 64 scenes and falls to the most frequent class on 16.
RATES = (0.03, 0.1, 0.3)


class Steps(NamedTuple):
    """Of a head alone, of a backbone with it, and of one trained for as long as pretraining too."""

    head: int
    tuned: int
    long: int


class Larger(NamedTuple):
    """A larger head for a frozen backbone: its name, and the words that ask for it."""

    name: str
    words: tuple[str, str]


class Task(NamedTuple):
    """A recipe, its metric, which end of it is better, what looks at nothing, scenes and steps."""

    recipe: str
    metric: str
    better: str
    baseline: str
    scenes: str
    steps: Steps
    larger: Larger

    @property
    def lr(self) -> float:
        """Rate of the recipe's linear head."""
        recipe = yaml.safe_load((RECIPES / f"{self.recipe}.yaml").read_text())
        return float(recipe["model"]["init_args"]["optim"]["lr"])


# 3600 steps of pretraining on 32 images, whose encoder sees a quarter of the patches, take the
# operations of 1300 that train the backbone on all of them.
_MAPS = Steps(800, 600, 1900)
_SIZES = "{features: 16, stages: [16, 16, 16, 16]}"  # wider ones take many times as long
_DPT = ("--model.decoder", f"{{class_path: DPTDecoder, init_args: {_SIZES}}}")
DPT = Larger("DPT", _DPT)
_STUDIOS = "{{train: {labels}, held_out: 300, views: 2, size: 64, places: [studio]}}"
TASKS = {
    "depth": Task("depth/demo", "abs_rel", "lower", "median_map", _STUDIOS, _MAPS, DPT),
    "segmentation": Task(
        "segmentation/demo", "miou", "higher", "majority_map", _STUDIOS, _MAPS, DPT
    ),
    # Of all kinds of place, in batches of twice as many images.
    "classification": Task(
        *("classification/demo", "top1", "higher", "majority"),
        "{{train: {labels}, held_out: 500, views: 2, size: 64}}",
        Steps(1200, 300, 950),
        Larger("attentive", ("--model.pool", "attentive")),
    ),
}


class Way(NamedTuple):
    """How labels are used: what the backbone starts from, and which of the steps are taken."""

    weights: str
    steps: Literal["head", "tuned", "long"]
    larger: bool = False

    @property
    def tuned(self) -> bool:
        return self.steps != "head"

    @property
    def rates(self) -> tuple[float, ...]:
        """Those that the best is chosen of; the linear head has the recipe's."""
        return RATES if self.larger or self.tuned else ()


_PRETRAINED = "runs/pretrain/demo-{backbone}/last.ckpt"
SCRATCH, LONG = "from scratch", "from scratch, and as long as pretraining"


def ways(task: Task) -> dict[str, Way]:
    """Return the ways to use labels of a task, in the order of the page."""
    return {
        "random-init, linear": Way("random:{seed}", "head"),
        "pretrained, linear": Way(_PRETRAINED, "head"),
        f"random-init, {task.larger.name}": Way("random:{seed}", "head", larger=True),
        f"pretrained, {task.larger.name}": Way(_PRETRAINED, "head", larger=True),
        SCRATCH: Way("random:{seed}", "tuned"),
        LONG: Way("random:{seed}", "long"),
        "pretrained, tuned": Way(_PRETRAINED, "tuned"),
    }


def words(task: Task, cell: Cell) -> list[str]:
    """Return the command line of a cell, without its folder."""
    way, seed = ways(task)[cell.way], cell.seed
    line = ["fit", "-c", task.recipe, "--data.scenes", task.scenes.format(labels=cell.labels)]
    backbone = seed if seed in SEEDS else SEEDS[0]
    line += ["--model.backbone.weights", way.weights.format(seed=seed, backbone=backbone)]
    line += ["--seed_everything", str(seed), "--data.seed", str(seed), "--model.seed", str(seed)]
    steps = str(getattr(task.steps, way.steps))
    line += ["--trainer.max_steps", steps, "--data.steps_per_epoch", steps]
    line += ["--panels.every_n_steps", "0", "--data.num_workers", "0"]
    line += ["--trainer.num_sanity_val_steps", "0"]
    if way.tuned:
        line += ["--model.backbone.tune", "full", "--model.cache", "false"]
        line += ["--model.optim.backbone_lr_scale", str(cell.rate)]
    if way.larger:
        line += [*task.larger.words, "--model.optim.lr", f"{cell.rate * task.lr:g}"]
    return line


class Cell(NamedTuple):
    """A run: its way, how many labelled scenes it has, its seed, its rate as a share."""

    way: str
    labels: int
    seed: int
    rate: float = 0.0


_KEPT = threading.Lock()


def run(task: Task, path: Path, cell: Cell) -> None:
    """Run a cell in its folder and keep what was found."""
    name = "-".join(str(part).replace(" ", "_").replace(",", "") for part in cell)
    out = RUNS / path.stem / name
    took = child_run.run(words(task, cell), out)
    record = results.read(out)[-1]
    entry: dict[str, Any] = cell._asdict() | {"value": record["metrics"][task.metric]}
    entry["baseline"] = record["baselines"][task.baseline][task.metric]
    with _KEPT:
        pages.keep(path, entry | {"cpu_s": round(took)})


def found(path: Path) -> dict[Cell, float]:
    """Return the metric of every cell that was run."""
    kept = pages.stored(path)
    return {Cell(*(entry[name] for name in Cell._fields)): entry["value"] for entry in kept}


def run_missing(task: Task, path: Path, cells: list[Cell], jobs: int) -> None:
    known = found(path)
    child_run.several([partial(run, task, path, cell) for cell in cells if cell not in known], jobs)


def fill(task: Task, path: Path, seeds: list[int], jobs: int) -> None:
    """Run the cells that are missing, those that choose a rate first."""
    own = ways(task)
    searched = {name: way.rates for name, way in own.items() if way.rates and name != LONG}
    search = [Cell(name, 64, SEARCH_SEED, r) for name, rates in searched.items() for r in rates]
    run_missing(task, path, search, jobs)
    values, better = found(path), min if task.better == "lower" else max
    best = {
        name: better(rates, key=lambda rate: values[Cell(name, 64, SEARCH_SEED, rate)])  # noqa: B023
        for name, rates in searched.items()
    }
    best[LONG] = best[SCRATCH]
    cells = [Cell(n, count, s, best.get(n, 0.0)) for s in seeds for count in LABELS for n in own]
    cells.sort(key=lambda cell: cell.way == LONG)  # they take half of the time, and come last
    run_missing(task, path, cells, jobs)


def rows(task: Task, path: Path) -> Iterator[tuple[str, int, list[float]]]:
    """Yield a way, a number of labels, and the values of the seeds that were run."""
    values = found(path)
    for name, way in ways(task).items():
        for labels in LABELS:
            # Rates that were tried beside these are told in words.
            wanted = {Cell(name, labels, s, r) for s in SEEDS for r in way.rates or [0.0]}
            own = {cell: value for cell, value in values.items() if cell in wanted}
            if len({cell.rate for cell in own}) > 1:
                raise SystemExit(f"{path} has {name} at several rates: take out those not chosen")
            if own:
                yield name, labels, list(own.values())


def page(task: Task, path: Path) -> None:
    """Write the table between the marks of the page, and its chart beside it."""
    lines: dict[str, Line] = {name: Line([], [], []) for name in ways(task)}
    table = [f"| {task.metric} ({task.better} is better) | " + " | ".join(map(str, LABELS)) + " |"]
    table.append("|---" * (len(LABELS) + 1) + "|")
    cells: dict[str, dict[int, str]] = {name: {} for name in ways(task)}
    for name, labels, values in rows(task, path):
        cells[name][labels] = pages.said(values) + ("" if values[1:] else " (1)")
        lines[name].add(labels, values)
    for name, own in cells.items():
        if own:
            table.append(f"| {name} | " + " | ".join(own.get(n, "") for n in LABELS) + " |")
    entries = pages.stored(path)
    base = [
        [e["baseline"] for e in entries if e["labels"] == n and e["seed"] in SEEDS] for n in LABELS
    ]
    means = [f"{np.mean(values):.3f}" if values else "" for values in base]
    table.append(f"| {task.baseline.replace('_', ' ')} | " + " | ".join(means) + " |")
    hours = sum(entry.get("cpu_s", 0) for entry in entries) / 3600
    table += ["", f"CPU time of all runs: {hours:.1f} hours of one core."]
    table += ["", "Ways that train a larger head or the backbone take the best of three rates"]
    table += ["on 64 scenes, as the held-out scenes say that all ways are judged on, which"]
    table += ["favours them a little. The longest training takes the rate of the shorter one."]
    pages.fill(path.with_suffix(".md"), table)
    lines = {name: line for name, line in lines.items() if line.x}
    draw(path.with_suffix(".png"), lines, x="labelled scenes", y=task.metric)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on one thread each")
    parser.add_argument("--draw", action="store_true", help="run nothing")
    wanted = parser.parse_args()
    path = RESULTS / f"labels_{wanted.task}.jsonl"
    if not wanted.draw:
        fill(TASKS[wanted.task], path, wanted.seeds, wanted.jobs)
    page(TASKS[wanted.task], path)


if __name__ == "__main__":
    main()
