"""Read weights from anywhere, safely.

A source is a file (`.safetensors`, `.pth`, `.pt`, `.ckpt`, `.bin`), a folder (of transformers, timm
or ours, as a sharded checkpoint is), `hf:ORG/NAME[@REVISION]`, `FILE:STUDENT`, one of several
distilled, or the shipped `tiny`.
Nothing a file says is ever imported or executed: pickles are read by torch's restricted unpickler,
and whatever it refuses is refused here.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from pixio_lightning.errors import MissingWeights, UserError, nearest, printable, some_of
from pixio_lightning.files.text import parse_json, read_text
from pixio_lightning.models.settings import check_description
from pixio_lightning.models.weights import sharded
from pixio_lightning.models.weights.bounds import load_bounded
from pixio_lightning.models.weights.key_names import OURS, State, from_timm, to_official
from pixio_lightning.models.weights.shipped import SHIPPED
from pixio_lightning.models.weights.students import split_student, student_in

PICKLES = (".pth", ".pt", ".ckpt", ".bin")
DECODER_SUFFIX = ".decoder.safetensors"
# How transformers and timm name the file beside which a config.json says what it is.
OF_A_FOLDER = ("model.safetensors", "pytorch_model.bin")
NONCOMMERCIAL = "FAIR Noncommercial Research License v1"


class Weights(NamedTuple):
    """What a source holds.

    Attributes:
        encoder: Tensors under the official names (`pixio_lightning.models.weights.key_names`).
        decoder: The decoder of pretraining under its official names, or None.
        meta: What the source says of itself: `name`, `model_args`, `licence`, `mean`, `std`, each
            as `pixio_lightning.models.settings` lets it pass.
        source: As the user gave it.
        others: Names of the tensors that belong to neither, a head's for example.
    """

    encoder: State
    decoder: State | None
    meta: dict[str, Any]
    source: str
    others: tuple[str, ...] = ()


def read(source: str) -> Weights:
    """Read the weights of `source`.

    Raises:
        UserError: The source is missing, unreadable, unsafe, a URL, or holds no encoder; or what it
            says of itself is not what a file may say.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        raise UserError(
            f"weights are not read from a URL: {source}; download the file and give its path, "
            "or write hf:ORG/NAME"
        )
    file, student = split_student(source)
    path = _download(source) if source.startswith("hf:") else _existing(file)
    if (path / sharded.TABLE).is_file():
        state, meta = _of_checkpoint(sharded.read_whole(path), path, student)
    elif path.is_dir():
        state, meta = _read_folder(path)
    else:
        state, meta = _read_file(path, student)
        if not meta and path.name in OF_A_FOLDER:
            meta = _folder_meta(path.parent)
    meta = check_description(meta, source=source)
    try:
        encoder, decoder, others = to_official(state)
        _refuse_odd_types(encoder | decoder)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    if not encoder:
        raise UserError(f"{source} holds no encoder, only {some_of([*decoder, *others])}")
    return Weights(encoder, decoder or None, meta, source, tuple(others))


def _refuse_odd_types(state: State) -> None:
    """Refuse tensors that no model is trained in, and those that hold no values of their own."""
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.is_quantized:
            raise UserError(f"'{name}' is of type {tensor.dtype}, weights are floating-point")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
            raise UserError(f"'{name}' is no dense tensor with values; save the weights as such")


def _existing(source: str) -> Path:
    path = Path(source).expanduser()
    if path.exists():
        return path
    known = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    known += [*SHIPPED, "timm", "random"] if path.name == source else []
    hint = nearest(path.name, known)
    if not hint and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        hint = f"; a repository of the Hugging Face Hub is written hf:{source}"
    raise MissingWeights(f"weights '{source}': no such file or folder{hint}", source)


def _read_file(path: Path, student: str = "") -> tuple[Mapping[str, Any], dict[str, Any]]:
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"cannot read {path}: it is neither a file nor a folder")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLES:
        # Training scripts store their parsed arguments; a Namespace only holds attributes.
        checkpoint = load_bounded(path, path, mapped=True, plain=[argparse.Namespace])
        return _of_checkpoint(checkpoint, path, student)
    raise UserError(f"cannot read {path}: expected .safetensors, {', '.join(PICKLES)} or a folder")


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            meta = parse_json((file.metadata() or {}).get("pixio", "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise _unreadable(path) from error
    if not isinstance(meta, dict):
        raise _unreadable(path)
    if meta.get("content") == "decoder":
        encoder = path.name.replace(DECODER_SUFFIX, ".safetensors")
        raise UserError(f"{path} holds a decoder alone; give the encoder's file, {encoder}")
    if meta.get("content") == "timm":
        state = from_timm(state)
    beside = path.with_suffix(DECODER_SUFFIX)
    if meta.get("content") == "encoder+decoder" and beside.is_file():
        try:
            with safe_open(beside, framework="pt") as file:
                state |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _unreadable(beside) from error
    return state, meta


def _of_checkpoint(
    checkpoint: Mapping[str, Any], path: Path, student: str
) -> tuple[Mapping[str, Any], Any]:
    """Return what holds the tensors, of one student where it is named, and what is said of them."""
    if not isinstance(checkpoint.get("pixio"), Mapping):
        if student:
            raise UserError(f"{path} holds no students, so no '{student}'")
        return checkpoint, {}
    if chosen := student_in(checkpoint, student, path):
        return chosen
    backbone = checkpoint["pixio"].get("backbone") or {}
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping) or not any(OURS in str(name) for name in state):
        said = backbone.get("weights") if isinstance(backbone, Mapping) else None
        trained_on = printable(said) if isinstance(said, str) else "given when it was trained"
        raise UserError(
            f"{path} holds a head only, its backbone was frozen: use the backbone's own weights "
            f"({trained_on})"
        )
    return checkpoint, backbone


def _unreadable(path: Path) -> UserError:
    size = path.stat().st_size if path.exists() else 0
    return UserError(
        f"cannot read {path} ({size:,} bytes): truncated or not a checkpoint; fetch or save it anew"
    )


def _read_folder(folder: Path) -> tuple[State, dict[str, Any]]:
    meta = _folder_meta(folder)
    state: State = {}
    for path in _weight_files(folder):
        part, said = _read_file(path)
        state |= part
        meta |= check_description(said, source=str(path))
    return state, meta


def _weight_files(folder: Path) -> list[Path]:
    """Choose a folder's weight files: `model.safetensors` whole, sharded, then a single file."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _read_json(index).get("weight_map", {})
        if not isinstance(named, dict) or not all(isinstance(n, str) for n in named.values()):
            raise UserError(f"{index}: weight_map is no list of files by tensor")
        shards = sorted(set(named.values()))
        for shard in shards:
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise UserError(f"{index} names the shard '{shard}', which is not in the folder")
        return [folder / shard for shard in shards]
    for suffix in (".safetensors", *PICKLES):
        found = sorted(p for p in folder.glob(f"*{suffix}") if not p.match(f"*{DECODER_SUFFIX}"))
        if len(found) > 1:
            names = some_of(p.name for p in found)
            raise UserError(f"{folder} holds several weight files ({names}): name one of them")
        if found:
            return found
    raise UserError(f"{folder} holds no weights: expected .safetensors or {', '.join(PICKLES)}")


def _folder_meta(folder: Path) -> dict[str, Any]:
    """Translate a folder's `config.json`, transformers' or timm's, into what `Weights` keeps."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    config = _read_json(path)
    if "architecture" in config:
        said = config["pixio"] if "pixio" in config else _as_timm_says(config)
        return check_description(said, source=str(path))
    if config.get("model_type") != "pixio":
        raise UserError(
            f"{path}: model_type {config.get('model_type')!r} is not read, only 'pixio'; "
            "for another model give its timm name and weights: timm"
        )
    for key, only in {"hidden_act": "gelu", "layer_norm_eps": 1e-6}.items():
        if config.get(key, only) != only:
            raise UserError(f"{path}: {key} is {config[key]!r}, a Pixio encoder has {only!r}")
    # What a configuration leaves out has the value of transformers' PixioConfig, the H/16.
    args = {
        "embed_dim": config.get("hidden_size", 1280),
        "depth": config.get("num_hidden_layers", 32),
        "num_heads": config.get("num_attention_heads", 16),
        "img_size": config.get("image_size", 256),
    }
    prepared = folder / "preprocessor_config.json"
    shown = _read_json(prepared) if prepared.is_file() else {}
    statistics = {key: shown[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in shown}
    return check_description({"model_args": args} | statistics, source=str(path))


def _as_timm_says(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate timm's `config.json`: the model, its input statistics, a licence.

    The tag tells weights of one architecture apart, as `vit_base_patch16_224.mae`, and is part of
    the name where timm knows it.
    """
    said = config.get("pretrained_cfg")
    said = said if isinstance(said, Mapping) else config  # those of early timm have no such part
    name, tag = config["architecture"], said.get("tag")
    if isinstance(name, str) and tag and timm.is_model_pretrained(f"{name}.{tag}"):
        name = f"{name}.{tag}"
    # Most of the Hub's say beside `model_args` which classifier the tensors have.
    built = {key: config.get(key, said.get(key)) for key in ("num_classes", "global_pool")}
    stated = config.get("model_args", {})
    if isinstance(stated, Mapping):
        stated = {**{k: v for k, v in built.items() if v is not None}, **stated}
    found = {"name": name, "model_args": stated, "licence": said.get("license")}
    return found | {key: said[key] for key in ("mean", "std") if key in said}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(path))
    except (ValueError, OSError) as error:
        raise _unreadable(path) from error
    if not isinstance(content, dict):
        raise _unreadable(path)
    return content


def _download(source: str) -> Path:
    """Fetch `hf:ORG/NAME[@REVISION]`, or find it in the cache when there is no network."""
    from huggingface_hub import snapshot_download

    repository, _, revision = source.removeprefix("hf:").partition("@")
    with refused_by_the_hub(source, repository, asked=source):
        # Safetensors first; pickles are fetched only where there is nothing else.
        for patterns in (["*.safetensors", "*.safetensors.index.json"], [f"*{s}" for s in PICKLES]):
            folder = Path(
                snapshot_download(
                    repository,
                    revision=revision or None,
                    allow_patterns=["*config.json", *patterns],
                    ignore_patterns=["*/*"],
                )
            )
            if any(folder.glob(patterns[0])):
                break
    return folder


@contextmanager
def refused_by_the_hub(what: str, repository: str, *, asked: str) -> Iterator[None]:
    """Say in one line why the Hub does not give weights, and how to come by them.

    Args:
        what: How the weights are called.
        repository: Where they are.
        asked: What was asked for, see `MissingWeights`.

    Raises:
        UserError: It does not; a `MissingWeights` where weights may be had by another way.
    """
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repository}"
    try:
        yield
        return
    except errors.GatedRepoError:
        text = f"is gated: accept its licence at {page}, then run `hf auth login`"
    except errors.RepositoryNotFoundError:
        text = (
            "does not exist or is not open to you: check the name; for a gated or private one, "
            f"accept its licence at {page} and run `hf auth login`"
        )
    except errors.RevisionNotFoundError:
        revision = what.partition("@")[2]
        raise UserError(f"{what} has no revision '{revision}': see {page}/tree/main") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        text = (
            "is not in the cache, and the Hub cannot be reached (or HF_HUB_OFFLINE is set): fetch "
            f"it on a machine with network, `hf download {repository}`, after accepting its licence"
        )
    except (errors.HFValidationError, errors.HfHubHTTPError) as error:
        said, is_address = str(error).splitlines()[0], isinstance(error, errors.HFValidationError)
        expected = ": expected hf:ORG/NAME[@REVISION]" * is_address
        raise UserError(f"{what} cannot be fetched ({said}){expected}") from None
    raise MissingWeights(f"{what} {text}", asked)


def digest(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """Return 16 hex digits of a sha256 over names, dtypes, shapes and bytes, as if cast to `dtype`.

    Of sharded tensors every process must call it: they are gathered, one after the other.
    """
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        tensor = tensor.to(device="cpu", dtype=dtype).contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def licence_of(source: str, meta: Mapping[str, Any]) -> str:
    """Return the licence of the weights at `source`, as far as it is known."""
    if re.match(r"(hf:)?(facebook|LiheYoung)/pixio-", source):
        return NONCOMMERCIAL
    return printable(str(meta.get("licence") or "unknown (own file)"))
