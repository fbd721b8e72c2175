"""Weights and checkpoints: safetensors, torch's two forms, transformers' and timm's folders."""

from __future__ import annotations

import contextlib
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import torch
from kind import Kind, Make
from safetensors.torch import save_file

from pixio_lightning.errors import UserError
from pixio_lightning.models.vit import PixioViT
from pixio_lightning.models.weights import read as weights
from pixio_lightning.models.weights.fill import refuse_non_finite
from pixio_lightning.models.weights.key_names import infer
from pixio_lightning.training.checkpoints import checkpoint_io

_ARGS = {"patch_size": 16, "img_size": 32, "n_cls_tokens": 2, "embed_dim": 12, "depth": 1}
_ARGS |= {"num_heads": 2, "in_chans": 3}


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return PixioViT(**_ARGS).state_dict()


def _checkpoint(folder: Path) -> list[str]:
    state = {f"backbone.vit.{name}": tensor for name, tensor in _state().items()}
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    backbone = {"name": None, "model_args": _ARGS}
    stored = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": state,
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "pixio": {"format": 1, "class": "PixelPretraining", "backbone": backbone},
    }
    torch.save(stored, folder / "a.ckpt")
    return ["a.ckpt"]


def _old_form(folder: Path) -> list[str]:
    state = _state()
    torch.save({"model": state}, folder / "a.pth", _use_new_zipfile_serialization=False)
    return ["a.pth"]


def _new_form(folder: Path) -> list[str]:
    torch.save({"model": _state()}, folder / "a.pth")
    return ["a.pth"]


def pickle_repaired(rng: random.Random, data: bytes) -> bytes:
    """Write torch's archive anew, so that its checksums are right; its pickle may be damaged."""
    import mutations

    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target,
    ):
        for entry in source.infolist():
            with source.open(entry) as stream:
                stream._expected_crc = None  # type: ignore[attr-defined]
                content = stream.read()
            if entry.filename.endswith("data.pkl"):
                content = mutations.damaged(rng, content, [content])
            target.writestr(entry.filename, content)
    return file.getvalue()


def _stored(folder: Path) -> None:
    (path,) = (p for p in folder.iterdir() if p.suffix in (".ckpt", ".pth"))
    if path.suffix == ".ckpt":
        checkpoint_io.read(path)
        checkpoint_io.read_plain(path)
    _weights(path)


def _weights(path: Path) -> None:
    found = weights.read(str(path))
    with contextlib.suppress(UserError):  # of a width that no model of a name has
        infer(dict(found.encoder), found.meta)
    refuse_non_finite(found.encoder, "")
    weights.licence_of(found.source, found.meta)


def safetensors(about: dict[str, Any]) -> Make:
    """Return what writes an export of ours."""

    def make(folder: Path) -> list[str]:
        meta = {"pixio": json.dumps(about)} if about else None
        save_file(_state(), folder / "a.safetensors", metadata=meta)
        return ["a.safetensors"]

    return make


def _folder(config: dict[str, Any]) -> Make:
    def make(folder: Path) -> list[str]:
        save_file(_state(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        return ["config.json"]

    return make


_ABOUT = {"content": "encoder", "name": None, "model_args": _ARGS, "licence": "Apache-2.0"}
_TRANSFORMERS = {"model_type": "pixio", "hidden_size": 12, "num_hidden_layers": 1}
_TRANSFORMERS |= {"num_attention_heads": 2, "image_size": 32, "hidden_act": "gelu"}

KINDS = {
    "checkpoint": Kind([_checkpoint, _new_form], _stored, pickle_repaired),
    "old_checkpoint": Kind([_old_form], _stored),
    "safetensors": Kind(
        [safetensors(_ABOUT), safetensors({})], lambda folder: _weights(folder / "a.safetensors")
    ),
    "weight_folder": Kind(
        [
            _folder(_TRANSFORMERS),
            _folder({"architecture": "pixio_vitt16", "model_args": _ARGS, "pixio": _ABOUT}),
        ],
        _weights,
    ),
}
