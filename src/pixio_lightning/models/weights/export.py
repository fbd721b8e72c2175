"""`pixio export`: write an encoder in the form another library reads.

| format       | written                                | read back with |
|--------------|----------------------------------------|----------------|
| safetensors  | NAME.safetensors, NAME.decoder.safetensors | `Backbone(weights="NAME.safetensors")` |
| transformers | a folder                               | `PixioModel.from_pretrained(folder)` |
| timm         | a folder                               | `timm.create_model("local-dir:FOLDER", pretrained=True)` |

Neither transformers nor a model of timm's is needed to write them. Everything is written aside,
flushed to the disk and renamed, so a killed run leaves nothing half-made under the final name.
"""  # noqa: E501  (the table is read across)

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from pixio_lightning.errors import UserError
from pixio_lightning.files import write_text, written_aside
from pixio_lightning.models.vit import SIZES, resize_positions
from pixio_lightning.models.weights.fill import refuse_non_finite
from pixio_lightning.models.weights.key_names import infer, pair, to_timm, to_transformers
from pixio_lightning.models.weights.read import DECODER_SUFFIX, Weights, licence_of

Format = Literal["safetensors", "transformers", "timm"]


def export(
    weights: Weights, to: Format, out: Path, *, readme: tuple[Path, str] | None = None
) -> list[Path]:
    """Write `weights` to `out` in another library's form.

    Args:
        weights: What `weights.read` returned.
        to: `safetensors` keeps the official names, and the decoder in a second file.
        out: A file that ends in `.safetensors`, or for the other formats a new folder.
        readme: What to say of it: a file in that folder, or beside the file, and its text.

    Returns:
        The files written.

    Raises:
        UserError: `out` exists, or the format cannot hold this model.
    """
    refuse_non_finite(weights.encoder, weights.source)
    meta = identity(weights)
    if to == "safetensors":
        return _export_safetensors(weights, meta, out, readme)
    _refuse_others(meta)
    if "norm.weight" not in weights.encoder:  # they would make one up
        raise UserError(f"{to} needs a norm behind the last block: export it --to safetensors")
    model = (SIZES[meta["name"]]._asdict() if meta["name"] else {}) | meta["model_args"]
    if to == "transformers":
        state = to_transformers(weights.encoder)
        documents = {
            "config.json": _transformers_config(model, weights.encoder),
            "preprocessor_config.json": _preprocessor_config(model, meta),
        }
    else:
        state = to_timm(weights.encoder, model["n_cls_tokens"])
        documents = {"config.json": _timm_config(model, meta)}
    _refuse_existing(out)
    with written_aside(out, durable=True) as aside:
        aside.mkdir()
        for name, content in documents.items():
            (aside / name).write_text(json.dumps(content, indent=2) + "\n")
        _save(state, aside / "model.safetensors", {**meta, "content": to})
        if readme:
            (aside / readme[0].name).write_text(readme[1])
    return [out / name for name in (*documents, "model.safetensors")]


def resized(weights: Weights, side: int) -> Weights:
    """Return an encoder with positions for square images of another side, as ours are resized.

    timm resizes positions with antialiasing, and so computes other features at any size but that
    of its folder.

    Raises:
        UserError: It is no Pixio encoder, or the side is no multiple of the patch size.
    """
    found = infer(weights.encoder, weights.meta)
    _refuse_others(found)
    args = found["model_args"]
    (height, width), (patch, other) = pair(args["img_size"]), pair(args["patch_size"])
    if patch != other:
        raise UserError(f"--image-size needs square patches, but they are {patch} x {other}")
    if side < patch or side % patch:
        raise UserError(f"--image-size is {side}, but expected a multiple of {patch}, the patch")
    positions = resize_positions(
        weights.encoder["pos_embed"],
        n_prefix=args["n_cls_tokens"],
        old=(height // patch, width // patch),
        new=(side // patch, side // patch),
    )
    meta = {**weights.meta, **found, "model_args": {**args, "img_size": side}}
    return weights._replace(encoder={**weights.encoder, "pos_embed": positions}, meta=meta)


def _refuse_others(meta: Mapping[str, Any]) -> None:
    """Refuse what only `safetensors` can hold."""
    if meta["name"] and meta["name"] not in SIZES:
        raise UserError(f"'{meta['name']}' is not a Pixio model: export it --to safetensors")


def _export_safetensors(
    weights: Weights, meta: dict[str, Any], out: Path, readme: tuple[Path, str] | None
) -> list[Path]:
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out} must end in .safetensors")
    files = [out, out.with_suffix(DECODER_SUFFIX)] if weights.decoder else [out]
    for path in [*files, *([readme[0]] if readme else [])]:
        _refuse_existing(path)
    with ExitStack() as asides:
        aside = asides.enter_context(written_aside(out, durable=True))
        content = "encoder+decoder" if weights.decoder else "encoder"
        _save(weights.encoder, aside, {**meta, "content": content})
        # Renamed before the encoder: one that announces a decoder is never seen without it.
        if weights.decoder:
            aside = asides.enter_context(written_aside(files[1], durable=True))
            _save(weights.decoder, aside, {**meta, "content": "decoder"})
    if readme:
        write_text(*readme)
    return files


def identity(weights: Weights) -> dict[str, Any]:
    """Collect what every export says of itself, as plain data."""
    meta = infer(weights.encoder, weights.meta)
    meta["licence"] = licence_of(weights.source, weights.meta)
    meta["mean"] = list(weights.meta.get("mean", IMAGENET_DEFAULT_MEAN))
    meta["std"] = list(weights.meta.get("std", IMAGENET_DEFAULT_STD))
    return meta


def _transformers_config(model: Mapping[str, Any], encoder: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write transformers' `PixioConfig` by hand."""
    ratio = model.get("mlp_ratio", 4)
    if len({*pair(model["img_size"])}) > 1 or len({*pair(model["patch_size"])}) > 1:
        raise UserError(f"transformers' Pixio needs square images, got {model['img_size']}")
    if ratio != int(ratio):
        raise UserError(f"transformers' Pixio needs a whole mlp_ratio, got {ratio}")
    return {
        "architectures": ["PixioModel"],
        "model_type": "pixio",
        "dtype": str(encoder["cls_token"].dtype).removeprefix("torch."),
        "hidden_size": model["embed_dim"],
        "num_hidden_layers": model["depth"],
        "num_attention_heads": model["num_heads"],
        "mlp_ratio": int(ratio),
        "qkv_bias": model.get("qkv_bias", True),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": pair(model["img_size"])[0],
        "patch_size": pair(model["patch_size"])[0],
        "num_channels": model["in_chans"],
        "n_cls_tokens": model["n_cls_tokens"],
    }


def _preprocessor_config(model: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Write transformers' `BitImageProcessor` by hand: bicubic to the native size, no crop."""
    height, width = pair(model["img_size"])
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": model["in_chans"] == 3,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,  # PIL's bicubic
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": meta["mean"],
        "image_std": meta["std"],
    }


def _timm_config(model: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Write timm's `config.json` by hand: a stock ViT whose class tokens 2..K are registers."""
    size = [model["in_chans"], *pair(model["img_size"])]
    shape = ("embed_dim", "depth", "num_heads", "patch_size", "img_size", "in_chans")
    optional = [key for key in ("mlp_ratio", "qkv_bias") if key in model]
    return {
        # Any stock ViT would do: `model_args` overrides everything that distinguishes them.
        "architecture": "vit_base_patch16_224",
        "num_classes": 0,
        "num_features": model["embed_dim"],
        "model_args": {
            **{key: model[key] for key in (*shape, *optional)},
            "reg_tokens": model["n_cls_tokens"] - 1,
            "num_classes": 0,
            # All tokens: pooling "token" would keep the first class token only.
            "global_pool": "",
        },
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": size,
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": meta["mean"],
            "std": meta["std"],
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": meta["licence"],
        },
        "pixio": dict(meta),
    }


def _save(state: Mapping[str, Tensor], path: Path, meta: Mapping[str, Any]) -> None:
    # transformers insists on the entry "format".
    metadata = {"format": "pt", "pixio": json.dumps(meta)}
    path.touch()
    mode = path.stat().st_mode
    save_file({n: t.contiguous() for n, t in state.items()}, path, metadata=metadata)
    path.chmod(mode)  # safetensors leaves a file that its owner alone may read


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists already: remove it or give another --out")
