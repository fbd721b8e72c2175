"""Relative depth across data sets: what is scored, where, and what a checkpoint carries over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pixio_heads.depth.head import Depth, RelativeDepth
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError
from pixio_lightning.models import LinearDecoder
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.training import results

SMALL = {"img_size": 32, "embed_dim": 48, "depth": 4, "num_heads": 3}


def head(**keys: object) -> RelativeDepth:
    backbone = Backbone("pixio_vitt16", weights="random", model_args=SMALL)
    made = RelativeDepth(backbone, **keys)  # type: ignore[arg-type]
    made.evaluation_info = {"min_depth": 0.6, "max_depth": 70.0}
    return made


def test_an_affine_map_of_the_true_disparity_is_without_error_in_both_spaces() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(3, 12, 14, generator=generator) * 60 + 1
    valid = torch.rand(3, 12, 14, generator=generator) > 0.3
    scale = torch.tensor([0.01, 3.0, 700.0])[:, None, None]
    output = scale / depth.double() - torch.tensor([5.0, 0.0, -2.0])[:, None, None]
    for space in ("disparity", "depth"):
        metric = head(space=space).metrics()
        metric.update(output, depth, valid)
        found = metric.compute()
        assert found["abs_rel"] < 1e-9 and found["delta1"] == 1 and found["images"] == 3, space
    # And what is no affine map has one.
    metric.reset()
    metric.update(-output, depth.sqrt(), valid)
    assert metric.compute()["abs_rel"] > 0.01


def test_it_says_what_its_numbers_are_and_of_what_size() -> None:
    made = head(image_size=256)
    assert "affine map" in made.output_config["unit"]
    made.backbone.load()
    side = made.evaluation_side
    seen = made.eval().inputs(torch.zeros(1, 3, 250, 250, dtype=torch.uint8))
    assert seen.shape[-2:] == (side, side) == (256, 256)


def test_sizes_and_ranges_that_leave_nothing_are_refused() -> None:
    for size in (0, -16, 1, 250):  # what is recorded is what is seen
        with pytest.raises(UserError, match=f"model.image_size is {size}, .* multiple of 16, the"):
            head(image_size=size)
    with pytest.raises(UserError, match="model.gradient_weight is -1.0, but expected at least 0"):
        head(gradient_weight=-1.0)
    for cap in (0, -3.0):
        with pytest.raises(UserError, match=f"model.cap is {cap:g}, but expected metres above 0"):
            head(cap=cap)
    with pytest.raises(UserError, match="model.cap is 5.0, but model.space is disparity"):
        head(cap=5.0, space="disparity")
    tiny = head(image_size=16).eval()
    tiny.backbone.load()
    assert tiny.inputs(torch.zeros(1, 3, 20, 90, dtype=torch.uint8)).shape[-2:] == (16, 64)
    backbone = Backbone("pixio_vitt16", weights="random", model_args=SMALL)
    backbone.load()
    with pytest.raises(UserError, match="model.min_depth is 0, but expected metres above"):
        Depth(backbone, min_depth=0)
    never = Depth(backbone, min_depth=20.0)
    never.data_info = {"max_depth": 10.0}
    with pytest.raises(UserError, match="model.min_depth is 20 m, but data.max_depth is 10"):
        never.build(backbone)
    with pytest.raises(UserError, match=r"decoder.positions is \[0, 8\]"):
        LinearDecoder(4, 1, positions=(0, 8))


def test_the_protocol_holds_range_space_cap_crop_and_size() -> None:
    lines = {
        head(**keys).protocol
        for keys in (
            {"space": "disparity"},
            {"space": "depth"},
            {"space": "depth", "cap": 30.0},
            {"space": "depth", "eval_crop": "garg"},
            {"space": "depth", "image_size": 512},
        )
    }
    assert len(lines) == 5 and all("depth 0.6 to 70 m" in line for line in lines)
    assert sum("scored as disparity" in line for line in lines) == 1
    assert sum("depth capped at 30 m" in line for line in lines) == 1
    assert sum("depth capped at 70 m" in line for line in lines) == 3
    assert sum("crop garg" in line for line in lines) == 1
    assert sum("short side 512 px" in line for line in lines) == 1


def test_what_predicts_without_looking() -> None:
    batch = {"size": (4, 6), "key": torch.zeros(2)}
    found = head().baselines(batch)
    assert found["constant"].shape == found["image_row"].shape == (2, 4, 6)
    depth = 1 / torch.linspace(0.1, 0.4, 4)[:, None].expand(2, 4, 6)  # a floor
    metric = head(space="disparity").metrics()
    metric.update(found["image_row"], depth, depth > 0)
    assert metric.compute()["abs_rel"] < 1e-6
    metric.reset()
    metric.update(found["constant"], depth, depth > 0)
    assert metric.compute()["abs_rel"] == pytest.approx((1.5 + 0.25 + 0.5 / 3 + 0.375) / 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of relative depth, trained for two steps on depths to 80 m."""
    root = tmp_path_factory.mktemp("trained")
    (root / "small.yaml").write_text(
        yaml.safe_dump({"model": {"backbone": {"model_args": SMALL, "tune": "full"}}})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXIO_CACHE", str(root / "cache"))
        words = ["-c", "depth/relative_scenes", "-c", "with/debug", "-c", str(root / "small.yaml")]
        words += ["--out", str(root / "run"), "--panels.every_n_steps", "0"]
        words += ["--data.scenes", "{train: 2, held_out: 2, views: 2, size: 48}"]
        words += ["--model.image_size", "32", "--data.image_size", "32"]
        assert main(["fit", *words]) == 0
    return root


def zeroshot(recipe: str, root: Path, out: Path, *words: str) -> dict:
    decoder = ("--model.decoder.features", "32", "--model.decoder.stages", "[32,64,128,128]")
    line = ["-c", recipe, "-c", "with/debug", "-c", str(root / "small.yaml"), "--out", str(out)]
    line += ["--model.image_size", "32", "--ckpt_path", str(root / "run" / "last.ckpt")]
    assert main(["test", *line, *decoder, *words]) == 0
    return results.read(out)[-1]


def test_another_set_is_scored_within_its_own_range(trained: Path, tmp_path: Path) -> None:
    """DIODE in its layout, the lower half of each image nearer than the set's least depth."""
    for i in range(3):
        scan = tmp_path / f"set/val/indoors/scene_00019/scan_0018{i}"
        scan.mkdir(parents=True)
        rng = np.random.default_rng(i)
        image = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(image).save(scan / "view.png")
        depth = rng.uniform(1, 9, (40, 48, 1)).astype(np.float32)
        depth[20:] = 0.5
        np.save(scan / "view_depth.npy", depth)
        np.save(scan / "view_depth_mask.npy", np.ones((40, 48), np.float32))
    source = ("--data.source", "diode", "--data.path", str(tmp_path / "set"))
    line = zeroshot("depth/zeroshot_diode", trained, tmp_path / "out", *source)
    assert line["protocol"].startswith("depth 0.6 to 350 m, crop none, scale and shift by least")
    assert "scored as disparity" in line["protocol"] and line["steps"] == 2
    assert line["dataset"].endswith("set, indoor") and line["n"] == 3
    # The constant is the mean disparity of what is within the range.
    expected = []
    for path in (tmp_path / "set").rglob("view_depth.npy"):
        disparity = 1 / np.load(path)[:20].astype(np.float64)
        expected.append(np.mean(np.abs(disparity.mean() - disparity) / disparity))
    constant = line["baselines"]["constant"]["abs_rel"]
    assert constant == pytest.approx(np.mean(expected), rel=1e-5)


def test_pairs_are_judged_with_a_checkpoint_of_relative_depth(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(trained / "cache"))
    scenes = ("--data.scenes", "{train: 2, held_out: 2, views: 2, size: 48}")
    line = zeroshot("depth/zeroshot_da2k", trained, tmp_path / "out", *scenes)
    assert line["task"] == "ordinal_depth" and line["steps"] == 2 and line["n"] == 4
    assert line["metrics"]["pairs"] == 16 and 0 <= line["metrics"]["accuracy"] <= 1
    assert line["baselines"]["image_row"]["accuracy"] > 0.5
