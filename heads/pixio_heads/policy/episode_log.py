"""EpisodeLog: a table of the episodes of every evaluation, and videos of some of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from pixio_heads.policy import picture
from pixio_heads.policy.rollout.play import Outcome
from pixio_lightning.files import output_path, written_aside
from pixio_lightning.training import visualize

_COLUMNS = ("step", "stage", "episode", "success", "success_any", "return", "steps", "error")


@dataclass
class Film:
    """An episode that was played: its name, what came of it, and its frames if they were kept.

    Attributes:
        frames: uint8 `(T, H, W, 3)`, or None.
    """

    name: str
    outcome: Outcome
    frames: NDArray[np.uint8] | None = None


class EpisodeLog(L.Callback):
    """Write `episodes.csv`, and below `episodes/` the videos and a contact sheet."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what the evaluation that ends has played."""
        module: Any = pl_module
        own, module.films = module.films, []
        films = _gathered(own)
        if trainer.sanity_checking or not films:
            return
        stage = "test" if trainer.testing else "predict" if trainer.predicting else "val"
        root = Path(trainer.default_root_dir)
        step = module.trained_steps
        folder = root / "episodes" / f"{stage}-{step:07d}"
        kept = [film for film in own if film.frames is not None]
        for film in kept:  # every process those it has played
            end = "broken" if film.outcome.error else "success" if film.outcome.success else "fail"
            path = output_path(folder, f"{film.name}-{end}", ".mp4")
            assert film.frames is not None
            picture.film(path, film.frames)
        if not trainer.is_global_zero:
            return
        _add_rows(root / "episodes.csv", step, stage, films)
        if kept:
            visualize.write(folder / "episodes.png", picture.sheet(kept))
        for film in films:
            if film.outcome.error:
                print(f"episode broken: {film.outcome.error}", flush=True)

    on_test_epoch_end = on_validation_epoch_end
    on_predict_epoch_end = on_validation_epoch_end


def _gathered(films: list[Film]) -> list[Film]:
    """Return the episodes of all processes, without their frames."""
    films = [Film(film.name, film.outcome) for film in films]
    if not (dist.is_available() and dist.is_initialized()):
        return films
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, films)
    return sorted((film for part in found for film in part), key=lambda film: film.name)


def _add_rows(path: Path, step: int, stage: str, films: list[Film]) -> None:
    """Add the rows of an evaluation, in place of those it had before it was interrupted."""
    kept = []
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        kept = [row for row in rows if row[:2] != [str(step), stage]]
    with written_aside(path) as aside, aside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(_COLUMNS)
        table.writerows(kept)
        for film in films:
            o = film.outcome
            numbers = (int(o.success), int(o.success_any), f"{o.total:.6g}", o.steps)
            table.writerow((step, stage, film.name, *numbers, o.error))
