"""Scenes of posed images: one file's frames, or rendered ones.

A camera is OpenCV (x right, y down, z forward), its pose camera-to-world in the file's own world,
its intrinsics for pixel centres at integer coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pixio_heads.reconstruction.views import covisibility
from pixio_heads.reconstruction.views.score_file import ScoreFile
from pixio_heads.reconstruction.views.wai.depth_rules import DepthRule, read_mask
from pixio_lightning.data import SCENE_CLASSES as CLASSES
from pixio_lightning.data import (
    BadImage,
    Scenes,
    SceneSamples,
    decode_pixels,
    read_depth,
    read_file,
    rescaled,
)
from pixio_lightning.errors import UserError

_SKY = CLASSES.index("sky")
_FEW = 16  # rendered views of a scene


class Frame(NamedTuple):
    """Where an image, its depth and its camera are from.

    Attributes:
        name: The image's path below the scene's folder.
        image: Its file.
        depth: The depth's file, if there is one.
        intrinsics: `(3, 3)`.
        cam2world: `(4, 4)`.
        size: Height and width of the image the intrinsics are for; None if the layout has none.
        unit: Metres per unit of its depth, where the layout says it.
        masks: Names and files of the masks that come with it.
    """

    name: str
    image: Path
    depth: Path | None
    intrinsics: NDArray[np.float64]
    cam2world: NDArray[np.float64]
    size: tuple[int, int] | None
    unit: float | None = None
    masks: tuple[tuple[str, Path], ...] = ()


class Found(NamedTuple):
    """What a folder holds.

    Attributes:
        frames: Its frames, in the file's order.
        metric: Whether the file says that lengths are metres.
        given: A matrix of covisibility that comes with it.
        set_name: The data set that the file says it is of.
    """

    frames: list[Frame]
    metric: bool = False
    given: Path | None = None
    set_name: str | None = None


def posed_frame(
    where: str, name: str, files: tuple[Path, Path | None], matrix: Any, pose: Any, size: Any
) -> Frame:
    """Return a frame whose camera makes sense.

    Args:
        where: What to call the file with the cameras.
        name: The image's path below the scene's folder.
        files: Image and depth.
        matrix: Intrinsics `(3, 3)`.
        pose: Camera-to-world `(4, 4)`, OpenCV.
        size: Height and width, or None.

    Raises:
        UserError: The image has no name, the pose is not rigid, or the intrinsics are none.
    """
    if not Path(name).name:
        raise UserError(f"{where}: its image is '{name}', which is no name of a file")
    matrix, pose = np.asarray(matrix, np.float64), np.asarray(pose, np.float64)
    turn = pose[:3, :3] if pose.shape == (4, 4) else np.zeros((3, 3))
    rigid = np.abs(turn @ turn.T - np.eye(3)).max() < 1e-3 and np.linalg.det(turn) > 0
    if not (np.isfinite(pose).all() and rigid):
        raise UserError(f"{where}: the pose of '{name}' is not a rotation and a translation, 4x4")
    if not (np.isfinite(matrix).all() and min(matrix[0, 0], matrix[1, 1]) > 0):
        raise UserError(f"{where}: the camera of '{name}' has no positive focal length")
    if matrix.shape != (3, 3) or not np.allclose(matrix[2], (0, 0, 1)):
        raise UserError(f"{where}: the camera of '{name}' is no 3x3 matrix that ends in 0 0 1")
    return Frame(name, *files, matrix, pose, size)


def camera_matrix(fx: float, fy: float, cx: float, cy: float) -> NDArray[np.float64]:
    """Return intrinsics `(3, 3)`."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


class Shot(NamedTuple):
    """What a frame holds.

    Attributes:
        image: uint8 `(H, W, 3)`.
        depth: float32 `(h, w)`, z-depth in metres, of the same aspect but not always the same
            size; 0 or not finite where there is none, negative where nothing can be said: the sky.
        intrinsics: `(3, 3)` of the image.
        cam2world: `(4, 4)`.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    intrinsics: NDArray[np.float64]
    cam2world: NDArray[np.float64]


class Scene(Protocol):
    """A numbered list of frames of one place.

    Attributes:
        name: Unique and stable, the scene's folder below the data's where there are files.
        metric: Whether its lengths are metres.
        synthetic: Whether its images are rendered.
        set_name: The data set it is of, as MapAnything calls it.
        weight: How often that is trained on beside others.
        covisibility: How much of a view its neighbour must see; None is as of all scenes.
    """

    name: str
    metric: bool
    synthetic: bool
    set_name: str
    weight: float
    covisibility: float | None

    def __len__(self) -> int: ...

    def load(self, index: int) -> Shot:
        """Return a frame; raises BadImage with its name where it cannot be used."""
        ...

    def scores(self) -> NDArray[np.float32]:
        """Return how much of each frame every frame sees, the rows of `covisibility.rows`."""
        ...

    def score_file(self) -> ScoreFile | None:
        """Return where the scores are kept once they are computed; None where they need not be."""
        ...

    def facts(self) -> Any:
        """Return plain data that changes when any frame does."""
        ...


class FileScene:
    """Frames in files.

    Args:
        name: The scene's folder below the data's.
        frames: Its frames.
        metric: Whether its lengths are metres.
        synthetic: Whether its images are rendered.
        scale: Metres per unit of depth, where a frame does not say it; None for 0.001 of integers
            and metres of floats, unless a file says another.
        max_megapixels: Larger images are bad.
        given: A matrix of scores that comes with the data, `(N, N)` npy; None computes it.
        rule: Which depth counts.
        set_name: The data set it is of.
        weight: How often that is trained on beside others.
        covisibility: How much of a view its neighbour must see; None is as of all scenes.
    """

    def __init__(
        self,
        name: str,
        frames: Sequence[Frame],
        *,
        metric: bool,
        synthetic: bool,
        scale: float | None,
        max_megapixels: float,
        given: Path | None = None,
        rule: DepthRule = DepthRule(),  # noqa: B008 (frozen)
        set_name: str = "",
        weight: float = 1.0,
        covisibility: float | None = None,
    ) -> None:
        self.name, self.frames = name, list(frames)
        self.metric, self.synthetic, self.rule = metric, synthetic, rule
        self.set_name, self.weight, self.covisibility = set_name, weight, covisibility
        self.scale, self.max_megapixels, self.given = scale, max_megapixels, given
        self._given_rows = slice(0, len(frames))
        self._scores: NDArray[np.float32] | None = None
        self._file: ScoreFile | None = None

    def part(self, indices: range) -> FileScene:
        """Return some of the frames, as if there were no others."""
        part = copy(self)
        part.frames = [self.frames[i] for i in indices]
        first = self._given_rows.start
        part._given_rows = slice(first + indices.start, first + indices.stop)
        part._scores = part._file = None
        part.set_name = ""  # whose scenes it is not one of: its name tells other frames too
        return part

    def __len__(self) -> int:
        return len(self.frames)

    def load(self, index: int) -> Shot:
        frame = self.frames[index]
        try:
            # As stored: its camera was found for these pixels.
            image = decode_pixels(
                read_file(frame.image), max_megapixels=self.max_megapixels, orientation="stored"
            )
            size = image.shape[:2]
            if frame.size not in (None, size):
                raise BadImage(f"{_wide(size)} pixels, but its camera is for {_wide(frame.size)}")
            depth = self._depth(frame, size)
            # Up to a pixel of rounding: depth is often kept at a fraction of the image's size.
            if abs(depth.shape[0] * size[1] - depth.shape[1] * size[0]) > max(size):
                raise BadImage(f"depth of {_wide(depth.shape)} for an image of {_wide(size)}")
            depth = self.rule.applied(depth, self._masks(frame))
        except OSError as error:
            reason = f"cannot be read ({error.strerror or type(error).__name__})"
            raise BadImage(reason, name=f"{self.name}/{frame.name}") from None
        except BadImage as error:
            raise BadImage(str(error), name=f"{self.name}/{frame.name}") from None
        return Shot(image, depth, frame.intrinsics, frame.cam2world)

    def _depth(self, frame: Frame, size: tuple[int, ...]) -> NDArray[np.float32]:
        """Read the depth; where there is no file, it is 0 at the given size."""
        if frame.depth is None:
            return np.zeros(size, dtype=np.float32)
        return read_depth(
            read_file(frame.depth),
            frame.depth.suffix.lower(),
            scale=frame.unit or self.scale or 1e-3,
            insist=frame.unit is not None or self.scale is not None,
            max_megapixels=self.max_megapixels,
        )

    def _masks(self, frame: Frame) -> dict[str, NDArray[np.bool_]]:
        """Read the masks that its rule needs."""
        files, masks = dict(frame.masks), {}
        for name in self.rule.masks:
            if name not in files:
                raise BadImage(f"no mask {name}")
            data = read_file(files[name])
            masks[name] = read_mask(data, max_megapixels=self.max_megapixels)
        return masks

    def scores(self) -> NDArray[np.float32]:
        if self._scores is None:
            file = self.score_file()
            if file is not None:
                self._scores = file.read()
            else:
                assert self.given is not None
                whole = np.load(self.given, mmap_mode="r", allow_pickle=False)
                self._scores = whole[self._given_rows, self._given_rows]
        return self._scores

    def score_file(self) -> ScoreFile | None:
        if self._file is None and self.given is None:
            # Measured, as MapAnything does, on depth as it is: what is seen beyond a mask is seen.
            self._file = ScoreFile(self._depth_facts(), len(self), self._measured)
        return self._file

    def _measured(self, start: int) -> Iterator[NDArray[np.float32]]:
        """Compute rows of the scores; those of a frame whose depth cannot be read are NaN."""
        depths, matrices, broken = [], [], []
        for index, frame in enumerate(self.frames):
            try:
                depth = self._depth(frame, (1, 1))
            except (BadImage, OSError):
                depth = np.zeros((1, 1), dtype=np.float32)
                broken.append(index)
            # Of the image's size; in a layout that does not tell it, it is the depth's.
            height, width = frame.size or depth.shape
            own = rescaled(frame.intrinsics, depth.shape[1] / width, depth.shape[0] / height)
            depth, own = covisibility.shrunk(depth, own)
            depths.append(depth)
            matrices.append(own)
        poses = [frame.cam2world for frame in self.frames]
        found = covisibility.rows(depths, matrices, poses, start=start)
        for index, row in enumerate(found, start):
            row[slice(None) if index in broken else broken] = np.nan
            yield row

    def facts(self) -> Any:
        if self.rule.keeps_all:
            return self._depth_facts()
        masks = [path for f in self.frames for name, path in f.masks if name in self.rule.masks]
        stats = [(str(path), path.stat()) for path in masks if path.exists()]
        about = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
        return self._depth_facts(), about, asdict(self.rule)

    def _depth_facts(self) -> Any:
        files = [path for f in self.frames for path in (f.image, f.depth) if path is not None]
        stats = [(str(path), path.stat()) for path in files if path.exists()]
        cameras = [
            (f.intrinsics.tolist(), f.cam2world.tolist(), f.size, *([f.unit] if f.unit else []))
            for f in self.frames
        ]
        given = [(str(self.given), self.given.stat().st_mtime_ns)] if self.given else None
        return [(name, s.st_size, s.st_mtime_ns) for name, s in stats], cameras, self.scale, given


class RenderedScene:
    """The views of a rendered scene.

    Args:
        views: The rendered views, with `image`, `depth`, `class_id`, `intrinsics`, `cam2world`.
        indices: Which of them are the scene's.
    """

    metric = synthetic = True
    set_name, weight = "", 1.0
    covisibility: float | None = None

    def __init__(self, views: SceneSamples, indices: range) -> None:
        self.views, self.indices = views, indices
        self.name = views.name(indices[0]).rpartition("/")[0]
        self._scores: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Shot:
        view = self.views.load(self.indices[index])
        depth = np.where(view["class_id"] == _SKY, np.float32(-1), view["depth"])
        return Shot(view["image"], depth, view["intrinsics"], view["cam2world"])

    def scores(self) -> NDArray[np.float32]:
        if self._scores is None:
            file = self.score_file()
            self._scores = np.stack(list(self._measured(0))) if file is None else file.read()
        return self._scores

    def score_file(self) -> ScoreFile | None:
        # Scores of a few views are computed as fast as they are read.
        return ScoreFile(self.facts(), len(self), self._measured) if len(self) > _FEW else None

    def _measured(self, start: int) -> Iterator[NDArray[np.float32]]:
        shots = [self.load(i) for i in range(len(self))]
        small = [covisibility.shrunk(s.depth, s.intrinsics) for s in shots]
        depths, intrinsics = zip(*small, strict=True)
        return covisibility.rows(depths, intrinsics, [s.cam2world for s in shots], start=start)

    def facts(self) -> Any:
        return self.name, self.views.digest()


def rendered_scenes(split: str, scenes: Scenes) -> list[RenderedScene]:
    """Return the rendered scenes of a split."""
    views = SceneSamples(split, scenes, ("image", "depth", "class_id", "intrinsics", "cam2world"))
    starts = range(0, len(views), scenes.views)
    return [RenderedScene(views, range(start, start + scenes.views)) for start in starts]


def _wide(size: tuple[int, ...] | None) -> str:
    """Return a size as it is written of images: width first."""
    assert size is not None
    return f"{size[1]}x{size[0]}"
