"""Synthetic sets and benchmarks in their real layouts: units, splits, and broken samples."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import lightning as L
import numpy as np
import OpenEXR
import pytest
from PIL import Image, PngImagePlugin

from pixio_heads.depth.data import DepthData
from pixio_heads.depth.head import Depth, RelativeDepth
from pixio_heads.depth.synthetic_layouts import HYPERSIM_SPLIT
from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.samples import RandomKey, Samples
from pixio_lightning.errors import UserError
from pixio_lightning.models import Backbone

SIZE = (24, 32)
DEPTH = np.linspace(0.5, 60, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)


def picture(path: Path, size: tuple[int, int] = SIZE) -> None:
    array = np.random.default_rng(len(str(path))).integers(0, 255, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def written(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def png16(path: Path, units: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(units.astype(np.uint16)).save(path)


def names(samples: Samples) -> list[str]:
    return [samples.name(i) for i in range(len(samples))]


def load(source: str, root: Path, split: str = "train", **keys: Any) -> Samples:
    return DepthData(source, str(root), max_depth=100.0, **keys).samples_of(split)


# --- sets to train on -------------------------------------------------------------------------


def hypersim(root: Path, scene: str, frame: int = 0) -> Path:
    images = root / scene / "images"
    picture(images / f"scene_cam_00_final_preview/frame.{frame:04d}.tonemap.jpg")
    path = images / f"scene_cam_00_geometry_hdf5/frame.{frame:04d}.depth_meters.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    distance = DEPTH.copy()
    distance[0, 0] = np.nan
    with h5py.File(path, "w") as file:
        file["dataset"] = distance.astype(np.float16)
    return path


def vkitti2(root: Path, scene: str) -> Path:
    frames = root / scene / "clone" / "frames"
    picture(frames / "rgb/Camera_0/rgb_00007.jpg")
    picture(frames / "rgb/Camera_1/rgb_00007.jpg")
    units = DEPTH * 100
    units[0] = 65535
    units[1] = 8001
    path = frames / "depth/Camera_0/depth_00007.png"
    png16(path, units)
    return path


def tartanair(root: Path, scene: str) -> Path:
    run = root / scene / "Easy" / "P001"
    picture(run / "image_left/000003_left.png")
    picture(run / "image_right/000003_right.png")
    path = run / "depth_left/000003_left_depth.npy"
    path.parent.mkdir(parents=True)
    np.save(path, DEPTH)
    return path


def irs(root: Path, scene: str) -> Path:
    folder = root / "Home" / scene
    picture(folder / "l_12.png")
    picture(folder / "r_12.png")
    disparity = 48 / DEPTH
    disparity[0] = 0
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"G": disparity}).write(str(folder / "d_12.exr"))
    return folder / "d_12.exr"


def blendedmvs(root: Path, scene: str) -> Path:
    picture(root / scene / "blended_images/00000004.jpg")
    picture(root / scene / "blended_images/00000004_masked.jpg")
    path = root / scene / "rendered_depth_maps/00000004.pfm"
    header = f"Pf\n{SIZE[1]} {SIZE[0]}\n-1.0\n".encode()
    written(path, header + DEPTH[::-1].astype("<f4").tobytes())
    return path


SETS = {
    "hypersim": (hypersim, ("ai_001_001", "ai_001_002", "ai_002_001")),
    "vkitti2": (vkitti2, ("Scene01", "Scene02", "Scene06")),
    "tartanair": (tartanair, ("abandonedfactory", "carwelding", "ocean")),
    "irs": (irs, ("ArchVizInterior01", "ArchVizInterior02", "Loft")),
    "blendedmvs": (blendedmvs, ("5a3ca9cb270f0e3f14d0eddb", "5a6464143d809f1d8208c43c", "58")),
}
every_set = pytest.mark.parametrize("source", SETS)


def a_set(root: Path, source: str) -> list[Path]:
    write, scenes = SETS[source]
    return [write(root, scene) for scene in scenes]


@every_set
def test_one_scene_is_held_out_and_no_other_camera_is_read(source: str, tmp_path: Path) -> None:
    a_set(tmp_path, source)
    splits = [names(load(source, tmp_path, split)) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [2, 1, 1] and splits[1] == splits[2]
    assert len({*splits[0], *splits[1]}) == 3
    assert splits == [names(load(source, tmp_path, s)) for s in ("train", "val", "test")]


@every_set
def test_the_files_of_macs_and_hidden_folders_are_no_samples(source: str, tmp_path: Path) -> None:
    a_set(tmp_path, source)
    before = [names(load(source, tmp_path, split)) for split in ("train", "val")]
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
        again = tmp_path / "__MACOSX" / path.relative_to(tmp_path)
        again.parent.mkdir(parents=True, exist_ok=True)
        again.write_bytes(path.read_bytes())
    assert [names(load(source, tmp_path, split)) for split in ("train", "val")] == before


@every_set
def test_depth_is_in_metres(source: str, tmp_path: Path) -> None:
    a_set(tmp_path, source)
    sample = load(source, tmp_path).load(0)
    valid, depth = sample["valid"], sample["depth"]
    assert sample["image"].shape == (*SIZE, 3) and depth.dtype == np.float32
    unseen = np.zeros(SIZE, bool)
    expected, tolerance = DEPTH, 1e-5
    if source == "hypersim":
        unseen[0, 0] = True
        # The focal length is 886.81 pixels of 1024, and the images here are 32 wide.
        focal = 886.81 / 32
        v, u = np.mgrid[: SIZE[0], : SIZE[1]] - np.array([11.5, 15.5])[:, None, None]
        expected, tolerance = DEPTH / np.sqrt(1 + (u**2 + v**2) / focal**2), 1e-3
        assert np.abs(expected / DEPTH - 1).max() > 0.1
    if source == "vkitti2":
        unseen[:2], tolerance = True, 0.01
    if source == "irs":
        unseen[0] = True
    assert np.array_equal(valid, ~unseen)
    assert np.allclose(depth[valid], expected[valid], rtol=tolerance, atol=0)


@every_set
def test_a_broken_sample_is_bad_and_a_missing_one_too(source: str, tmp_path: Path) -> None:
    for path in a_set(tmp_path, source):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadImage, match="depth cannot be read"):
        load(source, tmp_path).load(0)
    for path in tmp_path.rglob("*"):
        if path.suffix in (".hdf5", ".npy", ".exr", ".pfm") or path.name == "depth_00007.png":
            path.unlink()
    with pytest.raises(BadImage, match="no depth: "):
        load(source, tmp_path).load(0)


@every_set
def test_another_layout_is_told(source: str, tmp_path: Path) -> None:
    picture(tmp_path / "some/image.jpg")
    with pytest.raises(UserError, match="as the set is laid out"):
        load(source, tmp_path)
    SETS[source][0](tmp_path, SETS[source][1][0])
    with pytest.raises(UserError, match="holds one scene"):
        load(source, tmp_path)


def test_hypersim_by_the_authors_split(tmp_path: Path) -> None:
    for scene in ("ai_001_001", "ai_002_001"):
        hypersim(tmp_path, scene, 1)
        hypersim(tmp_path, scene, 2)
    rows = [
        "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,"
        "split_partition_name",
        "ai_001_001,cam_00,1,True,,train",
        "ai_001_001,cam_00,2,False,bad,",
        "ai_002_001,cam_00,1,True,,val",
        "ai_002_001,cam_00,2,True,,test",
    ]
    table = tmp_path / HYPERSIM_SPLIT
    table.write_text("\n".join(rows))
    for split, scene in (("train", "ai_001_001"), ("val", "ai_002_001")):
        image = f"{scene}/images/scene_cam_00_final_preview/frame.0001.tonemap.jpg"
        assert names(load("hypersim", tmp_path, split)) == [image]
    table.write_text("\n".join(rows[:1]))
    with pytest.raises(UserError, match="lists none of the 4 images as train"):
        load("hypersim", tmp_path)
    table.write_text("scene,split\na,b\n")
    with pytest.raises(UserError, match="expected the columns scene_name, camera_name"):
        load("hypersim", tmp_path)


def test_blendedmvs_by_the_authors_list(tmp_path: Path) -> None:
    a_set(tmp_path, "blendedmvs")
    (tmp_path / "validation_list.txt").write_text("58\n")
    (held_out,) = names(load("blendedmvs", tmp_path, "val"))
    assert held_out.startswith("58/") and len(load("blendedmvs", tmp_path)) == 2


def test_a_mix_is_all_of_its_sets(tmp_path: Path) -> None:
    for source in SETS:
        a_set(tmp_path / source, source)
    train, val = load("mix", tmp_path), load("mix", tmp_path, "val")
    assert (len(train), len(val)) == (10, 5)
    assert [name.split("/")[0] for name in names(val)] == sorted(SETS)
    for i, source in enumerate(sorted(SETS)):
        alone = load(source, tmp_path / source, "val").load(0)
        assert np.array_equal(val.load(i)["depth"], alone["depth"])
    before = train.digest()
    a_set(tmp_path / "irs", "irs")
    assert train.digest() != before
    (tmp_path / "tartan").mkdir()
    with pytest.raises(UserError, match="the folder tartan, .* did you mean 'tartanair'"):
        load("mix", tmp_path)


def test_images_are_brought_to_a_short_side_and_cropped(tmp_path: Path) -> None:
    a_set(tmp_path, "tartanair")
    (tmp_path / "intrinsics.json").write_text(json.dumps([[20, 0, 15.5], [0, 20, 11.5], [0, 0, 1]]))
    keys: dict[str, Any] = {"image_size": 48, "short_side": 48, "flip": False}
    data = DepthData("tartanair", str(tmp_path), max_depth=100.0, **keys)
    sample = data.samples_of("train").load(0)
    view = data.augment(sample, RandomKey(1, 0, 0))
    assert view["image"].shape == (48, 48, 3) and view["image"].dtype == np.uint8
    # Twice the size: every depth is there, in blocks of 2x2, and none that was not.
    left = int(np.argwhere(DEPTH[0] == view["depth"][0, 0]).item() * 2)
    offset = int(view["depth"][0, 0] != view["depth"][0, 1])
    rows, columns = np.mgrid[:48, :48]
    assert np.array_equal(view["depth"], DEPTH[rows // 2, (columns + left + offset) // 2])
    # The centre of the image stays the centre: 15.5 of 32 is 31.5 of 64.
    assert view["intrinsics"][0, 2] + left + offset == pytest.approx(31.5)
    assert view["intrinsics"][1].tolist() == pytest.approx([0, 40, 23.5])
    with pytest.raises(UserError, match="short_side 32 is less than data.image_size 48"):
        DepthData("tartanair", str(tmp_path), image_size=48, short_side=32)


# --- sets to test on --------------------------------------------------------------------------


def diode(root: Path, folder: str, scan: str = "00183") -> Path:
    path = root / "val" / folder / "scene_00019" / f"scan_{scan}" / f"00019_{scan}_000_010.png"
    picture(path)
    np.save(path.with_name(f"{path.stem}_depth.npy"), DEPTH[..., None])
    mask = np.ones(SIZE, np.float32)
    mask[:3] = 0
    np.save(path.with_name(f"{path.stem}_depth_mask.npy"), mask)
    return path


def test_diode_by_its_domains(tmp_path: Path) -> None:
    diode(tmp_path, "indoors")
    diode(tmp_path, "outdoor", "00160")
    diode(tmp_path, "outdoor", "00161")
    counts = [len(load("diode", tmp_path, "test", domain=d)) for d in (None, "indoor", "outdoor")]
    assert counts == [3, 1, 2]
    sample = load("diode", tmp_path, "test").load(0)
    assert np.array_equal(sample["depth"][3:], DEPTH[3:])
    assert not sample["valid"][:3].any() and sample["valid"][3:].all()
    data = DepthData("diode", str(tmp_path), domain="indoor", min_depth=0.6, max_depth=350.0)
    assert data.dataset == f"diode {tmp_path}, indoor"
    assert data.digest("test") != DepthData("diode", str(tmp_path)).digest("test")
    with pytest.raises(UserError, match="no train/indoors/"):
        load("diode", tmp_path, "train", domain="indoor")


@pytest.mark.parametrize("part", ["_depth", "_depth_mask"])
def test_a_broken_file_of_diode(part: str, tmp_path: Path) -> None:
    image = diode(tmp_path, "indoors")
    image.with_name(f"{image.stem}{part}.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(BadImage, match="cannot be read"):
        load("diode", tmp_path, "test").load(0)


def test_sintel_s_final_pass(tmp_path: Path) -> None:
    picture(tmp_path / "training/final/alley_1/frame_0001.png")
    picture(tmp_path / "training/clean/alley_1/frame_0001.png")
    with pytest.raises(UserError, match="lacks .* unpack MPI-Sintel-complete.zip"):
        load("sintel", tmp_path, "test")
    data = struct.pack("<fii", 202021.25, *SIZE[::-1]) + DEPTH.tobytes()
    depth = tmp_path / "training/depth/alley_1/frame_0001.dpt"
    written(depth, data)
    for root in (tmp_path, tmp_path / "training"):
        samples = load("sintel", root, "test")
        assert names(samples)[0].endswith("final/alley_1/frame_0001.png") and len(samples) == 1
        assert np.array_equal(samples.load(0)["depth"], DEPTH)
    prepared = DepthData("sintel", str(tmp_path), max_depth=30.0).prepare(samples.load(0))
    assert np.array_equal(prepared["valid"], DEPTH <= 30)
    with pytest.raises(UserError, match="sintel is there to be tested on"):
        load("sintel", tmp_path, "train")
    depth.write_bytes(data[:-4])
    with pytest.raises(BadImage, match="depth cannot be read"):
        samples.load(0)


def test_kitti_s_benchmark_crop_moves_the_camera(tmp_path: Path) -> None:
    for i, size in enumerate([(375, 1242), (300, 1242)]):
        picture(tmp_path / f"images/{i}.png", size)
        units = np.arange(size[0])[:, None] * 100 + np.arange(size[1]) + 1
        png16(tmp_path / f"annotations/{i}.png", units)
    (tmp_path / "kitti_test.txt").write_text("0.png 0.png 721.5\n1.png 1.png 721.5\n")
    (tmp_path / "kitti_train.txt").write_text("0.png 0.png 721.5\n")
    (tmp_path / "intrinsics.json").write_text(json.dumps([[700, 0, 600], [0, 700, 180], [0, 0, 1]]))
    data = DepthData("kitti", str(tmp_path), max_depth=80.0, kb_crop=True)
    sample = data.samples_of("test").load(0)
    assert sample["image"].shape == (352, 1216, 3)
    assert sample["depth"][0, 0] * 256 == 23 * 100 + 13 + 1
    assert sample["intrinsics"][:2, 2].tolist() == [600 - 13, 180 - 23]
    with pytest.raises(BadImage, match="1242x300 pixels, smaller than KITTI's benchmark crop"):
        data.samples_of("test").load(1)
    assert data.dataset.endswith(", benchmark crop")
    assert load("kitti", tmp_path, "test").load(0)["image"].shape == (375, 1242, 3)


# --- the zips of the MoGe evaluation ----------------------------------------------------------


def log_png(depth: np.ndarray, near: float, far: float, unit: float | None = 1.0) -> bytes:
    """Encode as the MoGe evaluation does: 1 to 65534 from near to far, 0 unknown, 65535 far."""
    with np.errstate(invalid="ignore"):
        steps = 1 + np.round(np.log(depth / near) / np.log(far / near) * 65533)
    steps = np.where(np.isnan(depth), 0, np.where(np.isinf(depth), 65535, steps))
    about = PngImagePlugin.PngInfo()
    about.add_text("near", str(near))
    about.add_text("far", str(far))
    if unit is not None:
        about.add_text("unit", str(unit))
    file = io.BytesIO()
    Image.fromarray(steps.astype(np.uint16)).save(file, "PNG", pnginfo=about)
    return file.getvalue()


def moge(root: Path, *folders: str, unit: float | None = 1.0) -> None:
    depth = DEPTH.copy()
    depth[0, 0], depth[0, 1] = np.nan, np.inf
    for folder in folders:
        picture(root / folder / "image.jpg")
        written(root / folder / "depth.png", log_png(depth, 0.5, 60.0, unit))
        meta = {"intrinsics": [[0.9, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]}
        written(root / folder / "meta.json", json.dumps(meta).encode())


def zipped(root: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root.parent))
    return path


def test_a_zip_is_read_as_it_is_and_equals_its_folder(tmp_path: Path) -> None:
    moge(tmp_path / "NYUv2", "basement/0001", "office/0002", "office/0003")
    (tmp_path / "NYUv2/.index.txt").write_text("office/0003\nbasement/0001\n")
    archive = zipped(tmp_path / "NYUv2", tmp_path / "NYUv2.zip")
    for path, base in ((archive, "NYUv2/"), (tmp_path / "NYUv2", "")):
        samples = load("moge", path, "test")
        assert names(samples) == [f"{base}office/0003/image.jpg", f"{base}basement/0001/image.jpg"]
        sample = samples.load(0)
        assert not sample["valid"][0, :2].any() and sample["valid"].sum() == DEPTH.size - 2
        # 65533 even steps from 0.5 to 60: half of one is 4e-5.
        valid = sample["valid"]
        assert np.allclose(sample["depth"][valid], DEPTH[valid], rtol=5e-5, atol=0)
        expected = [[0.9 * 32, 0, 15.5], [0, 1.2 * 24, 11.5], [0, 0, 1]]
        assert np.allclose(sample["intrinsics"], expected)
    (tmp_path / "NYUv2/.index.txt").unlink()
    assert len(load("moge", tmp_path / "NYUv2", "test")) == 3


def test_a_zip_is_read_by_several_workers(tmp_path: Path) -> None:
    moge(tmp_path / "set", *(f"{i:04d}" for i in range(12)))
    archive = zipped(tmp_path / "set", tmp_path / "set.zip")
    data = DepthData("moge", str(archive), max_depth=100.0, num_workers=2, val_batch_size=3)
    data.samples_of("test").load(0)  # so that the workers inherit an open file
    batches = list(data.test_dataloader())
    assert sum(float(b["weight"].sum()) for b in batches) == 12 and not data.bad


def test_depth_without_a_unit_and_domains_of_diode(tmp_path: Path) -> None:
    moge(tmp_path, "indoors/scene_1", "outdoor/scene_2", unit=None)
    assert load("moge", tmp_path, "test").load(0)["depth"].max() == pytest.approx(60, rel=1e-4)
    (only,) = names(load("moge", tmp_path, "test", domain="outdoor"))
    assert only == "outdoor/scene_2/image.jpg"
    moge(tmp_path, "outdoor/scene_2", unit=0.1)
    scaled = load("moge", tmp_path, "test", domain="outdoor").load(0)
    assert scaled["depth"].max() == pytest.approx(6, rel=1e-4)


def test_depth_without_a_unit_is_no_metres_to_be_scored(tmp_path: Path) -> None:
    moge(tmp_path / "unknown", "a", unit=None)
    moge(tmp_path / "metres", "a")
    a_set(tmp_path / "mix/blendedmvs", "blendedmvs")
    a_set(tmp_path / "irs", "irs")
    assert DepthData("irs", str(tmp_path / "irs")).metric
    assert not DepthData("mix", str(tmp_path / "mix")).metric
    sizes = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    backbone = Backbone("pixio_vitt16", weights="random:0", model_args=sizes)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False
    )
    for name in ("metres", "unknown"):
        data = DepthData("moge", str(tmp_path / name), max_depth=100.0, num_workers=0)
        assert data.metric == (name == "metres")
        trainer.test(RelativeDepth(backbone, image_size=32), data, verbose=False)
    with pytest.raises(UserError, match="has no unit, but Depth is in metres: use RelativeDepth"):
        trainer.test(Depth(backbone, window=32), data, verbose=False)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("depth.png", "depth cannot be read"),
        ("no depth.png", "no depth.png"),
        ("plain depth.png", "without the fields near and far"),
        ("meta.json", "meta.json without intrinsics"),
        ("image.jpg", "truncated|corrupt|not a JPEG"),
    ],
)
def test_a_broken_sample_of_a_folder(spoil: str, reason: str, tmp_path: Path) -> None:
    moge(tmp_path, "a", "b")
    verb, _, name = spoil.rpartition(" ")
    path = tmp_path / "a" / name
    if verb == "no":
        path.unlink()
    elif verb == "plain":
        png16(path, DEPTH * 1000)
    else:
        path.write_bytes(path.read_bytes()[: 120 if name == "depth.png" else 30])
    data = DepthData("moge", str(tmp_path), max_depth=100.0, num_workers=0)
    assert sum(float(b["weight"].sum()) for b in data.test_dataloader()) == 1
    assert [bool(re.search(reason, r)) for r in data.bad.values()] == [True]


def test_a_damaged_zip(tmp_path: Path) -> None:
    moge(tmp_path / "set", "a")
    archive = zipped(tmp_path / "set", tmp_path / "set.zip")
    data = archive.read_bytes()
    archive.write_bytes(data[:200] + b"\xff" * 60 + data[260:])
    with pytest.raises(BadImage, match="damaged in the zip"):
        load("moge", archive, "test").load(0)
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is no zip, or only part of one"):
        load("moge", archive, "test")
    with pytest.raises(UserError, match="no folder and no zip, did you mean 'set.zip'"):
        load("moge", tmp_path / "sett.zip", "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image.jpg"):
        load("moge", tmp_path / "empty", "test")
    with pytest.raises(UserError, match="moge is there to be tested on"):
        load("moge", tmp_path / "set", "train")
