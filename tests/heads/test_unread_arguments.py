"""An argument that a source has no use for is refused, wherever it comes from."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from pixio_heads.classification.data import ClassificationData
from pixio_heads.depth.data import DepthData
from pixio_heads.depth.head import Depth, RelativeDepth
from pixio_heads.depth.ordinal_data import OrdinalData
from pixio_heads.policy.data import PolicyData
from pixio_heads.propagation.data import PropagationData
from pixio_heads.reconstruction.data import ReconstructionData
from pixio_heads.reconstruction.head import Reconstruction
from pixio_heads.reconstruction.model import Sizes
from pixio_heads.segmentation.data import SegmentationData
from pixio_heads.segmentation.head import Segmentation
from pixio_lightning.cli.main import main
from pixio_lightning.curation.scoring import Scoring
from pixio_lightning.data import SampleData
from pixio_lightning.data.clips.datamodule import Clips
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.errors import UserError
from pixio_lightning.models import Backbone
from pixio_lightning.models.mae_decoder import DecoderSize
from pixio_lightning.pretraining.distillation import Distillation
from pixio_lightning.training.callbacks import OnlineProbe
from pixio_lightning.training.optim import Optim, Part, build

UNREAD = [
    (DepthData, "folder", {"val_split": "test"}, "hub"),
    (DepthData, "nyuv2", {"kb_crop": True}, "kitti"),
    (DepthData, "folder", {"domain": "indoor"}, "diode and moge"),
    (DepthData, "mix", {"depth_scale": 0.01}, "folder and hub"),
    (ClassificationData, "folder", {"val_split": "test"}, "hub"),
    (ClassificationData, "folder", {"target": "objects"}, "scenes"),
    (SegmentationData, "ade20k", {"split": "trainaug"}, "hub and voc"),
    (SegmentationData, "voc", {"mask_column": "label"}, "hub"),
    (PropagationData, "jhmdb", {"split": "train"}, "davis2017 and vip"),
    (OrdinalData, "da2k", {"pairs": 8}, "scenes"),
    (PolicyData, "cortexbench", {"camera": "corner"}, "lerobot and gym"),
    (PolicyData, "lerobot", {"noise": 0.3}, "metaworld"),
    (PolicyData, "lerobot", {"trust_pickle": True}, "cortexbench"),
    (PolicyData, "lerobot", {"processes": 8}, "metaworld and gym"),
    (ReconstructionData, "blendedmvs", {"masks": False}, "wai"),
    (ReconstructionData, "folder", {"scene_lists": "lists"}, "wai"),
    (Clips, "videos", {"fps": 10.0}, "frames"),
]


@pytest.mark.parametrize(("kind", "source", "given", "readers"), UNREAD)
def test_it_is_named_with_what_reads_it(
    kind: Callable[..., Any], source: str, given: dict[str, Any], readers: str
) -> None:
    path = None if source == "metaworld" else "somewhere"
    task = {"task": "drawer-open-v3"} if source == "metaworld" else {}
    ((name, _),) = given.items()
    with pytest.raises(UserError, match=f"data.{name} is .* {source}, .* as {readers}"):
        kind(source, path, **task, **given)


@pytest.mark.parametrize(("kind", "source", "given", "readers"), UNREAD)
def test_the_scenes_of_an_overlay_take_it(
    kind: Callable[..., Any], source: str, given: dict[str, Any], readers: str
) -> None:
    assert kind("scenes", **given).source == "scenes"


class Own(SampleData):
    """Data of two sources, one of which reads an argument."""

    sources = ("scenes", "a", "b")

    def __init__(self, source: str = "scenes", path: str | None = None, *, k: int = 3) -> None:
        super().__init__(source, path)
        self.read_by("a", k=k)


class Derived(Own):
    """The same by another name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def test_its_default_is_found_in_a_class_that_another_is_derived_from() -> None:
    assert Derived("b", "somewhere", k=3).path == "somewhere"
    assert Derived("a", "somewhere", k=4).path == "somewhere"
    with pytest.raises(UserError, match="set it to 3$"):
        Derived("b", "somewhere", k=4)


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (ClassificationData, {"crop_scale": None, "crop_ratio": (1.0, 1.0)}, "data.crop_ratio is"),
        (SegmentationData, {"image_size": None, "scale": (1.0, 1.0)}, "data.scale is"),
        (Clips, {"past_step": 0.9}, "data.past_step is 0.9, but data.past_frames is 1"),
        (
            Backbone,
            {"weights": "random", "drop_path": 0.1},
            "backbone.drop_path is 0.1, but .*tune",
        ),
        (
            Backbone,
            {"weights": "random", "checkpointing": True},
            "backbone.checkpointing is True, but nothing of the backbone is trained",
        ),
    ],
)
def test_so_is_one_that_another_argument_leaves_without_effect(
    kind: Callable[..., Any], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        kind(**{"name": "pixio_vitt16"} | given if kind is Backbone else given)


@pytest.mark.parametrize("name", ["layer_decay", "backbone_lr_scale"])
def test_so_is_a_rate_of_a_backbone_that_is_not_trained(name: str) -> None:
    def part(tune: str) -> Part:
        backbone = Backbone("pixio_vitt16", weights="random", tune=tune).load()
        both = nn.ModuleDict({"backbone": backbone, "own": nn.Linear(2, 2)})
        return Part(both, Optim(lr=1e-3, **{name: 0.5}), backbone.depth)

    with pytest.raises(UserError, match=f"optim.{name} is 0.5, but nothing of the backbone"):
        build([part("frozen")], global_batch=1, total_steps=1)
    assert build([part("full")], global_batch=1, total_steps=1)


@pytest.mark.parametrize("task", ["depth", "segmentation"])
def test_how_many_layers_a_decoder_reads_is_the_backbone_s_to_say(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["check", "-c", f"{task}/demo", "--model.decoder", "DPTDecoder"]
    line += ["--model.backbone.layers", "quarters", "--model.backbone.weights", "random:0"]
    assert main(line) == 0
    assert main([*line, "--model.decoder.taps", "2"]) == 2
    error = capsys.readouterr().err
    assert "model.decoder.taps" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tune": "full"}, "Scoring trains nothing: set model.backbone.tune to frozen"),
        ({"layers": "quarters"}, "model.backbone.layers is .*, but heads read it"),
        ({"dense_cls": False}, "model.backbone.dense_cls is False, but heads read it"),
    ],
)
def test_so_is_what_scoring_does_not_take_of_its_backbone(given: dict[str, Any], said: str) -> None:
    assert Scoring(Backbone("pixio_vitt16", weights="random:0", compile=True))
    with pytest.raises(UserError, match=said):
        Scoring(Backbone("pixio_vitt16", weights="random:0", **given))


def backbone() -> Backbone:
    return Backbone("pixio_vitt16", weights="random:0")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Optim(schedule="linear"), "optim.schedule 'linear' is none of cosine, poly, con"),
        (lambda: DecoderSize(pos_init="sincso"), "did you mean 'sincos'"),
        (lambda: OnlineProbe(kind="lda"), "OnlineProbe's kind 'lda' is none of knn, linear"),
        (lambda: Pixels("fodler", "there"), "data.source 'fodler' .* did you mean 'folder'"),
        (lambda: Clips("video", "there"), "data.source 'video' .* did you mean 'videos'"),
        (lambda: Distillation(backbone(), {}, loss="l2"), "model.loss 'l2' is none of cosine, l1"),
        (lambda: Distillation(backbone(), {}, weighting="half"), "model.weighting 'half' is none"),
        (lambda: Depth(backbone(), reduction="mean"), "model.reduction 'mean' is none of image"),
        (lambda: Depth(backbone(), files="tif"), "model.files 'tif' is none of png, npy"),
        (lambda: Depth(backbone(), eval_crop="eigen"), "model.eval_crop 'eigen' is none of none"),
        (lambda: RelativeDepth(backbone(), form="mad"), "model.form 'mad' is none of robust"),
        (lambda: RelativeDepth(backbone(), space="log"), "model.space 'log' is none of depth"),
        (lambda: DepthData("diode", "there", domain="inside"), "none of indoor, outdoor, null"),
        (lambda: DepthData("folder", "there", orientation="up"), "data.orientation 'up' is none"),
        (lambda: Segmentation(backbone(), reduction="sum"), "model.reduction 'sum' is none of"),
        (lambda: SegmentationData(label_shift=1), "data.label_shift '1' is none of -1, 0, null"),
        (lambda: Reconstruction(backbone(), weights="all"), "model.weights 'all' is none of over"),
        (lambda: Sizes(pose_pool="max"), "model.sizes.pose_pool 'max' is none of mean, flatten"),
    ],
)
def test_a_word_of_which_nothing_is_known_is_refused_from_python_too(
    make: Callable[[], Any], said: str
) -> None:
    """The command line checks the types; in Python any other word would count as one of them."""
    with pytest.raises(UserError, match=said):
        make()
