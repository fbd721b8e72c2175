"""Runs for the page: small ones of the real command line, and a head that is no built-in one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tiny_run
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics import MeanMetric

from pixio_heads.depth import Depth
from pixio_lightning import Backbone, Features, Head
from pixio_lightning.cli import main as cli
from pixio_lightning.cli.app.loaded import Loaded
from pixio_lightning.data import video_writer
from pixio_lightning.files import output_path

_SMALL = {
    "depth": "{train: 4, held_out: 4, views: 2, size: 64}",
    "segmentation": "{train: 4, held_out: 4, views: 2, size: 64}",
    "classification": "{train: 4, held_out: 4, views: 2, size: 64}",
    "reconstruction": "{train: 4, held_out: 5, views: 2, size: 48, places: [den]}",
    "video": "{train: 4, held_out: 4, views: 10, size: 64, places: [studio]}",
}
_FROZEN = ("--model.backbone.weights", "random", "--model.cache", "false")
_MORE = {
    "reconstruction": ("--model.sizes.pose_pool", "mean"),
    "video": (),
}


def train_all(folder: Path) -> None:
    """Train two steps of everything that the page has a tab for."""
    assert tiny_run.fit(tiny_run.write_recipe(folder / "tiny"), folder / "pretrain") == 0
    for name, scenes in _SMALL.items():
        words = ["fit", "-c", f"{name}/demo", "--out", str(folder / name), "--data.scenes", scenes]
        words += ["--trainer.max_steps", "2", "--data.num_workers", "0", "--data.batch_size", "2"]
        words += ["--panels.every_n_steps", "0", *_MORE.get(name, _FROZEN)]
        assert cli.main(words) == 0, name
    write_episodes(folder / "depth-that-acted", folder / "depth")


def write_episodes(folder: Path, run: Path) -> None:
    """Give a copy of a run what one that plays episodes leaves beside its checkpoint."""
    folder.mkdir()
    for name in ("best.ckpt", "config.yaml", "state.json"):
        (folder / name).write_bytes((run / name).read_bytes())
    for number, end in enumerate(("success", "fail")):
        path = folder / "episodes" / "val-0000002" / f"{number}-{end}.mp4"
        with video_writer(path, fps=10, height=64, width=64) as add:
            for shade in range(0, 250, 25):
                add(np.full((64, 64, 3), shade, np.uint8))
    (folder / "episodes.csv").write_text("step,stage,episode,success\n2,val,0,1\n2,val,1,0\n")


class Brightness(Head):
    """A head of a plug-in: it says how bright a picture is, in a text file."""

    def build(self, backbone: Backbone) -> nn.Module:
        """Return what is trained."""
        return nn.Linear(backbone.embed_dim, 1)

    def forward(self, features: Features, batch: dict[str, Any]) -> Tensor:
        """Return the mean of the pixels, `(B,)`."""
        return batch["image"].float().mean(dim=(1, 2, 3))

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return nothing to learn."""
        return {"loss": prediction.sum() * 0}

    def metrics(self) -> MeanMetric:
        """Return a mean."""
        return MeanMetric()

    def write(self, prediction: Tensor, batch: dict[str, Any], folder: Path) -> None:
        """Write a text file for each picture."""
        for name, value in zip(batch["name"], prediction.tolist(), strict=True):
            output_path(folder, name, ".txt").write_text(f"brightness {value:.0f}\n")


class Greedy(Brightness):
    """A head that runs out of memory where a picture is bright."""

    def forward(self, features: Features, batch: dict[str, Any]) -> Tensor:
        """Return the mean of the pixels, `(B,)`.

        Raises:
            OutOfMemoryError: It is high, as a GPU raises it.
        """
        found = super().forward(features, batch)
        if found.max() > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found


class GreedyDepth(Depth):
    """A head that no device has room for."""

    def to(self, *args: Any, **kwargs: Any) -> GreedyDepth:
        """Go nowhere.

        Raises:
            OutOfMemoryError: Always.
        """
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB.")


def rewritten(run: Path, path: Path, *, weights: str | None = None, **about: Any) -> Path:
    """Write a run's best checkpoint that says other things of itself; returns its path."""
    stored = torch.load(run / "best.ckpt", weights_only=True)
    stored["pixio"] |= about
    if weights is not None:
        stored["pixio"]["config"]["init_args"]["backbone"]["init_args"]["weights"] = weights
    torch.save(stored, path)
    return path


def plug_in(kind: type[Brightness] = Brightness) -> Loaded:
    """Return a head that no distribution brings."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1}
    head = kind(Backbone("pixio_vitt16", weights="random", model_args=size))
    head.configure_model()
    return Loaded("brightness", None, head.eval(), head.backbone)


def write_photographs(folder: Path) -> list[Path]:
    """Write pictures of one colour each, and one with a gradient."""
    folder.mkdir()
    paths = []
    for name, colour in {"red": (200, 30, 30), "green": (30, 200, 30)}.items():
        paths.append(folder / f"{name}.png")
        Image.new("RGB", (96, 64), colour).save(paths[-1])
    paths.append(folder / "gradient.png")
    rows = np.linspace(0, 255, 64)[:, None, None].repeat(96, axis=1).repeat(3, axis=2)
    Image.fromarray(rows.astype(np.uint8)).save(paths[-1])
    return paths


# Addresses that this process has connected to: the page must contact nobody.
CONTACTED: list[Any] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        CONTACTED.append(arguments[1])


sys.addaudithook(_watch)
