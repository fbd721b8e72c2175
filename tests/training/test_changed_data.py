"""A run does not go on with other training samples than it began with, and says what to do."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from processes import in_processes
from shard_files import pack
from tiny_run import VIT, fit, write_recipe

from pixio_lightning.cli.resume.processes import SameSamples
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.errors import UserError
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.mae_decoder import DecoderSize
from pixio_lightning.pretraining.masked_pixels import PixelPretraining
from pixio_lightning.training.checkpoints import checkpoint_io
from pixio_lightning.training.optim import Optim


def interrupt(patch: pytest.MonkeyPatch, step: int) -> None:
    """Stop training before a step, as a kill does."""
    original = PixelPretraining.training_step

    def stop(module: PixelPretraining, *args: Any) -> Any:
        if module.global_step == step:
            raise KeyboardInterrupt
        return original(module, *args)

    patch.setattr(PixelPretraining, "training_step", stop)


def test_a_removed_image_stops_the_run_and_the_advice_can_be_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 3)
        assert fit(recipe, run) == 130
    picture = tmp_path / "photos" / "3.png"
    content = picture.read_bytes()
    picture.unlink()
    capsys.readouterr()
    assert fit(recipe, run) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "holds a run on other training samples than there are now: put them back" in error
    assert f"--ckpt_path {run / 'last.ckpt'} --out DIR" in error
    assert checkpoint_io.read(run / "last.ckpt")["global_step"] == 3
    assert fit(recipe, tmp_path / "other", "--ckpt_path", run / "last.ckpt") == 0
    picture.write_bytes(content)
    assert fit(recipe, run) == 0


def test_names_and_their_number_are_what_counts(tmp_path: Path) -> None:
    write_recipe(tmp_path)

    def listing() -> str:
        data = Pixels("folder", str(tmp_path / "photos"))
        data.setup("fit")
        return data.listing()

    before = listing()
    (tmp_path / "photos" / "3.png").touch()  # a copy on another machine has other times
    assert listing() == before
    (tmp_path / "photos" / "3.png").rename(tmp_path / "photos" / "33.png")
    assert listing() != before


def test_a_split_without_samples_has_a_listing() -> None:
    class Empty(Pixels):
        def named(self, split: str) -> Any:
            return []

    assert Empty("folder", "photos").listing() == Empty("folder", "other").listing() != ""


def begin(rank: int, folder: str, port: int, source: str, val: str | None, found: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sizes: dict[str, Any] = {"image_size": 32, "batch_size": 2, "num_workers": 0, "val_images": 20}
    val_path = val and f"{folder}/{rank}/{val}"
    data = Pixels(source, f"{folder}/{rank}/photos", val_path=val_path, **sizes)  # type: ignore[arg-type]
    backbone = Backbone("pixio_vitt16", weights="random:0", tune="full", model_args=VIT)
    model = PixelPretraining(
        backbone, mask_grid=2, decoder=DecoderSize(16, 1, 1), optim=Optim(lr=1e-3)
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[SameSamples()],
        default_root_dir=folder,
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with pytest.raises(UserError, match=found):
        trainer.fit(model, data)


OTHERS = {
    "pictures": ("folder", None, "photos/3.png", "to train on"),
    "pictures held out apart": ("folder", "val", "val/3.png", "held out"),
    "shards": ("shards", None, "photos/1.parquet", "to train on"),
    "shards held out apart": ("shards", "val", "val/0.parquet", "held out"),
}


@pytest.mark.parametrize(
    "which", [pytest.param(n, marks=pytest.mark.slow) if "apart" in n else n for n in OTHERS]
)
def test_a_process_that_finds_other_samples_is_named_by_all(which: str, tmp_path: Path) -> None:
    """A file more, as on a file system that lags, moves the order of all that are read."""
    source, val, lacks, what = OTHERS[which]
    for rank in range(2):
        folder = write_recipe(tmp_path / str(rank)).parent
        if source == "shards":
            shutil.rmtree(folder / "photos")
            pack(folder / "photos", 60)
        if val:
            shutil.copytree(folder / "photos", folder / val)
    (tmp_path / "1" / lacks).unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = f"process 1 of 2 found other samples {what} than process 0"
    in_processes(begin, str(tmp_path), port, source, val, found)
