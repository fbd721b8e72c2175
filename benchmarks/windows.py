"""What evaluating an image window by window costs, inside the image and over its border.

Published dense protocols lay windows of 256 pixels 170 apart from the top left, so that the last
ones reach over the border and are filled up with zeros. Windows that are spread evenly inside need
fewer. Both are encoded by the same backbone, in turns; printed are windows and seconds of an image.

Run: python benchmarks/windows.py [--backbone NAME] [--rounds N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pixio_lightning import Backbone
from pixio_lightning.models.sliding_window import Mean, cut

WINDOW, STRIDE, AT_ONCE = 256, 170, 8
IMAGES = {"NYUv2": (480, 640), "ADE20K": (512, 683), "VOC": (375, 500), "KITTI": (352, 1216)}


def seconds(backbone: Backbone, images: torch.Tensor, *, inside: bool) -> tuple[float, int]:
    """Return the seconds that an image takes, and its number of windows."""
    height, width = images.shape[-2:]
    start, windows = time.process_time(), 0
    mean = Mean(len(images), (height, width), window=WINDOW, stride=STRIDE, blend=inside)
    with torch.inference_mode():
        for pieces in cut(images, window=WINDOW, stride=STRIDE, at_once=AT_ONCE, inside=inside):
            patches = backbone(pieces).layers[-1].patches[:, :1]
            mean.add(torch.nn.functional.interpolate(patches, (WINDOW, WINDOW)))
            windows += len(pieces)
        mean.result()
    return time.process_time() - start, windows


def main() -> None:
    """Measure every size, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="pixio_vits16")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = Backbone(options.backbone, weights="random")
    backbone.load()
    backbone.eval()
    figures: dict[str, Any] = {}
    print(f"{options.backbone}, windows of {WINDOW} px at most {STRIDE} apart, one thread")
    print("| image | over the border | inside | faster |\n|---|---|---|---|")
    for name, size in IMAGES.items():
        images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
        taken: dict[bool, list[float]] = {False: [], True: []}
        counts = {}
        for _ in range(options.rounds):
            for inside, times in taken.items():
                spent, counts[inside] = seconds(backbone, images, inside=inside)
                times.append(spent)
        ratio = median(a / b for a, b in zip(taken[False], taken[True], strict=True))
        row = {
            "over the border": {"windows": counts[False], "seconds": median(taken[False])},
            "inside": {"windows": counts[True], "seconds": median(taken[True])},
            "ratio": ratio,
        }
        figures[f"{name} {size[1]}x{size[0]}"] = row
        cells = [
            f"{counts[inside]} windows, {median(taken[inside]):.2f} s" for inside in (False, True)
        ]
        print(f"| {name}, {size[1]}x{size[0]} | {' | '.join(cells)} | {ratio:.2f} |")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
