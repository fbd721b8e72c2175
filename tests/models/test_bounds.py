"""A small checkpoint stays small when it is read, by whichever of the two readers."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pixio_lightning.errors import UserError
from pixio_lightning.models.vit import PixioViT
from pixio_lightning.models.weights import read as weights
from pixio_lightning.training.checkpoints import checkpoint_io

SMALL = {"embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 64}


def shared(levels: int, leaf: Any) -> Any:
    """2 to the power of `levels` leaves, of `levels` lists."""
    for _ in range(levels):
        leaf = [leaf, leaf]
    return leaf


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def circle() -> list:
    value: list = []
    value.append(value)
    return value


HOSTILE = {
    "expanded": lambda: torch.zeros(1).expand(10**10),
    "strided": lambda: torch.zeros(10_000).as_strided((10_000, 10_000), (1, 0)),
    "views": lambda: [torch.zeros(100_000)[i:].view(-1) for i in range(1)] * 10_000,
    "shared lists": lambda: shared(40, 1.0),
    "shared empty lists": lambda: shared(40, []),
    "shared tuples": lambda: shared(40, ("a",)),
    "deep": lambda: nested(300),
    "circle": circle,
    "sparse": lambda: torch.ones(1).to_sparse().sparse_resize_((10**12,), 1, 0),
    "meta": lambda: torch.empty(10**12, device="meta"),
}


def written(folder: Path, extra: Any) -> Path:
    state = {f"backbone.vit.{n}": t for n, t in PixioViT(**SMALL).state_dict().items()}
    about = {"format": 1, "backbone": {"name": "pixio_vitt16", "model_args": SMALL}}
    torch.save({"state_dict": state, "pixio": about, "extra": extra}, folder / "w.ckpt")
    return folder / "w.ckpt"


READERS = {"weights": weights.read, "checkpoint": checkpoint_io.read}


# Counted to the same end, whatever is shared, in two seconds.
ALIKE = ("shared empty lists", "shared tuples")


@pytest.mark.parametrize(
    ("hostile", "reader"),
    [
        pytest.param(name, reader, marks=pytest.mark.slow if name in ALIKE else ())
        for name in HOSTILE
        for reader in READERS
    ],
)
def test_what_unfolds_is_refused(hostile: str, reader: str, tmp_path: Path) -> None:
    path = written(tmp_path, HOSTILE[hostile]())
    with pytest.raises(UserError, match="unfold|more than .* values") as refused:
        READERS[reader](str(path))
    assert str(refused.value).isprintable() and len(str(refused.value)) < 400


@pytest.mark.parametrize("reader", READERS)
def test_a_compressed_archive_is_refused(reader: str, tmp_path: Path) -> None:
    path = written(tmp_path, torch.zeros(1_000_000))
    packed = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zip_:
        for entry in plain.infolist():
            zip_.writestr(entry.filename, plain.read(entry.filename))
    assert packed.stat().st_size < path.stat().st_size / 4
    with pytest.raises(UserError, match="is compressed: .* torch.save does not compress"):
        READERS[reader](str(packed))


class Called:
    """Has a function called when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


CALLS = {
    "bytes": lambda: Called(bytearray, 200_000_000),
    "cast": lambda: Called(
        torch._utils._rebuild_device_tensor_from_cpu_tensor,
        *(torch.zeros(1).expand(50_000_000), torch.float64, torch.device("cpu"), False),
    ),
    "storage": lambda: Called(torch.UntypedStorage, 200_000_000),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_called_that_allocates(
    call: str, reader: str, zipped: bool, tmp_path: Path
) -> None:
    """torch's restricted unpickler calls these, before anything of the file can be looked at."""
    path = tmp_path / "w.ckpt"
    state = {f"backbone.vit.{n}": t for n, t in PixioViT(**SMALL).state_dict().items()}
    about = {"format": 1, "backbone": {"name": "pixio_vitt16", "model_args": SMALL}}
    content = {"state_dict": state, "pixio": about, "extra": CALLS[call]()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="called when it is read, .*: refused, and nothing of it"):
        READERS[reader](str(path))


@pytest.mark.parametrize("reader", READERS)
def test_an_archive_that_only_torch_can_read_is_refused(reader: str, tmp_path: Path) -> None:
    """Its entries may be packed: Python refuses their version, at which torch does not look."""
    path = written(tmp_path, torch.zeros(1_000_000))
    packed = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zip_:
        for entry in plain.infolist():
            zip_.writestr(entry.filename, plain.read(entry.filename))
    data = packed.read_bytes().replace(b"PK\1\2\x14\3\x14\0", b"PK\1\2\x14\3\x63\0")
    packed.write_bytes(data)
    assert torch.load(packed, weights_only=True)["extra"].shape == (1_000_000,)
    with pytest.raises(UserError, match="cannot read checkpoint"):
        READERS[reader](str(packed))


@pytest.mark.parametrize("reader", READERS)
def test_what_training_writes_passes(reader: str, tmp_path: Path) -> None:
    tied = torch.randn(1000)
    usual = {"tied": [tied, tied], "rows": [tied.view(10, 100)[i] for i in range(10)]}
    usual |= {"mask": torch.ones(1, 64, 64).expand(3, -1, -1), "steps": list(range(100_000))}
    READERS[reader](str(written(tmp_path, usual)))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3)) for _ in range(600)])
    READERS[reader](str(written(tmp_path, optimizer.state_dict())))
