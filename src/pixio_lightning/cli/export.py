"""`pixio export`: write the encoder of a checkpoint for another library."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

from pixio_lightning.errors import UserError
from pixio_lightning.files import expanded
from pixio_lightning.models.weights.export import Format, export
from pixio_lightning.models.weights.read import licence_of, read
from pixio_lightning.models.weights.students import split_student


def _stem(source: str) -> str:
    """Name an export after its source: the repository, the folder, the student, or the file."""
    if source.startswith("hf:"):
        return source.partition("@")[0].rpartition("/")[2]
    file, student = split_student(source)
    path = Path(file).resolve()
    if student:
        return student
    return path.name if path.is_dir() else path.stem


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see pixio export --help")


def main(argv: Sequence[str]) -> int:
    """Run `pixio export CHECKPOINT [--to FORMAT] [--out PATH]`."""
    parser = _Parser(prog="pixio export", description="Write an encoder for another library.")
    parser.add_argument(
        "checkpoint", type=expanded, help="a file, a folder or hf:ORG/NAME[@REVISION]"
    )
    parser.add_argument("--to", default="safetensors", choices=get_args(Format), help="the format")
    parser.add_argument(
        "--out", type=expanded, help="file or folder; default: here, named as the source"
    )
    args = parser.parse_args(argv)
    weights = read(args.checkpoint)
    ending = ".safetensors" if args.to == "safetensors" else f"-{args.to}"
    files = export(weights, args.to, Path(args.out or _stem(args.checkpoint) + ending))
    for path in files:
        print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    decoder = len(weights.decoder or ())
    kept = "in a file of its own" if args.to == "safetensors" else "left out"
    print(f"encoder: {len(weights.encoder)} tensors")
    print(f"decoder: {f'yes, {decoder} tensors, {kept}' if decoder else 'no'}")
    if weights.others:
        print(f"left out: {len(weights.others)} tensors that belong to neither")
    print(f"licence of the weights: {licence_of(weights.source, weights.meta)}")
    return 0
