"""Every image is either decoded right or refused with a short reason; crops follow the law."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from scipy.stats import ks_2samp
from skimage import data as photographs
from torchvision.transforms import RandomResizedCrop

from pixio_lightning.data.decode import (
    STOPS,
    BadImage,
    Crop,
    decode_pixels,
    random_crop,
    to_tensor,
)
from pixio_lightning.keyed import RandomKey

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
# Smooth, so that a lossy format keeps the values.
RAMP = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(48, axis=0)
ORIENTATION = 0x0112
FORMATS = ["JPEG", "PNG", "WEBP", "TIFF"]
FRACTIONS = "values with a fraction; expected 8 or 16 bits"
WIDE = "values beyond 16 bits; expected 8 or 16 bits"
SHIFTED = "16 bits of which the highest 4 are never used: multiply the values by 16"


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def opened(data: bytes, max_megapixels: float = 64) -> np.ndarray:
    pixels = decode_pixels(data, max_megapixels=max_megapixels)
    assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
    return pixels


def refusal(data: bytes, max_megapixels: float = 64) -> str:
    with pytest.raises(BadImage) as refused:
        decode_pixels(data, max_megapixels=max_megapixels)
    return str(refused.value)


def orientation(value: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif.tobytes()


def whole_png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def huge_png(side: int) -> bytes:
    """A whole one-bit PNG; its pixels compress a thousandfold."""
    return whole_png(side, side, 1, 0, bytes(side * (1 + (side + 7) // 8)))


def deep_png(pixels: np.ndarray) -> bytes:
    """RGB of 16 bits, which Pillow does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return whole_png(pixels.shape[1], pixels.shape[0], 16, 2, rows)


@pytest.mark.parametrize("form", [*FORMATS, "BMP"])
def test_truncated_files_are_refused(form: str) -> None:
    whole = encode(Image.fromarray(NOISE), form)
    reasons = {refusal(whole[: len(whole) * part // 10]) for part in (3, 5, 9)}
    assert reasons <= {"truncated", "corrupt data", "corrupt header (OSError)"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (
            b"This is no picture, whatever its name says.\n" * 9,
            "no JPEG, PNG, WebP, TIFF or BMP",
        ),
        (encode(Image.fromarray(NOISE), "GIF"), "no JPEG, PNG, WebP, TIFF or BMP"),
        (encode(Image.fromarray(RAMP / 255), "TIFF"), FRACTIONS),
        (encode(Image.fromarray(RAMP.astype(np.int32) << 16), "TIFF"), WIDE),
        (encode(Image.fromarray(RAMP.astype(np.uint16) << 4), "TIFF"), SHIFTED),
        (encode(Image.fromarray(RAMP.astype(np.uint16) << 4), "PNG"), SHIFTED),
        (deep_png(NOISE.astype(np.uint16) << 4), SHIFTED),
        (encode(Image.new("RGB", (1, 1)), "PNG"), "a side under 16 pixels"),
        (encode(Image.new("RGB", (400, 15)), "JPEG"), "a side under 16 pixels"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, reason: str) -> None:
    assert refusal(data) == reason


@pytest.mark.parametrize(("side", "limit", "shown"), [(13_000, 64, "64"), (14_000, 190, "190")])
def test_huge_images_are_refused_by_their_header(
    side: int, limit: float, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("pixels were allocated")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert refusal(huge_png(side), limit) == f"over {shown} megapixels"


def test_the_limit_is_what_the_key_says() -> None:
    data = huge_png(100)
    assert refusal(data, 0.0099) == "over 0.0099 megapixels"
    assert opened(data, 0.01).shape == (100, 100, 3)


def test_damage_anywhere_gives_an_image_or_a_known_reason(recwarn: pytest.WarningsRecorder) -> None:
    """A single file must not end a run, whatever Pillow makes of it."""
    random_key, reasons = random.Random(0), set()
    known = {"truncated", "corrupt data", "empty file", "no JPEG, PNG, WebP, TIFF or BMP"}
    image, exif = Image.fromarray(NOISE), orientation(6)
    wholes = [encode(image, form, exif=exif) for form in FORMATS]
    wholes += [encode(image, "TIFF", compression="tiff_lzw"), encode(image, "BMP")]
    wholes.append(encode(image.quantize(16), "PNG", transparency=3))
    for i in range(2000):
        damaged = bytearray(wholes[i % len(wholes)])
        for _ in range(random_key.choice([1, 4, 16])):
            # Headers and metadata, where the damage is most varied, are at the front.
            damaged[random_key.randrange(min(300, len(damaged)))] = random_key.randrange(256)
        try:
            opened(bytes(damaged))
        except BadImage as error:
            reasons.add(str(error))
    begins = ("corrupt header (", "over 64", "a side", "a TIFF", "values beyond", "values with")
    assert not {r for r in reasons - known if not r.startswith(begins)}
    assert not recwarn.list


def test_grey_of_16_bits_is_scaled() -> None:
    grey = (RAMP.astype(np.uint16) << 8) + 77
    for form in ("PNG", "TIFF"):
        decoded = opened(encode(Image.fromarray(grey), form))
        assert np.array_equal(decoded, np.stack([RAMP] * 3, axis=-1))
    assert np.array_equal(opened(deep_png(NOISE.astype(np.uint16) << 8)), NOISE)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_tiff_and_bmp_are_pictures_too(compression: str | None) -> None:
    smooth = np.stack([RAMP, RAMP[:, ::-1], RAMP], axis=-1)
    assert np.array_equal(opened(encode(Image.fromarray(smooth), "BMP")), smooth)
    decoded = opened(encode(Image.fromarray(smooth), "TIFF", compression=compression))
    assert np.abs(decoded.astype(int) - smooth).max() < (9 if compression == "jpeg" else 1)


def test_every_mode_becomes_rgb() -> None:
    grey = Image.fromarray(RAMP)
    red = Image.merge("RGB", [grey, grey.point(lambda v: 0), grey.point(lambda v: 255 - v)])
    alpha = Image.new("L", grey.size, 128)
    whole = red.copy()
    whole.putalpha(alpha)
    # Transparent pixels keep their colour, so no background has to be invented.
    assert np.array_equal(opened(encode(whole, "PNG")), np.asarray(red))
    with_alpha = encode(Image.merge("LA", [grey, alpha]), "PNG")
    assert np.array_equal(opened(with_alpha)[..., 1], RAMP)
    black_and_white = Image.fromarray(RAMP > 127)
    assert set(opened(encode(black_and_white, "PNG")).ravel()) == {0, 255}
    palette = red.quantize(32)
    transparent = encode(palette, "PNG", transparency=bytes(range(0, 256, 8)))
    assert np.array_equal(opened(transparent), np.asarray(palette.convert("RGB")))
    # JPEG loses a little; inverted ink would be off by up to 255.
    printed = opened(encode(red.convert("CMYK"), "JPEG", quality=95)).astype(int)
    assert np.abs(printed - np.asarray(red)).mean() < 3


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientation_is_applied_where_it_is_to_be(form: str, value: int) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = (255, 0, 0)  # the top left, red
    upright[:16, 32:] = (0, 255, 0)  # the top right, green
    # Row 0 and column 0 of what is stored are these sides of the scene (Exif 2.32, 4.6.4 A).
    turned = upright.swapaxes(0, 1) if value > 4 else upright
    stored = {
        1: turned,
        2: turned[:, ::-1],
        3: turned[::-1, ::-1],
        4: turned[::-1],
        5: turned,
        6: turned[::-1],
        7: turned[::-1, ::-1],
        8: turned[:, ::-1],
    }[value]
    options: dict[str, object] = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    options |= {"lossless": True} if form == "WEBP" else {}
    data = encode(
        Image.fromarray(np.ascontiguousarray(stored)), form, exif=orientation(value), **options
    )
    decoded = opened(data).astype(int)
    assert decoded.shape == upright.shape
    assert np.abs(decoded - upright).max() < 8
    as_it_lies = decode_pixels(data, max_megapixels=64, orientation="stored").astype(int)
    assert as_it_lies.shape == stored.shape and np.abs(as_it_lies - stored).max() < 8
    if value == 1:
        assert np.array_equal(decode_pixels(data, max_megapixels=64, orientation=None), decoded)
    else:
        with pytest.raises(BadImage, match=f"^{STOPS}.*data.orientation"):
            decode_pixels(data, max_megapixels=64, orientation=None)


def test_broken_metadata_does_not_cost_the_image() -> None:
    whole = bytearray(encode(Image.fromarray(NOISE), "PNG", exif=orientation(6)))
    at = whole.index(b"eXIf") + 4
    length = struct.unpack(">I", whole[at - 8 : at - 4])[0]
    whole[at : at + length] = b"\xff" * length
    whole[at + length : at + length + 4] = struct.pack(
        ">I", zlib.crc32(whole[at - 4 : at + length])
    )
    assert np.array_equal(opened(bytes(whole)), NOISE)


# --- crops ------------------------------------------------------------------------------------


def crop(width: int, height: int, key: int, *, seed: int = 0, epoch: int = 0) -> Crop:
    return random_crop(width, height, RandomKey(key, seed, epoch), scale=SCALE, ratio=RATIO)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (900, 300)])
def test_crops_follow_the_law_of_torchvision(width: int, height: int) -> None:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(4000)])
    ours = np.array([crop(width, height, key) for key in range(4000)])[:, [1, 0, 3, 2]]

    def measures(boxes: np.ndarray) -> dict[str, np.ndarray]:
        top, left, h, w = boxes.T.astype(float)
        return {
            "area": w * h / (width * height),
            "log ratio": np.log(w / h),
            "left": left / np.maximum(1, width - w),
            "top": top / np.maximum(1, height - h),
        }

    both = zip(measures(ours).items(), measures(theirs).values(), strict=True)
    for (name, mine), reference in both:
        assert ks_2samp(mine, reference).pvalue > 0.01, name


@pytest.mark.parametrize(("width", "height"), [(1000, 50), (50, 1000), (999, 16)])
def test_very_elongated_images_are_cropped_at_the_centre(width: int, height: int) -> None:
    top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), SCALE, RATIO)
    assert {crop(width, height, key) for key in range(20)} == {Crop(left, top, w, h)}


def test_a_crop_is_a_function_of_key_seed_and_turn() -> None:
    one = crop(640, 480, 5, seed=1, epoch=2)
    random.seed(9)
    torch.manual_seed(9)
    assert crop(640, 480, 5, seed=1, epoch=2) == one
    others = [crop(640, 480, *k, seed=s, epoch=t) for *k, s, t in ((6, 1, 2), (5, 2, 2), (5, 1, 3))]
    assert len({one, *others}) == 4


def test_crops_stay_inside_the_smallest_image() -> None:
    for key in range(500):
        left, top, w, h = crop(16, 17, key)
        assert 0 <= left <= 16 - w and 0 <= top <= 17 - h and w > 0 and h > 0


def photograph(side: tuple[int, int], seed: int = 0) -> Image.Image:
    """Structure at every scale, like a photograph's."""
    random_key = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(random_key.integers(0, 256, (n, n, 3), np.uint8)).resize(
                side, Image.Resampling.BICUBIC
            ),
            float,
        )
        for n in (2, 5, 12, 40)
    ]
    return Image.fromarray(np.average(layers, axis=0, weights=[8, 4, 2, 1]).astype(np.uint8))


def test_to_tensor_cuts_and_scales_as_pillow_within_two_levels() -> None:
    cut = to_tensor(NOISE, Crop(7, 5, 24, 24), 24)
    assert cut.dtype == torch.uint8 and cut.is_contiguous()
    assert np.array_equal(cut.permute(1, 2, 0), NOISE[5:29, 7:31])
    for image in (photograph((640, 480)), photograph((333, 500)), Image.fromarray(NOISE)):
        box = (3, 4, image.width - 5, image.height - 2)
        crop = Crop(box[0], box[1], box[2] - box[0], box[3] - box[1])
        ours = to_tensor(np.asarray(image), crop, 224).permute(1, 2, 0).numpy().astype(int)
        theirs = np.asarray(image.crop(box).resize((224, 224), Image.Resampling.BICUBIC), int)
        assert abs(ours - theirs).max() <= 2
        assert abs(ours - theirs).mean() < 0.1


def strong(kind: str) -> np.ndarray:
    """Pictures `(480, 640, 3)` that are hardest to scale."""
    y, x = np.mgrid[:480, :640]
    random_key = np.random.default_rng(0)
    grey = {
        "noise": random_key.integers(0, 256, (480, 640)),
        "black and white noise": 255 * random_key.integers(0, 2, (480, 640)),
        "squares": 255 * ((x // 3 + y // 3) % 2),
    }
    return np.stack([grey[kind].astype(np.uint8)] * 3, axis=-1)


@pytest.mark.parametrize(
    ("kind", "mean", "most"),
    [
        ("coffee", 0.05, 15),
        ("noise", 0.1, 31),
        ("black and white noise", 0.8, 31),
        ("squares", 0.8, 31),
    ],
)
def test_how_far_to_tensor_is_from_pillow(kind: str, mean: float, most: int) -> None:
    picture = photographs.coffee() if kind == "coffee" else strong(kind)
    gaps = []
    for key in range(120):
        box = crop(picture.shape[1], picture.shape[0], key)
        ours = to_tensor(picture, box, 256).permute(1, 2, 0).numpy().astype(int)
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        cut = Image.fromarray(picture).crop(corners)
        theirs = np.asarray(cut.resize((256, 256), Image.Resampling.BICUBIC), int)
        gaps.append(abs(ours - theirs))
    assert np.mean(gaps) < mean and np.max(gaps) <= most
    assert np.mean([gap.max() <= 2 for gap in gaps]) > 0.75


@pytest.mark.parametrize("kind", ["noise", "black and white noise", "squares"])
def test_jpegs_of_strong_texture_are_decoded_to_the_pixels_of_pillow(kind: str) -> None:
    for subsampling in (0, 2):
        encoded = encode(Image.fromarray(strong(kind)), "JPEG", quality=85, subsampling=subsampling)
        theirs = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        assert np.array_equal(decode_pixels(encoded, max_megapixels=64), theirs)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_are_decoded_to_the_pixels_of_pillow(
    subsampling: int, mode: str, progressive: bool
) -> None:
    for side in ((640, 480), (333, 501), (17, 16)):
        options = {"progressive": progressive, "quality": 88, "subsampling": subsampling}
        data = encode(photograph(side).convert(mode), "JPEG", **options)
        theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(decode_pixels(data, max_megapixels=64), theirs)
