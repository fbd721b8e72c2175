"""Depth in every file format that is read: its units, its rows, and what damaged files become."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import OpenEXR
import pytest
from PIL import Image, PngImagePlugin

from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.depth import (
    DEPTH_SUFFIXES,
    STOPS,
    encode_png,
    read_depth,
    require_reader,
    unit_of,
)
from pixio_lightning.errors import UserError

# No two rows or columns are alike, and no value is lost in half precision.
DEPTH = np.arange(35, dtype=np.float32).reshape(5, 7) / 4 + 0.5


def png(depth: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray((depth * 256).astype(np.uint16)).save(file, "PNG")
    return file.getvalue()


def npy(depth: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, depth[..., None])  # as DIODE has it
    return file.getvalue()


def exr(depth: np.ndarray, *names: str) -> bytes:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    channels = {name: depth + i for i, name in enumerate(names or ("Y",))}
    file = io.BytesIO()
    OpenEXR.File(header, channels).write(file)
    return file.getvalue()


def pfm(depth: np.ndarray, order: str = "<") -> bytes:
    height, width = depth.shape
    header = f"Pf\n{width} {height}\n{'-' if order == '<' else ''}1.000000\n"
    return header.encode() + depth[::-1].astype(f"{order}f4").tobytes()


def dpt(depth: np.ndarray) -> bytes:
    return struct.pack("<fii", 202021.25, *depth.shape[::-1]) + depth.astype("<f4").tobytes()


def hdf5(depth: np.ndarray, name: str = "dataset") -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        content["about"] = "text"
        content[name] = depth.astype(np.float16)
    return file.getvalue()


WRITERS: dict[str, Callable[[np.ndarray], bytes]] = {
    ".png": png,
    ".npy": npy,
    ".exr": exr,
    ".pfm": pfm,
    ".dpt": dpt,
    ".h5": hdf5,
    ".hdf5": hdf5,
}
every_suffix = pytest.mark.parametrize("suffix", WRITERS)


def test_every_suffix_is_tested() -> None:
    assert set(DEPTH_SUFFIXES) == set(WRITERS)


@every_suffix
def test_metres_and_rows_are_right(suffix: str) -> None:
    found = read_depth(WRITERS[suffix](DEPTH), suffix, scale=1 / 256)
    assert found.dtype == np.float32 and np.array_equal(found, DEPTH)


def test_a_pfm_of_either_byte_order_is_read_from_the_bottom_up() -> None:
    for order in "<>":
        assert np.array_equal(read_depth(pfm(DEPTH, order), ".pfm", scale=1), DEPTH)
    # Worked out by hand: the last row comes first.
    data = b"Pf\n2 2\n-1\n" + struct.pack("<4f", 3.0, 4.0, 1.0, 2.0)
    assert read_depth(data, ".pfm", scale=1).tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_nan_and_infinity_are_kept_for_the_loader_to_judge() -> None:
    depth = DEPTH.copy()
    depth[0, :2] = np.nan, np.inf
    for suffix in (".npy", ".exr", ".pfm", ".dpt", ".h5"):
        found = read_depth(WRITERS[suffix](depth), suffix, scale=1)
        assert np.array_equal(found, depth, equal_nan=True), suffix


def test_the_depth_channel_of_an_exr() -> None:
    assert np.array_equal(read_depth(exr(DEPTH, "any"), ".exr", scale=1), DEPTH)
    assert np.array_equal(read_depth(exr(DEPTH, "A", "Z"), ".exr", scale=1), DEPTH + 1)
    with pytest.raises(BadImage, match="the channels one, two; expected one, or Z"):
        read_depth(exr(DEPTH, "one", "two"), ".exr", scale=1)


def test_half_precision_is_metres_too() -> None:
    assert np.array_equal(read_depth(exr(DEPTH.astype(np.float16)), ".exr", scale=9), DEPTH)
    assert np.array_equal(read_depth(hdf5(DEPTH, "z"), ".h5", scale=9), DEPTH)


def test_an_hdf5_reads_nothing_but_itself(tmp_path: Path) -> None:
    (tmp_path / "other.h5").write_bytes(hdf5(DEPTH))
    DEPTH.tofile(tmp_path / "raw")
    file = tmp_path / "links.h5"
    with h5py.File(file, "w") as content:
        content["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "dataset")
        content.create_dataset("raw", DEPTH.shape, "f4", external=str(tmp_path / "raw"))
        layout = h5py.VirtualLayout(DEPTH.shape, "f2")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "dataset", DEPTH.shape)
        content.create_virtual_dataset("dataset", layout)
        content.create_dataset("vast", (1 << 15, 1 << 15), "f4", chunks=(64, 64))
    with pytest.raises(BadImage, match="array over 64 megapixels"):
        read_depth(file.read_bytes(), ".h5", scale=1)
    with h5py.File(file, "a") as content:
        del content["vast"]
    with pytest.raises(BadImage, match="without an array of floats"):
        read_depth(file.read_bytes(), ".h5", scale=1)


@every_suffix
def test_damaged_files_are_bad_whatever_is_wrong_with_them(suffix: str) -> None:
    data = WRITERS[suffix](DEPTH)
    for broken in (b"", b"\0" * 200, data[:10], data[: len(data) // 2]):
        with pytest.raises(BadImage):
            read_depth(broken, suffix, scale=1)
    random = np.random.default_rng(0)
    for _ in range(60):
        spoiled = bytearray(data)
        for at in random.integers(0, min(len(data), 200), 3):
            spoiled[at] = random.integers(256)
        with suppress(BadImage):  # a spoiled value is no damage that shows
            assert read_depth(bytes(spoiled), suffix, scale=1).ndim == 2


@pytest.mark.parametrize(
    ("suffix", "data", "reason"),
    [
        (".pfm", b"PF\n1 1\n-1\n" + bytes(12), "depth of shape"),
        (".pfm", b"P6\n1 1\n255\n", "not a PFM file"),
        (".dpt", struct.pack("<fiif", 1.0, 1, 1, 1.0), "not a Sintel depth file"),
        (".dpt", struct.pack("<fii", 202021.25, 1 << 10, 1 << 10), "depth cannot be read"),
        (".npy", npy(np.array([{}], dtype=object)), "depth cannot be read"),
        (".png", png(DEPTH)[:60], "depth cannot be read"),
    ],
)
def test_reasons(suffix: str, data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        read_depth(data, suffix, scale=1)


@pytest.mark.parametrize("suffix", [".exr", ".h5"])
def test_a_missing_package_is_named_with_its_extra(
    suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_reader(suffix)
    monkeypatch.setitem(sys.modules, {".exr": "OpenEXR", ".h5": "h5py"}[suffix], None)
    with pytest.raises(UserError, match=r"pip install 'pixio-lightning\[formats\]'"):
        require_reader(suffix)
    with pytest.raises(UserError, match="expected one of .png, .npy"):
        require_reader(".tif")


# --- units ------------------------------------------------------------------------------------


def test_a_unit_holds_all_of_a_range() -> None:
    assert unit_of(10.0) == unit_of(65.535) == 1e-3
    assert unit_of(65.536) == unit_of(80.0) == unit_of(255.996) == 1 / 256
    with pytest.raises(UserError, match="depth to 256 m does not fit .*model.files npy"):
        unit_of(256.0)


@pytest.mark.parametrize("farthest", [10.0, 65.535, 80.0, 255.99])
def test_what_is_written_is_read_back_to_half_a_unit(farthest: float) -> None:
    depth = np.linspace(0, farthest, 35, dtype=np.float32).reshape(5, 7)
    unit = unit_of(farthest)
    data = encode_png(depth, unit=unit)
    for scale in (1e-3, 1 / 256, 0.5):  # the file's own unit counts, whatever is expected
        assert np.abs(read_depth(data, ".png", scale=scale) - depth).max() <= unit / 2 + 1e-5
    assert np.array_equal(
        read_depth(data, ".png", scale=unit, insist=True), read_depth(data, ".png", scale=9)
    )
    with pytest.raises(BadImage, match=f"^{STOPS}its depth file counts in"):
        read_depth(data, ".png", scale=0.5, insist=True)


def test_a_file_without_a_unit_is_read_by_the_given_one() -> None:
    assert np.array_equal(read_depth(png(DEPTH), ".png", scale=1 / 256, insist=True), DEPTH)


def test_nothing_is_clipped() -> None:
    for depth in (np.full((2, 2), 66.0), np.full((2, 2), -1.0), np.full((2, 2), np.inf)):
        with pytest.raises(ValueError, match="does not fit into 16 bits of 0.001 m"):
            encode_png(depth, unit=1e-3)
    unknown = encode_png(np.array([[np.nan, 1.0], [2.0, 3.0]]), unit=1e-3)
    assert read_depth(unknown, ".png", scale=1)[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("text", ["", "one", "0", "-1", "nan", "inf"])
def test_a_unit_that_is_none_makes_the_file_bad(text: str) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("metres_per_unit", text)
    file = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.uint16)).save(file, "PNG", pnginfo=about)
    with pytest.raises(BadImage, match="metres_per_unit is .*; expected a number above 0"):
        read_depth(file.getvalue(), ".png", scale=1)
