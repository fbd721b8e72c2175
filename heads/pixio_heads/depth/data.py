"""DepthData: images with depth, from the rendered scenes or from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pixio_heads.depth import layouts
from pixio_heads.depth.layouts import HubSamples, NyuSamples, Pair, PairSamples
from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.sample_data import SampleData
from pixio_lightning.data.samples import Chance, Sample, Samples
from pixio_lightning.data.scene_samples import Scenes, SceneSamples
from pixio_lightning.data.sources import existing_folder
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Stream

# Metres per unit that a layout fixes.
_FIXED_SCALES = {"nyuv2": 1e-3, "kitti": 1 / 256}


class DepthData(SampleData):
    """Images with metric depth: `image`, `depth` in metres, `valid`, and `intrinsics` if known.

    Args:
        source: `scenes` (rendered on first use); `folder` with images/ and depth/, or a plain
            folder of images to predict; `hub` (hub id or local parquet); `nyuv2`; `kitti`.
        path: The folder or hub id; not for scenes.
        split: Split of a hub data set to train on.
        val_split: Its split to validate and test on.
        image_column: Column of the images of a hub data set.
        depth_column: Column of their depth: 16-bit PNG, npy bytes, or lists of metres.
        depth_scale: Metres per unit of an integer depth image; None takes the layout's own,
            0.001 for a folder or hub data set.
        image_size: Side of the training crops in pixels; None trains on whole images. Scenes are
            cropped to their own size, if that is smaller.
        flip: Whether training images are mirrored at random.
        min_depth: Least valid depth in metres.
        max_depth: Greatest valid depth in metres; heads scale their output by it.
        max_megapixels: Larger images count as bad and are not decoded.
        batch_size: Images per process and step.
        num_workers: Processes that decode, per training process.
        steps_per_epoch: Training batches between two validations.
        val_images: Validation images, at most; None takes all.
        val_batch_size: Images per process and evaluation step; they must be of one size.
        views: Number of fixed training views of each image; None draws new ones in every pass.
        max_bad: Stop when more than this share of the images is unusable; None never stops.
        seed: Seed of order, crops and flips.
        scenes: How many scenes and views.

    Raises:
        UserError: A key does not fit the source.
    """

    sources = ("scenes", "folder", "hub", "nyuv2", "kitti")

    def __init__(
        self,
        source: str = "scenes",
        path: str | None = None,
        *,
        split: str = "train",
        val_split: str = "validation",
        image_column: str = "image",
        depth_column: str = "depth",
        depth_scale: float | None = None,
        image_size: int | None = 256,
        flip: bool = True,
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
        max_megapixels: float = 64.0,
        batch_size: int = 4,
        num_workers: int = 4,
        steps_per_epoch: int = 1000,
        val_images: int | None = None,
        val_batch_size: int = 1,
        views: int | None = None,
        max_bad: float | None = None,
        seed: int = 0,
        scenes: Scenes = Scenes(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(
            source,
            path,
            batch_size=batch_size,
            num_workers=num_workers,
            steps_per_epoch=steps_per_epoch,
            val_images=val_images,
            val_batch_size=val_batch_size,
            views=views,
            max_bad=max_bad,
            seed=seed,
        )
        fixed = _FIXED_SCALES.get(source)
        if fixed and depth_scale not in (None, fixed):
            raise UserError(
                f"data.depth_scale is {depth_scale}, but {source} stores units of {fixed:g} m; "
                "leave it out"
            )
        if not 0 < min_depth < max_depth:
            raise UserError(
                f"data.min_depth {min_depth} and data.max_depth {max_depth}: expected "
                "0 < min_depth < max_depth, metres"
            )
        self.split, self.val_split = split, val_split
        self.image_column, self.depth_column = image_column, depth_column
        self.depth_scale = depth_scale or fixed or 1e-3
        self.image_size, self.flip, self.scenes = image_size, flip, scenes
        if source == "scenes" and image_size is not None:
            self.image_size = min(image_size, scenes.size)
        self.min_depth, self.max_depth = min_depth, max_depth
        self.max_megapixels = max_megapixels

    # --- files --------------------------------------------------------------------------------

    def open(self, split: str) -> Samples:
        """Return the samples of a split."""
        if self.source == "scenes":
            split = "val" if split in ("test", "predict") else split
            return SceneSamples(split, self.scenes, ("image", "depth", "valid", "intrinsics"))
        if self.source == "hub":
            predicting = split == "predict"
            return HubSamples(
                self.path or "",
                self.split if split == "train" else self.val_split,
                columns=(self.image_column, self.depth_column),
                scale=self.depth_scale,
                max_megapixels=self.max_megapixels,
                images_only=predicting,
            )
        root = existing_folder(self.path or "", "data.path")
        if self.source == "folder":
            return self._open_folder(root, split)
        list_pairs = layouts.nyu_pairs if self.source == "nyuv2" else layouts.kitti_pairs
        kind = NyuSamples if self.source == "nyuv2" else PairSamples
        return self._pairs(kind, root, list_pairs(root, split))

    def _pairs(
        self, kind: type[PairSamples], root: Path, pairs: list[Pair], *, images_only: bool = False
    ) -> PairSamples:
        return kind(
            root,
            pairs,
            scale=self.depth_scale,
            max_megapixels=self.max_megapixels,
            intrinsics=None if images_only else layouts.read_intrinsics(root),
            images_only=images_only,
        )

    def _open_folder(self, root: Path, split: str) -> PairSamples:
        if split == "predict":
            images = layouts.image_files(root / "images" if (root / "images").is_dir() else root)
            return self._pairs(
                PairSamples, root, [Pair(path, None) for path in images], images_only=True
            )
        if (root / "train").is_dir() and (root / "val").is_dir():
            wanted = split if (root / split).is_dir() else "val"
            below = root / wanted
            return self._pairs(PairSamples, below, layouts.folder_pairs(below))
        train, val = layouts.held_out(root, layouts.folder_pairs(root))
        return self._pairs(PairSamples, root, train if split == "train" else val)

    # --- views --------------------------------------------------------------------------------

    @property
    def random(self) -> bool:
        """Whether training views differ from pass to pass."""
        whole = self.image_size is None or (
            self.source == "scenes" and self.image_size == self.scenes.size
        )
        return self.views is None and (self.flip or not whole)

    def prepare(self, sample: Sample) -> Sample:
        """Return the whole image; what is nearer or farther than the range is not valid.

        Raises:
            BadImage: Nothing is.
        """
        if "depth" not in sample:
            return sample
        depth = sample["depth"]
        valid = sample["valid"] & (depth >= self.min_depth) & (depth <= self.max_depth)
        if not valid.any():
            raise BadImage(f"no depth within {self.min_depth:g} to {self.max_depth:g} m")
        return sample | {"valid": valid}

    def augment(self, sample: Sample, chance: Chance) -> Sample:
        """Return a random crop, mirrored half of the time.

        Raises:
            BadImage: The image is smaller than the crop.
        """
        sample = self.prepare(sample)
        height, width = sample["image"].shape[:2]
        side = self.image_size
        top = left = 0
        if side is not None:
            if min(height, width) < side:
                raise BadImage(f"{width}x{height} pixels, smaller than data.image_size {side}")
            down, across = chance.uniform(2, Stream.CROP)
            top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
            height = width = side
        mirror = self.flip and chance.uniform(1, Stream.FLIP)[0] < 0.5
        views = {
            name: _cut(array, top, left, height, width, mirror=mirror)
            for name, array in sample.items()
            if name != "intrinsics"
        }
        if "intrinsics" in sample:
            views["intrinsics"] = moved(sample["intrinsics"], top, left, width, mirror=mirror)
        return views


def _cut(
    array: np.ndarray, top: int, left: int, height: int, width: int, *, mirror: bool
) -> np.ndarray:
    piece = array[top : top + height, left : left + width]
    return piece[:, ::-1] if mirror else piece


def moved(intrinsics: np.ndarray, top: int, left: int, width: int, *, mirror: bool) -> np.ndarray:
    """Return the intrinsics `(3, 3)` of a crop `width` pixels wide, mirrored or not.

    Pixel centres are at integer coordinates, so column u of a mirrored crop is width - 1 - u; the
    focal length along it changes its sign.
    """
    shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]])
    turn = np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1.0]]) if mirror else np.eye(3)
    return (turn @ shift @ intrinsics).astype(np.float32)
