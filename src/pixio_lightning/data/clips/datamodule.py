"""Clips: the DataModule of future prediction, one interface over every source of frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Literal, get_args

from torch.utils.data import DataLoader

from pixio_lightning.data.clips.frame_folders import FrameFolders
from pixio_lightning.data.clips.overlap import refuse_copies
from pixio_lightning.data.clips.packed import PackedClips
from pixio_lightning.data.clips.pairs import HeldOutPairs, TrainingPairs
from pixio_lightning.data.clips.source import (
    ClipSource,
    SceneSource,
    choose_frames,
    hold_out_files,
)
from pixio_lightning.data.clips.videos import VideoSource, index_folder
from pixio_lightning.data.datamodule import StreamData
from pixio_lightning.data.samples import HeldOutSamples, centre_cropped, spread
from pixio_lightning.data.scenes.clip_store import RenderedClips, clip_shards
from pixio_lightning.data.scenes.store import Scenes
from pixio_lightning.data.sources import Source, check_source, digest_of, refuse_overlap
from pixio_lightning.data.stream import Loader
from pixio_lightning.errors import UserError, above_0, at_least_1, refuse_unread

Kind = Literal["scenes", "videos", "frames", "shards"]


class Clips(StreamData):
    """Past frames and a future one, from clips.

    A batch holds `past` uint8 `(B, K, 3, S, S)`, `future` uint8 `(B, 3, S, S)`, `gap` float32
    `(B, K)`, the seconds from each past frame to the future one, and `key` int64 `(B,)`; of
    held-out clips also `video` int64 `(B,)`, a number of the file that each is a part of, and
    `wrong_past`, that of another one, if any; of rendered ones `warp`, the last past frame moved by
    exact flow.

    Args:
        source: `scenes` (rendered on first use), `videos` (nested mp4, mov, mkv, webm, avi; by
            PyAV), `frames` (pictures in folders whose last number counts the frames, as DAVIS) or
            `shards` (what `pixio shard --clips` wrote).
        path: Folder of the clips, or address of the shards (`hf://`, `s3://`, ...); not for scenes.
        val_path: Where the held-out clips are; None holds out a tenth of the files.
        image_size: Side of the crops in pixels.
        batch_size: Samples per process and step.
        val_images: Held-out samples, one of each clip, at most.
        clip_seconds: Length of a clip: longer videos are cut into so many. Not of shards,
            whose clips are as long as they were packed.
        fps: By how much the numbers of `frames` rise in a second: pictures a second, or where only
            every fifth is there, five times that.
        gap: Range of seconds from the last past frame to the future one.
        past_frames: Past frames K of a sample.
        past_step: Seconds between them.
        repeat: Samples that are made of a clip each time it is read.
        two_crops: Train on two crops of one frame in place of two frames: the control that shows
            what is learned without time. Held-out samples stay pairs of frames.
        crop_scale: Range of a crop's share of the frame's area; all frames of a sample are cut
            alike.
        crop_ratio: Range of a crop's width over its height.
        max_bad: Stop when more than this share of the videos at `path` cannot be used, or of the
            clips that are read of the others; None never stops.
        max_megapixels: Larger frames count as bad and are not decoded.
        scenes: How many rendered clips, and how many frames (`views`) of each.
    """

    counted = "clips"

    def __init__(
        self,
        source: Kind = "scenes",
        path: str | None = None,
        *,
        val_path: str | None = None,
        image_size: int = 224,
        batch_size: int = 64,
        val_images: int = 512,
        clip_seconds: float = 4.0,
        fps: float = 24.0,
        gap: tuple[float, float] = (0.13, 1.6),
        past_frames: int = 1,
        past_step: float = 0.2,
        repeat: int = 1,
        two_crops: bool = False,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        max_bad: float | None = None,
        max_megapixels: float = 64.0,
        scenes: Scenes = Scenes(),  # noqa: B008 (frozen)
        **loading: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, max_bad=max_bad, **loading)
        check_source(source, path, get_args(Kind))
        at_least_1(**{"data.image_size": image_size, "data.val_images": val_images})
        at_least_1(**{"data.repeat": repeat, "data.past_frames": past_frames})
        if not 0 < gap[0] <= gap[1]:
            raise UserError(
                f"data.gap is {list(gap)}, but expected two numbers of seconds above 0, the "
                "smaller one first"
            )
        above_0("data.past_step", past_step, "seconds")
        if past_frames == 1:
            refuse_unread(
                "data.past_step", past_step, 0.2, "data.past_frames is 1, so none follows"
            )
        above_0("data.fps", fps, "frames a second")
        self.least_seconds = gap[0] + (past_frames - 1) * past_step
        if source != "shards" and clip_seconds <= self.least_seconds:
            raise UserError(
                f"data.clip_seconds is {clip_seconds:g}, but the past frames and the smallest gap "
                f"take {self.least_seconds:g} s: expected more"
            )
        refuse_overlap(path, val_path)
        # An overlay may put the scenes in place of a recipe's files.
        self.source, self.path = source, path
        self.val_path = None if source == "scenes" else val_path
        self.read_by("frames", fps=fps)
        self.read_by("videos", "frames", clip_seconds=clip_seconds)
        self.image_size, self.val_images = image_size, val_images
        self.clip_seconds, self.fps = clip_seconds, fps
        self.gap, self.past_frames, self.past_step = gap, past_frames, past_step
        self.repeat, self.two_crops = repeat, two_crops
        self.crop_scale, self.crop_ratio = crop_scale, crop_ratio
        self.max_megapixels, self.scenes = max_megapixels, scenes
        self._train: ClipSource | None = None
        self._everything: ClipSource | None = None  # at `path`, to predict
        self._held_out: ClipSource | None = None
        self._held_back: list[str] | None = None

    def prepare_data(self) -> None:
        """Render the clips, or index the videos, in one process, so that others find them."""
        if self.source == "scenes":
            for split in ("train", "val"):
                clip_shards(split, self.scenes, self.clip_seconds)
        elif self.source == "videos" and not (self.trainer and self.trainer.world_size == 1):
            for path in filter(None, (self.path, self.val_path)):
                # What is wrong is said in `setup`, by all processes: none waits for another.
                with suppress(UserError):
                    index_folder(path)

    def setup(self, stage: str) -> None:
        """Open the sources; nothing is decoded yet."""
        if stage == "predict" and self.source != "scenes":
            if self._everything is None:
                self._everything = self._open(self.path or "")
            return
        if self._train is not None or self._held_out is not None:
            return
        if self.source == "scenes":
            what = (self.scenes, self.clip_seconds)
            self._train = SceneSource(RenderedClips("train", *what, geometry=False))
            self._held_out = SceneSource(RenderedClips("val", *what))
            return
        path = self.path or ""
        self._train = everything = self._open(path)
        if self.val_path is not None:
            self._held_out = held_out = self._open(self.val_path, key="data.val_path")
            refuse_copies(everything, held_out, path=path, val_path=self.val_path)
            self._held_back = []
        else:
            self._train, self._held_out = held = hold_out_files(everything)
            self._held_back = sorted({held[1].file(i) for i in range(len(held[1]))})
        lost, count = everything.lost
        if stage == "fit":
            self.judge({*lost}, count, count, of="clips" if self.source == "shards" else "videos")

    def _open(
        self, path: str, *, key: str = "data.path"
    ) -> VideoSource | FrameFolders | PackedClips:
        about: dict[str, Any] = {
            "least": self.least_seconds,
            "frames": self.past_frames + 1,
            "max_megapixels": self.max_megapixels,
            "key": key,
        }
        source: VideoSource | FrameFolders | PackedClips
        if self.source == "shards":
            source = PackedClips(path, **about)
        else:
            about["whole"] = self.least_seconds - self.gap[0] + self.gap[1]
            if self.source == "videos":
                source = VideoSource(path, self.clip_seconds, **about)
            else:
                source = FrameFolders(path, self.fps, self.clip_seconds, **about)
        self.list_bad(source.bad)
        return source

    # --- sets ---------------------------------------------------------------------------------

    @property
    def _choose(self) -> Any:
        return partial(choose_frames, gap=self.gap, past=self.past_frames, step=self.past_step)

    def training_set(self) -> TrainingPairs:
        """Return the samples by their position in the stream."""
        assert self._train is not None
        return TrainingPairs(
            self._train,
            self._choose,
            size=self.image_size,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            seed=self.seed,
            repeat=self.repeat,
            two_crops=self.two_crops,
        )

    def training_pairs(self, count: int) -> Iterator[dict[str, Any]]:
        """Yield the first training samples of the stream, in batches, whichever process asks.

        They are pairs of frames, cut as held-out ones are, whatever is trained on.
        """
        samples = self.training_set()
        samples.two_crops = False
        samples.scale = samples.ratio = (1.0, 1.0)  # the largest square, in the middle
        # By workers: nothing of FFmpeg is opened where they are forked from.
        loader = DataLoader(
            samples, batch_size=self.val_batch_size, sampler=range(count), **self.loader_arguments
        )
        yield from Loader(loader, lambda bad, seen: None)

    def pairs_digest(self) -> str:
        """Return a hash of what `training_pairs` draws from, and of how it draws."""
        clips = repr(self.scenes) if self.source == "scenes" else (self.path, self.fps)
        drawn = (self.gap, self.past_frames, self.past_step, self.repeat, self.seed)
        sizes = (self.clip_seconds, self.image_size)
        return digest_of(self.source, clips, self.listing(), drawn, sizes)

    def evaluation_set(self, stage: str) -> HeldOutPairs:
        """Return a sample of every held-out clip; to predict, of every clip but the scenes'."""
        whole = self._everything if stage == "predict" else None
        source = self._held_out if whole is None else whole
        assert source is not None
        indices = spread(len(source), self.val_images if whole is None else None)
        return HeldOutPairs(source, self._choose, size=self.image_size, indices=indices)

    def samples(self, n: int) -> dict[str, Any]:
        """Return a batch of held-out samples, evenly spread, for pictures."""
        assert self._held_out is not None
        indices = spread(len(self._held_out), n)
        pairs = HeldOutPairs(self._held_out, self._choose, size=self.image_size, indices=indices)
        return pairs.batch()

    @property
    def labelled(self) -> Any:
        """Refuse: clips have no class.

        Raises:
            UserError: Always.
        """
        raise UserError("clips have no class: give OnlineProbe its train and val")

    def evaluated(self, source: Source, indices: list[int] | None = None) -> HeldOutSamples:
        """Return single images of a source, for a probe, each once and centre-cropped."""
        return centre_cropped(source, self.image_size, self.max_megapixels, indices)

    def contents(self) -> dict[str, str]:
        """Return how many clips there are to train on and held out."""
        train, held_out = (len(x) if x is not None else 0 for x in (self._train, self._held_out))
        bad = f"; {len(self.bad):,} unusable" if self.bad else ""
        return {"clips": f"{train:,} to train on, {held_out:,} held out{bad}"}

    def named(self, split: str) -> ClipSource | None:
        """Return the clips that are trained on or held out."""
        return self._train if split == "train" else self._held_out

    def names_of(self, split: str) -> list[str] | None:
        """Return the files at `path` whose clips are held out."""
        return None if split == "train" else self._held_back

    def training_size(self) -> int:
        """Return the number of samples in a pass over the training clips."""
        return len(self._train) * self.repeat if self._train is not None else 0
