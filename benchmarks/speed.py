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
from PIL import Image, ImageDraw, ImageFont

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
# Columns of the chart: what it says, and the form by its part of the name.
COLOURS = {"ours": "#9fb8d8", "default": "#2f6db5", "other": "#c9c4ba"}


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
    rows = sum(len(found) + 2 for found in forms.values())
    line, left, width = 26, 300, 520
    canvas = Image.new("RGB", (left + width + 120, line * (rows + 1)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    most = max(row["ratio"] for found in forms.values() for row in found.values())
    y = line // 2
    for name, found in forms.items():
        size = figures[name]["size"]
        title = f"{name}: encoder {size['width']} x {size['depth']}, {size['image']} px"
        draw.text((12, y), f"{title}. Time of a step, ours in float32 = 1", "black", font)
        y += line
        for form, row in found.items():
            kind = "default" if "default" in form else "ours" if "ours" in form else "other"
            draw.text((24, y), form, "#333333", font)
            length = int(width * row["ratio"] / most)
            draw.rectangle((left, y + 3, left + length, y + line - 7), COLOURS[kind])
            low, high = (left + int(width * value / most) for value in row["quartiles"])
            middle = y + line // 2 - 2
            draw.line((low, middle, high, middle), "black", 2)
            draw.text((max(left + length, high) + 8, y), f"{row['ratio']:.2f}", "black", font)
            y += line
        y += line
    canvas.save(path, optimize=True)


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
