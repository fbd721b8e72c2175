"""Do Pixio's changes to MAE pay at this size, and from which budget on?

    python benchmarks/ablation.py [--budgets 0.25 1] [--seeds 0 1 2]
    python benchmarks/ablation.py --rows MAE "+ curation" --budgets 4     these rows alone
    python benchmarks/ablation.py --variants [--seeds 0 1 2]     of mask ratio and decoder depth
    python benchmarks/ablation.py --accelerator gpu --batch 256 --budgets 1 4 16 --jobs 5
    python benchmarks/ablation.py --draw            the page and its chart, from the lines kept

From MAE on, one change at a time is added: a decoder as deep as the encoder for one of a quarter of
it, blocks of 2x2 patches for single ones, four class tokens for one, and a curated stream for an
even one. `--variants` changes one number of MAE's row: the share that is hidden, or the decoder's
blocks. A budget of 1 is what `pretrain/demo_paper` spends on its 76,800 images, in operations,
and every row spends the same: what a shallower decoder saves, it sees in images. All else is the
demo's, but the images, which are of all kinds of place. What the scorer of the curated stream took
is not counted.

Every cell is judged as scene_judge.py says, and the judged encoder is kept in its folder. The same
line again trains what is missing.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections import defaultdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import child_run
import pages
import torch
from line_chart import Line, draw
from scene_judge import judged, opened, views

from pixio_lightning import Backbone, PixelPretraining
from pixio_lightning.data import Scenes
from pixio_lightning.models.mae_decoder import DecoderSize
from pixio_lightning.models.weights.export import export
from pixio_lightning.models.weights.read import read
from pixio_lightning.pretraining.costs import costs_of

RESULTS = Path(__file__).parent / "results"
LINES = RESULTS / "ablation.jsonl"
RUNS = Path("runs/ablation")
IMAGES = 76_800  # of the last row, for a budget of 1
SCENES: dict[str, Any] = {"train": 4000, "held_out": 300, "views": 2, "size": 64, "places": None}
ENCODER = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
WORLD = "all"
CHARTED = 32  # the batch of the chart, which is the demo's
DEVICES = {"cpu": "cpu", "gpu": "cuda"}


class Row(NamedTuple):
    """What is pretrained."""

    decoder_depth: int
    mask_grid: int
    class_tokens: int
    curated: bool = False
    mask_ratio: float = 0.75


ROWS = {
    "MAE": Row(1, 1, 1),
    "+ deep decoder": Row(4, 1, 1),
    "+ block masks": Row(4, 2, 1),
    "+ class tokens": Row(4, 2, 4),
    "+ curation": Row(4, 2, 4, curated=True),
}
ENDS = ("MAE", "+ curation")
MAE = ROWS["MAE"]
_HIDDEN = {
    f"MAE, {ratio:.1%} hidden": MAE._replace(mask_ratio=ratio) for ratio in (0.5, 0.625, 0.875)
}
_DECODERS = {
    f"MAE, decoder of {depth} blocks": MAE._replace(decoder_depth=depth) for depth in (2, 8)
}
# The last one in the end, as folders are numbered.
VARIANTS = _HIDDEN | _DECODERS | {"MAE, 93.8% hidden": MAE._replace(mask_ratio=0.9375)}
ALL = ROWS | VARIANTS


class Cell(NamedTuple):
    """A pretraining: its row, its budget, and its seed."""

    row: str
    budget: float
    seed: int

    @property
    def name(self) -> str:
        return f"{list(ALL).index(self.row)}-{self.budget:g}x-{self.seed}"


class How(NamedTuple):
    """How pretrainings are run: images in a step, the device, and data workers of each."""

    batch: int
    accelerator: str
    workers: int

    @property
    def folder(self) -> Path:
        return RUNS / f"batch-{self.batch}"


SCORER = Cell("+ class tokens", 1, 0)
_KEPT = threading.Lock()  # lines, and the judge's memory
_SCORED = threading.Lock()
_RUNNING: defaultdict[Cell, threading.Lock] = defaultdict(threading.Lock)


@cache
def operations(row: Row) -> float:
    """Return those of a training step on one image."""
    args = ENCODER | {"n_cls_tokens": row.class_tokens, "pos_init": "sincos"}
    backbone = Backbone("pixio_vitt16", weights="random", tune="full", model_args=args)
    decoder = DecoderSize(64, row.decoder_depth, 4)
    model = PixelPretraining(
        backbone, mask_grid=row.mask_grid, mask_ratio=row.mask_ratio, decoder=decoder
    )
    with torch.device("meta"):
        model.configure_model()
    return costs_of(model, ENCODER["img_size"]).operations


def steps(cell: Cell, batch: int) -> int:
    share = operations(ROWS[SCORER.row]) / operations(ALL[cell.row])
    return round(IMAGES / batch * cell.budget * share)


def words(cell: Cell, how: How) -> list[str]:
    """Return the command line of a cell, without its folder."""
    row, count, seed = ALL[cell.row], str(steps(cell, how.batch)), str(cell.seed)
    line = ["fit", "-c", "pretrain/demo", "--data.batch_size", str(how.batch), *on_device(how)]
    line += ["--seed_everything", seed, "--data.seed", seed, "--model.seed", seed]
    line += ["--model.decoder.depth", str(row.decoder_depth)]
    line += ["--model.mask_grid", str(row.mask_grid), "--model.mask_ratio", str(row.mask_ratio)]
    line += ["--model.backbone.model_args.n_cls_tokens", str(row.class_tokens)]
    line += ["--trainer.max_steps", count, "--data.steps_per_epoch", count]
    line += ["--trainer.num_sanity_val_steps", "0", "--panels.every_n_steps", "0"]
    line += ["--checkpoint.every_n_steps", "1000"]
    if row.curated:
        kept = {"scores": str(how.folder / "scores"), "fraction": 0.5}
        line += ["--data.curation", json.dumps(kept | {"min_entropy": 0, "min_side": 0})]
    return line


def on_device(how: How) -> list[str]:
    line = ["--trainer.accelerator", how.accelerator, "--data.num_workers", str(how.workers)]
    return [*line, "--data.scenes", json.dumps(SCENES)]


def finished(batch: int) -> set[Cell]:
    kept = [entry for entry in pages.stored(LINES) if entry["batch"] in (0, batch)]
    return {Cell(entry["row"], entry["budget"], entry["seed"]) for entry in kept}


def judge(cell: Cell, how: How, backbone: Backbone | None, **facts: Any) -> None:
    """Keep what was found of a cell; nothing was trained for those of a budget of nought."""
    entry = {"batch": how.batch if cell.budget else 0, **cell._asdict(), **facts}
    found = judged(backbone, [WORLD], device=DEVICES[how.accelerator])
    pages.keep(LINES, entry | found)


def score(how: How) -> None:
    """Score the images for the curated stream, once, after its scorer is trained."""
    with _SCORED:
        scores = how.folder / "scores"
        if scores.is_dir():
            return
        pretrain(SCORER, how)
        weights = how.folder / SCORER.name / "last.ckpt"
        child_run.run(words(SCORER, how), weights.parent)  # judged elsewhere, or stopped halfway
        line = ["predict", "-c", "curation/demo", "--model.backbone.weights", str(weights)]
        out = how.folder / "scoring"
        child_run.run([*line, "--data.batch_size", "500", *on_device(how)], out)
        (out / "scores").rename(scores)


def pretrain(cell: Cell, how: How) -> None:
    """Train a cell, judge it, and keep what was found and the encoder."""
    with _RUNNING[cell]:  # the scorer is asked for twice
        if cell in finished(how.batch):
            return
        if ALL[cell.row].curated:
            score(how)
        out = how.folder / cell.name
        took = child_run.run(words(cell, how), out)
        with _KEPT:
            encoder = out / "encoder.safetensors"
            encoder.unlink(missing_ok=True)
            weights = read(str(out / "last.ckpt"))
            export(weights._replace(decoder={}), "safetensors", encoder)
            backbone = opened(str(encoder)).to(DEVICES[how.accelerator])
            about = {"steps": steps(cell, how.batch), "accelerator": how.accelerator}
            judge(cell, how, backbone, **about, cpu_s=round(took))


def baselines(how: How) -> None:
    """Judge what nothing was trained for: pixels, and encoders of random weights."""
    args = ENCODER | {"n_cls_tokens": 4, "pos_init": "sincos"}
    for cell in (Cell("pixels", 0, 0), *(Cell("random-init", 0, seed) for seed in range(3))):
        if cell not in finished(how.batch):
            with _KEPT:
                backbone = opened(f"random:{cell.seed}", args).to(DEVICES[how.accelerator])
                judge(cell, how, None if cell.row == "pixels" else backbone)


def cells(rows: list[str] | None, budgets: list[float], seeds: list[int]) -> list[Cell]:
    """Return the cells in their order; where no rows are asked for, of a budget of 16 the ends.

    Those of a budget of 16 have two seeds, and those of the first come first, as they take the
    longest.
    """
    long_rows, short_rows = rows or [*ENDS], rows or [*ROWS]
    long = [Cell(n, b, s) for b in budgets if b >= 16 for s in seeds[:2] for n in long_rows]
    short = [Cell(n, b, s) for b in budgets if b < 16 for s in seeds for n in short_rows]
    first = len(long_rows)
    return [*long[:first], *short, *long[first:]]


# --- the page -----------------------------------------------------------------------------------

TOLD = {"depth, all": "depth", "classes, all": "classes of patches"}
TOLD |= {"attributes, all": "attributes", "place k-NN, all": "place, k-NN"}
TOLD |= {"depth, all, grey": "depth, grey", "classes, all, grey": "classes, grey"}


def page() -> None:
    """Write the table between the marks of the page, and its charts beside it."""
    entries = pages.stored(LINES)
    groups = pages.grouped(entries, "batch", "budget", "row")
    order = ["pixels", "random-init", *ALL]
    table = ["| batch | budget | | " + " | ".join(TOLD.values()) + " | seeds |"]
    table.append("|---" * (len(TOLD) + 4) + "|")
    for key in sorted(groups, key=lambda k: (*k[:2], order.index(k[2]))):
        found = " | ".join(pages.said([entry[name] for entry in groups[key]]) for name in TOLD)
        batch, budget = (f"{part:g}" if part else "" for part in key[:2])
        table.append(f"| {batch} | {budget} | {key[2]} | {found} | {len(groups[key])} |")
    hours = sum(entry.get("cpu_s", 0) for entry in entries) / 3600
    table += ["", f"CPU time of all pretrainings: {hours:.1f} hours of one core."]
    pages.fill(LINES.with_suffix(".md"), table)
    units = {"depth": "depth, variance explained", "classes": "classes of patches, accuracy"}
    for name, unit in units.items():
        lines = {row: Line([], [], []) for row in ROWS}
        for (batch, budget, row), group in sorted(groups.items(), key=lambda item: item[0][1]):
            if batch == CHARTED and row in ROWS:
                lines[row].add(budget, [entry[f"{name}, {WORLD}"] for entry in group])
        if drawn := {row: line for row, line in lines.items() if line.x}:
            x = "operations spent, as parts of the demo's"
            draw(RESULTS / f"ablation_{name}.png", drawn, x=x, y=unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    named = "; ".join(ALL).replace("%", "%%")
    parser.add_argument("--rows", nargs="+", choices=ALL, metavar="ROW", help=f"of: {named}")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.25, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=CHARTED, help="images in a step")
    parser.add_argument("--jobs", type=int, default=1, help="pretrainings at a time")
    parser.add_argument("--workers", type=int, default=0, help="data workers of each")
    parser.add_argument("--accelerator", choices=DEVICES, default="cpu")
    parser.add_argument("--draw", action="store_true", help="train nothing")
    parser.add_argument("--variants", action="store_true", help="those of MAE, of a budget of 1")
    wanted = parser.parse_args()
    how = How(wanted.batch, wanted.accelerator, wanted.workers)
    if not wanted.draw:
        torch.set_num_threads(1)
        how.folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):  # before several processes ask for them
            Scenes(**SCENES).shards(split)
        for split in ("train", "test"):
            views(WORLD, split)
        for row in ALL.values():  # counted here, as it is done with hooks of all modules
            operations(row)
        known = finished(how.batch)
        if wanted.variants:
            wanted.rows, wanted.budgets = [*VARIANTS], [1]
        asked = cells(wanted.rows, wanted.budgets, wanted.seeds)
        missing = [cell for cell in asked if cell not in known]
        calls = [partial(baselines, how), *(partial(pretrain, cell, how) for cell in missing)]
        child_run.several(calls, wanted.jobs)
    page()


if __name__ == "__main__":
    main()
