"""What a second process is worth: images a second, and bytes that the processes exchange.

Trains the recipe pretrain/demo for some steps with one process and with two on this machine, each
on one thread and with the same batch. The bytes are those that the loopback device has counted, so
nothing else should talk over it meanwhile.

Run: python benchmarks/scaling.py [--steps N] [--rounds N] [--out FILE.json]   (Linux)
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

DDP = {"gradient_as_bucket_view": True, "static_graph": True}
FORMS: dict[str, dict[str, Any] | None] = {  # arguments of the strategy
    "1 process": None,
    "2 processes": DDP,
}


def loopback() -> int:
    """Return the bytes that the loopback device has sent so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (counts,) = [line.split(":")[1].split() for line in lines if line.strip().startswith("lo:")]
    return int(counts[8])


def run(strategy: dict[str, Any] | None, steps: int) -> tuple[float, float]:
    """Train; return images a second and bytes sent a step.

    Raises:
        SystemExit: The run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pixio_lightning", "fit", "-c", "pretrain/demo"]
        command += ["--trainer.max_steps", str(steps), "--trainer.log_every_n_steps", str(steps)]
        command += ["--trainer.limit_val_batches", "0", "--panels.every_n_steps", "0"]
        command += ["--data.num_workers", "0", "--out", f"{folder}/run"]
        if strategy is not None:
            overlay = Path(folder) / "two.yaml"
            chosen = {"class_path": "DDPStrategy", "init_args": strategy}
            overlay.write_text(json.dumps({"trainer": {"devices": 2, "strategy": chosen}}))
            command += ["-c", str(overlay)]
        before = loopback()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        speed = re.search(r"img/s (\d+)", done.stdout)
        if done.returncode or not speed:
            raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return float(speed[1]), (loopback() - before) / steps


def main() -> None:
    """Train every form in turns, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMS}
    for _ in range(options.rounds):
        for name, strategy in FORMS.items():
            found[name].append(run(strategy, options.steps))
    figures: dict[str, Any] = {}
    alone = [speed for speed, _ in found["1 process"]]
    print(f"pretrain/demo, one thread a process, {options.rounds} rounds in turns")
    print("| | images a second | of one process | sent a step |\n|---|---|---|---|")
    for name, values in found.items():
        speed, sent = (median(column) for column in zip(*values, strict=True))
        ratio = median(a / b for (a, _), b in zip(values, alone, strict=True))
        figures[name] = {"images a second": speed, "ratio": ratio, "bytes a step": sent}
        print(f"| {name} | {speed:.0f} | {ratio:.2f} | {sent / 1e6:.2f} MB |")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
