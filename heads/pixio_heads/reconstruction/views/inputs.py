"""The user's own pictures as one set of views: a folder of photographs, or a video.

All pictures are brought to one size, that of the median aspect; what was done to each is kept as
its `placement`, so that cameras and depth can be given for the originals.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pixio_heads.reconstruction.views.frames import Scene
from pixio_lightning.data import (
    FORMATS,
    VIDEO_SUFFIXES,
    Bad,
    BadImage,
    Sample,
    decode_pixels,
    digest_of,
    digest_of_files,
    existing_folder,
    image_files,
    read_file,
    spread,
    video_frames,
)
from pixio_lightning.data import IMAGE_SUFFIXES as SUFFIXES
from pixio_lightning.errors import UserError, above_0, at_least
from pixio_lightning.files import write_bytes
from pixio_lightning.training import visualize

_STEP = 16  # sides of what a model sees are multiples of it


class Placed(NamedTuple):
    """A picture as the model sees it, and how it came there.

    Attributes:
        image: uint8 `(H, W, 3)`.
        original_size: Height and width of the picture.
        placement: scale_x, scale_y, left, top; see `reconstructed.Reconstructed`.
    """

    image: NDArray[np.uint8]
    original_size: tuple[int, int]
    placement: tuple[float, float, int, int]


class Pictures:
    """One sample, a set of views that are already decoded.

    Args:
        title: Name of the set.
        names: Names of its pictures.
        placed: The pictures, all of one size.
        bad: Pictures that cannot be used, and why.
        facts: What identifies the files they come from.
        root: The folder that names are relative to; None where they are no files of their own.
    """

    def __init__(
        self,
        title: str,
        names: Sequence[str],
        placed: Sequence[Placed],
        *,
        bad: Sequence[Bad],
        facts: str,
        root: Path | None = None,
    ) -> None:
        self.title, self.names, self.placed = title, list(names), list(placed)
        self.bad, self.facts, self.root = list(bad), facts, root

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return self.title

    def picture_names(self, index: int) -> list[str]:
        """Return the names of the set's pictures, in the order of its views."""
        return self.names

    def load(self, index: int) -> Sample:
        return {
            "image": np.stack([placed.image for placed in self.placed]),
            "original_size": np.array([p.original_size for p in self.placed], np.int64),
            "placement": np.array([p.placement for p in self.placed], np.float32),
        }

    def digest(self) -> str:
        return self.facts


def pictures_of(scene: Scene) -> Pictures:
    """Return the views of a scene as if they were the user's pictures."""
    shots = [scene.load(i) for i in range(len(scene))]
    placed = [Placed(s.image, s.image.shape[:2], (1.0, 1.0, 0, 0)) for s in shots]
    names = [f"{i}.png" for i in range(len(scene))]
    return Pictures(scene.name, names, placed, bad=[], facts=str(scene.facts()))


def open_pictures(
    path: str | Path,
    *,
    image_size: int,
    max_views: int | None = None,
    max_megapixels: float = 64.0,
    every: float = 1.0,
    frames: Path | None = None,
) -> Pictures:
    """Read a folder of photographs, nested or not, or a video file, as one set of views.

    Args:
        path: The folder (its `images` folder, if there is one) or the video.
        image_size: Long side of the views in pixels, a multiple of 16.
        max_views: Views at most, evenly spread over the sorted names or the video; None for all.
        max_megapixels: Larger pictures are bad.
        every: Seconds between the frames that are taken of a video.
        frames: Folder for the sets' own pictures, where exported cameras would have none to go
            with: to `frames/STEM` the frames of a video; to `frames/FOLDER` all photographs, if
            EXIF turns any, as they are seen here, since other programs read what is stored.

    Raises:
        UserError: A key has no meaning, or there are not two pictures that can be used.
    """
    if image_size < _STEP or image_size % _STEP:
        near = max(_STEP, round(image_size / _STEP) * _STEP)
        raise UserError(
            f"data.image_size is {image_size}; expected a multiple of 16, such as {near}"
        )
    at_least(2, **{"data.predict_views": max_views})
    above_0("data.every", every, "seconds")
    file = Path(path).expanduser()
    if file.suffix.lower() in VIDEO_SUFFIXES and not file.is_dir():
        chosen = video_frames(file, every=every, limit=max_views, max_megapixels=max_megapixels)
        own = frames / file.stem if frames else None
        return _of_video(file, chosen, image_size=image_size, every=every, frames=own)
    if file.is_file():
        raise UserError(_no_video(file))
    root = existing_folder(file, "data.path")
    return _open_folder(root, image_size, max_views, max_megapixels, frames)


def _no_video(file: Path) -> str:
    if file.suffix.lower() in SUFFIXES:
        return f"data.path '{file}' is one picture; expected a folder of at least 2, or a video"
    known = ", ".join(VIDEO_SUFFIXES)
    return f"data.path '{file}' is neither a folder of pictures nor a video; expected {known}"


def _open_folder(
    root: Path,
    image_size: int,
    max_views: int | None,
    max_megapixels: float,
    frames: Path | None,
) -> Pictures:
    title = root.resolve().name
    root = root / "images" if (root / "images").is_dir() else root
    files = image_files(root)
    files = [files[i] for i in spread(len(files), max_views)]
    headers = {file: found for file in files if (found := _header(file)) is not None}
    shapes = [header.size for header in headers.values()]
    size = common_size(shapes, image_size) if shapes else (image_size, image_size)
    own = frames / title if frames and any(h.turned for h in headers.values()) else None
    names, placed, bad = [], [], []
    for file in files:
        name = file.relative_to(root).as_posix()
        try:
            data = read_file(file)
            pixels = decode_pixels(data, max_megapixels=max_megapixels)
        except BadImage as error:
            bad.append((name, str(error)))
        except OSError as error:
            bad.append((name, f"cannot be read ({error.strerror or type(error).__name__})"))
        else:
            names.append(name)
            placed.append(place(pixels, size))
            if own is not None:
                write_bytes(own / name, _as_seen(data, pixels, headers.get(file)))
    if len(placed) < 2:
        why = f"; {bad[0][0]}: {bad[0][1]}" if bad else ""
        raise UserError(
            f"'{root}' has {len(placed)} of {len(files)} pictures that can be used, but a "
            f"reconstruction needs at least 2{why}"
        )
    paths = (file.relative_to(root).as_posix() for file in files)
    digest = digest_of("pictures", str(root), digest_of_files(root, paths), size)
    # Beside the export, and not where they lie turned, if they were kept.
    lying = root if own is None else None
    return Pictures(title, names, placed, bad=bad, facts=digest, root=lying)


def _of_video(
    file: Path,
    chosen: Iterable[tuple[int, NDArray[np.uint8] | None]],
    *,
    image_size: int,
    every: float,
    frames: Path | None,
) -> Pictures:
    names: list[str] = []
    placed: list[Placed] = []
    bad: list[Bad] = []
    for number, pixels in chosen:
        name = f"frame_{number:06d}.png"
        if pixels is None:
            bad.append((f"{file.name} {name}", "corrupt data"))
            continue
        names.append(name)
        placed.append(place(pixels, common_size([pixels.shape[:2]], image_size)))
        if frames is not None:
            visualize.save(frames / name, Image.fromarray(pixels))
    if len(placed) < 2:
        raise UserError(
            f"'{file}' gives {len(placed)} of {len(placed) + len(bad)} frames at one every "
            f"{every:g} s, but a reconstruction needs at least 2"
            + ("" if bad else ": take them closer together")
        )
    stat = file.stat()
    facts = digest_of("video", str(file), stat.st_size, stat.st_mtime_ns, names, image_size)
    return Pictures(file.stem, names, placed, bad=bad, facts=facts)


class _Header(NamedTuple):
    """Height and width of a picture as it is seen, its format, and whether EXIF turns it."""

    size: tuple[int, int]
    form: str
    turned: bool


def _header(file: Path) -> _Header | None:
    """Read a picture's header; None where it cannot be read."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            # Pillow exchanges the sides of a TIFF itself.
            exchanged = orientation in (5, 6, 7, 8) and image.format != "TIFF"
            size = (image.width, image.height) if exchanged else (image.height, image.width)
            return _Header(size, image.format or "", orientation in range(2, 9))
    except Exception:  # Pillow raises whatever the bytes lead it to; decoding says what is wrong
        return None


def _as_seen(data: bytes, pixels: NDArray[np.uint8], header: _Header | None) -> bytes:
    """Return a picture's file, or one of its pixels where EXIF turns it."""
    if header is None or not header.turned:
        return data
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, header.form, quality=95)
    return buffer.getvalue()


def common_size(sizes: Sequence[tuple[int, ...]], long_side: int) -> tuple[int, int]:
    """Return height and width, multiples of 16, for pictures of several sizes (h, w).

    The aspect is their median, between the two in the middle where their number is even.
    """
    aspect = float(np.exp(np.median([np.log(width / height) for height, width in sizes])))
    short = round(long_side * min(aspect, 1 / aspect) / _STEP) * _STEP
    short = max(short, _STEP)
    return (short, long_side) if aspect >= 1 else (long_side, short)


def place(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Placed:
    """Scale a picture `(h, w, 3)` until it covers `size` (H, W), and cut out the centre."""
    height, width = pixels.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    rows, columns = max(round(height * scale), size[0]), max(round(width * scale), size[1])
    scaled = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.LANCZOS)
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    view = np.asarray(scaled)[top : top + size[0], left : left + size[1]]
    # The scales that were used: sides are rounded, so they differ a little from `scale`.
    placement = (columns / width, rows / height, left, top)
    return Placed(np.ascontiguousarray(view), (height, width), placement)
