"""Every measurement of speed, one after the other: figures, a page and a chart in results/.

Each script runs in a process of its own and writes benchmarks/results/speed/NAME.json; the page
has the tables as they were printed. The machine should have nothing else to do.

Run: python benchmarks/speed.py [--peers DIR] [NAME ...]   (`make bench`; ten minutes on two cores)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

HERE = Path(__file__).parent
PAGE, FIGURES = HERE / "results" / "speed.md", HERE / "results" / "speed"
SCRIPTS = {  # what is measured, and the script's arguments
    "pretrain_step": ("A step of pretraining, beside other libraries'", []),
    "data_path": ("Loading photographs", []),
    "scaling": ("Two processes", []),
    "cached_probe": (
        "Probing a frozen backbone, features computed once",
        ["--backbone", "pixio_vits16", "--decoder", "linear", "dpt-s"],
    ),
    "windows": ("Windows over an image", []),
    "startup": ("Starting up", []),
}
# What a processor may have for bfloat16, by torch's names.
UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512", "bf16": "NEON", "sve_bf16": "SVE"}
# Of the chart: a form by the first part that its name has.
COLOURS = {"default": "#2f6db5", "ours": "#9fb8d8", "other": "#c9c4ba"}


def measure(name: str, peers: Path | None) -> str:
    """Run a script; return what it printed.

    Args:
        name: The script's.
        peers: Folder of the libraries to compare with, which only the script that does so sees.

    Raises:
        SystemExit: It failed.
    """
    _, arguments = SCRIPTS[name]
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    command += ["--out", str(FIGURES / f"{name}.json")]
    print(f"{' '.join(command[1:])}", flush=True)
    start = time.perf_counter()
    environment = dict(os.environ)
    if peers is not None and name == "pretrain_step":
        environment["PYTHONPATH"] = str(peers.resolve())
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}")
    lines = done.stdout.splitlines()
    # Recipes print what they do, too: the page has the tables and the line above each.
    kept = [
        line
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("|") or below.startswith("|") or "encoder" in line or not line
    ]
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    # A line right above a table would be taken for its head.
    table = re.sub(r"(?<=[^|\n])\n(?=\|)", "\n\n", "\n".join(kept)).strip()
    return f"{table}\n\nOn {machine()}."


def machine() -> str:
    """Return the device that steps are measured on, the processor, and the version of torch."""
    tell = getattr(torch.cpu, "get_capabilities", None)  # torch 2.10 has none
    can = tell() if tell else {}
    name = can.get("cpu_name") or platform.processor() or platform.machine()
    parts = [f"{os.cpu_count()} cores of {name}"]
    if units := [said for key, said in UNITS.items() if can.get(key)]:
        parts.append(f"bfloat16 by {' and '.join(units)}")
    if torch.cuda.is_available():
        parts.insert(0, f"{torch.cuda.get_device_name()}, which steps are measured on")
    return ", ".join([*parts, f"torch {torch.__version__}"])


def chart(path: Path) -> None:
    """Draw the time of a step of every form, as a share of ours in float32, by size."""
    figures = json.loads((FIGURES / "pretrain_step.json").read_text())
    sizes = [name for name, value in figures.items() if isinstance(value, dict)]
    forms = {name: figures[name]["forms"] for name in sizes}
    figure = Figure(figsize=(9.6, 8.4), layout="constrained")
    panels = figure.subplots(len(sizes), sharex=True, squeeze=False)[:, 0]
    for axes, (name, found) in zip(panels, forms.items(), strict=True):
        size = figures[name]["size"]
        title = f"{name}: encoder {size['width']} x {size['depth']}, {size['image']} px"
        axes.set_title(title, loc="left", fontsize="medium")
        for form, row in found.items():
            kind = next((kind for kind in COLOURS if kind in form), "other")
            axes.barh(form, row["ratio"], color=COLOURS[kind])
            low, high = row["quartiles"]
            axes.hlines(form, low, high, "black")
            axes.text(max(row["ratio"], high) + 0.01, form, f"{row['ratio']:.2f}", va="center")
        axes.margins(x=0.1)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("time of a step, ours in float32 = 1; lines: quartiles")
    figure.savefig(path)


def main() -> None:
    """Measure, then write the page and the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SCRIPTS)}; all if none is given")
    parser.add_argument("--peers", type=Path, help="folder of benchmarks/peers.txt")
    options = parser.parse_args()
    names = options.names or list(SCRIPTS)
    if unknown := set(names) - set(SCRIPTS):
        parser.error(f"no script {', '.join(sorted(unknown))}; expected {', '.join(SCRIPTS)}")
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name in names:
        (FIGURES / f"{name}.txt").write_text(measure(name, options.peers) + "\n")
    write_page()


def write_page() -> None:
    """Write the page of what was printed, and the chart."""
    parts = ["# Speed, as printed\n\n`make bench`. Figures: `speed/*.json`.\n"]
    for name, (title, arguments) in SCRIPTS.items():
        if (printed := FIGURES / f"{name}.txt").exists():
            command = " ".join(["python", f"benchmarks/{name}.py", *arguments])
            parts.append(f"## {title}\n\n`{command}`\n\n{printed.read_text()}")
            if name == "pretrain_step":
                chart(PAGE.with_suffix(".png"))
                parts.append("![Time of a step by form](speed.png)\n")
    PAGE.write_text("\n".join(parts))
    print(f"written: {PAGE}, {PAGE.with_suffix('.png')}")


if __name__ == "__main__":
    main()
