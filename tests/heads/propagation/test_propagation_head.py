"""The head on clips whose motion is known: what it carries, what stands beside it, its files."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import av
import fork_server
import numpy as np
import pytest
import torch
from clip_folders import SIZE, davis, jhmdb, vip
from PIL import Image
from torch import Tensor

from pixio_heads.propagation import picture
from pixio_heads.propagation.head import Propagation
from pixio_lightning import Backbone
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError
from pixio_lightning.training import results

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64, "patch_size": 8}
BACKBONE = (
    "--model.backbone",
    "{name: pixio_vitt16, weights: 'random:1', model_args: "
    "{img_size: 64, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, n_cls_tokens: 2}}",
)


def head(**keys) -> Propagation:
    made = Propagation(Backbone("pixio_vitt16", weights="random:1", model_args=SMALL), **keys)
    made.configure_model()
    return made.eval()


def moving(frames: int, *, step: int = 8, seed: int = 0) -> dict:
    """A textured square that moves by whole patches over a background of noise."""
    rng = np.random.default_rng(seed)
    image = np.repeat(rng.integers(0, 90, (1, 3, 64, 64), dtype=np.uint8), frames, axis=0)
    target = np.zeros((frames, 64, 64), np.uint8)
    thing = rng.integers(120, 255, (3, 16, 16), dtype=np.uint8)
    for i in range(frames):
        left = 8 + step * i
        image[i, :, 24:40, left : left + 16] = thing
        target[i, 24:40, left : left + 16] = 5
    return {
        "image": torch.from_numpy(image)[None],
        "target": torch.from_numpy(target)[None],
        "size": (64, 64),
        "name": ["moving"],
        "key": torch.tensor([1]),
    }


def joined(*batches: dict) -> dict:
    names = ("image", "target", "key")
    rows = {name: torch.cat([batch[name] for batch in batches]) for name in names}
    return rows | {"size": (64, 64), "name": [b["name"][0] for b in batches]}


def recalled(found: Tensor, truth: Tensor) -> float:
    """Return how much of the square is found behind the first frame."""
    return float((found == truth)[:, 1:][truth[:, 1:] == 5].float().mean())


def test_colours_follow_a_square_that_moves_by_whole_patches() -> None:
    """An outline through the grid loses its corners, and no more."""
    batch = moving(5)
    with torch.no_grad():
        guesses = head(radius=3.0, k=1).baselines(batch)
    truth = batch["target"]
    assert recalled(guesses["grid"], truth) > 0.7
    assert recalled(guesses["colour"], truth) > 0.7 > 0.4 > recalled(guesses["still"], truth)
    for guess in guesses.values():
        assert guess.shape == truth.shape and guess.dtype == torch.uint8
        assert torch.equal(guess[:, 0], truth[:, 0])  # is given


def test_all_features_at_once_and_chunk_by_chunk_give_the_same() -> None:
    batch = joined(moving(7, step=4), moving(7, step=2, seed=1))
    with torch.no_grad():
        found = [head(frames_per_chunk=n).predicted(batch) for n in (1, 3, 16)]
        model = head()
        found.append(model(model.encode(batch), batch))
    assert found[0].shape == (2, 7, 64, 64) and found[0].dtype == torch.uint8
    for other in found[1:]:  # to rounding, which decides single pixels
        assert (found[0] != other).float().mean() < 1e-3


def test_the_same_weights_are_no_better_than_themselves() -> None:
    batch = moving(4)
    made = Propagation(Backbone("pixio_vitt16", weights="random:0", model_args=SMALL))
    made.configure_model()
    with torch.no_grad():
        own = made.eval().predicted(batch)
        assert torch.equal(own, made.baselines(batch)["random_init"])
        other = head().baselines(batch)["random_init"]
    assert torch.equal(own, other)
    assert not torch.equal(own, head().predicted(batch))
    assert not [name for name in made.state_dict() if "untrained" in name]


def test_only_the_first_frame_is_given() -> None:
    batch, later = moving(4), moving(4)
    later["target"][:, 1:] = 9
    with torch.no_grad():
        assert torch.equal(head().predicted(batch), head().predicted(later))


def test_a_batch_from_python_needs_the_first_mask_alone() -> None:
    batch = moving(4)
    found = head().predict({"image": batch["image"], "target": batch["target"][:, :1]})
    assert found.shape == (1, 4, 64, 64)
    with pytest.raises(UserError, match="Propagation needs what it is to follow"):
        head().predict(batch["image"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"k": 0}, "model.k is 0, but expected at least 1"),
        ({"context": 10**7}, "model.context is 10000000; expected at most 1000 frames"),
        ({"context": -1}, "model.context is -1, but expected at least 0"),
        ({"radius": 0.0}, "model.radius is 0.0; expected more than 0"),
        ({"temperature": float("nan")}, "model.temperature is nan"),
    ],
)
def test_mistakes(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        head(**keys)


def test_a_backbone_that_would_be_trained_is_refused() -> None:
    with pytest.raises(UserError, match="set model.backbone.tune to frozen"):
        Propagation(Backbone("pixio_vitt16", weights="random", tune="full"))


# --- runs ---------------------------------------------------------------------------------------


def words(source: str, root: Path, out: Path) -> list[str]:
    made = ["-c", f"propagation/{source}", *BACKBONE, "--data.path", str(root), "--out", str(out)]
    size = ["--data.image_size", f"[{SIZE[0]}, {SIZE[1]}]", "--data.num_workers", "0"]
    return [*made, *size, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]


_CLIPS = {"swan": 5, "bear": 4, "dog": 3}


@pytest.mark.parametrize(
    ("source", "write", "clips", "names"),
    [
        ("davis2017", davis, _CLIPS, {"jf", "j", "f"}),
        pytest.param("vip", vip, _CLIPS, {"miou"}, marks=pytest.mark.slow),  # masks, too
        ("jhmdb", jhmdb, {f"golf/{name}": n for name, n in _CLIPS.items()}, {"pck_10", "pck_20"}),
    ],
)
def test_each_data_set_is_tested_and_predicted(
    source: str, write, clips: dict, names: set, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, out = write(tmp_path / "data", clips), tmp_path / "run"
    assert main(["test", *words(source, root, out)]) == 0
    (line,) = results.read(out)
    assert line["n"] == 3 and line["metrics"].keys() == names
    best = line["baselines"]["grid"]
    for name in names:
        assert 0 <= line["baselines"]["still"][name] < best[name] <= 1
        assert line["baselines"]["colour"][name] <= best[name] + 0.02
    assert f"{source} {root}" in line["dataset"] and "7 nearest by cosine" in line["protocol"]
    assert main(["predict", *words(source, root, out)]) == 0
    assert "predictions.png" in capsys.readouterr().out
    first = next(iter(clips))
    written = out / "predictions" / first
    with av.open(str(written.with_name(f"{written.name}.mp4"))) as video:
        shapes = {frame.to_ndarray(format="rgb24").shape for frame in video.decode(video=0)}
        assert shapes == {(288, 2 * 480, 3)} and video.streams.video[0].frames == 5
    if source == "jhmdb":
        rows = list(csv.reader((written.with_name("swan.csv")).open()))
        assert rows[0] == ["frame", "joint", "x", "y"] and len(rows) == 1 + 5 * 15
    else:
        files = sorted(path.name for path in written.glob("*.png"))
        assert files == [f"{i:05d}.png" for i in range(5)]
        mask = Image.open(written / "00004.png")
        assert mask.mode == "P" and mask.size == SIZE[::-1]


def test_two_processes_measure_what_one_does_of_files(tmp_path: Path) -> None:
    """Three clips of other lengths, one of them broken."""
    root = davis(tmp_path / "data", _CLIPS | {"cat": 3})
    (root / "Annotations/480p/cat/00001.png").unlink()
    assert main(["test", *words("davis2017", root, tmp_path / "one")]) == 0
    line = [*words("davis2017", root, tmp_path / "two"), "--trainer.devices=2"]
    done = subprocess.run(
        [fork_server.python(), "-m", "pixio_lightning.cli.main", "test", *line]
        + ["--trainer.strategy=ddp"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (one,), (two,) = (results.read(tmp_path / name) for name in ("one", "two"))
    assert one["n"] == two["n"] == 3
    assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-6)
    assert one["baselines"]["colour"] == pytest.approx(two["baselines"]["colour"], rel=1e-6)


# --- pictures -----------------------------------------------------------------------------------


def test_a_label_is_laid_over_its_pixels_and_nothing_else_is_changed() -> None:
    frames = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[1, 16:32, 16:32], masks[1, 0, 0] = 1, 255
    laid = picture.drawn(frames, masks, (64, 64), joints=False)
    assert laid.shape == (2, 3, 256, 256)
    changed = (laid != 100).any(dim=1)
    assert not changed[0].any()
    expected = torch.zeros(256, 256, dtype=torch.bool)
    expected[64:128, 64:128] = True
    assert torch.equal(changed[1], expected)


def test_joints_are_drawn_where_they_are() -> None:
    frames = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    # Of a stored frame of 120 x 160 that is seen as 64 x 64.
    dots = picture.drawn(frames, torch.tensor([[[120.0, 30.0]]]), (120, 160), joints=True)
    assert dots.shape[-2:] == (360, 480)
    rows, columns = dots[0].amax(0).nonzero(as_tuple=True)
    assert rows.float().mean() == pytest.approx(91, abs=1)
    assert columns.float().mean() == pytest.approx(361, abs=1)


@pytest.mark.parametrize("size", [(64, 64), (480, 854), (31, 1000), (2000, 1500)])
def test_videos_have_even_sides_within_bounds(size: tuple[int, int]) -> None:
    height, width = picture.shown_size(*size)
    assert height % 2 == width % 2 == 0 and min(height, width) >= 2
    assert max(height, width) <= 1280
    assert height / width == pytest.approx(size[0] / size[1], rel=0.1)
