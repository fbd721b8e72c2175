"""Images and what belongs to them: found by name, and turned alike or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from pixio_heads.depth.data import DepthData
from pixio_heads.reconstruction.data import ReconstructionData
from pixio_heads.segmentation.data import SegmentationData
from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.listing.pairs import PairedFiles, Partners
from pixio_lightning.data.sample_data import SampleData
from pixio_lightning.data.sources import FolderSource
from pixio_lightning.errors import UserError


class Pair(NamedTuple):
    image: Path
    depth: Path


STORED = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
QUARTER = 6  # viewers turn it clockwise
HALF = 3


def photograph(path: Path, *, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(STORED).save(path, exif=exif, lossless=True)
    return path


def write_map(path: Path, *, upright: bool = False) -> Path:
    """Labels 0 above 1, or 1 m above 2 m; as viewers show the image, or as it is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    low, high = (0, 1) if path.parent.name == "masks" else (1000, 2000)
    values = np.full((32, 48), low, np.uint8 if high == 1 else np.uint16)
    values[16:] = high
    Image.fromarray(np.rot90(values, -1) if upright else values).save(path, "PNG")
    return path


def data_of(task: str, root: Path, **keys: object) -> SampleData:
    if task == "masks":
        return SegmentationData("folder", str(root), num_classes=2, num_workers=0, **keys)
    return DepthData("folder", str(root), num_workers=0, **keys)


tasks = pytest.mark.parametrize("task", ["masks", "depth"])


@tasks
@pytest.mark.parametrize("orientation", [HALF, QUARTER])
def test_a_turned_image_beside_a_map_stops_unless_a_key_decides(
    task: str, orientation: int, tmp_path: Path
) -> None:
    for name in "abc":
        photograph(tmp_path / f"images/{name}.webp", orientation=orientation)
        write_map(tmp_path / f"{task}/{name}.png")
    data = data_of(task, tmp_path)
    with pytest.raises(UserError, match=r"^images/.\.webp: EXIF .* data\.orientation") as error:
        list(data.val_dataloader())
    assert "\n" not in str(error.value)
    sample = data_of(task, tmp_path, orientation="stored").samples_of("val").load(0)
    found = sample["target" if task == "masks" else "depth"]
    assert np.array_equal(sample["image"], STORED)
    assert len(set(found[:16].ravel())) == 1 and found[0, 0] < found[-1, 0]


@tasks
def test_maps_that_lie_as_viewers_show_the_image(task: str, tmp_path: Path) -> None:
    for name in "ab":
        photograph(tmp_path / f"images/{name}.webp", orientation=QUARTER)
        write_map(tmp_path / f"{task}/{name}.png", upright=True)
    sample = data_of(task, tmp_path, orientation="upright").samples_of("val").load(0)
    assert np.array_equal(sample["image"], np.rot90(STORED, -1))
    # Without a map there is nothing to contradict: as viewers show it.
    alone = data_of(task, tmp_path).samples_of("predict").load(0)
    assert np.array_equal(alone["image"], np.rot90(STORED, -1))


def test_posed_images_are_read_as_their_cameras_saw_them(tmp_path: Path) -> None:
    frames = []
    for i in range(6):
        photograph(tmp_path / f"images/{i}.webp", orientation=QUARTER)
        write_map(tmp_path / f"depth/{i}.png")
        frames.append(
            {
                "file_path": f"images/{i}.webp",
                "depth_file_path": f"depth/{i}.png",
                "transform_matrix": np.eye(4).tolist(),
            }
        )
    camera = {"fl_x": 40, "cx": 24, "cy": 16, "w": 48, "h": 32}
    (tmp_path / "transforms.json").write_text(json.dumps(camera | {"frames": frames}))
    data = ReconstructionData("folder", str(tmp_path), image_size=(32, 32), max_views=2)
    shot = data.samples_of("val").scenes[0].load(0)
    assert np.array_equal(shot.image, STORED) and shot.depth.shape == (32, 48)


# --- names ------------------------------------------------------------------------------------


@tasks
def test_what_was_looked_for_is_said_and_counted(task: str, tmp_path: Path) -> None:
    for name in "abcdef":
        photograph(tmp_path / f"val/images/{name}.webp")
        photograph(tmp_path / f"train/images/{name}.webp")
    write_map(tmp_path / f"val/{task}/a.png")
    (tmp_path / f"val/{task}/b.tiff").write_bytes(b"a form that is not read")
    (tmp_path / f"train/{task}").mkdir()
    data = data_of(task, tmp_path)
    list(data.val_dataloader())
    missing = f"no {task.removesuffix('s')}: {task}/NAME.png is not there"
    assert data.bad_reasons == {
        missing: 4,
        f"{missing}, but NAME.tiff is, which is not read": 1,
    }


def test_an_image_is_not_offered_as_what_belongs_to_it(tmp_path: Path) -> None:
    image = photograph(tmp_path / "a.webp")
    pairs = [Pair(image, tmp_path / "a.png")]
    files = PairedFiles(tmp_path, pairs, max_megapixels=1.0, orientation=None)
    with pytest.raises(BadImage, match=r"no depth: NAME\.png is not there$"):
        files.partner(0, "depth")


def test_partners_are_found_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    for name in ("a.PNG", "b.jpg.png", "sub/c.Npy", "d.png", ".e.png", "__MACOSX/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    partners = Partners(tmp_path, [".png", ".npy"])
    found = {name: partners.of(f"{name}.jpg") for name in ("a", "b", "sub/c", "d")}
    names = {name: path.relative_to(tmp_path).as_posix() for name, path in found.items()}
    assert names == {"a": "a.PNG", "b": "b.jpg.png", "sub/c": "sub/c.Npy", "d": "d.png"}
    for missing in (".e", "f", "n" * 300):
        assert partners.of(f"{missing}.jpg") == tmp_path / f"{missing}.png"
    assert Partners(tmp_path / "nowhere", [".png"]).of("a.jpg").name == "a.png"
    (tmp_path / "d.npy").touch()
    assert Partners(tmp_path, [".png"]).of("d.jpg").name == "d.png"
    with pytest.raises(UserError, match=r"holds 'd\.png' and 'd\.npy' for one image: keep one"):
        Partners(tmp_path, [".png", ".npy"]).of("d.jpg")


@tasks
def test_images_to_predict_are_those_of_a_split_and_never_maps(task: str, tmp_path: Path) -> None:
    def predicted() -> list[str]:
        samples = data_of(task, tmp_path).samples_of("predict")
        return [samples.name(i) for i in range(len(samples))]

    photograph(tmp_path / "images/a.webp")
    write_map(tmp_path / f"{task}/a.png")
    assert predicted() == ["images/a.webp"]
    for folder in ("images", task):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / folder).rename(tmp_path / "train" / folder)
    for part in ("valid", "test"):
        photograph(tmp_path / part / "images" / f"{part}.webp")
        write_map(tmp_path / part / task / f"{part}.png")
        assert predicted() == [f"images/{part}.webp"]


def test_pictures_of_other_formats_are_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.TIF", "c.bmp", "d.gif", "e.HEIC", "f.heic", "g.txt", ".h.gif"):
        (tmp_path / name).touch()
    source = FolderSource(tmp_path)
    assert list(source.names) == ["a.jpg", "b.TIF", "c.bmp"]
    assert source.skipped == {".heic": 2, ".gif": 1}
    (tmp_path / "others").mkdir()
    (tmp_path / "others/a.heic").touch()
    with pytest.raises(UserError, match=r"holds no image, but 1 \.heic; expected \.jpg"):
        FolderSource(tmp_path / "others")
