"""Every registered head keeps the contract."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import fork_server
import pytest
import torch
import yaml
from torch import Tensor, nn

from pixio_heads.classification import Classification
from pixio_lightning.cli.recipes import find
from pixio_lightning.files import plugins
from pixio_lightning.models import Backbone, Features
from pixio_lightning.testing import HeadContract
from pixio_lightning.training import Batch, Optim

# A small set of scenes, which all of a worker's tests share.
_SCENES = ("--data.scenes", "{train: 4, held_out: 4, views: 2, size: 64}")


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    """Start processes from one that has imported everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadContract, "python", fork_server.python())
        yield


class TestDepth(HeadContract):
    recipe = "depth/demo"
    overrides = _SCENES


@pytest.mark.slow
class TestDepthWithDPT(HeadContract):
    recipe = "depth/nyuv2_dpt"
    overrides = (
        *_SCENES,
        *("--model.optim.lr", "1e-3"),
        *("--model.decoder.features", "16", "--model.decoder.stages", "[8,8,8,8]"),
    )


@pytest.mark.slow
class TestRelativeDepth(HeadContract):
    recipe = "depth/relative_scenes"
    overrides = _SCENES


@pytest.mark.slow
class TestOrdinalDepth(HeadContract):
    recipe = "depth/zeroshot_da2k"
    overrides = (
        *_SCENES,
        *("--model.image_size", "64", "--model.optim.lr", "1e-4"),
        *("--model.backbone.tune", "frozen"),
        *("--model.decoder.features", "16", "--model.decoder.stages", "[8,8,8,8]"),
    )


class TestClassification(HeadContract):
    recipe = "classification/demo"
    overrides = _SCENES


class TestKNN(HeadContract):
    """A head without parameters: what needs training is skipped."""

    recipe = "classification/folder_knn"
    overrides = _SCENES


class TestSegmentation(HeadContract):
    recipe = "segmentation/demo"
    overrides = _SCENES


class TestReconstruction(HeadContract):
    recipe = "reconstruction/demo"
    tolerance = 0.05  # of the few pixels that an untrained model has within 3 %
    overrides = (
        *("--data.scenes", "{train: 4, held_out: 5, views: 2, size: 48, places: [den]}"),
        *("--model.sizes.pose_pool", "mean", "--model.backbone.tune", "frozen"),
    )


class TestPolicy(HeadContract):
    """It is evaluated by acting in episodes of the table top, which are short here."""

    recipe = "policy/demo"
    overrides = (
        *("--data.demonstrations", "2", "--data.episodes", "5", "--data.processes", "1"),
        *("--data.horizon", "8", "--model.videos", "0"),
    )

    @pytest.mark.slow  # each of them starts processes for its episodes
    def test_two_processes_measure_what_one_does(self, tmp_path: Path) -> None:
        super().test_two_processes_measure_what_one_does(tmp_path)

    def test_an_interrupted_run_goes_on_to_the_same_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        super().test_an_interrupted_run_goes_on_to_the_same_end(tmp_path, monkeypatch)
        assert not multiprocessing.active_children(), "an environment would hold the exit up"


class TestPropagation(HeadContract):
    """Clips of three frames; nothing is trained."""

    recipe = "propagation/demo"
    tolerance = 0.02  # of single pixels, which rounding turns
    overrides = ("--data.scenes", "{train: 4, held_out: 5, views: 3, size: 64}")


class TestAttributes(HeadContract):
    """Maps of few scenes, fitted in closed form; nothing is trained."""

    recipe = "attributes/demo"
    tolerance = 1e-3
    overrides = ("--data.scenes", "{train: 12, held_out: 5, views: 2, size: 64}")


class Peeking(Classification):
    """It reads the image, which the cache leaves out."""

    def forward(self, features: Features, batch: Batch) -> Tensor:
        return super().forward(features, batch) + batch["image"].float().mean() * 0


class Loose(Classification):
    """It owns a parameter itself."""

    def __init__(self, backbone: Backbone, *, optim: Optim = Optim(lr=1e-3), cache: bool = False):  # noqa: B008
        super().__init__(backbone, optim=optim, cache=cache)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: Features, batch: Batch) -> Tensor:
        return super().forward(features, batch) * self.scale


@pytest.fixture
def contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[type], HeadContract]:
    """Return the contract of a head that is trained on small scenes, without the cache."""
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path.parent / "pixio-cache"))

    def of(kind: type) -> HeadContract:
        recipe = yaml.safe_load(find("classification/demo").read_text())
        recipe["model"]["class_path"] = f"{__name__}.{kind.__name__}"
        recipe["model"]["init_args"] |= {"cache": False}
        del recipe["model"]["init_args"]["pool"]
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        made = HeadContract()
        made.recipe, made.overrides = str(tmp_path / "recipe.yaml"), _SCENES  # type: ignore[misc]
        made.run("fit", tmp_path / "trained", model__backbone__tune="frozen")
        return made

    return of


def test_a_head_that_reads_images_behind_the_cache_breaks_it(
    contract: Callable[[type], HeadContract], tmp_path: Path
) -> None:
    of_head = contract(Peeking)
    with pytest.raises(KeyError, match="image"):
        of_head.test_it_evaluates_to_the_same_from_the_cache(tmp_path / "trained", tmp_path)


def test_a_head_with_a_parameter_of_its_own_breaks_it(
    contract: Callable[[type], HeadContract], tmp_path: Path
) -> None:
    of_head = contract(Loose)
    of_head.test_it_evaluates_to_the_same_from_the_cache(tmp_path / "trained", tmp_path)
    with pytest.raises(AssertionError, match="scale"):
        of_head.test_it_owns_no_parameter_outside_of_its_decoder(tmp_path / "trained")


def test_every_registered_head_is_here() -> None:
    built_in = {p.name for p in plugins.installed() if p.distribution == "pixio-lightning"}
    assert built_in == {
        *("depth", "relative_depth", "ordinal_depth", "segmentation"),
        *("classification", "knn", "reconstruction", "policy", "propagation", "attributes"),
    }
