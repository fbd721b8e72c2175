"""Whatever a picture of a data set holds, only the decoders of five formats see it."""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from pixio_heads.depth.data import DepthData
from pixio_heads.reconstruction.views.inputs import _header
from pixio_heads.segmentation.data import SegmentationData
from pixio_lightning.data.decode import BadImage, decode_pixels, open_picture, read_file
from pixio_lightning.data.depth import read_depth
from pixio_lightning.data.sample_data import SampleData
from pixio_lightning.data.sources import FolderSource

ROOT = Path(__file__).resolve().parents[2]
HEADS = ROOT / "heads"
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def blank_png(width: int, height: int, *, bits: int = 1) -> bytes:
    """A whole grey PNG; its pixels compress a thousandfold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    rows = zlib.compress(bytes(height * (1 + (width * bits + 7) // 8)), 1)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


IMAGE = png(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
DEPTH = png(np.full((32, 32), 2000, np.uint16))


def files(root: Path, **contents: bytes) -> str:
    for folder, content in contents.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "a.png").write_bytes(content)
        (root / folder / "b.png").write_bytes(content)  # one of two is held out
    return str(root)


def table(root: Path, **contents: bytes) -> str:
    import datasets

    datasets.config.HF_DATASETS_CACHE = root / "cache"
    cells = {name: [{"bytes": content, "path": None}] for name, content in contents.items()}
    features = datasets.Features(dict.fromkeys(contents, datasets.Image()))
    (root / "set").mkdir(parents=True)
    rows = datasets.Dataset.from_dict(cells, features=features)
    rows.to_parquet(root / "set/train-00000-of-00001.parquet")
    return str(root / "set")


def moge(root: Path, image: bytes, depth: bytes) -> str:
    root.mkdir()
    path = root / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/image.jpg", image)
        file.writestr("a/depth.png", depth)
        file.writestr("a/meta.json", '{"intrinsics": [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]}')
    return str(path)


HUB = {"val_split": "train"}
PLACES: dict[str, Callable[[Path, bytes], SampleData]] = {
    "depth image": lambda p, x: DepthData("folder", files(p, images=x, depth=DEPTH)),
    "depth map": lambda p, x: DepthData("folder", files(p, images=IMAGE, depth=x)),
    "depth mask": lambda p, x: DepthData("folder", files(p, images=IMAGE, depth=DEPTH, mask=x)),
    "depth row": lambda p, x: DepthData("hub", table(p, image=IMAGE, depth=x), **HUB),
    "depth row's mask": lambda p, x: DepthData(
        "hub", table(p, image=IMAGE, depth=DEPTH, mask=x), **HUB
    ),
    "MoGe image": lambda p, x: DepthData("moge", moge(p, x, DEPTH)),
    "MoGe depth": lambda p, x: DepthData("moge", moge(p, IMAGE, x)),
    "mask": lambda p, x: SegmentationData("folder", files(p, images=IMAGE, masks=x), num_classes=3),
    "mask row": lambda p, x: SegmentationData(
        "hub", table(p, image=IMAGE, mask=x), num_classes=3, **HUB
    ),
}
everywhere = pytest.mark.parametrize("place", PLACES)


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `gs` on the path that leaves a file where it is started."""
    marker, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n: > '{marker}'\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow remembers that there was none
    with suppress(Exception):
        Image.open(io.BytesIO(POSTSCRIPT)).load()
    assert marker.exists()  # what must not happen would be seen
    marker.unlink()
    return marker


@everywhere
def test_postscript_starts_nothing(place: str, started: Path, tmp_path: Path) -> None:
    samples = PLACES[place](tmp_path / "data", POSTSCRIPT).samples_of("val")
    with pytest.raises(BadImage):
        samples.load(0)
    assert not started.exists()


def test_the_header_of_a_picture_starts_nothing(started: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    assert _header(tmp_path / "a.png") is None and not started.exists()


@everywhere
def test_a_picture_of_many_pixels_is_refused_before_it_is_decoded(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PLACES[place](tmp_path / "data", blank_png(9000, 9000))
    load = ImageFile.ImageFile.load

    def small(self: ImageFile.ImageFile) -> object:
        assert self.width * self.height < 64e6
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", small)
    with pytest.raises(BadImage, match="over 64 megapixels"):
        data.samples_of("val").load(0)


@pytest.mark.parametrize("form", ["GIF", "PPM", "JPEG2000", "ICO", "TGA"])
def test_other_formats_reach_no_decoder(form: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, form)
    with pytest.raises(BadImage, match="no JPEG, PNG, WebP, TIFF or BMP"):
        open_picture(file.getvalue(), max_megapixels=64)


def test_the_limit_decides_and_not_pillow_s() -> None:
    data = blank_png(14_000, 13_500)  # 189 megapixels
    assert open_picture(data, max_megapixels=200).size == (14_000, 13_500)
    with pytest.raises(BadImage, match="over 188 megapixels"):
        open_picture(data, max_megapixels=188)
    assert decode_pixels(blank_png(100, 100), max_megapixels=0.01).shape == (100, 100, 3)
    assert Image.MAX_IMAGE_PIXELS  # that of others in this process is as it was


def test_an_array_that_claims_to_be_vast_is_refused_by_its_header() -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
    )
    for suffix, data in {
        ".npy": file.getvalue() + bytes(400),
        ".dpt": struct.pack("<fii", 202021.25, 1 << 20, 1 << 20),
        ".pfm": b"Pf\n99999 99999\n-1.0\n" + bytes(400),
    }.items():
        with pytest.raises(BadImage, match="array over 64 megapixels"):
            read_depth(data, suffix, scale=1)


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    """A pipe would be waited for, /dev/zero read until the memory is full."""
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "whole.png").write_bytes(IMAGE)
    source = FolderSource(tmp_path)
    assert len(source) == 3
    for index, name in enumerate(source.names):
        if name == "whole.png":
            assert source.read(index) == IMAGE
            continue
        with pytest.raises(BadImage, match="no regular file"):
            source.read(index)
    for place in (tmp_path / "zero.png", tmp_path / "pipe.png"):
        with pytest.raises(BadImage, match="no regular file"):
            read_file(place)


def test_files_of_data_are_read_in_one_way() -> None:
    for path in [*(ROOT / "src/pixio_lightning/data").rglob("*.py"), *HEADS.rglob("*.py")]:
        assert not re.findall(r"\.read_bytes\(", path.read_text()), path


def test_no_picture_is_opened_in_another_way() -> None:
    """`Image.open` without a list of formats offers a file to every decoder of Pillow."""
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "heads").rglob("*.py")]:
        for call in re.findall(r"\bImage\.open\(.*", path.read_text()):
            assert "formats=" in call, f"{path}: {call}"
