"""What a weights file may say of itself: a fixed list of plain keys with plain values.

timm builds what it is told to: it fetches `pretrained_cfg`'s URL, unpickles `checkpoint_path` and
writes into `cache_dir`. So nothing reaches it, from a file or from a user, but the settings of
`ARGUMENTS`, and no model but those it knows by name. What a checkpoint of ours was trained with can
therefore always be read back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import timm

from pixio_lightning.errors import UserError, nearest, printable
from pixio_lightning.models.vit import SIZES
from pixio_lightning.models.weights.key_names import pair

# Settings that name where weights come from, of which there is one: `backbone.weights`.
SOURCES = ("pretrained", "checkpoint_path", "cache_dir")


class Rule(NamedTuple):
    """What values a setting takes, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def _whole(low: int, high: int) -> Rule:
    return Rule(f"a whole number from {low} to {high}", lambda v: _is_whole(v, low, high))


def _real(low: float, high: float) -> Rule:
    return Rule(f"a number from {low:g} to {high:g}", lambda v: _is_real(v) and low <= v <= high)


def _sides(high: int) -> Rule:
    """Height and width, as one number or as two."""

    def holds(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return len(value) == 2 and all(_is_whole(v, 1, high) for v in value)
        return _is_whole(value, 1, high)

    return Rule(f"a whole number from 1 to {high}, or two", holds)


def _channels(low: float, expected: str) -> Rule:
    def holds(value: Any) -> bool:
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= 1024:
            return False
        return all(_is_real(v) and low < v for v in value)

    return Rule(f"a list of {expected}, one per channel", holds)


def _word(*words: str) -> Rule:
    return Rule(
        "one of " + ", ".join(map(repr, words)), lambda v: isinstance(v, str) and v in words
    )


def _or_none(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or null", lambda v: v is None or rule.holds(v))


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_real(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 1 << 53
    return isinstance(value, float) and math.isfinite(value)


_FLAG = Rule("true or false", lambda v: isinstance(v, bool))

# The bounds keep any model that is built before its tensors are compared to a moment's work.
ARGUMENTS: dict[str, Rule] = {
    "embed_dim": _whole(1, 65536),
    "depth": _whole(1, 1024),
    "num_heads": _whole(1, 1024),
    "num_kv_heads": _or_none(_whole(1, 1024)),
    "patch_size": _sides(1024),
    "img_size": _sides(65536),
    "ref_feat_shape": _or_none(_sides(65536)),
    "in_chans": _whole(1, 1024),
    "n_cls_tokens": _whole(1, 1024),
    "reg_tokens": _whole(0, 1024),
    "num_reg_tokens": _whole(0, 1024),
    "num_classes": _whole(0, 1_000_000),
    "swiglu_align_to": _whole(0, 1024),
    "attn_pool_num_heads": _or_none(_whole(1, 1024)),
    "mlp_ratio": _real(0.01, 64),
    "attn_pool_mlp_ratio": _or_none(_real(0.01, 64)),
    "init_values": _or_none(_real(-1e6, 1e6)),
    "head_init_scale": _real(0, 1e6),
    "norm_eps": _real(0, 1),
    "rope_temperature": _real(1, 1e9),
    "rope_grid_offset": _real(-1e6, 1e6),
    "pos_init": _word("trunc_normal", "sincos"),
    "pos_embed": _word("learn", "none", ""),
    "global_pool": _word("", "avg", "avgmax", "max", "token", "map", "prr"),
    "weight_init": _word("", "skip", "reset", "jax", "jax_nlhb", "moco"),
    "attn_type": _word("eva", "rope"),
    "rope_type": _or_none(_word("", "cat", "mixed", "dinov3")),
    "rope_grid_indexing": _word("ij", "xy"),
    "mean": _channels(-math.inf, "finite numbers"),
    "std": _channels(0, "positive numbers"),
}
ARGUMENTS |= {
    key: _FLAG
    for key in (
        *("qkv_bias", "qkv_fused", "qk_norm", "proj_bias", "swiglu_mlp", "attn_only_layer_scale"),
        *("scale_attn_norm", "scale_mlp_norm", "scale_mlp", "scale_attn_inner", "pre_norm"),
        *("class_token", "no_embed_class", "final_norm", "pool_include_prefix", "fix_init"),
        *("dynamic_img_pad", "use_abs_pos_emb", "use_rot_pos_emb"),
        *("rope_rotate_half", "use_post_norm", "use_pre_transformer_norm"),
    )
}
ARGUMENTS["dynamic_img_size"] = Rule("true: images of any size are taken", lambda v: v is True)
ARGUMENTS |= {
    key: _or_none(_FLAG) for key in ("fc_norm", "use_fc_norm", "use_post_transformer_norm")
}
_DROP_RATES = {
    f"{part}_rate": _real(0, 0.999)
    for part in ("drop", "pos_drop", "proj_drop", "attn_drop", "drop_path")
}
ARGUMENTS |= _DROP_RATES


def is_drop_rate(key: str) -> bool:
    """Whether a setting says how much of something a model drops at random in training."""
    return key in _DROP_RATES


def check_arguments(arguments: Any, *, intro: str) -> dict[str, Any]:
    """Return a model's settings if each is in `ARGUMENTS` and has a value it may have.

    Args:
        arguments: What a file or a user says; None says nothing.
        intro: How a message begins: whose settings they are.

    Raises:
        UserError: A setting is unknown, says where weights come from, or has a wrong value.
    """
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise UserError(f"{intro}: expected settings by name, got {shown(arguments)}")
    for key, value in arguments.items():
        if str(key).startswith(SOURCES):
            raise UserError(
                f"{intro}: {shown(key)} is not taken: weights come from backbone.weights alone"
            )
        rule = ARGUMENTS.get(key) if isinstance(key, str) else None
        if rule is None:
            hint = nearest(str(key)[:100], ARGUMENTS)
            raise UserError(f"{intro}: there is no setting {shown(key)}{hint}")
        if not rule.holds(value):
            raise UserError(f"{intro}: {key} is {shown(value)}, expected {rule.expected}")
    return dict(arguments)


def agree(key: str, one: Any, other: Any) -> bool:
    """Whether two values that a setting may have mean the same.

    A size may be one number or two, and so may statistics be one for all channels; those are equal
    to 1e-4, as files round them.
    """
    if key not in ("mean", "std"):
        return pair(one) == pair(other)
    channels = max(len(one), len(other))
    one, other = ([*v] * (channels if len(v) == 1 else 1) for v in (one, other))
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-4) for a, b in zip(one, other, strict=True)
    )


def is_known(name: Any) -> bool:
    """Whether a name is one of Pixio's or, with or without a tag, one of `timm.list_models()`.

    Not `hf-hub:ORG/NAME` or `local-dir:FOLDER`, with which timm fetches a model and its settings.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w{1,100}(\.[\w-]{1,100})?", name):
        return False
    return name in SIZES or timm.is_model(name.partition(".")[0])


def check_description(meta: Any, *, source: str) -> dict[str, Any]:
    """Return what a file says of itself, as far as it is read: name, settings, licence, statistics.

    Further keys are left out, as nothing reads them.

    Raises:
        UserError: The name is unknown, or a value is not what it may be; the source is named.
    """
    intro = f"{source} describes itself wrongly"
    if not isinstance(meta, Mapping):
        raise UserError(f"{intro}: expected keys and values, got {shown(meta)}")
    kept = {key: meta[key] for key in ("name", "licence") if key in meta}
    if kept.get("name") is not None and not is_known(kept["name"]):
        raise UserError(
            f"{intro}: its model is {shown(kept['name'])}, which is none of {', '.join(SIZES)} "
            "and none of timm.list_models()"
        )
    if not isinstance(kept.get("licence", ""), str | None):
        raise UserError(f"{intro}: licence is {shown(kept['licence'])}, expected a text")
    if kept.get("licence"):
        kept["licence"] = printable(kept["licence"])
    if "model_args" in meta:
        kept["model_args"] = check_arguments(meta["model_args"], intro=f"{intro}, model_args")
    statistics = {key: meta[key] for key in ("mean", "std") if meta.get(key) is not None}
    return kept | check_arguments(statistics, intro=intro)


def shown(value: Any) -> str:
    """Write a value for a message, whatever it is: short, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 1 << 64 else "a number of many digits"
    if isinstance(value, str):
        return f"'{printable(value, limit=80)}'"
    if isinstance(value, list | tuple) and len(value) <= 8:
        flat = (str, int, float, type(None))
        return f"[{', '.join(shown(v) if isinstance(v, flat) else '...' for v in value)}]"
    return f"a {type(value).__name__}"
