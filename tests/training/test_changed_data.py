"""A run does not go on with other training samples than it began with, and says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_run import fit, write_recipe

from pixio_lightning.data.pixels import Pixels
from pixio_lightning.pretraining.masked_pixels import PixelPretraining
from pixio_lightning.training.checkpoints import checkpoint_io


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
