"""The contract that every head keeps, as tests that a plug-in's author runs on a recipe.

    from pixio_lightning.testing import HeadContract

    class TestMine(HeadContract):
        recipe = "mine/demo"

Every test goes through the command line, on rendered scenes, with a backbone of a few layers. The
one with two processes takes half a minute, all others together about as long.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pixio_lightning.cli.config_errors import class_of
from pixio_lightning.cli.main import main
from pixio_lightning.data import SampleData
from pixio_lightning.errors import UserError
from pixio_lightning.models.weights import read as weights
from pixio_lightning.training import results, run_folder
from pixio_lightning.training.base import BackboneModule
from pixio_lightning.training.checkpoints import checkpoint_io
from pixio_lightning.training.checkpoints.load import load
from pixio_lightning.training.run_folder import Metrics

_SMALL = {"embed_dim": 64, "depth": 4, "num_heads": 4, "img_size": 64}
# One of each family of backbones, with few layers.
BACKBONES: dict[str, dict[str, Any]] = {
    "pixio": {"name": "pixio_vitt16", "model_args": _SMALL},
    "mae": {"name": "vit_base_patch16_224.mae", "model_args": _SMALL},
    "dinov2": {
        "name": "vit_small_patch14_reg4_dinov2.lvd142m",
        "model_args": _SMALL | {"img_size": 56},
    },
    "dinov3": {"name": "vit_small_patch16_dinov3.lvd1689m", "model_args": _SMALL},
}
# What tells them apart: patch size, class tokens, these and registers, rotary positions.
_FAMILIES = {
    "pixio": (16, 8, 8, False),
    "mae": (16, 1, 1, False),
    "dinov2": (14, 1, 5, False),
    "dinov3": (16, 1, 5, True),
}


class HeadContract:
    """Subclass it, name a recipe of the head, and pytest does the rest."""

    # The recipe, by name or path.
    recipe: str = ""
    # Words added to every command line, to make a run smaller.
    overrides: ClassVar[tuple[str, ...]] = ()
    # Of metrics, between one process and two; more where a metric counts pixels at a threshold.
    tolerance: float = 1e-4
    # What runs the command line in processes of its own.
    python: str = sys.executable

    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
        """Render scenes and keep features in a folder that the session's tests share."""
        cache = tmp_path_factory.getbasetemp() / "pixio-cache"
        monkeypatch.setenv("PIXIO_CACHE", str(cache))

    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The folder of one run on a frozen backbone, which tests copy before they change it."""
        cache = tmp_path_factory.getbasetemp() / "pixio-cache"
        folder = tmp_path_factory.mktemp("trained") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PIXIO_CACHE", str(cache))
            self.run("fit", folder, model__backbone__tune="frozen")
        return folder

    @pytest.fixture
    def trainable(self, trained: Path) -> None:
        """Skip the test where nothing is to be trained on a frozen backbone."""
        if not (trained / "last.ckpt").exists():
            pytest.skip("nothing is trained")

    @pytest.fixture
    def copied(self, trained: Path, trainable: None, tmp_path: Path) -> Path:
        """A copy of the trained run; the test is skipped where nothing was to be trained."""
        return Path(shutil.copytree(trained, tmp_path / "run"))

    def words(self, folder: Path, backbone: str = "pixio", **keys: Any) -> list[str]:
        """Return a command line without its verb; `keys` are written with `__` for dots."""
        overlay = folder.parent / f"{folder.name}.yaml"
        overlay.parent.mkdir(parents=True, exist_ok=True)
        overlay.write_text(yaml.safe_dump({"model": {"backbone": BACKBONES[backbone]}}))
        words = ["-c", self.recipe, "-c", "with/debug", "-c", str(overlay), "--out", str(folder)]
        words += ["--panels.every_n_steps", "0", *self.overrides]
        for key, value in keys.items():
            words += [f"--{key.replace('__', '.')}", str(value)]
        return words

    def run(self, verb: str, folder: Path, backbone: str = "pixio", **keys: Any) -> dict[str, Any]:
        """Run a verb in this process; return the last evaluation that it recorded, if any."""
        assert main([verb, *self.words(folder, backbone, **keys)]) == 0
        lines = results.read(folder)
        return lines[-1] if lines else {}

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_it_runs_on_every_kind_of_backbone(
        self, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        modules = []
        configure = BackboneModule.configure_model

        def note(module: BackboneModule) -> None:
            modules.append(module)
            configure(module)

        monkeypatch.setattr(BackboneModule, "configure_model", note)
        line = self.run("fit", tmp_path / "run", backbone)
        ran = modules[-1].backbone
        rotary = getattr(ran.vit, "rope", None) is not None
        tokens = (ran.n_cls_tokens, ran.vit.num_prefix_tokens)
        assert (ran.patch_size, *tokens, rotary) == _FAMILIES[backbone]
        assert line["backbone"]["name"] == BACKBONES[backbone]["name"]
        assert line["backbone"]["digest"] in (None, weights.digest(ran.vit.state_dict()))
        known = [value for value in line["metrics"].values() if math.isfinite(value)]
        assert known and (line["loss"] is None or math.isfinite(line["loss"]))

    @pytest.mark.usefixtures("trainable")
    def test_training_lowers_the_loss(self, tmp_path: Path) -> None:
        keys: dict[str, Any] = {"trainer__max_steps": 30, "trainer__log_every_n_steps": 1}
        keys |= {"data__steps_per_epoch": 30, "model__optim__warmup": 0}  # evaluated once
        self.run("fit", tmp_path / "run", **keys)
        rows = Metrics(tmp_path / "run" / "metrics.csv").rows
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        assert sum(losses[-6:]) < sum(losses[:6]), losses

    def test_an_evaluation_is_recorded(self, trained: Path) -> None:
        line = results.read(trained)[-1]
        assert line["n"] > 0 and line["metrics"]
        assert {"task", "dataset", "split", "seed", "recipe", "versions", "steps"} <= line.keys()
        for baseline, values in line["baselines"].items():
            assert values.keys() == line["metrics"].keys(), baseline
        assert json.loads((trained / results.FILE).read_text().splitlines()[-1]) == line

    def test_a_frozen_backbone_stays_out_of_the_checkpoint(self, copied: Path) -> None:
        stored = checkpoint_io.read(copied / "last.ckpt")
        assert not [name for name in stored["state_dict"] if name.startswith("backbone.")]
        assert stored["pixio"]["backbone_digest"]

    @pytest.mark.usefixtures("trainable")
    def test_a_tuned_backbone_is_in_the_checkpoint_and_loads_back(self, tmp_path: Path) -> None:
        self.run("fit", tmp_path / "run", model__backbone__tune="full", model__cache="false")
        stored = checkpoint_io.read(tmp_path / "run" / "last.ckpt")
        assert "backbone_digest" not in stored["pixio"]
        state = load(tmp_path / "run" / "last.ckpt").state_dict()
        assert [name for name in state if name.startswith("backbone.vit.blocks.0.")]
        assert all(torch.equal(state[name], stored["state_dict"][name]) for name in state)

    def test_it_loads_back_and_evaluates_to_the_same(self, trained: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(trained, tmp_path / "run"))
        path = run / "last.ckpt"
        if path.exists():
            stored = checkpoint_io.read(path)["state_dict"]
            state = load(path).state_dict()
            assert stored and all(torch.equal(state[name], stored[name]) for name in stored)
        words: dict[str, Any] = {"ckpt_path": path} if path.exists() else {}
        expected = results.read(trained)[-1]["metrics"]
        again = self.run("validate", run, model__backbone__tune="frozen", **words)
        assert again["verb"] == "validate"
        assert again["metrics"] == pytest.approx(expected, nan_ok=True)

    def test_it_owns_no_parameter_outside_of_its_decoder(self, copied: Path) -> None:
        """What `build` returns is sharded, compiled and counted; anything else would not be."""
        named = load(copied / "last.ckpt").named_parameters()
        trained = [name for name, parameter in named if parameter.requires_grad]
        outside = [name for name in trained if not name.startswith(("backbone.", "decoder."))]
        assert not outside, outside

    def test_it_evaluates_to_the_same_from_the_cache(self, copied: Path, tmp_path: Path) -> None:
        """Features from disk come without an image: `forward` and `loss` must need none."""
        config: Any = run_folder.stored_config(copied)
        given = config["model"]["init_args"]
        chosen: Any = class_of(config["data"]["class_path"]) or object
        if "cache" not in given or not issubclass(chosen, SampleData):
            pytest.skip("its features are never cached")
        if given["cache"]:
            pytest.skip("its recipe caches them, so that all other tests read them")
        keys = {"model__backbone__tune": "frozen", "model__cache": "true"}
        if chosen.augment is not SampleData.augment:
            keys["data__views"] = "1"
        run = tmp_path / "cached"
        cached = self.run("fit", run, **keys)
        again = self.run("validate", run, ckpt_path=run / "last.ckpt", **keys)
        assert again["verb"] == "validate"
        for name, value in again["metrics"].items():
            expected = pytest.approx(value, rel=self.tolerance, abs=1e-5, nan_ok=True)
            assert cached["metrics"][name] == expected, (name, cached["metrics"], value)

    def test_a_picture_is_seen_as_evaluation_sees_it(
        self, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`load(run).predict(file)` is what `pixio predict` makes of it through `data.prepare`.

        A head that refuses single pictures, or reads more of a batch than an image, is skipped.
        """
        data = []
        configure = BackboneModule.configure_model

        def note(module: BackboneModule) -> None:
            data.append(module.attached.datamodule)
            configure(module)

        path = copied / "last.ckpt"
        with monkeypatch.context() as patch:
            patch.setattr(BackboneModule, "configure_model", note)
            self.run("validate", copied, model__backbone__tune="frozen", ckpt_path=path)
        head: Any = load(path)
        json.dumps(head.output_config)  # plain data, which an export can carry
        file, shape = tmp_path / "picture.png", (64, 96, head.backbone.channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        Image.fromarray(pixels.squeeze()).save(file)
        try:
            head.prepared(pixels)
        except UserError as error:
            pytest.skip(f"it refuses single pictures: {error}")
        seen = np.array(data[-1].prepare({"image": pixels})["image"])
        image = torch.from_numpy(seen).movedim(-1, 0)[None]
        try:
            with torch.no_grad():
                expected = head.predicted_to_show({"image": image, "size": tuple(seen.shape[:2])})
        except (KeyError, UserError) as error:
            pytest.skip(f"it reads more than the image: {error}")
        found = head.predict(file)
        torch.testing.assert_close(
            found,
            expected,
            msg=lambda text: f"{text}\nLet `prepared` do what the data's `prepare` does.",
        )

    def test_a_missing_tensor_of_the_head_is_an_error(
        self, copied: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = copied / "last.ckpt"
        stored = checkpoint_io.read(path)
        name = next(iter(stored["state_dict"]))
        del stored["state_dict"][name]
        torch.save(stored, path)
        capsys.readouterr()
        words = self.words(copied, ckpt_path=path, model__backbone__tune="frozen")
        assert main(["validate", *words]) == 2
        assert name in capsys.readouterr().err

    def test_another_backbone_is_refused(
        self, copied: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        keys = {"model__backbone__weights": "random:7", "model__backbone__tune": "frozen"}
        words = self.words(copied, ckpt_path=copied / "last.ckpt", **keys)
        assert main(["validate", *words]) == 2
        assert "digest" in capsys.readouterr().err

    @pytest.mark.usefixtures("trainable")
    def test_an_interrupted_run_goes_on_to_the_same_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys: dict[str, Any] = {"trainer__max_steps": 4, "checkpoint__every_n_steps": 2}
        whole = self.run("fit", tmp_path / "whole", **keys)
        step = BackboneModule.log_training

        def stop(module: BackboneModule, loss: torch.Tensor) -> None:
            step(module, loss)
            if module.global_step == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(BackboneModule, "log_training", stop)
            assert main(["fit", *self.words(tmp_path / "parts", **keys)]) == 130
        parts = self.run("fit", tmp_path / "parts", **keys)
        assert parts["steps"] == 4 and parts["metrics"] == pytest.approx(
            whole["metrics"], nan_ok=True
        )
        first, second = (checkpoint_io.read(tmp_path / r / "last.ckpt") for r in ("whole", "parts"))
        for name, tensor in first["state_dict"].items():
            assert torch.equal(tensor, second["state_dict"][name]), name

    def test_two_processes_measure_what_one_does(self, tmp_path: Path) -> None:
        """With a number of samples that two processes cannot share evenly."""
        keys: dict[str, Any] = {"data__val_images": 5, "ckpt_path": "none"}
        one = self.run("validate", tmp_path / "one", **keys)
        words = self.words(tmp_path / "two", trainer__devices=2, **keys)
        command = [self.python, "-m", "pixio_lightning.cli.main", "validate", *words]
        done = subprocess.run(
            [*command, "--trainer.strategy", "ddp"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        two = results.read(tmp_path / "two")
        assert len(two) == 1 and two[0]["n"] == one["n"]
        for name, value in one["metrics"].items():
            assert two[0]["metrics"][name] == pytest.approx(value, rel=self.tolerance, abs=1e-5), (
                name
            )
