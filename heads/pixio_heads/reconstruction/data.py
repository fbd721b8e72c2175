"""ReconstructionData: sets of overlapping views with depth and cameras, of scenes or from files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pixio_heads.reconstruction.views.colour import Colour, recoloured
from pixio_heads.reconstruction.views.frames import FileScene, Scene, rendered_scenes
from pixio_heads.reconstruction.views.framing import sizes_of
from pixio_heads.reconstruction.views.inputs import Pictures, open_pictures, pictures_of
from pixio_heads.reconstruction.views.known_sets import Flags, SetFlags
from pixio_heads.reconstruction.views.layouts import holds_one_scene
from pixio_heads.reconstruction.views.mirror import mirrored
from pixio_heads.reconstruction.views.opening import SceneFiles, names_anywhere
from pixio_heads.reconstruction.views.sets import (
    SetPositions,
    Sets,
    SetsOfOneShape,
    Shapes,
    TrainingSets,
)
from pixio_heads.reconstruction.views.wai.mixture import dealt, in_turns, numbered
from pixio_lightning.data import (
    HeldOutSamples,
    Loader,
    RandomKey,
    Sample,
    SampleData,
    Samples,
    spread,
)
from pixio_lightning.errors import UserError, above_0, at_least
from pixio_lightning.keyed import Purpose

_COVISIBILITY = 0.25  # where neither the user nor the data set says another
_NAMES = 10_000  # of scenes that a run keeps to know them again elsewhere
# What a layout is known to be: metric, synthetic.
_KNOWN = {"scenes": (True, True), "blendedmvs": (False, False)}


class ReconstructionData(SampleData):
    """Sets of views: from the rendered scenes, or scenes in files.

    Folders are read as follows; each holds `train/` and `val/` with scenes, or scenes of which a
    share is held out, or is a single scene, of which the last frames are.

    - `folder`: `transforms.json` of Nerfstudio with `depth_file_path`, or COLMAP in
      `sparse/0/` with `images/` and `depth/` of the same names (16-bit PNG, npy, EXR, PFM).
    - `wai`: the layout of MapAnything, `scene_meta.json`; scenes may lie in a folder for each data
      set they are of. Of a known one the name (the folder's, else the file's) tells what holds: see
      `sets` and `masks`.
    - `blendedmvs`: `blended_images/`, `rendered_depth_maps/`, `cams/`.

    A negative depth marks what has none, such as the sky; 0 what was not measured.

    Args:
        source: `scenes`, `folder`, `wai` or `blendedmvs`.
        path: Folder; to predict, a folder of pictures or a video.
        image_size: Height and width of the views, multiples of 16; or several, one of which each
            training step draws, and the first of which is evaluated at. Scenes are scaled to fit
            into their own size.
        min_views: Least number of views of a training set.
        max_views: Greatest; each step draws one, and has fewer sets if it has more views.
        val_views: Views of a set that is evaluated.
        sets_per_scene: Sets of each scene in a pass; of several data sets at least, see `sets`.
        covisibility: How much of a view its neighbour in a set must see, as a share of what can be
            seen at all; None is 0.25, of MPSD 0.15 and of ETH3D 0.025 as in MapAnything.
        hold_out: Share of the scenes that is held out where there is no `val/`; 1 only evaluates.
        scene_lists: Folder of lists of the scenes to train on, validate and test on, as MapAnything
            publishes them for its sets: `train/NAME_scene_list_train.txt`, and so on, whatever
            `hold_out` is. None holds scenes out by their names.
        depth_scale: Metres per unit of depth, of integers and of floats; None takes what a file
            says itself (`depth_unit_scale_factor` of transforms.json, or a PNG of `predict`), or
            0.001 of integers, and floats as metres. A file that says another unit than is given
            stops the run.
        metric: Whether lengths are metres; None believes the name of a data set's folder, else the
            files, and that a folder's are not.
        synthetic: Whether images are rendered; None believes the name of a data set's folder, else
            that they are not.
        sets: Of data sets by the names of their folders, whether they are metric and synthetic, and
            how often each is trained on beside the others (`weight`), whatever the number of its
            scenes: what is not said is as in MapAnything, or 1.
        masks: Whether depth that is no geometry is taken out as MapAnything does for the set: sky,
            what a mask calls unusable, the farthest 5 %. Of a set that is not known the masks that
            its files have count.
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
        covisibility: float | None = None,
        hold_out: float = 0.1,
        scene_lists: str | None = None,
        depth_scale: float | None = None,
        metric: bool | None = None,
        synthetic: bool | None = None,
        sets: dict[str, SetFlags] | None = None,
        masks: bool = True,
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
        self.sizes = sizes_of(image_size, fit=self.scenes.size if source == "scenes" else None)
        self.image_size = self.sizes[0]  # that is evaluated and predicted at
        self.min_views, self.max_views, self.val_views = min_views, max_views, val_views
        self.sets_per_scene, self.hold_out, self.scene_lists = sets_per_scene, hold_out, scene_lists
        if covisibility is None and source != "wai":
            covisibility = _COVISIBILITY
        self.covisibility, self.masks = covisibility, masks
        self.depth_scale, self.colour = depth_scale, colour
        known = _KNOWN.get(source, (None, None))
        self.metric = metric if known[0] is None else known[0]
        self.synthetic = synthetic if known[1] is None else known[1]
        self.sets = sets or {}
        self.augments = source != "scenes" if augment is None else augment
        self.mirror = mirror
        self.predict_views, self.every = predict_views, every
        self._shares: dict[str, float] = {}  # of the training sets, by data set
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
        self.read_by("wai", scene_lists=self.scene_lists, masks=self.masks)
        above_0("data.depth_scale", self.depth_scale, "metres")
        if not 2 <= self.min_views <= self.max_views:
            raise UserError(
                f"data.min_views {self.min_views} and data.max_views {self.max_views}: expected "
                "2 <= min_views <= max_views"
            )
        at_least(2, **{"data.val_views": self.val_views})
        at_least(1, **{"data.sets_per_scene": self.sets_per_scene})
        for name in ("covisibility", "hold_out"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(f"data.{name} is {value}; expected over 0 up to 1")
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
        made = self.source == "scenes"
        scenes: Sequence[Scene]
        scenes = rendered_scenes(split, self.scenes) if made else self._files.of(split)
        train = split == "train"
        groups = [s.set_name if train else "" for s in scenes]
        weights = {group: s.weight for group, s in zip(groups, scenes, strict=True)}
        sets = Sets(
            scenes,
            views=self.val_views,
            size=self.image_size,
            covisibility=self.covisibility or _COVISIBILITY,
            # Whatever a run's seed is, all are judged on the same sets.
            seed=self.seed if train else 0,
            starts=numbered(groups, weights, per_scene=self.sets_per_scene),
        )
        if len({*groups}) > 1:
            self._shares = {k: n / len(sets) for k, n in sets.of_data_sets().items()}
        return sets

    @cached_property
    def _files(self) -> SceneFiles:
        return SceneFiles(
            self.path or "",
            self.source,
            hold_out=self.hold_out,
            views=(self.max_views, self.val_views),
            lists=self.scene_lists,
            scale=self.depth_scale,
            max_megapixels=self.max_megapixels,
            flags=Flags(self.metric, self.synthetic, self.sets, self.covisibility, self.masks),
        )

    def names_of(self, split: str) -> list[str] | None:
        """Return the scenes of a split; of a folder that is a single one, the frames."""
        if self.source == "scenes":
            return None
        part = self._files.part(split)
        if part.whole:
            return []
        scenes = self._sets_of(split).scenes
        # By the folder alone, so that names of different shares can be compared.
        if holds_one_scene(part.folder, self.source):
            files = [scene for scene in scenes if isinstance(scene, FileScene)]
            return [f"{scene.name}/{frame.name}" for scene in files for frame in scene.frames]
        return [scene.name for scene in scenes]

    def names_anywhere(self, split: str) -> list[str]:
        """Return the scenes of known data sets as `SET/SCENE`: of whole sets, up to 10,000."""
        return names_anywhere(self._sets_of(split).scenes, limit=_NAMES)

    def _open_pictures(self) -> Pictures:
        if self.source == "scenes":
            return pictures_of(rendered_scenes("val", self.scenes)[0])
        # Beside the cameras that are predicted for them.
        run = Path(self.trainer.default_root_dir) if self.trainer else None
        pictures = open_pictures(
            self.path or "",
            image_size=max(self.image_size),
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
        height, width = self.image_size
        parts = [super().dataset, f"{self.val_views} views of {height}x{width}"]
        seen = "of each data set" if self.covisibility is None else f"{self.covisibility:g}"
        parts += [f"covisibility {seen}", f"{self.sets_per_scene} sets a scene"]
        if self.source == "wai":
            parts.append("depth within masks" if self.masks else "depth without masks")
        if self.source != "scenes":
            listed = self.scene_lists is not None
            parts.append("scenes of lists" if listed else f"hold_out {self.hold_out:g}")
            if self.depth_scale is not None:
                parts.append(f"depth_scale {self.depth_scale:g}")
        return ", ".join(parts)

    def contents(self) -> dict[str, str]:
        """Return how many sets there are, of which data sets, and what tells the splits."""
        facts = super().contents()
        if self._shares:
            facts["data sets"] = ", ".join(f"{k} {100 * v:.1f} %" for k, v in self._shares.items())
        unlisted = self.source == "wai" and self.scene_lists is None and self.hold_out < 1
        if unlisted and not self._files.part("val").whole:
            facts["splits"] = "by names, not by lists of a benchmark: see data.scene_lists"
        return facts

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

    def _measure(self, split: str, indices: list[int] | None = None, *, judge: bool = True) -> None:
        """Measure before workers start, also where `prepare_data` could not know what is needed."""
        hidden = self.trainer is not None and self.trainer.global_rank > 0
        self._sets_of(split).measure(indices, hidden=hidden, judge=judge)

    def evaluation_set(self, stage: str) -> HeldOutSamples:
        """Return the sets of a stage, each once, ready to be loaded.

        Neighbours are of different scenes, where there are several, in each process: the baseline
        of a wrong reference takes one from the set before.
        """
        held_out = super().evaluation_set(stage)
        if stage != "predict":
            sets = self._sets_of(stage)
            if len(held_out.indices) < len(sets):  # as many of each data set
                held_out.indices = in_turns(sets.by_data_set(), len(held_out.indices))
            chosen = sorted(held_out.indices, key=lambda index: sets.place(index)[1])
            self._measure(stage, chosen)
            processes = self.trainer.world_size if self.trainer else 1
            held_out.indices = dealt(chosen, processes)
        return held_out

    def statistics_dataloader(self, limit: int | None = None, *, share: bool = False) -> Loader:
        """Return training sets as they are evaluated, each once."""
        self._measure("train", spread(len(self.samples_of("train")), limit))
        return super().statistics_dataloader(limit, share=share)

    def samples(self, n: int) -> dict[str, Any]:
        """Return `n` validation sets for pictures, as batches of one."""
        self._measure("val", spread(len(self.samples_of("val")), n), judge=False)
        return super().samples(n)

    # --- the stream ---------------------------------------------------------------------------

    @property
    def random(self) -> bool:
        """Whether training sets differ from pass to pass."""
        return self.views is None

    def shapes(self, world_size: int) -> Shapes:
        """Return how many views and what size the sets of each training step have."""
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        return self._shapes(self.batch_size, world_size * accumulate)

    def _shapes(self, batch_size: int, parts: int) -> Shapes:
        views, sizes = (self.min_views, self.max_views), tuple(self.sizes)
        return Shapes(views, sizes, batch_size=batch_size, parts=parts, seed=self.seed)

    def samples_per_step(self, batch_size: int, parts: int) -> tuple[int, ...]:
        """Return the sets of a step by its views, where batches of so many parts make one."""
        return self._shapes(batch_size, parts).sets_per_step()

    def positions(self, *, rank: int, world_size: int) -> SetPositions:
        """Return the batches of stream positions that a process trains on."""
        return SetPositions(self.shapes(world_size), rank=rank, world_size=world_size)

    def training_set(self) -> TrainingSets | SetsOfOneShape:
        """Return training sets by their position in the stream."""
        sets = self._sets_of("train")
        self._measure("train")
        if self.views is not None:
            fixed = sets.shaped(self.min_views, self.image_size)
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
