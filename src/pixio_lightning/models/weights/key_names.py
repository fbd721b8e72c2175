"""The names under which a Pixio encoder is stored, and which encoder it is.

| official, and ours           | transformers at run time              | transformers on disk |
|------------------------------|---------------------------------------|----------------------|
| cls_token                    | embeddings.cls_token                  | same |
| pos_embed                    | embeddings.position_embeddings        | same |
| patch_embed.proj.*           | embeddings.patch_embeddings.projection.* | same |
| blocks.i.norm1.*             | layers.i.layernorm_before.*           | encoder.layer.i.norm1.* |
| blocks.i.attn.qkv.*, q, k, v | layers.i.attention.{q,k,v}_proj.*     | ...attention.attention.{query,key,value}.* |
| blocks.i.attn.proj.*         | layers.i.attention.o_proj.*           | ...attention.output.dense.* |
| blocks.i.norm2.*             | layers.i.layernorm_after.*            | encoder.layer.i.norm2.* |
| blocks.i.mlp.fc1.*           | layers.i.mlp.fc1.*                    | ...mlp.fc1.* or ...intermediate.dense.* |
| blocks.i.mlp.fc2.*           | layers.i.mlp.fc2.*                    | ...mlp.fc2.* or ...output.dense.* |
| norm.*                       | layernorm.*                           | same |

Any prefix may stand before them (`module.`, `model.`, `pixio.`, `backbone.vit.`, ...): the patch
embedding tells where the encoder sits. Everything here is a function on dicts of tensors.

Shapes: K class tokens, N patches, D embedding width.
"""  # noqa: E501  (the table is read across)

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pixio_lightning.errors import UserError
from pixio_lightning.models.vit import SIZES

State = dict[str, Tensor]

# Segments that wrapping a module puts into its names: DDP, compile, FSDP, activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
OURS = "backbone.vit."
# What distillation trains beside an encoder, to reach its teacher's width: of no use without it.
PROJECTOR = "last_proj."
PATCH_EMBED = "patch_embed.proj.weight"
TRANSFORMERS_PATCH_EMBED = "embeddings.patch_embeddings.projection.weight"

STEM = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": TRANSFORMERS_PATCH_EMBED,
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
# Official part of a block -> its names in transformers, the run-time name first.
PARTS = {
    "norm1": ("layernorm_before", "norm1"),
    "attn.q": ("attention.q_proj", "attention.attention.query"),
    "attn.k": ("attention.k_proj", "attention.attention.key"),
    "attn.v": ("attention.v_proj", "attention.attention.value"),
    "attn.proj": ("attention.o_proj", "attention.output.dense"),
    "norm2": ("layernorm_after", "norm2"),
    "mlp.fc1": ("mlp.fc1", "intermediate.dense"),
    "mlp.fc2": ("mlp.fc2", "output.dense"),
}
FROM_STEM = {theirs: ours for ours, theirs in STEM.items()}
FROM_PARTS = {theirs: ours for ours, names in PARTS.items() for theirs in names}
LAYER = re.compile(r"(?:layers|encoder\.layer)\.(\d+)\.(.+)\.(weight|bias)")
BLOCK = re.compile(r"blocks\.(\d+)\.(norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc[12])\.(weight|bias)")


def to_official(state: Mapping[str, Any]) -> tuple[State, State, State]:
    """Sort a checkpoint into encoder, decoder and the rest, under the official names.

    Args:
        state: A state dict in any spelling, bare or nested under `state_dict` or `model`. Names of
            other timm models pass through unchanged.

    Returns:
        The encoder; the decoder of pretraining (`decoder_embed`, `mask_token`, `decoder_blocks`,
        ...), empty if there is none; every other tensor under its own name.

    Raises:
        UserError: No tensors, several encoders, two different final norms, or queries, keys and
            values that do not belong together.
    """
    state = _unwrap(state)
    prefix = _encoder_prefix(state)
    encoder = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    others = {n: t for n, t in state.items() if not n.startswith(prefix)}
    for name in [n for n in encoder if n.startswith(PROJECTOR)]:
        others[prefix + name] = encoder.pop(name)
    if TRANSFORMERS_PATCH_EMBED in encoder:
        _settle_norms(encoder, others)
        encoder = _from_transformers(encoder)
    decoder = {}
    # `mask_token` alone is no sign: DINOv2 keeps one in its encoder.
    if "decoder_embed.weight" in encoder:
        names = [n for n in encoder if n == "mask_token" or n.startswith("decoder_")]
        decoder = {name: encoder.pop(name) for name in names}
    # A head may call its own module `decoder`; only the one of pretraining has a mask token.
    ours = prefix.removesuffix(OURS) + "decoder."
    if prefix.endswith(OURS) and ours + "mask_token" in others:
        names = [n for n in others if n.startswith(ours)]
        decoder = from_mae_decoder({n.removeprefix(ours): others.pop(n) for n in names})
    return encoder, decoder, others


def to_transformers(state: Mapping[str, Tensor]) -> State:
    """Name an encoder as `transformers.PixioModel.state_dict()` does.

    Raises:
        UserError: A tensor that no Pixio encoder has.
    """
    _refuse_foreign(state)
    renamed: State = {}
    for name, tensor in state.items():
        block = BLOCK.fullmatch(name)
        if block is None:
            renamed[STEM[name]] = tensor
            continue
        index, part, kind = block.groups()
        pieces = {part: tensor}
        if part == "attn.qkv":
            # Rows [0:D] are the queries, [D:2D] the keys, [2D:3D] the values.
            pieces = dict(zip(("attn.q", "attn.k", "attn.v"), tensor.chunk(3), strict=True))
        for official, piece in pieces.items():
            renamed[f"layers.{index}.{PARTS[official][0]}.{kind}"] = piece
    return renamed


def to_timm(state: Mapping[str, Tensor], n_cls_tokens: int) -> State:
    """Name an encoder as timm's stock `VisionTransformer` with `n_cls_tokens - 1` registers.

    The class tokens `(1, K, D)` become `cls_token (1, 1, D)` and `reg_token (1, K - 1, D)`;
    `pos_embed (1, K + N, D)` stays, as timm counts registers among the positions too.

    Raises:
        UserError: A tensor that no Pixio encoder has, or another number of class tokens.
    """
    _refuse_foreign(state)
    if state["cls_token"].shape[1] != n_cls_tokens:
        found = state["cls_token"].shape[1]
        raise UserError(f"the encoder has {found} class tokens, not {n_cls_tokens}")
    first, rest = state["cls_token"].split([1, n_cls_tokens - 1], dim=1)
    renamed = {**state, "cls_token": first}
    return renamed | {"reg_token": rest} if n_cls_tokens > 1 else renamed


def from_timm(state: Mapping[str, Tensor]) -> State:
    """Undo `to_timm`.

    Raises:
        UserError: The tokens are not those of one model.
    """
    renamed = dict(state)
    if "reg_token" in renamed:
        parts = [renamed.get("cls_token", torch.empty(0)), renamed.pop("reg_token")]
        if not all(p.ndim == 3 and p.shape[0] == 1 for p in parts) or (
            (parts[0].shape[2], parts[0].dtype) != (parts[1].shape[2], parts[1].dtype)
        ):
            raise UserError("'cls_token' and 'reg_token' do not belong together")
        renamed["cls_token"] = torch.cat(parts, dim=1)
    return renamed


def to_mae_decoder(state: Mapping[str, Tensor]) -> State:
    """Name the official decoder as `MaeDecoder.state_dict()` does: without `decoder_`."""
    return {name.removeprefix("decoder_"): tensor for name, tensor in state.items()}


def from_mae_decoder(state: Mapping[str, Tensor]) -> State:
    """Undo `to_mae_decoder`; the mask token has the same name in both."""
    return {n if n == "mask_token" else f"decoder_{n}": t for n, t in state.items()}


def foreign(state: Mapping[str, Any]) -> list[str]:
    """List the names that no Pixio encoder has."""
    return [n for n in state if n not in STEM and not BLOCK.fullmatch(n)]


def infer(encoder: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Find out which model an encoder is, from its shapes and from what its file says.

    Args:
        encoder: Tensors under the official names.
        meta: `Weights.meta`; needed for a size outside `vit.SIZES` (its attention heads leave no
            trace in the shapes) and for a position grid that is not square.

    Returns:
        `name`, None where none of `vit.SIZES` fits; and `model_args`: `patch_size, img_size,
        n_cls_tokens, in_chans`, and without a name also `embed_dim, depth, num_heads`, so that
        `PixioViT(**model_args)` rebuilds it. Another timm model is returned as `meta` states it.

    Raises:
        UserError: Not a Pixio encoder, not inferable, or the file contradicts its tensors.
    """
    meta = meta or {}
    name, stated = meta.get("name"), dict(meta.get("model_args") or {})
    if name and name not in SIZES:
        return {"name": name, "model_args": stated}
    needed = ("cls_token", "pos_embed", PATCH_EMBED, "blocks.0.mlp.fc1.weight")
    if missing := [n for n in needed if n not in encoder]:
        raise UserError(
            f"not a Pixio encoder: it has no '{missing[0]}'; for another ViT give its timm name"
        )
    for part, axes in zip(needed, (3, 3, 4, 2), strict=True):
        if encoder[part].ndim != axes or not encoder[part].numel():
            shape = tuple(encoder[part].shape)
            raise UserError(f"not a Pixio encoder: its '{part}' has the shape {shape}")
    _, n_cls_tokens, dim = encoder["cls_token"].shape
    _, in_chans, *patch = encoder[PATCH_EMBED].shape
    depth = depth_of(encoder)
    if name:
        stated = SIZES[name]._asdict() | stated
    heads = stated.get("num_heads")
    for size_name, size in SIZES.items():
        if not name and (dim, depth) == size[:2] and heads in (None, size.num_heads):
            name, heads = size_name, size.num_heads
    if heads is None:
        raise UserError(
            f"an encoder of width {dim} and depth {depth} is none of {', '.join(SIZES)}, and its "
            "file does not state its number of attention heads (model_args.num_heads)"
        )
    found: dict[str, Any] = {
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "img_size": _img_size(encoder["pos_embed"].shape[1] - n_cls_tokens, patch, stated),
        "n_cls_tokens": n_cls_tokens,
        "in_chans": in_chans,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": encoder["blocks.0.mlp.fc1.weight"].shape[0] / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in encoder,
    }
    for key, value in found.items():
        if key in stated and pair(stated[key]) != pair(value):
            raise UserError(f"the file states {key} {stated[key]}, its tensors say {value}")
    # Left out where they say nothing new: the defaults of a ViT, and the sizes a name stands for.
    implied: dict[str, Any] = {"mlp_ratio": 4, "qkv_bias": True}
    if name and SIZES[name] == (dim, depth, heads):
        implied |= SIZES[name]._asdict()
    args = {k: v for k, v in (stated | found).items() if k not in implied or v != implied[k]}
    return {"name": name, "model_args": args}


def depth_of(encoder: Mapping[str, Tensor]) -> int:
    """Count the blocks an encoder has tensors of."""
    return len({n.split(".")[1] for n in encoder if n.startswith("blocks.")})


def pair(value: Any) -> tuple[Any, Any]:
    """Return `(height, width)` of a size given as one number or as two."""
    return (value[0], value[1]) if isinstance(value, list | tuple) else (value, value)


def _img_size(n_patches: int, patch: list[int], stated: dict[str, Any]) -> int | tuple[int, int]:
    side = math.isqrt(max(n_patches, 0))
    height, width = pair(stated.get("img_size", (side * patch[0], side * patch[1])))
    if (height // patch[0]) * (width // patch[1]) != n_patches:
        grid = f"an image of {height}x{width}" if "img_size" in stated else "a square grid"
        raise UserError(
            f"{n_patches} patch positions do not make up {grid} of {patch[0]}x{patch[1]} patches: "
            "the file must state model_args.img_size"
        )
    return height if height == width else (height, width)


def _refuse_foreign(state: Mapping[str, Any]) -> None:
    if names := foreign(state):
        raise UserError(
            f"not a Pixio encoder: it has '{names[0]}'; other models are exported as safetensors"
        )


def _unwrap(state: Mapping[str, Any]) -> State:
    """Take the tensors out of their nest and the wrappers out of their names."""
    for nest in ("state_dict", "model"):
        if isinstance(state.get(nest), Mapping):
            state = state[nest]
    plain: State = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            raise UserError(
                f"expected tensors by name, found {name!r:.80} of type {type(tensor).__name__}: "
                "save the model's state_dict()"
            )
        clean = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if clean in plain:
            raise UserError(f"two tensors are called '{clean}' once wrappers are left out")
        plain[clean] = tensor
    if not plain:
        raise UserError("holds no tensors")
    return plain


def _encoder_prefix(state: State) -> str:
    """Return what stands before the encoder's names; nothing if no patch embedding is found."""
    ends = (PATCH_EMBED, TRANSFORMERS_PATCH_EMBED)
    found = {n.removesuffix(end) for n in state for end in ends if ("." + n).endswith("." + end)}
    # In our own checkpoints a second encoder (a teacher) may stand beside the one that is trained.
    found = {prefix for prefix in found if prefix.endswith(OURS)} or found
    if len(found) > 1:
        raise UserError(
            f"holds {len(found)} encoders, under {', '.join(map(repr, sorted(found)))}: "
            "save one of them alone"
        )
    return next(iter(found), "")


def _from_transformers(state: State) -> State:
    """Rename transformers' names and join q, k and v; unknown names stay as they are."""
    renamed: State = {}
    for name, tensor in state.items():
        layer = LAYER.fullmatch(name)
        if layer and layer[2] in FROM_PARTS:
            renamed[f"blocks.{layer[1]}.{FROM_PARTS[layer[2]]}.{layer[3]}"] = tensor
        else:
            renamed[FROM_STEM.get(name, name)] = tensor
    for name in [n for n in renamed if n.endswith((".attn.q.weight", ".attn.q.bias"))]:
        trio = [name.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if all(n in renamed for n in trio):
            parts = [renamed.pop(n) for n in trio]
            if len({(part.shape, part.dtype) for part in parts}) > 1 or not parts[0].ndim:
                raise UserError(f"'{name}' and its key and value differ in shape or type")
            merged = torch.cat(parts)
            renamed[name.replace(".attn.q.", ".attn.qkv.")] = merged
    return renamed


def _settle_norms(encoder: State, others: State) -> None:
    """Choose between the two final norms of transformers' `PixioBackbone`.

    It holds a `layernorm` of its own beside its encoder's. Built from a `PixioModel` file, the
    trained norm is the encoder's and the outer one is left at its start (ones and zeros); trained
    from scratch it is the other way round. Two trained ones that differ leave no right answer.
    """
    outer: State = {n: others.pop(n) for n in ("layernorm.weight", "layernorm.bias") if n in others}
    if len(outer) < 2 or _is_fresh(outer):
        return
    inner = {name: encoder[name] for name in outer if name in encoder}
    if len(inner) == 2 and not _is_fresh(inner):
        if all(torch.equal(inner[name], outer[name]) for name in outer):
            return
        raise UserError(
            "holds two different final norms, the encoder's own 'layernorm' and the one of "
            "PixioBackbone around it: save with the one you mean copied over the other"
        )
    encoder.update(outer)


def _is_fresh(norm: State) -> bool:
    weight, bias = norm["layernorm.weight"], norm["layernorm.bias"]
    return bool((weight == 1).all() and (bias == 0).all())
