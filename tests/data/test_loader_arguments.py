"""Every data class takes the loader's arguments, which stand in StreamData alone."""

import inspect

import jsonargparse
import pytest

from pixio_heads.classification.data import ClassificationData
from pixio_heads.depth.data import DepthData
from pixio_heads.depth.ordinal_data import OrdinalData
from pixio_heads.reconstruction.data import ReconstructionData
from pixio_heads.segmentation.data import SegmentationData
from pixio_lightning.cli.config_errors import check_values
from pixio_lightning.curation.scores import ImagesToScore
from pixio_lightning.data.datamodule import StreamData
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.data.sample_data import SampleData
from pixio_lightning.errors import UserError

TASKS = [DepthData, OrdinalData, SegmentationData, ClassificationData, ReconstructionData]


def arguments(cls: type) -> set[str]:
    """Return what the command line offers of a class, each with a line of help and its default."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "data")
    names = {*vars(parser.get_defaults().data)}
    helps = parser.format_help().split("\n  --data.")[1:]
    shown = {text.split()[0]: " ".join(text.split()) for text in helps}
    for name in names & {*inspect.signature(StreamData).parameters}:
        assert "default: " in shown[name]
        assert len(shown[name].partition("(type:")[0].split()) > 4, shown[name]
    return names


@pytest.mark.parametrize("cls", [Pixels, ImagesToScore, *TASKS])
def test_a_data_class_takes_the_arguments_of_the_loader(cls: type) -> None:
    base = StreamData if issubclass(cls, Pixels) else SampleData
    assert arguments(cls) >= arguments(base) >= {*inspect.signature(StreamData).parameters}


@pytest.mark.parametrize("cls", [Pixels, ImagesToScore, *TASKS])
def test_null_is_refused_also_for_what_is_passed_on(cls: type) -> None:
    with pytest.raises(UserError, match="data.num_workers is null, but expected int"):
        check_values({"num_workers": None}, cls, "data")
    check_values({"val_batch_size": None} if cls is Pixels else {"views": None}, cls, "data")


@pytest.mark.parametrize("cls", TASKS)
def test_what_changes_no_sample_is_no_part_of_its_identity(cls: type[SampleData]) -> None:
    free = {"batch_size": 3, "val_batch_size": 2, "num_workers": 0, "timeout": 5.0, "views": None}
    assert cls(**free).identity() == cls().identity()
    assert cls(max_megapixels=1.0).identity() != cls().identity()
    # Which views make a set is drawn by the seed; elsewhere only their order and `augment` take it.
    same = cls(seed=1).identity() == cls().identity()
    assert same is (cls is not ReconstructionData)
