"""Pictures, masks, depth maps, zips of them, and videos."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from kind import Kind, Make
from PIL import Image, PngImagePlugin

from pixio_heads.depth.benchmark_layouts import MogeSamples, read_log_depth
from pixio_heads.depth.layouts import read_mask
from pixio_heads.depth.ordinal_data import Da2kSamples
from pixio_heads.segmentation.layouts import Labels
from pixio_lightning.data import (
    decode_pixels,
    encode_png,
    read_depth,
    read_file,
    video_frames,
    video_writer,
)

MEGAPIXELS = 64.0


def _pixels(mode: str, side: tuple[int, int] = (24, 32)) -> np.ndarray:
    shape = {"L": (), "I;16": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,), "LA": (2,)}[mode]
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return rng.integers(0, 1 << 16, (*side, *shape), np.uint16)
    return rng.integers(0, 256, (*side, *shape), np.uint8)


def picture(mode: str, form: str, **options: Any) -> Make:
    """Return what writes a picture under the name `a`."""

    def make(folder: Path) -> list[str]:
        image = Image.fromarray(_pixels("L" if mode in "1P" else mode), mode=None)
        if mode == "CMYK":
            image = Image.fromarray(_pixels("RGB")).convert("CMYK")
        if mode in ("1", "P"):
            image = image.convert(mode)
        if options.pop("turned", False):
            exif = Image.Exif()
            exif[0x0112] = 6
            options["exif"] = exif
        image.save(folder / "a", form, **options)
        return ["a"]

    return make


def _decoded(folder: Path) -> None:
    data = read_file(folder / "a")
    decode_pixels(data, max_megapixels=MEGAPIXELS)
    decode_pixels(data, max_megapixels=MEGAPIXELS, orientation="stored")


def chunks_repaired(rng: random.Random, data: bytes) -> bytes:
    """Make the checksums of a PNG's chunks right; and some pixels other ones, of any length."""
    found, at = data[:8], 8
    while at + 8 <= len(data):
        size = min(struct.unpack_from(">I", data, at)[0], len(data) - at - 8)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        if kind == b"IDAT" and rng.random() < 0.2:
            body = zlib.compress(rng.randbytes(rng.choice((0, 10, 3000))))
        check = struct.pack(">I", zlib.crc32(kind + body))
        found += struct.pack(">I", size) + kind + body + check
        at += 12 + size
    return found


def _mask(folder: Path) -> None:
    data = read_file(folder / "a")
    for read in (Labels(20).read, Labels(20, -1).read, read_mask):
        try:
            read(data, max_megapixels=MEGAPIXELS)
        except Exception as error:
            kept = error
        else:
            kept = None
    if kept is not None:
        raise kept


def _classes(form: str, **options: Any) -> Make:
    def make(folder: Path) -> list[str]:
        image = Image.fromarray(np.arange(24 * 32, dtype=np.uint8).reshape(24, 32) % 19 + 1)
        if form == "P":
            image.putpalette(list(range(256)) * 3)
        image.save(folder / "a", "PNG", **options)
        return ["a"]

    return make


def _depth(suffix: str, **options: Any) -> Make:
    """Return what writes a depth map under the name `depth` with a suffix."""
    metres = np.linspace(0.5, 9, 24 * 32, dtype=np.float32).reshape(24, 32)

    def make(folder: Path) -> list[str]:
        path = folder / f"depth{suffix}"
        if suffix == ".png":
            path.write_bytes(encode_png(metres, unit=1e-3))
        elif suffix == ".npy":
            np.save(path, metres.astype(options.get("kind", np.float32)))
        elif suffix == ".pfm":
            path.write_bytes(b"Pf\n32 24\n-1.0\n" + metres.astype("<f4").tobytes())
        elif suffix == ".dpt":
            path.write_bytes(struct.pack("<fii", 202021.25, 32, 24) + metres.tobytes())
        elif suffix == ".exr":
            import OpenEXR

            header = {"compression": options["packed"], "type": OpenEXR.scanlineimage}
            OpenEXR.File(header, {"Z": metres}).write(str(path))
        else:
            import h5py

            with h5py.File(path, "w") as file:
                file.create_dataset("dataset", data=metres, **options)
        return [path.name]

    return make


def _metres(folder: Path) -> None:
    (path,) = folder.glob("depth*")
    read_depth(read_file(path), path.suffix, scale=1e-3, max_megapixels=MEGAPIXELS)


def _log_depth(folder: Path) -> list[str]:
    about = PngImagePlugin.PngInfo()
    for name, value in (("near", "0.5"), ("far", "80.0"), ("unit", "1.0")):
        about.add_text(name, value)
    Image.fromarray(_pixels("I;16")).save(folder / "a", "PNG", pnginfo=about)
    return ["a"]


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(_pixels("RGB")).save(file, "PNG")
    return file.getvalue()


def zip_of(packed: int) -> Make:
    """Return what writes a sample of the MoGe evaluation as a zip."""

    def make(folder: Path) -> list[str]:
        _log_depth(folder)
        with zipfile.ZipFile(folder / "a.zip", "w", packed) as archive:
            archive.writestr("s/image.jpg", _png())
            archive.write(folder / "a", "s/depth.png")
            archive.writestr("s/meta.json", '{"intrinsics": [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]}')
            archive.writestr(".index.txt", "s\n")
        return ["a.zip"]

    return make


def _da2k(folder: Path) -> list[str]:
    (folder / "DA-2K/images/indoor").mkdir(parents=True)
    (folder / "DA-2K/images/indoor/a.png").write_bytes(_png())
    text = (
        '{"images/indoor/a.png": [{"point1": [1, 2], "point2": [3, 4], "closer_point": "point1"}]}'
    )
    (folder / "DA-2K/annotations.json").write_text(text)
    return ["DA-2K/annotations.json"]


def _film(suffix: str) -> Make:
    def make(folder: Path) -> list[str]:
        path = folder / f"film{suffix}"
        with video_writer(folder / "film.mp4", fps=10, height=32, width=48) as add:
            for i in range(12):
                add(np.full((32, 48, 3), 20 * i, np.uint8))
        if suffix == ".mkv":
            import av

            with (
                av.open(str(folder / "film.mp4")) as source,
                av.open(str(path), "w", format="matroska") as target,
            ):
                stream = target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.stream = stream
                        target.mux(packet)
            (folder / "film.mp4").unlink()
        return [path.name]

    return make


def _frames(folder: Path) -> None:
    (path,) = folder.glob("film*")
    for _ in video_frames(path, every=0.2, limit=4, max_megapixels=MEGAPIXELS):
        pass


def _exr_forms() -> list[Make]:
    import OpenEXR

    packed = (OpenEXR.ZIP_COMPRESSION, OpenEXR.NO_COMPRESSION, OpenEXR.PIZ_COMPRESSION)
    return [_depth(".exr", packed=how) for how in packed]


KINDS = {
    "jpeg": Kind(
        [
            picture("RGB", "JPEG"),
            picture("L", "JPEG", quality=40),
            picture("RGB", "JPEG", progressive=True, turned=True),
            picture("CMYK", "JPEG"),
        ],
        _decoded,
    ),
    "png": Kind(
        [picture(mode, "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")],
        _decoded,
        chunks_repaired,
    ),
    "tiff": Kind(
        [
            picture("RGB", "TIFF"),
            picture("RGB", "TIFF", compression="tiff_lzw", turned=True),
            picture("I;16", "TIFF"),
            picture("L", "TIFF", compression="tiff_deflate"),
            picture("RGB", "TIFF", compression="jpeg"),
            picture("1", "TIFF", compression="group4"),
        ],
        _decoded,
    ),
    "bmp": Kind([picture(mode, "BMP") for mode in ("RGB", "L", "P", "1", "RGBA")], _decoded),
    "webp": Kind(
        [
            picture("RGB", "WEBP"),
            picture("RGBA", "WEBP", lossless=True),
            picture("RGB", "WEBP", save_all=True, turned=True),
        ],
        _decoded,
    ),
    "mask": Kind(
        [_classes("L"), _classes("P"), picture("I;16", "PNG"), picture("1", "PNG")],
        _mask,
        chunks_repaired,
    ),
    "depth_png": Kind([_depth(".png")], _metres, chunks_repaired),
    "depth_npy": Kind([_depth(".npy"), _depth(".npy", kind=np.uint16)], _metres),
    "depth_exr": Kind(_exr_forms(), _metres),
    "depth_raw": Kind([_depth(".pfm"), _depth(".dpt")], _metres),
    "depth_hdf5": Kind([_depth(".h5"), _depth(".h5", chunks=(8, 8), compression="gzip")], _metres),
    "depth_log": Kind(
        [_log_depth],
        lambda folder: read_log_depth(read_file(folder / "a"), max_megapixels=MEGAPIXELS),
        chunks_repaired,
    ),
    "zip": Kind(
        [zip_of(zipfile.ZIP_STORED), zip_of(zipfile.ZIP_DEFLATED)],
        lambda folder: MogeSamples(str(folder / "a.zip"), max_megapixels=MEGAPIXELS).load(0),
    ),
    "da2k": Kind(
        [_da2k], lambda folder: Da2kSamples(str(folder), max_megapixels=MEGAPIXELS).load(0)
    ),
    "video": Kind([_film(".mp4"), _film(".mkv")], _frames),
}
