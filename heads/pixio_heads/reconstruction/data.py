"""ReconstructionData: sets of overlapping views with depth and cameras, of scenes or from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixio_heads.reconstruction.views.colour import Colour, recoloured
from pixio_heads.reconstruction.views.frames import FileScene, RenderedScene, Scene
from pixio_heads.reconstruction.views.inputs import Pictures, Placed, open_pictures
from pixio_heads.reconstruction.views.known_sets import Flags, SetFlags
from pixio_heads.reconstruction.views.layouts import is_scene, open_scenes, split_scenes
from pixio_heads.reconstruction.views.mirror import mirrored
from pixio_heads.reconstruction.views.sets import (
    SetPositions,
    Sets,
    SetsOfOneShape,
    Shapes,
    Size,
    TrainingSets,
)
from pixio_lightning.data import (
    HeldOutSamples,
    Loader,
    RandomKey,
    Sample,
    SampleData,
    Samples,
    Scenes,
    SceneSamples,
    existing_folder,
    part_of,
    spread,
)
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import Purpose

_STEP = 16  # sides are multiples of the backbone's patch
# What a layout is known to be: metric, synthetic.
_KNOWN = {"scenes": (True, True), "blendedmvs": (False, False)}


class ReconstructionData(SampleData):
    """Sets of views: from the rendered scenes, or scenes in files.

    Folders are read as follows; each holds `train/` and `val/` with scenes, or scenes of which a
    share is held out, or is a single scene, of which the last frames are.

    - `folder`: `transforms.json` of Nerfstudio with `depth_file_path`, or COLMAP in
      `sparse/0/` with `images/` and `depth/` of the same names (16-bit PNG, npy, EXR, PFM).
    - `wai`: the layout of MapAnything, `scene_meta.json`; scenes may lie in a folder for each data
      set they are of, whose name says whether it is metric and synthetic, where it is known.
    - `blendedmvs`: `blended_images/`, `rendered_depth_maps/`, `cams/`.

    A negative depth marks what has none, such as the sky; 0 what was not measured.

    Args:
        source: `scenes`, `folder`, `wai` or `blendedmvs`.
        path: Folder; to predict, a folder of pictures or a video.
        image_size: Height and width of the views, multiples of 16; or several, one of which each
            training batch draws, and the first of which is evaluated at. Scenes are scaled to fit
            into their own size.
        min_views: Least number of views of a training set.
        max_views: Greatest; each batch draws one, and has fewer sets if it has more views.
        val_views: Views of a set that is evaluated.
        sets_per_scene: Sets of each scene in a pass.
        covisibility: How much of a view its neighbour in a set must see, as a share of what can be
            seen at all.
        hold_out: Share of the scenes that is held out where there is no `val/`; 1 only evaluates.
        depth_scale: Metres per unit of depth, of integers and of floats; None takes what a file
            says itself (`depth_unit_scale_factor` of transforms.json, or a PNG of `predict`), or
            0.001 of integers, and floats as metres. A file that says another unit than is given
            stops the run.
        metric: Whether lengths are metres; None believes the name of a data set's folder, else the
            files, and that a folder's are not.
        synthetic: Whether images are rendered; None believes the name of a data set's folder, else
            that they are not.
        sets: Of data sets by the names of their folders, whether they are metric and synthetic.
        augment: Whether colours of training views change; None for those of files.
        colour: How they do.
        mirror: Whether half of the training sets are seen in a mirror.
        predict_views: Views of pictures or a video to predict from, at most; None takes all.
        every: Seconds between the frames that are taken of a video.
        batch_size: Sets of `min_views` per process and step.
        val_batch_size: Sets per process and evaluation step.
        views: Number of fixed training sets for each one of a pass, for the cache of features; None
            draws new ones in every pass.

    Raises:
        UserError: A key does not fit the source.
    """

    sources = ("scenes", "folder", "wai", "blendedmvs")

    def __init__(
        self,
        source: str = "scenes",
        path: str | None = None,
        *,
        image_size: tuple[int, int] | list[tuple[int, int]] = (224, 224),
        min_views: int = 2,
        max_views: int = 4,
        val_views: int = 2,
        sets_per_scene: int = 10,
        covisibility: float = 0.25,
        hold_out: float = 0.1,
        depth_scale: float | None = None,
        metric: bool | None = None,
        synthetic: bool | None = None,
        sets: dict[str, SetFlags] | None = None,
        augment: bool | None = None,
        colour: Colour = Colour(),  # noqa: B008 (frozen)
        mirror: bool = False,
        predict_views: int | None = None,
        every: float = 1.0,
        batch_size: int = 4,
        val_batch_size: int = 1,
        views: int | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(
            source,
            path,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            views=views,
            **loading,
        )
        sizes = [image_size] if isinstance(image_size, tuple) else image_size
        if source == "scenes":
            sizes = [_within(size, self.scenes.size) for size in sizes]
        self.sizes = [(height, width) for height, width in sizes]
        self.min_views, self.max_views, self.val_views = min_views, max_views, val_views
        self.sets_per_scene, self.covisibility, self.hold_out = (
            sets_per_scene, covisibility, hold_out,
        )  # fmt: skip
        self.depth_scale, self.colour = depth_scale, colour
        known = _KNOWN.get(source, (None, None))
        self.metric = metric if known[0] is None else known[0]
        self.synthetic = synthetic if known[1] is None else known[1]
        self.sets = sets or {}
        self.augments = source != "scenes" if augment is None else augment
        self.mirror = mirror
        self.predict_views, self.every = predict_views, every
        self._refuse(given={"metric": metric, "synthetic": synthetic}, known=known)

    def _refuse(self, *, given: dict[str, bool | None], known: tuple[bool | None, ...]) -> None:
        """Raise a UserError for keys that have no meaning."""
        for (name, value), fixed in zip(given.items(), known, strict=True):
            # What is said of files does not hold for scenes, as `with/debug` puts in their place.
            if self.source != "scenes" and None not in (value, fixed) and value != fixed:
                raise UserError(
                    f"data.{name} is {value}, but of {self.source} it is known to be {fixed}; "
                    "leave it out"
                )
        if self.sets and self.source not in ("wai", "scenes"):
            raise UserError(
                f"data.sets is of folders in the layout wai, but data.source is {self.source}; say "
                "data.metric and data.synthetic"
            )
        for size in self.sizes:
            if min(size) < _STEP or any(side % _STEP for side in size):
                raise UserError(
                    f"data.image_size {list(size)}: expected height and width, multiples of {_STEP}"
                )
        if not self.sizes:
            raise UserError("data.image_size is empty; expected height and width")
        if not 2 <= self.min_views <= self.max_views:
            raise UserError(
                f"data.min_views {self.min_views} and data.max_views {self.max_views}: expected "
                "2 <= min_views <= max_views"
            )
        for name in ("val_views", "sets_per_scene"):
            least = 2 if name == "val_views" else 1
            if getattr(self, name) < least:
                raise UserError(f"data.{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("covisibility", "hold_out"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"data.{name} is {getattr(self, name)}; expected over 0 up to 1")
        if self.views is not None and (self.min_views < self.max_views or len(self.sizes) > 1):
            raise UserError(
                "data.views fixes the training sets, so they must be of one shape: set "
                "data.min_views and data.max_views to the same, and one data.image_size"
            )

    # --- files --------------------------------------------------------------------------------

    def open(self, split: str) -> Samples:
        """Return the sets of a split."""
        if split == "predict":
            return self._open_pictures()
        if self.source == "scenes":
            scenes: Sequence[Scene] = _rendered(split, self.scenes)
        else:
            scenes = self._open_scenes(existing_folder(self.path or "", "data.path"), split)
        return Sets(
            scenes,
            views=self.val_views,
            size=self.sizes[0],
            per_scene=self.sets_per_scene,
            covisibility=self.covisibility,
            # Whatever a run's seed is, all are judged on the same sets.
            seed=self.seed if split == "train" else 0,
        )

    def _open_scenes(self, root: Path, split: str) -> Sequence[Scene]:
        def opened(folder: Path) -> list[FileScene]:
            return open_scenes(
                folder,
                self.source,
                scale=self.depth_scale,
                max_megapixels=self.max_megapixels,
                flags=Flags(self.metric, self.synthetic, self.sets),
            )

        # A scene may be called train, as one of Tanks and Temples is.
        part = part_of(root, split, holds=lambda folder: not is_scene(folder, self.source))
        if part.whole:
            return opened(part.folder)
        views = (self.max_views, self.val_views)
        train, held_out = split_scenes(opened(part.folder), share=self.hold_out, views=views)
        if split == "train" and not train:
            raise UserError("data.hold_out is 1, so there is no scene to train on: set it lower")
        return train if split == "train" else held_out

    def names_of(self, split: str) -> list[str] | None:
        """Return the scenes of a split; where all are parts of a single one, the frames."""
        if self.source == "scenes":
            return None
        root = existing_folder(self.path or "", "data.path")
        if part_of(root, split, holds=lambda folder: not is_scene(folder, self.source)).whole:
            return []
        scenes = self._sets_of(split).scenes
        if self.hold_out < 1 and len(self._sets_of("train").scenes) == 1:
            files = [scene for scene in scenes if isinstance(scene, FileScene)]
            return [f"{scene.name}/{frame.name}" for scene in files for frame in scene.frames]
        return [scene.name for scene in scenes]

    def _open_pictures(self) -> Pictures:
        if self.source == "scenes":
            scene, *_ = _rendered("val", self.scenes)
            shots = [scene.load(i) for i in range(len(scene))]
            placed = [Placed(s.image, s.image.shape[:2], (1.0, 1.0, 0, 0)) for s in shots]
            names = [f"{i}.png" for i in range(len(scene))]
            return Pictures(scene.name, names, placed, bad=[], facts=str(scene.facts()))
        # Beside the cameras that are predicted for them.
        run = Path(self.trainer.default_root_dir) if self.trainer else None
        pictures = open_pictures(
            self.path or "",
            image_size=max(self.sizes[0]),
            max_views=self.predict_views,
            max_megapixels=self.max_megapixels,
            every=self.every,
            frames=run / "predictions" if run else None,
        )
        self.list_bad(pictures.bad)
        return pictures

    @property
    def dataset(self) -> str:
        """What records call the data: with what decides on which sets there are, and how hard."""
        height, width = self.sizes[0]
        parts = [super().dataset, f"{self.val_views} views of {height}x{width}"]
        parts += [f"covisibility {self.covisibility:g}", f"{self.sets_per_scene} sets a scene"]
        if self.source != "scenes":
            parts.append(f"hold_out {self.hold_out:g}")
            if self.depth_scale is not None:
                parts.append(f"depth_scale {self.depth_scale:g}")
        return ", ".join(parts)

    # --- covisibility -------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Render the scenes, and find out which views see which, once, in one process of a node."""
        super().prepare_data()
        stage = self.trainer.state.fn if self.trainer else "fit"
        if stage == "fit":
            self._measure("train")
        if stage != "predict":
            self.evaluation_set("test" if stage == "test" else "val")

    def _sets_of(self, split: str) -> Sets:
        sets = self.samples_of(split)
        assert isinstance(sets, Sets)
        return sets

    def _measure(self, split: str, indices: list[int] | None = None) -> None:
        """Measure before workers start, also where `prepare_data` could not know what is needed."""
        hidden = self.trainer is not None and self.trainer.global_rank > 0
        self._sets_of(split).measure(indices, hidden=hidden)

    def evaluation_set(self, stage: str) -> HeldOutSamples:
        """Return the sets of a stage, each once, ready to be loaded.

        Neighbours are of different scenes, where there are several, in each process: the baseline
        of a wrong reference takes one from the set before.
        """
        held_out = super().evaluation_set(stage)
        if stage != "predict":
            self._measure(stage, held_out.indices)
            held_out.indices.sort(key=lambda index: index % self.sets_per_scene)
            processes = self.trainer.world_size if self.trainer else 1
            held_out.indices = dealt(held_out.indices, processes)
        return held_out

    def statistics_dataloader(self, limit: int | None = None, *, share: bool = False) -> Loader:
        """Return training sets as they are evaluated, each once."""
        self._measure("train", spread(len(self.samples_of("train")), limit))
        return super().statistics_dataloader(limit, share=share)

    def samples(self, n: int) -> dict[str, Any]:
        """Return `n` validation sets for pictures, as batches of one."""
        self._measure("val", spread(len(self.samples_of("val")), n))
        return super().samples(n)

    # --- the stream ---------------------------------------------------------------------------

    @property
    def random(self) -> bool:
        """Whether training sets differ from pass to pass."""
        return self.views is None

    def shapes(self, world_size: int) -> Shapes:
        """Return how many views and what size each training batch has."""
        return Shapes(
            views=(self.min_views, self.max_views),
            sizes=tuple(self.sizes),
            batch_size=self.batch_size,
            world_size=world_size,
            seed=self.seed,
        )

    def positions(self, *, rank: int, world_size: int) -> SetPositions:
        """Return the batches of stream positions that a process trains on."""
        return SetPositions(self.shapes(world_size), rank=rank)

    def training_set(self) -> TrainingSets | SetsOfOneShape:
        """Return training sets by their position in the stream."""
        sets = self._sets_of("train")
        self._measure("train")
        if self.views is not None:
            fixed = sets.shaped(self.min_views, self.sizes[0])
            return SetsOfOneShape(
                fixed,
                self.augment,
                seed=self.seed,
                views=self.views,
                store=self.stores.get("train"),
            )
        world_size = self.trainer.world_size if self.trainer else 1
        return TrainingSets(sets, self.augment, shapes=self.shapes(world_size), seed=self.seed)

    def augment(self, sample: Sample, random_key: RandomKey) -> Sample:
        """Return a set with other colours, mirrored or not."""
        if self.mirror and random_key.uniform(1, Purpose.FLIP)[0] < 0.5:
            sample = mirrored(sample)
        if not self.augments:
            return sample
        return sample | {"image": recoloured(sample["image"], self.colour, random_key)}


def dealt(indices: list[int], processes: int) -> list[int]:
    """Return indices in an order of which each process, taking every so many-th, has neighbours.

    Args:
        indices: What is evaluated.
        processes: How many share them.
    """
    order, start = indices.copy(), 0
    for rank in range(processes):
        places = range(rank, len(indices), processes)
        for place, index in zip(places, indices[start:], strict=False):
            order[place] = index
        start += len(places)
    return order


def _rendered(split: str, scenes: Scenes) -> list[Scene]:
    fields = ("image", "depth", "class_id", "intrinsics", "cam2world")
    views = SceneSamples(split, scenes, fields)
    starts = range(0, len(views), scenes.views)
    return [RenderedScene(views, range(start, start + scenes.views)) for start in starts]


def _within(size: Size, side: int) -> Size:
    """Return a size scaled down until it fits into a square, in whole patches."""
    scale = min(1.0, side / max(size))
    height, width = (max(_STEP, round(n * scale / _STEP) * _STEP) for n in size)
    return height, width
