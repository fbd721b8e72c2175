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
    forms = (*get_args(Format), "onnx")
    parser.add_argument("--to", default="safetensors", choices=forms, help="the format")
    parser.add_argument(
        "--out", type=expanded, help="file or folder; default: here, named as the source"
    )
    parser.add_argument("--image-size", type=int, help="side of the images of onnx, in pixels")
    args = parser.parse_args(argv)
    if args.to == "onnx":
        return _to_onnx(args)
    if args.image_size is not None:
        raise UserError("--image-size goes with --to onnx: the other formats take any size")
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


def _to_onnx(args: argparse.Namespace) -> int:
    from pixio_lightning.cli.export import onnx  # loads the heads' part, which others do not need

    out = Path(args.out or _stem(args.checkpoint) + ".onnx")
    about = onnx.export(args.checkpoint, out, image_size=args.image_size)
    print(f"wrote {out} ({out.stat().st_size:,} bytes)")
    print(f"onnxruntime and torch differ by {about.pop('difference'):.1e} of the greatest value")
    for key, value in about.items():
        print(f"{key}: {value}")
    return 0
