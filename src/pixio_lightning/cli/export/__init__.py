"""`pixio export`: write the encoder of a checkpoint for another library."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pixio_lightning.cli.export.card import beside, card, output_lines
from pixio_lightning.errors import UserError, visible
from pixio_lightning.files import write_text
from pixio_lightning.models.weights.export import export, identity, resized
from pixio_lightning.models.weights.key_names import pair
from pixio_lightning.models.weights.licences import stated
from pixio_lightning.models.weights.read import Weights, digest, licence_of, read
from pixio_lightning.models.weights.students import split_student
from pixio_lightning.training.run_folder import chosen_checkpoint


def _stem(source: str) -> str:
    """Name an export after its source: the repository, the folder, the student, or the file."""
    if source.startswith("hf:"):
        return source.partition("@")[0].rpartition("/")[2]
    file, student = split_student(source)
    path = Path(file).resolve()
    if student:
        return student
    return path.name if path.is_dir() else path.stem


def main(args: argparse.Namespace) -> int:
    """Run `pixio export` with what is typed."""
    if args.to == "onnx":
        if args.licence or args.dtype:
            raise UserError("--licence and --dtype do not go with --to onnx: first to safetensors")
        return _to_onnx(args)
    if args.image_size is not None and args.to != "timm":
        raise UserError(f"--image-size goes with --to onnx and timm: {args.to} takes any size")
    if args.weights is not None:
        raise UserError("--weights goes with --to onnx: the other formats hold no head")
    weights = _licensed(read(_chosen(args.checkpoint)), args.licence)
    if args.image_size is not None:
        weights = resized(weights, args.image_size)
    if args.dtype:
        weights = _cast(weights, getattr(torch, args.dtype))
    ending = ".safetensors" if args.to == "safetensors" else f"-{args.to}"
    out = Path(args.out or _stem(args.checkpoint) + ending)
    readme = _readme(weights, args.to, out)
    for path in export(weights, args.to, out, readme=readme):
        print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    print(f"wrote {readme[0]}: what is inside, and how to load it")
    decoder = len(weights.decoder or ())
    kept = "in a file of its own" if args.to == "safetensors" else "left out"
    print(f"encoder: {len(weights.encoder)} tensors")
    print(f"decoder: {f'yes, {decoder} tensors, {kept}' if decoder else 'no'}")
    if weights.others:
        print(f"left out: {len(weights.others)} tensors that belong to neither")
    print(f"licence of the weights: {licence_of(weights.source, weights.meta)}")
    return 0


def _chosen(source: str) -> str:
    """Return what is exported: of a run folder one checkpoint."""
    return str(chosen_checkpoint(Path(source)) or source)


def _cast(weights: Weights, dtype: torch.dtype) -> Weights:
    """Store tensors in a type; a backbone that loads them is in float32 whatever it is."""
    states = (weights.encoder, weights.decoder or {})
    encoder, decoder = ({name: t.to(dtype) for name, t in state.items()} for state in states)
    return weights._replace(encoder=encoder, decoder=decoder or None)


def _licensed(weights: Weights, licence: str | None) -> Weights:
    """Put weights under a licence, beside those of the teachers they were distilled from.

    Raises:
        UserError: They have another one.
    """
    now = licence_of(weights.source, weights.meta)
    if licence in (None, now):
        return weights
    if (text := stated(now, licence)) is None:
        raise UserError(f"--licence {licence}: the weights are under {now}, which they keep")
    return weights._replace(meta=weights.meta | {"licence": text})


def _readme(weights: Weights, form: str, out: Path) -> tuple[Path, str]:
    """Return where the README of an encoder goes, and its text."""
    meta = identity(weights)
    model = meta["model_args"]
    inside = {
        "encoder": f"{meta['name'] or 'Vision Transformer'}, {_count(weights.encoder)} parameters",
        "decoder": f"of pretraining, {_count(weights.decoder or {})} parameters",
        "image size": str(model.get("img_size", "any")),
        "patch size": str(model.get("patch_size", "")),
        "class tokens": str(model.get("n_cls_tokens", "")),
        "width, blocks, heads": ", ".join(
            str(model[key]) for key in ("embed_dim", "depth", "num_heads") if key in model
        ),
        "mean, deviation": f"{meta['mean']}, {meta['std']}",
        "digest": digest(weights.encoder, torch.float32),  # as a backbone loads it
        "licence": meta["licence"],
    }
    if not weights.decoder or form != "safetensors":
        del inside["decoder"]
    known = {key: text for key, text in inside.items() if text}
    size, channels = pair(model.get("img_size", 224)), model.get("in_chans", 3)
    text = card(weights.source, form, out, inside=known, size=size, channels=channels)
    return beside(out, form), text


def _count(state: Mapping[str, Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in state.values()):,}"


def _to_onnx(args: argparse.Namespace) -> int:
    from pixio_lightning.cli.export import onnx  # loads the heads' part, which others do not need

    out = Path(args.out or _stem(args.checkpoint) + ".onnx")
    readme = beside(out, "onnx")
    if readme.exists():
        raise UserError(f"{readme} exists already: remove it or give another --out")
    source = _chosen(args.checkpoint)
    about = onnx.export(source, out, image_size=args.image_size, weights=args.weights)
    channels, height, width = (int(number) for number in re.findall(r"\d+", about["images"])[1:4])
    difference, output = about.pop("difference"), about.pop("output", {})
    text = card(
        source, "onnx", out, inside=about, output=output, size=(height, width), channels=channels
    )
    write_text(readme, text)
    print(f"wrote {out} ({out.stat().st_size:,} bytes)")
    print(f"wrote {readme}: what is inside, and how to load it")
    print(f"onnxruntime and torch differ by {difference:.1e} of the greatest value")
    for key, value in (about | output_lines(output, limit=5)).items():
        print(visible(f"{key}: {value}"))
    return 0
