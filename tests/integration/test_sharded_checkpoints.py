"""A sharded checkpoint is read whole, and one of somebody else runs nothing.

Though torch would run what it says.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import command, environment, pixio
from small_runs import words_of
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata

from pixio_lightning import Backbone, load
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError
from pixio_lightning.models.weights.read import read as read_weights
from pixio_lightning.models.weights.sharded import check_parts
from pixio_lightning.training import results

STEPS = ("--trainer.max_steps", 2, "--data.steps_per_epoch", 2, "--trainer.devices", 1)


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    pixio("fit", "-c", recipe, "-c", "with/fsdp", *STEPS, "--out", folder)
    return folder / "last.ckpt"


def code_in_the_table(folder: Path, sung: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Canary(sung)))


def code_in_the_table_of_a_rank(folder: Path, sung: Path) -> None:
    (folder / "__0.metadata").write_bytes(pickle.dumps(Canary(sung)))


def code_in_a_value(folder: Path, sung: Path) -> None:
    """Put a pickle where a rate of the optimiser lies, and say so in the table."""
    _put_code(folder, sung, "weight_decay")


def code_in_a_tensor(folder: Path, sung: Path) -> None:
    _put_code(folder, sung, "cls_token")


def _put_code(folder: Path, sung: Path, ending: str) -> None:
    table = pickle.loads((folder / ".metadata").read_bytes())
    value = io.BytesIO()
    torch.save(Canary(sung), value)
    names = (key for key in table.storage_data if key.fqn.startswith(("state_dict", "optimizer")))
    place = next(key for key in names if key.fqn.endswith(ending))
    part = folder / table.storage_data[place].relative_path
    table.storage_data[place].offset = part.stat().st_size
    table.storage_data[place].length = len(value.getvalue())
    part.write_bytes(part.read_bytes() + value.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(table))


def a_part_elsewhere(folder: Path, sung: Path) -> None:
    table = pickle.loads((folder / ".metadata").read_bytes())
    for place in table.storage_data.values():
        shutil.copy(folder / "__0_0.distcp", folder.parent / "other.distcp")
        place.relative_path = "../other.distcp"
    (folder / ".metadata").write_bytes(pickle.dumps(table))


def a_table_that_is_cut(folder: Path, sung: Path) -> None:
    data = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("change", [code_in_the_table, code_in_a_value])
def test_nothing_of_a_sharded_checkpoint_is_run(
    change: Callable[[Path, Path], None], recipe: Path, trained: Path, tmp_path: Path
) -> None:
    foreign, sung = tmp_path / "foreign.ckpt", tmp_path / "sung"
    shutil.copytree(trained, foreign)
    change(foreign, sung)
    words = ("fit", "-c", recipe, "-c", "with/fsdp", *STEPS)
    line = command(*words, "--out", tmp_path / "out", "--ckpt_path", foreign)
    line += ["--trainer.max_steps", "4"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=300)
    assert not sung.exists()
    assert done.returncode == 2, done.stderr
    told = [text for text in done.stderr.splitlines() if text.startswith("pixio: error:")]
    assert len(told) == 1 and "holds more than tensors and plain data" in told[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (code_in_the_table_of_a_rank, "holds more than tensors and plain data"),
        (a_part_elsewhere, "names the part '../other.distcp', which is no file in it"),
        (a_table_that_is_cut, "is damaged: .metadata cannot be read"),
    ],
)
def test_the_table_is_looked_at_first(
    change: Callable[[Path, Path], None], said: str, trained: Path, tmp_path: Path
) -> None:
    foreign, sung = tmp_path / "foreign.ckpt", tmp_path / "sung"
    shutil.copytree(trained, foreign)
    check_parts(foreign)
    change(foreign, sung)
    with pytest.raises(UserError, match=said):
        check_parts(foreign)
    assert not sung.exists()


def test_one_of_our_own_goes_on(recipe: Path, trained: Path, tmp_path: Path) -> None:
    words = ("fit", "-c", recipe, "-c", "with/fsdp", *STEPS[2:], "--trainer.max_steps", 4)
    out = pixio(*words, "--out", tmp_path / "out", "--ckpt_path", trained)
    assert "resumed" in out and "at step 2" in out


# Heads with a trained backbone; policies, which act in a simulator, are not sharded. Those that
# differ from another one in few lines are slow.
_HEADS = ("segmentation, tuned", "reconstruction", "classification", "depth")
_ALIKE = ("relative depth", "ordinal depth", "classification, several")


@pytest.mark.parametrize(
    "name", [_HEADS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in _HEADS[1:] + _ALIKE)]
)
def test_a_sharded_run_of_a_head_goes_on_and_is_evaluated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    words = [*words_of(name, tmp_path / "run"), "--panels.every_n_steps", "0"]
    words[4:4] = ["-c", "with/fsdp"]  # after the overlay that names another strategy
    words += ["--model.backbone.tune", "full", "--model.cache", "false"]
    assert main(["fit", *words]) == 0
    last, more = tmp_path / "run" / "last.ckpt", ("--trainer.max_steps", "3")
    assert last.is_dir()
    assert main(["validate", *words]) == 0
    fit, validated = (results.read(tmp_path / "run")[i] for i in (-2, -1))
    assert validated["steps"] == fit["steps"] == 2
    assert validated["metrics"] == pytest.approx(fit["metrics"], rel=1e-4, abs=1e-4, nan_ok=True)
    words[words.index("--out") + 1] = str(tmp_path / "more")
    assert main(["fit", *words, *more, "--ckpt_path", str(last)]) == 0
    assert results.read(tmp_path / "more")[-1]["steps"] == 3


@pytest.mark.slow  # as test_a_sharded_model_evaluates_images_of_any_sizes, of sets
def test_sharded_processes_call_the_model_equally_often_in_an_evaluation(tmp_path: Path) -> None:
    """Of five sets one by one, where the second process ends with one that only fills up."""
    words = [*words_of("reconstruction", tmp_path / "run"), "--panels.every_n_steps", "0"]
    words[4:4] = ["-c", "with/fsdp"]
    words += ["--trainer.devices", "2", "--trainer.strategy.timeout", "0:05:00"]
    words += ["--data.val_images", "5", "--data.val_batch_size", "1"]
    pixio("fit", *words, "--model.backbone.tune", "full", PIXIO_CACHE=str(tmp_path / "cache"))
    line = results.read(tmp_path / "run")[-1]
    wrong = line["baselines"]["wrong_reference"]
    assert line["n"] == 5 and wrong["points_rel"] != line["metrics"]["points_rel"]
    assert math.isfinite(wrong["points_rel"])


def test_its_weights_are_read_in_one_process(recipe: Path, trained: Path, tmp_path: Path) -> None:
    """As an encoder and decoder, as a module, and exported: those of a run that is not sharded."""
    plain = tmp_path / "plain"
    pixio("fit", "-c", recipe, *STEPS, "--out", plain)
    whole, found = read_weights(str(plain / "last.ckpt")), read_weights(str(trained))
    assert found.meta == whole.meta and whole.decoder and found.decoder
    assert found.encoder.keys() == whole.encoder.keys()
    assert found.decoder.keys() == whole.decoder.keys()
    for name, tensor in (whole.encoder | whole.decoder).items():
        torch.testing.assert_close((found.encoder | found.decoder)[name], tensor)
    module = load(trained.parent)
    assert not module.training and module.optim.lr == load(plain).optim.lr
    out = pixio("export", trained.parent, "--licence", "MIT", "--out", tmp_path / "out.safetensors")
    assert "wrote" in out
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    given = [Backbone(weights=str(path)) for path in (trained, tmp_path / "out.safetensors")]
    one, two = (backbone.eval()(images).tokens for backbone in given)
    assert torch.equal(one, two)


@pytest.mark.parametrize("change", [code_in_the_table, code_in_a_tensor])
def test_nothing_of_its_weights_is_run(
    change: Callable[[Path, Path], None], trained: Path, tmp_path: Path
) -> None:
    foreign, sung = tmp_path / "foreign.ckpt", tmp_path / "sung"
    shutil.copytree(trained, foreign)
    change(foreign, sung)
    for read in (read_weights, load):
        with pytest.raises(UserError, match="holds more than tensors and plain data"):
            read(str(foreign))
    assert not sung.exists()


def _change_cls_token(folder: Path, change: Callable[[TensorStorageMetadata], object]) -> None:
    table = pickle.loads((folder / ".metadata").read_bytes())
    names = [name for name in table.state_dict_metadata if name.startswith("state_dict.")]
    change(table.state_dict_metadata[next(n for n in names if n.endswith("cls_token"))])
    (folder / ".metadata").write_bytes(pickle.dumps(table))


def a_larger_tensor(folder: Path) -> None:
    def grow(part: TensorStorageMetadata) -> None:
        part.size = torch.Size([*part.size[:-1], 2 * part.size[-1]])

    _change_cls_token(folder, grow)


def no_pieces(folder: Path) -> None:
    _change_cls_token(folder, lambda part: part.chunks.clear())


def overlapping_pieces(folder: Path) -> None:
    """As many values as the tensor has, but half of them twice and the others never."""

    def overlap(part: TensorStorageMetadata) -> None:
        half = torch.Size([*part.size[:-1], part.size[-1] // 2])
        start = torch.Size([0] * len(half))
        part.chunks = [ChunkStorageMetadata(start, half), ChunkStorageMetadata(start, half)]

    _change_cls_token(folder, overlap)


def a_huge_tensor(folder: Path) -> None:
    def grow(part: TensorStorageMetadata) -> None:
        part.size = torch.Size([*part.size[:-1], 10**16])
        start = torch.Size([0] * len(part.size))
        part.chunks = [ChunkStorageMetadata(start, part.size)]

    _change_cls_token(folder, grow)


def no_properties(folder: Path) -> None:
    _change_cls_token(folder, lambda part: setattr(part, "properties", None))


def no_tensors(folder: Path) -> None:
    table = pickle.loads((folder / ".metadata").read_bytes())
    table.state_dict_metadata = None
    (folder / ".metadata").write_bytes(pickle.dumps(table))


def parts_of_garbage(folder: Path) -> None:
    for part in folder.glob("*.distcp"):
        part.write_bytes(b"\xff" * part.stat().st_size)


def garbage_beside(folder: Path) -> None:
    (folder / "meta.pt").write_bytes(b"garbage")


def nothing_beside(folder: Path) -> None:
    (folder / "meta.pt").write_bytes(b"")


def much_beside(folder: Path) -> None:
    stored = torch.load(folder / "meta.pt", weights_only=True)
    torch.save(stored | {"views": torch.zeros(1).expand(10**9)}, folder / "meta.pt")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (a_larger_tensor, "is damaged: the pieces of the tensor '.*cls_token' do not make it up"),
        (no_pieces, "is damaged: the pieces of the tensor '.*cls_token' do not make it up"),
        (overlapping_pieces, "is damaged: the pieces of the tensor '.*' do not make it up"),
        (a_huge_tensor, "is damaged: its tensors have [0-9,]+ bytes, its parts [0-9,]+"),
        (no_properties, "is damaged: .metadata cannot be read"),
        (no_tensors, "is damaged: .metadata cannot be read"),
        (parts_of_garbage, "is damaged: its parts cannot be read"),
        (garbage_beside, "truncated, damaged or none"),
        (nothing_beside, "truncated, damaged or none"),
        (much_beside, "its tensors unfold to"),
    ],
)
def test_weights_with_gaps_or_damage_are_refused(
    damage: Callable[[Path], None], said: str, trained: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.ckpt"
    shutil.copytree(trained, foreign)
    damage(foreign)
    for read in (read_weights, load):
        with pytest.raises(UserError, match=said):
            read(str(foreign))


def test_its_weights_are_read_without_a_warning(trained: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_weights(str(trained))
