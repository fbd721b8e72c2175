"""Token by attribute: what single class tokens tell, over seeds, as a page and a picture.

    for s in 0 1 2; do pixio test -c attributes/demo --out runs/attributes/demo-$s \\
        --model.backbone.weights runs/pretrain/demo-$s/last.ckpt; done
    python benchmarks/token_attributes.py runs/attributes/demo-0 runs/attributes/demo-1 ...
    python benchmarks/token_attributes.py         the page and the picture anew, from the JSON
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pages
from PIL import Image, ImageDraw, ImageFont
from scipy.optimize import linear_sum_assignment

from pixio_lightning.training import results

PAGE = Path(__file__).parent / "results" / "token_attributes.md"
CELL, LEFT, TOP, LINE = 64, 150, 30, 17  # pixels of the picture
BASELINES = ("histogram", "random_init", "shuffled")


def gather(runs: list[Path]) -> list[dict[str, Any]]:
    """Return the last evaluation of each run: its metrics, baselines and backbone."""
    kept = ("metrics", "baselines", "n", "dataset", "protocol")
    lines = [results.read(run)[-1] for run in runs]
    return [
        {name: line[name] for name in kept} | {"digest": line["backbone"]["digest"]}
        for line in lines
    ]


def table(line: dict[str, float], names: list[str], tokens: list[str]) -> np.ndarray:
    """Return the shares of variance, tokens by attributes."""
    return np.array([[line[f"{name}{token}"] for name in names] for token in tokens])


def agreement(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return how alike the tokens' specialities of two backbones are, and by chance.

    A token's speciality is what it tells more of each attribute than the tokens do on average.
    Tokens are matched one to one as fits best, and all their specialities correlated; by chance
    is the mean of the same over random tables of the same values.
    """
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)

    def best(x: np.ndarray, y: np.ndarray) -> float:
        rows, columns = linear_sum_assignment(x @ y.T, maximize=True)
        return float(np.corrcoef(x[rows].ravel(), y[columns].ravel())[0, 1])

    rng = np.random.default_rng(0)
    chance = [
        best(a, np.stack([rng.permutation(column) for column in b.T], axis=1)) for _ in range(200)
    ]
    return best(a, b), float(np.mean(chance))


def deviation(shares: np.ndarray) -> float:
    """Return the standard deviation over tokens, mean over attributes, of a table."""
    return float(shares.std(axis=0, ddof=1).mean())


def heat_map(shares: np.ndarray, rows: list[str], columns: list[str]) -> Image.Image:
    """Draw shares of variance as a table whose cells are the darker the more is explained.

    Args:
        shares: `(rows, columns)`; what is below 0 is white.
        rows: Their names, such as tokens.
        columns: Their names, such as attributes.
    """
    size = (LEFT + CELL * len(columns) + 4, TOP + LINE * 2 * len(rows) + 4)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    small = ImageFont.load_default(10)
    for number, name in enumerate(columns):
        words = name.replace("_", "\n", 1)
        at = (LEFT + CELL * number + 4, 2)
        draw.multiline_text(at, words, "black", small, spacing=1)
    for line, name in enumerate(rows):
        top = TOP + 2 * LINE * line
        draw.text((4, top + 9), name, "black", font)
        for number, share in enumerate(shares[line].tolist()):
            left = LEFT + CELL * number
            depth = min(max(share, 0.0), 1.0)
            colour = tuple(round(255 - depth * (255 - c)) for c in (24, 78, 140))
            box = (left, top, left + CELL - 2, top + 2 * LINE - 2)
            draw.rectangle(box, colour)
            draw.text(
                (left + 16, top + 9), f"{share:.2f}", "white" if depth > 0.5 else "black", font
            )
    return canvas


def page(lines: list[dict[str, Any]]) -> list[str]:
    """Draw the picture, and return the lines of the page."""
    metrics = lines[0]["metrics"]
    tokens = [
        f"_token{i}" for i in range(sum(name.startswith("explained_token") for name in metrics))
    ]
    endings = ("_patches", *tokens)
    names = [name for name in metrics if not name.endswith(endings)]
    names.remove("explained")
    names.append("explained")

    def row(title: str, values: list[list[float]]) -> str:
        stacked = np.array(values)
        cells = [f"{m:.3f}" for m in stacked.mean(axis=0)]
        if np.ptp(stacked, axis=0).any():
            cells = [
                f"{c} +- {s:.3f}" for c, s in zip(cells, stacked.std(axis=0, ddof=1), strict=True)
            ]
        return f"| {title} | " + " | ".join(cells) + " |"

    def of(line: dict[str, float], ending: str = "") -> list[float]:
        return [line[name + ending] for name in names]

    text = ["| read from | " + " | ".join(n.replace("_", " ") for n in names) + " |"]
    text.append("|---" * (len(names) + 1) + "|")
    text.append(row("mean class token", [of(line["metrics"]) for line in lines]))
    text.append(row("mean patch", [of(line["metrics"], "_patches") for line in lines]))
    best = [[max(line["metrics"][n + t] for t in tokens) for n in names] for line in lines]
    text.append(row("best single token of each", best))
    for baseline in BASELINES:
        title = baseline.replace("_", "-") + ", mean class token"
        text.append(
            row(
                title if baseline != "histogram" else "colours",
                [of(line["baselines"][baseline]) for line in lines],
            )
        )
    random = [of(line["baselines"]["random_init"], "_patches") for line in lines]
    text.append(row("random-init, mean patch", random))
    own = names[:-1]
    tables = [table(line["metrics"], own, tokens) for line in lines]
    untrained = table(lines[0]["baselines"]["random_init"], own, tokens)
    apart, of_random = ([deviation(t) for t in some] for some in (tables, [untrained]))
    text += [
        "",
        "How far the tokens of a backbone differ (deviation over tokens of what they tell,",
        f"mean over attributes), by seed: {', '.join(f'{d:.3f}' for d in apart)}; of a random one "
        f"{of_random[0]:.3f}.",
    ]
    pairs = [agreement(a, b) for a, b in itertools.combinations(tables, 2)]
    if pairs:
        text += [
            f"Their specialities, matched between seeds, correlate by "
            f"{', '.join(f'{found:.2f}' for found, _ in pairs)}; by chance "
            f"{', '.join(f'{chance:.2f}' for _, chance in pairs)}.",
        ]
    rows = [f"seed {s}, token {i}" for s in range(len(tables)) for i in range(len(tokens))]
    heat_map(np.concatenate(tables), rows, own).save(PAGE.with_suffix(".png"))
    return text


def main(runs: list[Path]) -> None:
    stored = PAGE.with_suffix(".json")
    lines = gather(runs) if runs else json.loads(stored.read_text())
    if runs:
        stored.write_text(json.dumps(lines, indent=1) + "\n")
    pages.fill(PAGE, page(lines))


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
