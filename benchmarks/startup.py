"""How long commands take before they do anything: seconds of CPU time, and by the clock.

Every command runs in a process of its own, in turns; the first round, which fills the file cache,
does not count. Beside them stands what importing torch and Lightning takes alone.

Run: python benchmarks/startup.py [--rounds N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

PIXIO = [sys.executable, "-m", "pixio_lightning"]
COMMANDS = {
    "pixio": PIXIO,
    "pixio recipes": [*PIXIO, "recipes"],
    "pixio heads": [*PIXIO, "heads"],
    "import torch, lightning": [sys.executable, "-c", "import torch, lightning"],
    "pixio check -c depth/demo": [*PIXIO, "check", "-c", "depth/demo"],
    "pixio check -c pretrain/vit5b16_web": [*PIXIO, "check", "-c", "pretrain/vit5b16_web"],
}
KEYS = {  # what a recipe needs to be planned
    "pixio check -c depth/demo": ["--model.backbone.weights", "random"],
    "pixio check -c pretrain/vit5b16_web": ["--data.source", "scenes", "--data.path", "null"],
}


def run(command: list[str]) -> tuple[float, float]:
    """Run a command; return the seconds of CPU time and of the clock that it took.

    Raises:
        SystemExit: It failed.
    """
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    after = os.times()
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    return spent, time.perf_counter() - start


def main() -> None:
    """Run every command, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for number in range(-1, options.rounds):
        for name, command in COMMANDS.items():
            times = run(command + KEYS.get(name, []))
            if number >= 0:
                taken[name].append(times)
    figures: dict[str, Any] = {}
    print("| command | CPU time | clock |\n|---|---|---|")
    for name, rounds in taken.items():
        cpu, clock = (median(values) for values in zip(*rounds, strict=True))
        figures[name] = {"cpu": cpu, "clock": clock}
        print(f"| `{name}` | {cpu:.2f} s | {clock:.2f} s |")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
