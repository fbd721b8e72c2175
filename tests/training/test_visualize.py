"""Pictures of a run: of any number of samples, and of images of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixio_lightning.cli.main import main
from pixio_lightning.training import visualize


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (192, 192)),  # as many pixels for each as make it readable
        ((128, 128), (256, 256)),
        ((300, 400), (300, 400)),
        ((64, 300), (64, 300)),
        ((10_260, 6_814), (512, 340)),
        ((3, 4_000), (1, 512)),
    ],
)
def test_a_picture_is_drawn_at_a_size_that_is_seen_and_sent(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert visualize.shown_size(*size) == shown


def test_large_pictures_take_no_more_room_than_small_ones(tmp_path: Path) -> None:
    large = torch.zeros(3, 3000, 4000, dtype=torch.uint8)
    large[:, :, 2000:] = 200
    drawn = visualize.write(tmp_path / "a.png", visualize.Panel([[large] * 4] * 2, list("abcd")))
    assert drawn.width < 4 * 540 and drawn.height < 2 * 410
    found = np.asarray(drawn)
    assert set(found[100, 10:200].ravel()) == {0} and set(found[100, 300:500].ravel()) == {200}
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_colours_of_components_do_not_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(2, 5, 4, 4)
    expected = visualize.principal_components(features, (2, 3, 8, 8))
    eigh = torch.linalg.eigh

    def flipped(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = eigh(matrix)
        return values, -vectors  # as right as the other

    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    assert torch.equal(visualize.principal_components(features, (2, 3, 8, 8)), expected)


def test_a_quantile_of_more_numbers_than_torch_takes() -> None:
    values = torch.arange(1 << 25, dtype=torch.float32).view(1 << 12, -1)
    assert visualize.quantile(values, 0.5) == pytest.approx(1 << 24, rel=1e-4)
    assert visualize.quantile(torch.tensor([1.0, 3.0]), 0.5) == 2.0


def _set(task: str, root: Path) -> list[str]:
    """Write a set of the task whose first validation image is damaged; return the data's keys."""
    partner = {"depth": "depth", "segmentation": "masks"}.get(task)
    for split in ("train", "val"):
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            image = root / split / ("images" if partner else f"class{i % 2}") / f"{i}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(image)
            if split == "val" and i == 0:
                image.write_bytes(image.read_bytes()[:200])
            if partner:
                other = root / split / partner / f"{i}.png"
                other.parent.mkdir(parents=True, exist_ok=True)
                labels = np.full((64, 64), i % 2, np.uint8)
                units = labels if task == "segmentation" else pixels[..., 0].astype(np.uint16) * 9
                Image.fromarray(units).save(other)
    keys = {"segmentation": ["--data.num_classes", "2"]}.get(task, [])
    return ["--data.source", "folder", "--data.path", str(root), *keys]


@pytest.mark.parametrize("task", ["depth", "segmentation", "classification"])
def test_a_run_without_a_sample_to_draw_goes_on(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    words = ["-c", f"{task}/demo", "--model.backbone.weights", "random:0", "--model.cache", "false"]
    words += [*_set(task, tmp_path / "set"), "--data.batch_size", "2", "--data.num_workers", "0"]
    words += ["--trainer.max_steps", "1", "--data.steps_per_epoch", "1"]
    words += ["--panels.every_n_steps", "1", "--panels.images", "1", "--out", str(tmp_path / "run")]
    assert main(["fit", *words]) == 0
    assert (tmp_path / "run/last.ckpt").exists()
    assert len((tmp_path / "run/bad_files.txt").read_text().splitlines()) == 1
