"""Which Vision Transformer a backbone is, and how it is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import nn

from pixio_lightning.errors import UserError, nearest, some_of
from pixio_lightning.models import vit  # vit registers the Pixio names with timm
from pixio_lightning.models.settings import agree, check_arguments, is_drop_rate, is_known, shown
from pixio_lightning.models.weights import key_names as spellings
from pixio_lightning.models.weights.read import (
    OF_A_FOLDER,
    Weights,
    licence_of,
    refused_by_the_hub,
)
from pixio_lightning.models.weights.report import Report, matched
from pixio_lightning.models.weights.shipped import SHIPPED


def is_generated(weights: str) -> bool:
    """Whether the weights come from no file of ours to read: `timm`, `random`, `random:SEED`.

    Raises:
        UserError: The seed is no number.
    """
    kind, colon, seed = weights.partition(":")
    if kind == "random" and colon and not re.fullmatch("[0-9]{1,18}", seed):
        raise UserError(f"backbone.weights '{weights}': the seed must be a number, as random:0")
    return weights == "timm" or kind == "random"


def resolve_architecture(
    name: str | None, weights: str, file: Weights | None, model_args: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Resolve name and arguments between the caller and what the weights say of themselves.

    Args:
        name: What the caller wants, or None.
        weights: Where the weights come from, for messages.
        file: What was read from there, or None.
        model_args: What the caller wants.

    Returns:
        The name and all arguments, among them `mean` and `std` where they are known.

    Raises:
        UserError: There is no name, it is unknown, or the two disagree; both values are named.
    """
    if name is not None:
        _check_name(name)
    asked = plain(check_arguments(model_args, intro=_intro(name)))
    for key in filter(is_drop_rate, asked):
        if asked[key]:
            raise UserError(
                f"backbone.model_args.{key} is {asked[key]}, but what it drops is drawn from a "
                "generator, with which a run that goes on would begin again: leave it out; "
                "backbone.drop_path is drawn by sample and step"
            )
    where = f"weights '{weights}'" + " (the small Pixio of this package)" * (weights in SHIPPED)
    found: dict[str, Any] = {}
    if file is not None:
        found = dict(file.meta)
        if (name or found.get("name")) in (None, *vit.SIZES):
            found |= spellings.infer(file.encoder, file.meta)
    name = _of_both(name, found.get("name"))
    if name is None:
        raise UserError(
            f"backbone.name is missing and {where} do not say it; "
            f"give one of {', '.join(vit.SIZES)}, or a timm ViT"
        )
    if found.get("name") not in (None, name, name.partition(".")[0]):
        raise UserError(
            f"backbone.name is '{name}', but {where} hold '{found['name']}'; "
            "leave the name out or change the weights"
        )
    stored = dict(found.get("model_args") or {})
    stored |= dict.fromkeys(filter(is_drop_rate, stored), 0.0)
    stored |= {key: found[key] for key in ("mean", "std") if key in found}
    for key, value in asked.items():
        if key == "pos_init" or key not in stored:
            stored[key] = value
        elif not agree(key, value, stored[key]):
            raise UserError(
                f"backbone.model_args.{key} is {value}, but {where} have "
                f"{stored[key]}; leave the key out"
            )
    if file is not None:
        _check_sizes(stored, file)
    return name, stored


def _of_both(asked: str | None, stored: str | None) -> str | None:
    """Return the name that is asked for, with the stored one's tag where it has none itself."""
    if asked and stored and "." not in asked and stored.partition(".")[0] == asked:
        return stored
    return asked or stored


def _check_sizes(model_args: Mapping[str, Any], file: Weights) -> None:
    """Refuse sizes that the tensors of a file contradict, before anything is built of them."""
    kernel = file.encoder.get(spellings.PATCH_EMBED)
    if kernel is None or kernel.ndim != 4:
        return
    tensors = {
        "embed_dim": kernel.shape[0],
        "in_chans": kernel.shape[1],
        "patch_size": tuple(kernel.shape[2:]),
        "depth": spellings.depth_of(file.encoder),
    }
    for key, there in tensors.items():
        here = model_args.get(key, there)
        if spellings.pair(here) != spellings.pair(there):
            raise UserError(
                f"backbone.model_args.{key} is {here}, but the tensors of weights '{file.source}' "
                f"say {there}; leave the key out"
            )


def _check_name(name: str) -> None:
    """Refuse what is neither a name of ours nor of timm.

    Raises:
        UserError: With the nearest name, or with where weights are named instead.
    """
    if is_known(name):
        return
    source, colon, rest = str(name).partition(":")
    if colon and source.replace("_", "-") in ("hf-hub", "local-dir"):
        place = f"hf:{rest}" if source.startswith("hf") else rest
        raise UserError(
            f"backbone.name {shown(name)} names a place, not a model: "
            f"give backbone.weights {shown(place)}"
        )
    names = [*vit.SIZES, *timm.list_models("*vit*", pretrained=False)]
    raise UserError(
        f"backbone.name {shown(name)} is not known{nearest(str(name), names) or ';'} "
        f"Pixio's are {', '.join(vit.SIZES)}; others: timm.list_models('*vit*')"
    )


def _intro(name: str | None) -> str:
    return f"backbone.model_args does not fit {name}" if name else "backbone.model_args"


def build(name: str, model_args: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    """Build a model where torch's default device says, with its own initialisation.

    Raises:
        UserError: The name or an argument is unknown, or it is no plain Vision Transformer.
    """
    # Whoever calls, and from wherever these came: this is the only way to timm.
    _check_name(name)
    arguments = {"num_classes": 0, **check_arguments(model_args, intro=_intro(name))}
    if name not in vit.SIZES:
        arguments = {"dynamic_img_size": True} | arguments
    model = None
    try:
        model = timm.create_model(name, pretrained=pretrained, **arguments)
    except UserError:
        raise
    except Exception as error:  # timm asserts, divides and indexes with whatever it is given
        tag = str(error).startswith("Invalid pretrained tag")
        if tag:
            base = name.partition(".")[0]
            raise UserError(
                f"backbone.name '{name}' is not known, did you mean '{base}'? Its tags: "
                f"{', '.join(timm.list_pretrained(f'{base}.*')) or 'none'}"
            ) from None
        if pretrained and isinstance(error, OSError | RuntimeError):
            raise  # of the download or the file it brought
        # Only plain ViTs know the argument that is added here, whatever the user gave.
        if "dynamic_img_size" not in str(error):
            raise UserError(f"{_intro(name)}: {str(error) or type(error).__name__}") from None
    if model is None or not _is_plain(model):
        raise UserError(
            f"backbone.name '{name}' is not a plain Vision Transformer; "
            "see timm.list_models('vit_*')"
        )
    sides = model.patch_embed.patch_size
    if sides[0] != sides[1]:
        raise UserError(f"{_intro(name)}: patch_size is {list(sides)}, but expected square patches")
    return model


def generate(name: str, model_args: Mapping[str, Any], *, weights: str) -> tuple[nn.Module, str]:
    """Build a model with timm's own weights, or at random; returns it and what is said of them.

    Raises:
        UserError: timm has no weights of that name, cannot fetch them, or they do not fit.
    """
    if weights == "timm":
        model = _with_timms(name, model_args)
        return model, f"timm's own, {fits_timms(name, model_args, model).line()}"
    _, _, seed = weights.partition(":")
    if not seed:
        return build(name, model_args), "random initialisation"
    # On the CPU, wherever the caller builds: one seed is one start on every device.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        return build(name, model_args), "random initialisation"


# --- timm's own weights -----------------------------------------------------------------------

# What timm brings to the size that is asked for, by interpolation, or by sums over channels.
_RESIZED = ("pos_embed", "patch_embed.proj.weight")


def fits_timms(name: str, model_args: Mapping[str, Any], model: nn.Module) -> Report:
    """Compare a model, which may be on the meta device, with the one timm has weights of.

    timm itself fills what fits of a model that differs, and leaves the rest at random.

    Raises:
        UserError: timm has no weights of that name, or of a tensor of the model, or has one more.
    """
    if not timm.is_model_pretrained(name):
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        others = f"; it has {some_of(tags)}" if tags else ""
        raise UserError(f"backbone.weights is timm, but timm has none of {name}{others}")
    classes = _timms_classes(name) if model_args.get("num_classes") else 0
    with torch.device("meta"):
        own = build(name, {"num_classes": classes}).state_dict()
    report = matched(model.state_dict(), own)
    other = tuple(shape for shape in report.mismatched if shape[0] not in _RESIZED)
    resized = len(report.mismatched) - len(other)
    report = replace(report, matched=report.matched + resized, mismatched=other)
    report.check(f"what timm has of {name}")
    return report


def _timms_classes(name: str) -> int:
    return timm.get_pretrained_cfg(name).num_classes


def _with_timms(name: str, model_args: Mapping[str, Any]) -> nn.Module:
    # With another number of classes than the file's timm would no longer load strictly.
    classes = _timms_classes(name)
    repository = _timms_repository(name)
    try:
        with refused_by_the_hub(f"{repository} (weights: timm)", repository, asked="timm"):
            model: Any = build(name, {**model_args, "num_classes": classes}, pretrained=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise UserError(f"timm cannot load weights of {name}: {reason[0]}") from error
    if not model_args.get("num_classes"):
        model.reset_classifier(0)
    return model


def _timms_repository(name: str) -> str:
    """Return where timm's weights are on the Hub; empty of the few that are elsewhere."""
    return timm.get_pretrained_cfg(name).hf_hub_id or ""


def find_timms(name: str) -> None:
    """Look for timm's weights, in the cache, then on the Hub or its mirror; nothing is fetched.

    It is asked as a download asks first. Where it gives another answer than that they are not open,
    or none in time, nothing is said: the download may come through, and else says why not.

    Raises:
        MissingWeights: They are not to be had; how to fetch them is said.
    """
    from huggingface_hub import (
        constants,
        errors,
        get_hf_file_metadata,
        hf_hub_url,
        try_to_load_from_cache,
    )

    repository = _timms_repository(name)
    if not repository:
        return
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in OF_A_FOLDER):
        return
    with refused_by_the_hub(f"{repository} (weights: timm)", repository, asked="timm"):
        try:
            address = hf_hub_url(repository, OF_A_FOLDER[0])
            get_hf_file_metadata(address, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except (errors.RepositoryNotFoundError, errors.OfflineModeIsEnabled):  # or it is gated
            raise
        except Exception as error:
            # Of the connection: its class is that of the client's library, which have common names.
            if type(error).__name__.startswith(("Connect", "Proxy")):
                raise errors.OfflineModeIsEnabled(str(error)) from error


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Write tuples as lists, as they come back from a file."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _is_plain(model: nn.Module) -> bool:
    """Whether patches come from one convolution, and positions are the same for every block."""
    return (
        all(hasattr(model, part) for part in ("_pos_embed", "blocks", "norm"))
        and isinstance(getattr(model, "patch_embed", None), PatchEmbed)
        and not getattr(model, "rope_mixed", False)
    )


def licence(name: str, weights: str, file: Weights | None, config: Mapping[str, Any]) -> str:
    """Return the licence of weights: timm's own, those of a file, or random ones, of none."""
    if weights == "timm":
        return config.get("license") or f"as timm states for {name}"
    return "none (random initialisation)" if file is None else licence_of(weights, file.meta)
