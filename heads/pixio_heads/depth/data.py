"""DepthData: images with depth, from the rendered scenes or from files."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pixio_heads.depth import benchmark_layouts, layouts, synthetic_layouts
from pixio_heads.depth.benchmark_layouts import MogeSamples
from pixio_heads.depth.hub import HubSamples
from pixio_heads.depth.layouts import KittiBenchmarkSamples, Layout, Pair, PairSamples
from pixio_heads.depth.synthetic_layouts import MixedSamples, mixed_sets
from pixio_heads.depth.views import cropped, resized
from pixio_lightning.data import (
    BadImage,
    Orientation,
    RandomKey,
    Sample,
    SampleData,
    Samples,
    SceneSamples,
    existing_folder,
    images_to_predict,
    pairs_of_split,
    part_of,
)
from pixio_lightning.errors import UserError, above_0, at_least_1, one_of
from pixio_lightning.keyed import Purpose

Domain = Literal["indoor", "outdoor"]
_LAYOUTS = layouts.LAYOUTS | synthetic_layouts.LAYOUTS | benchmark_layouts.LAYOUTS


class DepthData(SampleData):
    """Images with metric depth: `image`, `depth` in metres, `valid`, and `intrinsics` if known.

    Args:
        source: `scenes` (rendered on first use); `folder` with images/ and depth/, or a plain
            folder of images to predict; `hub` (hub id or local parquet); `nyuv2`; `kitti`. To
            train on: `hypersim`, `vkitti2`, `tartanair`, `irs`, `blendedmvs`, or `mix`, a folder
            with any of these five in folders of their names. To test on: `diode`; `sintel`;
            `moge`, a zip of Ruicheng/monocular-geometry-evaluation as it is.
        path: The folder, zip or hub id; not for scenes.
        split: Split of a hub data set to train on.
        val_split: Its split to validate and test on.
        image_column: Column of the images of a hub data set.
        depth_column: Column of their depth: 16-bit PNG, npy bytes, or lists of metres.
        depth_scale: Metres per unit of a depth image, of integers and of floats; None takes what a
            file says itself, as those of `predict` do, or the layout's own, 0.001 for a
            folder or hub data set, and floats as metres. A file that says another unit than is
            given stops the run.
        orientation: How an image is turned that EXIF has viewers turn: `upright`, as they show it,
            or `stored`, as it lies in the file. None stops at the first one beside a depth map,
            which may lie either way; images alone are turned upright.
        image_size: Side of the training crops in pixels; None trains on whole images. Scenes are
            cropped to their own size, if that is smaller.
        short_side: Short side that training images are brought to before they are cropped; None
            leaves them as they are, as scenes always are.
        flip: Whether training images are mirrored at random.
        min_depth: Least valid depth in metres.
        max_depth: Greatest valid depth in metres; heads scale their output by it.
        kb_crop: Whether KITTI is cut to its benchmark crop, 352x1216, before anything else.
        domain: Part of DIODE, `indoor` or `outdoor`; None for both.
        batch_size: Images per process and step.
        val_batch_size: Images per process and evaluation step; they must be of one size;
            `predict` takes one by one.

    Raises:
        UserError: A key does not fit the source.
    """

    sources = ("scenes", "folder", "hub", *_LAYOUTS, "mix", "moge")
    predict_batch_size = 1  # pictures are of any size
    incidental = ("seed",)

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
        orientation: Orientation | None = None,
        image_size: int | None = 256,
        short_side: int | None = None,
        flip: bool = True,
        min_depth: float = 1e-3,
        max_depth: float = 10.0,
        kb_crop: bool = False,
        domain: Domain | None = None,
        batch_size: int = 4,
        val_batch_size: int = 1,
        **loading: Any,
    ) -> None:
        super().__init__(
            source, path, batch_size=batch_size, val_batch_size=val_batch_size, **loading
        )
        fixed = _LAYOUTS[source].scale if source in _LAYOUTS else None
        if fixed and depth_scale not in (None, fixed):
            raise UserError(
                f"data.depth_scale is {depth_scale}, but {source} stores units of {fixed:g} m; "
                "leave it out"
            )
        above_0("data.depth_scale", depth_scale, "metres")
        one_of("data.orientation", orientation, (*get_args(Orientation), None))
        one_of("data.domain", domain, (*get_args(Domain), None))
        if not 0 < min_depth < max_depth < math.inf:
            raise UserError(
                f"data.min_depth {min_depth} and data.max_depth {max_depth}: expected "
                "0 < min_depth < max_depth, metres"
            )
        self.read_by(
            "hub",
            split=split,
            val_split=val_split,
            image_column=image_column,
            depth_column=depth_column,
        )
        if source not in _LAYOUTS:  # which may have a unit of their own, see above
            self.read_by("folder", "hub", depth_scale=depth_scale)
        if source != "moge":  # whose KITTI is cropped already
            self.read_by("kitti", kb_crop=kb_crop)
        self.read_by("diode", "moge", domain=domain)
        self.split, self.val_split = split, val_split
        self.image_column, self.depth_column = image_column, depth_column
        self.depth_scale = depth_scale or fixed or 1e-3
        self.insist, self.orientation = depth_scale is not None, orientation
        at_least_1(**{"data.image_size": image_size, "data.short_side": short_side})
        if short_side is not None and image_size is not None and short_side < image_size:
            raise UserError(
                f"data.short_side {short_side} is less than data.image_size {image_size}, which is "
                "cropped out of it"
            )
        self.image_size, self.short_side, self.flip = image_size, short_side, flip
        self.kb_crop, self.domain = kb_crop, domain
        if source == "scenes":
            self.image_size = image_size and min(image_size, self.scenes.size)
            self.short_side = None
        self.min_depth, self.max_depth = min_depth, max_depth

    # --- files --------------------------------------------------------------------------------

    def open(self, split: str) -> Samples:
        """Return the samples of a split."""
        if self.source == "scenes":
            return SceneSamples(split, self.scenes, ("image", "depth", "valid", "intrinsics"))
        if self.source == "hub":
            predicting = split == "predict"
            return HubSamples(
                self.path or "",
                self.split if split == "train" else self.val_split,
                columns=(self.image_column, self.depth_column),
                scale=self.depth_scale,
                insist=self.insist,
                max_megapixels=self.max_megapixels,
                orientation=self._turned(split),
                images_only=predicting,
            )
        if self.source == "moge":
            benchmark_layouts.refuse_training("moge", split)
            return MogeSamples(
                self.path or "",
                max_megapixels=self.max_megapixels,
                orientation=self.orientation,
                domain=self.domain,
            )
        root = existing_folder(self.path or "", "data.path")
        if self.source == "folder":
            return self._open_folder(root, split)
        if self.source == "mix":
            sets = {name: synthetic_layouts.LAYOUTS[name] for name in mixed_sets(root)}
            parts = {name: self._open_layout(root / name, split, sets[name]) for name in sets}
            return MixedSamples(root, parts)
        layout = _LAYOUTS[self.source]
        if self.source == "diode":
            listed = partial(benchmark_layouts.diode_pairs, domain=self.domain)
            layout = layout._replace(list_pairs=listed)
        if self.source == "kitti" and self.kb_crop:
            layout = layout._replace(kind=KittiBenchmarkSamples)
        return self._open_layout(root, split, layout)

    @property
    def dataset(self) -> str:
        """What records call the data, its part, crop, unit and how images are turned."""
        of_hub = f"{self.val_split}, column {self.depth_column}"
        parts = {"diode": self.domain, "moge": self.domain, "hub": of_hub}
        part = parts.get(self.source)
        crop = "benchmark crop" if self.source == "kitti" and self.kb_crop else None
        unit = f"depth_scale {self.depth_scale:g}" if self.insist else None
        masks = "masks" if self.source == "folder" and self._masked() else None
        return ", ".join(filter(None, (super().dataset, part, crop, unit, masks, self.orientation)))

    @property
    def metric(self) -> bool:
        """Whether depth is in metres, not in a unit that nobody knows."""
        if self.source == "moge":
            samples = self.samples_of("val")
            return not isinstance(samples, MogeSamples) or samples.metric
        path = Path(self.path or "").expanduser()
        sets = mixed_sets(path) if self.source == "mix" else [self.source]
        return "blendedmvs" not in sets

    def _masked(self) -> bool:
        """Whether masks say which depth of the held-out images of a folder is scored."""
        with suppress(UserError):  # a folder to predict is laid out in any way
            root = existing_folder(self.path or "", "data.path")
            part = part_of(root, "val", holds=lambda folder: (folder / "images").is_dir())
            return layouts.has_masks(part.folder)
        return False

    def _turned(self, split: str) -> Orientation | None:
        return self.orientation or ("upright" if split == "predict" else None)

    def _open_layout(self, root: Path, split: str, layout: Layout) -> PairSamples:
        return layout.kind(
            root,
            layout.list_pairs(root, split),
            scale=layout.scale or self.depth_scale,
            insist=self.insist,
            max_megapixels=self.max_megapixels,
            orientation=self._turned(split),
            intrinsics=layouts.read_intrinsics(root),
        )

    def _open_folder(self, root: Path, split: str) -> PairSamples:
        if split == "predict":
            folder, images = images_to_predict(root)
            return self._pairs(folder, [Pair(path, None) for path in images], images_only=True)
        return self._pairs(*pairs_of_split(root, split, layouts.folder_pairs))

    def _pairs(self, root: Path, pairs: list[Pair], *, images_only: bool = False) -> PairSamples:
        return PairSamples(
            root,
            pairs,
            scale=self.depth_scale,
            insist=self.insist,
            max_megapixels=self.max_megapixels,
            orientation=self._turned("predict" if images_only else "val"),
            intrinsics=None if images_only else layouts.read_intrinsics(root),
            images_only=images_only,
        )

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
            BadImage: Nothing is; the reason says whether all is too near, or too far.
        """
        if "depth" not in sample:
            return sample
        depth = sample["depth"]
        valid = sample["valid"] & (depth >= self.min_depth) & (depth <= self.max_depth)
        if not valid.any():
            raise BadImage(self._none_within(depth[sample["valid"]]))
        return sample | {"valid": valid}

    def _none_within(self, measured: np.ndarray) -> str:
        """Say why no depth counts; without its values, so that reasons can be counted."""
        if not measured.size:
            return "no depth is measured"
        unit = f"; data.depth_scale is {self.depth_scale:g} m of one unit" if self.insist else ""
        if measured.min() > self.max_depth:
            return f"all depth is beyond {self.max_depth:g} m{unit}"
        if measured.max() < self.min_depth:
            return f"all depth is nearer than {self.min_depth:g} m{unit}"
        return f"no depth within {self.min_depth:g} to {self.max_depth:g} m"

    def augment(self, sample: Sample, random_key: RandomKey) -> Sample:
        """Return a random crop of the image, brought to `short_side`, mirrored half of the time.

        Raises:
            BadImage: The image is smaller than the crop.
        """
        sample = self.prepare(sample)
        if self.short_side is not None:
            sample = resized(sample, self.short_side)
        height, width = sample["image"].shape[:2]
        side = self.image_size
        top = left = 0
        if side is not None:
            if min(height, width) < side:
                raise BadImage(f"{width}x{height} pixels, smaller than data.image_size {side}")
            down, across = random_key.uniform(2, Purpose.CROP)
            top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
            height = width = side
        mirror = self.flip and random_key.uniform(1, Purpose.FLIP)[0] < 0.5
        return cropped(sample, top, left, height, width, mirror=mirror)
