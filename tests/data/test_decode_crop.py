"""A crop of a large JPEG is decoded no larger than it need be, and is the same picture."""

import io
from functools import partial

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from skimage import data as photographs

from pixio_lightning.data.decode import BadImage, Crop, cut, decode_crop, decode_pixels, random_crop
from pixio_lightning.keyed import RandomKey

SIZE = 64
ORIENTATION = 0x0112


def file_of(pixels: np.ndarray, form: str = "JPEG", *, turn: int = 1) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    buffer = io.BytesIO()
    options = {"quality": 95} if form == "JPEG" else {}
    Image.fromarray(pixels).save(buffer, form, exif=exif.tobytes(), **options)
    return buffer.getvalue()


def draw_of(number: int) -> partial[Crop]:
    key = RandomKey(number, 0, 0)
    return partial(random_crop, random_key=key, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_a_small_image_gives_the_crop_of_all_its_pixels(form: str, turn: int) -> None:
    data = file_of(photographs.astronaut()[:90, :120], form, turn=turn)
    pixels = decode_pixels(data, max_megapixels=1)
    height, width, _ = pixels.shape
    assert np.array_equal(
        decode_crop(data, draw_of(3), SIZE, max_megapixels=1),
        cut(pixels, draw_of(3)(width, height), SIZE),
    )


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_large_jpeg_gives_the_same_crop_from_fewer_pixels(
    turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph = np.asarray(Image.fromarray(photographs.coffee()).resize((1203, 801)))
    data = file_of(photograph, turn=turn)
    whole = decode_pixels(data, max_megapixels=1)
    asked: list[dict] = []
    decode = simplejpeg.decode_jpeg

    def decode_and_note(*args: object, **options: int) -> np.ndarray:
        asked.append(options)
        return decode(*args, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_and_note)
    differences: list[float] = []
    for number in range(8):
        asked.clear()
        boxes: list[Crop] = []

        def draw(width: int, height: int) -> Crop:
            assert (height, width) == whole.shape[:2]
            boxes.append(draw_of(number)(width, height))  # noqa: B023
            return boxes[-1]  # noqa: B023

        crop = decode_crop(data, draw, SIZE, max_megapixels=1)
        stored_width = asked[0]["min_width"]
        factor = round(1203 / stored_width)
        assert factor in (2, 4, 8) and min(boxes[0][2:]) // factor >= SIZE
        assert 2 * factor > 8 or min(boxes[0][2:]) // (2 * factor) < SIZE
        # The box on the coarser grid, which lies as the image is stored.
        ahead = [
            -whole.shape[1] % factor * (turn in (2, 3, 6, 7)),
            -whole.shape[0] % factor * (turn in (3, 4, 7, 8)),
        ]
        left, top, width, height = boxes[0]
        left, top, right, bottom = (
            round((side + a) / factor) * factor - a
            for side, a in zip((left, top, left + width, top + height), 2 * ahead, strict=True)
        )
        if min(left, top) < 0 or right > whole.shape[1] or bottom > whole.shape[0]:
            continue
        same = cut(whole, Crop(left, top, right - left, bottom - top), SIZE)
        differences.append(np.abs(crop.astype(int) - same.astype(int)).mean())
    assert len(differences) > 5 and max(differences) < 2.5, differences


def test_a_box_at_the_very_edge_stays_inside() -> None:
    photograph = np.asarray(Image.fromarray(photographs.coffee()).resize((1003, 1001)))
    data = file_of(photograph)
    for side in (256, 257, 511, 513, 1000):
        crop = decode_crop(
            data,
            lambda w, h, side=side: Crop(w - side, h - side, side, side),
            SIZE,
            max_megapixels=2,
        )
        assert crop.shape == (SIZE, SIZE, 3) and crop.std() > 5


def test_a_large_truncated_jpeg_is_refused() -> None:
    data = file_of(np.asarray(Image.fromarray(photographs.coffee()).resize((1200, 800))))
    with pytest.raises(BadImage, match="truncated"):
        decode_crop(data[: len(data) // 2], draw_of(0), SIZE, max_megapixels=1)
    with pytest.raises(BadImage, match=r"over 0\.5 megapixels"):
        decode_crop(data, draw_of(0), SIZE, max_megapixels=0.5)


def test_the_box_of_a_reduced_jpeg_is_not_moved_one_way() -> None:
    """Of a picture of its own coordinates, the mean of a crop is the middle of its box."""
    rows, columns = np.mgrid[:1600, :1600] * (255 / 1600)
    data = file_of(np.stack([rows, columns, rows], axis=2).round().astype(np.uint8))
    shifts = []
    for number in range(60):
        boxes: list[Crop] = []

        def draw(width: int, height: int) -> Crop:
            boxes.append(draw_of(number)(width, height))  # noqa: B023
            return boxes[-1]  # noqa: B023

        crop = decode_crop(data, draw, SIZE, max_megapixels=4).mean(axis=(0, 1)) * (1600 / 255)
        ((left, top, width, height),) = boxes
        shifts.append([crop[1] - left - width / 2, crop[0] - top - height / 2])
    assert np.abs(np.mean(shifts, axis=0)).max() < 1, np.mean(shifts, axis=0)
    assert np.abs(shifts).max() < 6  # half of a factor of 8, and what a level is
