"""Photographs and videos as one set of views: real pictures, and where their pixels went."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from pixio_heads.reconstruction.reconstructed import to_original
from pixio_heads.reconstruction.views.inputs import common_size, open_pictures, place
from pixio_lightning.data.batches import collate
from pixio_lightning.data.clips.video import evenly
from pixio_lightning.data.samples import HeldOutSamples
from pixio_lightning.errors import UserError

# How far a picture of each EXIF orientation is stored turned, in quarters counter-clockwise.
QUARTERS = {1: 0, 3: 2, 6: 1, 8: 3}


def save(path: Path, pixels: np.ndarray, orientation: int = 1) -> None:
    """Save an upright picture as a camera that was held in another way stores it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.rot90(pixels, QUARTERS[orientation]))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)


@pytest.fixture(scope="module")
def originals() -> dict[str, np.ndarray]:
    return {
        "a/astronaut.png": photographs.astronaut(),
        "a/coffee.jpg": photographs.coffee(),
        "b/chelsea.webp": photographs.chelsea(),
        "b/rocket.jpg": photographs.rocket(),
        "c/small.png": photographs.coffee()[::4, ::4],
    }


@pytest.fixture(scope="module")
def folder(originals: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for (name, pixels), orientation in zip(originals.items(), (1, 6, 1, 8, 3), strict=True):
        save(folder / name, pixels, orientation)
    return folder


def sampled(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolate an image `(h, w, 3)` at pixels `(..., 2)`, as (u, v)."""
    u, v = np.moveaxis(at, -1, 0)
    u, v = u.clip(0, image.shape[1] - 1.001), v.clip(0, image.shape[0] - 1.001)
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    x, y = (u - left)[..., None], (v - top)[..., None]
    upper = image[top, left] * (1 - x) + image[top, left + 1] * x
    lower = image[top + 1, left] * (1 - x) + image[top + 1, left + 1] * x
    return upper * (1 - y) + lower * y


# --- photographs ------------------------------------------------------------------------------


def test_a_folder_is_one_set_of_the_median_aspect(
    folder: Path, originals: dict[str, np.ndarray]
) -> None:
    pictures = open_pictures(folder, image_size=256)
    assert len(pictures) == 1 and pictures.name(0) == folder.name
    assert pictures.picture_names(0) == sorted(originals)
    sample = pictures.load(0)
    # Aspects 1, 1.5, 1.5, 1.5 and 1.5.
    assert sample["image"].shape == (5, 176, 256, 3) and sample["image"].dtype == np.uint8
    sizes = [list(originals[name].shape[:2]) for name in sorted(originals)]
    assert sample["original_size"].tolist() == sizes


def test_a_pixel_lies_where_its_placement_says(
    folder: Path, originals: dict[str, np.ndarray]
) -> None:
    sample = open_pictures(folder, image_size=256).load(0)
    v, u = np.mgrid[4:172, 4:252]
    for name, view, placement in zip(
        sorted(originals), sample["image"], sample["placement"], strict=True
    ):
        # About as coarse as the view, so that only positions differ.
        shrunk = max(1, round(1 / float(placement[0])))
        original = np.asarray(Image.fromarray(originals[name]).reduce(shrunk), float)
        errors = {}
        for shift in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            at = to_original(placement, np.stack([u, v], axis=-1) + shift)
            at = (at + 0.5) / shrunk - 0.5
            difference = sampled(original, at) - view[4:172, 4:252]
            errors[shift] = float(np.abs(difference).mean())
        # The lowest point of a parabola through three errors is within a tenth of a pixel.
        for axis in ((1, 0), (0, 1)):
            before, after = errors[-axis[0], -axis[1]], errors[axis]
            assert errors[0, 0] < 0.75 * min(before, after), (name, errors)
            centre = (before - after) / (2 * (before + after - 2 * errors[0, 0]))
            assert abs(centre) < 0.1, (name, axis, errors)


@pytest.mark.parametrize("size", [(240, 320), (301, 401), (64, 1000), (33, 40)])
def test_a_dot_lies_where_its_placement_says(size: tuple[int, int]) -> None:
    v, u = np.mgrid[: size[0], : size[1]]
    for at in ((size[1] / 2 + 3.3, size[0] / 2 - 2.2), (size[1] / 2 - 9, size[0] / 2 + 4)):
        dot = np.exp(-((u - at[0]) ** 2 + (v - at[1]) ** 2) / 18)
        pixels = np.repeat(np.round(255 * dot)[..., None], 3, axis=-1).astype(np.uint8)
        placed = place(pixels, (96, 128))
        assert placed.image.shape == (96, 128, 3) and placed.original_size == size
        weight = placed.image[..., 0].astype(float)
        rows, columns = np.mgrid[:96, :128]
        seen = [float((weight * axis).sum() / weight.sum()) for axis in (columns, rows)]
        found = to_original(np.array(placed.placement, np.float32), np.array(seen))
        assert np.abs(found - at).max() < 0.15


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(300, 400)], (192, 256)),
        ([(400, 300)], (256, 192)),
        ([(300, 400), (400, 300)], (256, 256)),
        ([(300, 400), (400, 300), (300, 400)], (192, 256)),
        ([(10, 4000)], (16, 256)),
    ],
)
def test_the_common_size(sizes: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    assert common_size(sizes, 256) == expected


def test_a_set_goes_through_a_loader(folder: Path) -> None:
    pictures = open_pictures(folder, image_size=64)
    batch = collate([HeldOutSamples(pictures, lambda sample: sample)[0]])
    assert batch["image"].shape == (1, 5, 3, 48, 64) and batch["size"] == (48, 64)
    assert batch["placement"].shape == (1, 5, 4) and batch["original_size"].shape == (1, 5, 2)
    assert batch["name"] == [folder.name] and not batch["bad"]


def test_the_images_folder_of_a_data_set_is_taken_without_its_depth(tmp_path: Path) -> None:
    for name in ("images/0.png", "images/1.png", "depth/0.png"):
        save(tmp_path / name, photographs.coffee())
    pictures = open_pictures(tmp_path, image_size=64)
    assert pictures.names == ["0.png", "1.png"] and pictures.name(0) == tmp_path.name


def test_views_are_spread_over_the_names(folder: Path, originals: dict[str, np.ndarray]) -> None:
    assert open_pictures(folder, image_size=64, max_views=2).names == [
        sorted(originals)[0],
        sorted(originals)[2],
    ]


def test_a_digest_changes_with_a_picture(tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        save(tmp_path / name, photographs.coffee())
    before = open_pictures(tmp_path, image_size=64).digest()
    assert open_pictures(tmp_path, image_size=64).digest() == before
    assert open_pictures(tmp_path, image_size=96).digest() != before
    save(tmp_path / "1.png", photographs.rocket())
    assert open_pictures(tmp_path, image_size=64).digest() != before


def test_a_picture_that_cannot_be_read_is_named_and_left_out(tmp_path: Path) -> None:
    for name in ("0.png", "1.jpg", "2.jpg", "3.jpg"):
        save(tmp_path / name, photographs.coffee())
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:2000])
    (tmp_path / "4.png").write_text("no picture")
    pictures = open_pictures(tmp_path, image_size=64)
    assert pictures.names == ["0.png", "2.jpg", "3.jpg"] and len(pictures.load(0)["image"]) == 3
    assert pictures.bad == [
        ("1.jpg", "truncated"),
        ("4.png", "no JPEG, PNG, WebP, TIFF or BMP"),
    ]
    small = open_pictures(tmp_path, image_size=64, max_views=2, max_megapixels=0.3)
    assert small.names == ["0.png", "2.jpg"]


# --- mistakes ---------------------------------------------------------------------------------


def refused(path: Path, **keys: object) -> str:
    """Return the one line that refuses a path."""
    with pytest.raises(UserError) as caught:
        open_pictures(path, **{"image_size": 64} | keys)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_what_is_no_set_of_pictures_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refused(tmp_path / "missing")
    assert "does not exist" in refused(tmp_path / "missing.mp4")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused(tmp_path / "empty")
    save(tmp_path / "one/0.png", photographs.coffee())
    assert "1 of 1 pictures" in refused(tmp_path / "one")
    assert "is one picture" in refused(tmp_path / "one/0.png")
    (tmp_path / "one/1.png").write_bytes(b"")
    assert "1 of 2 pictures" in refused(tmp_path / "one")
    (tmp_path / "one/0.png").write_bytes(b"")
    assert "0 of 2 pictures that can be used" in refused(tmp_path / "one")
    assert "0.png: empty file" in refused(tmp_path / "one")
    (tmp_path / "notes.txt").write_text("no video")
    assert "neither a folder of pictures nor a video" in refused(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"image_size": 250}, "image_size is 250; expected a multiple of 16, such as 256"),
        ({"image_size": 0}, "such as 16"),
        ({"max_views": 1}, "data.predict_views is 1"),
        ({"every": 0.0}, "data.every is 0"),
    ],
)
def test_a_key_without_meaning_is_refused(keys: dict, match: str, folder: Path) -> None:
    assert match in refused(folder, **keys)


# --- videos -----------------------------------------------------------------------------------


def film(path: Path, *, frames: int = 30, codec: str = "mpeg4", size: tuple[int, int]) -> None:
    """Write a video of 10 frames a second whose green is 8 times the frame's number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
        for number in range(frames):
            pixels = np.zeros((*size, 3), np.uint8)
            pixels[..., 1] = 8 * number
            pixels[: size[0] // 3, : size[1] // 3, 0] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        container.mux(stream.encode())


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.avi", "d.ts", "e.webm"])
def test_frames_of_a_video_are_evenly_spaced_in_time(name: str, tmp_path: Path) -> None:
    codec = "libvpx" if name.endswith("webm") else "mpeg4" if name.endswith("avi") else "libx264"
    film(tmp_path / name, codec=codec, size=(64, 96))
    pictures = open_pictures(tmp_path / name, image_size=96, every=0.5)
    assert pictures.name(0) == name[0]
    assert pictures.names == [f"frame_{number:06d}.png" for number in (0, 5, 10, 15, 20, 25)]
    sample = pictures.load(0)
    assert sample["image"].shape == (6, 64, 96, 3)
    assert sample["original_size"].tolist() == 6 * [[64, 96]]
    green = sample["image"][:, -8:, -8:, 1].mean(axis=(1, 2))
    assert np.abs(green - [0, 40, 80, 120, 160, 200]).max() < 5
    few = open_pictures(tmp_path / name, image_size=96, every=0.5, max_views=3)
    assert few.names == [f"frame_{number:06d}.png" for number in (0, 10, 20)]


def test_turned_photographs_are_kept_as_they_are_seen(
    folder: Path, originals: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Other programs read what is stored, which exported cameras would not fit."""
    pictures = open_pictures(folder, image_size=64, frames=tmp_path)
    sizes = pictures.load(0)["original_size"]
    for name, size in zip(pictures.names, sizes.tolist(), strict=True):
        kept = Image.open(tmp_path / folder.name / name)
        assert kept.getexif().get(0x0112, 1) == 1 and [kept.height, kept.width] == size
        close = np.abs(np.asarray(kept).astype(int) - originals[name]).mean()
        assert close < (0.1 if name.endswith(".png") else 6), name
    same = "a/astronaut.png"
    assert (tmp_path / folder.name / same).read_bytes() == (folder / same).read_bytes()
    for name in pictures.names:
        save(tmp_path / "upright" / name, originals[name])
    open_pictures(tmp_path / "upright", image_size=64, frames=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_frames_of_a_video_can_be_kept(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", size=(64, 96))
    pictures = open_pictures(
        tmp_path / "a.mp4", image_size=32, every=1.0, frames=tmp_path / "frames"
    )
    assert sorted(path.name for path in (tmp_path / "frames/a").iterdir()) == pictures.names
    kept = np.asarray(Image.open(tmp_path / "frames/a" / pictures.names[2]))
    assert kept.shape == (64, 96, 3) and abs(float(kept[-8:, -8:, 1].mean()) - 160) < 5


def test_a_video_of_a_phone_held_upright_is_turned(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", size=(64, 96))
    data = (tmp_path / "a.mp4").read_bytes()
    one = 0x10000
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
    at = data.index(identity, data.index(b"tkhd"))
    clockwise = struct.pack(">9i", 0, one, 0, -one, 0, 0, 64 * one, 0, 0x40000000)
    (tmp_path / "b.mp4").write_bytes(data[:at] + clockwise + data[at + 36 :])
    sample = open_pictures(tmp_path / "b.mp4", image_size=96).load(0)
    assert sample["image"].shape == (3, 96, 64, 3)
    red = sample["image"][0, ..., 0]
    assert red[:16, -16:].mean() > 200 and red[:16, :16].mean() < 50 and red[-16:].mean() < 50


def test_the_frames_before_the_damage_are_used(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", size=(64, 96))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    start, length = len(data) // 3, len(data) // 3
    noise = np.random.default_rng(0).integers(0, 256, length, dtype=np.uint8)
    data[start : start + length] = noise.tobytes()
    (tmp_path / "b.mp4").write_bytes(data)
    pictures = open_pictures(tmp_path / "b.mp4", image_size=96, every=0.5)
    assert pictures.names[:2] == ["frame_000000.png", "frame_000005.png"]
    assert pictures.bad and len(pictures.names) + len(pictures.bad) == 6
    assert {reason for _, reason in pictures.bad} == {"corrupt data"}


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", size=(64, 96))
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    assert "cannot be read as a video" in refused(tmp_path / "cut.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert "cannot be read as a video" in refused(tmp_path / "empty.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert "is a video without frames" in refused(tmp_path / "sound.mp4")
    assert "1 of 1 frames at one every 60 s" in refused(tmp_path / "a.mp4", every=60.0)
    assert "over 0.001 megapixels" in refused(tmp_path / "a.mp4", max_megapixels=0.001)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    film(tmp_path / "a.ts", size=(64, 96))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.ts\n")
    with av.open(str(tmp_path / "list.mp4")) as container:
        assert len(list(container.decode(video=0))) == 30  # as FFmpeg alone would
    assert "cannot be read as a video" in refused(tmp_path / "list.mp4")


def test_without_pyav_a_video_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "a.mp4", size=(64, 96))
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'pixio-lightning[video]'" in refused(tmp_path / "a.mp4")


def test_a_frame_that_is_early_by_a_rounding_is_taken() -> None:
    times = np.array([0, 0.3333, 0.6667, 0.9999999, 1.3334])
    assert evenly(times, 1.0, None) == [0, 3]
    assert evenly(times, 0.1, None) == [0, 1, 2, 3, 4]
    assert evenly(times + 7, 0.5, None) == [0, 2, 3]
    assert evenly(times + 7, 0.5, 2) == [0, 2]
