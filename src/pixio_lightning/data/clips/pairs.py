"""Samples of clips: past frames and a future one, cut alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixio_lightning.data.clips.source import ClipSource, Frame, SceneSource
from pixio_lightning.data.decode import BadImage, Crop, centre_crop, random_crop, to_tensor
from pixio_lightning.data.samples import HeldOutSamples, TrainingSamples, View, usable
from pixio_lightning.keyed import Purpose, RandomKey, fold, key_of

# Draws the frames of a sample from the times of a clip, the future one last.
Choose = Callable[[Any, RandomKey], list[int]]
_FIXED_STEP = -1  # in which the frames of held-out clips are drawn


def gaps(times: Any, frames: list[int]) -> Tensor:
    """Return the seconds from each past frame to the future one, float32 `(K,)`."""
    return torch.from_numpy(np.asarray(times[frames[-1]] - times[frames[:-1]], np.float32))


def cut_out(frames: list[Frame], crops: list[Crop], size: int, *, mirrored: bool = False) -> Tensor:
    """Cut a box out of each frame, or one out of all, so that nothing moves but what moves.

    Returns:
        uint8 `(V, 3, size, size)`.

    Raises:
        BadImage: The frames differ in size.
    """
    if any(frame.shape != frames[0].shape for frame in frames):
        raise BadImage("frames of different sizes")
    each = crops if len(crops) > 1 else crops * len(frames)
    images = torch.stack([to_tensor(f, c, size) for f, c in zip(frames, each, strict=True)])
    return images.flip(-1) if mirrored else images


class TrainingPairs(TrainingSamples):
    """Past and future frames by their position in the endless stream.

    Args:
        source: The clips.
        choose: Draws the frames.
        size: Side of the crops in pixels.
        scale: Range of a crop's share of the frame's area.
        ratio: Range of its width over its height.
        seed: The run's seed.
        repeat: Samples of one clip that stand in a row of the stream and are read together.
        two_crops: Whether the past is the future frame itself, cut out elsewhere: the control that
            shows what two views do without time.
    """

    def __init__(
        self,
        source: ClipSource,
        choose: Choose,
        *,
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        seed: int,
        repeat: int = 1,
        two_crops: bool = False,
    ) -> None:
        super().__init__(source, _nothing, seed=seed)  # type: ignore[arg-type]
        self.source, self.choose, self.size = source, choose, size
        self.scale, self.ratio = scale, ratio
        self.repeat, self.two_crops = repeat, two_crops
        self._read: tuple[tuple[int, int], dict[int, Frame]] = ((-1, -1), {})

    def locate(self, position: int) -> tuple[int, int]:
        """Return the clip's index, and which of its samples it is, counted through all passes."""
        clip, turn = divmod(position, self.repeat)
        index, epoch = super().locate(clip)
        return index, epoch * self.repeat + turn

    def view(self, index: int, epoch: int) -> View:
        """Return a sample of a clip."""
        name = self.source.name(index)
        key, times = key_of(name), self.source.times(index)
        # Samples of one clip in one step are masked apart.
        turn = epoch % self.repeat

        def view() -> dict[str, Any]:
            frames = self.choose(times, RandomKey(key, self.seed, epoch))
            read = self._frames(index, epoch, key)
            images = self._cut([read[i] for i in frames], RandomKey(key, self.seed, epoch))
            return {
                "past": images[:-1],
                "future": images[-1],
                "gap": gaps(times, frames),
                "key": key_of(f"{name}#{turn}") if turn else key,
            }

        return usable(view, name)

    def _frames(self, index: int, epoch: int, key: int) -> dict[int, Frame]:
        """Return the frames of all samples that stand in a row, decoded once."""
        first = epoch - epoch % self.repeat
        if self._read[0] != (index, first):
            times = self.source.times(index)
            steps = range(first, first + self.repeat)
            chosen = [self.choose(times, RandomKey(key, self.seed, step)) for step in steps]
            wanted = sorted({frame for frames in chosen for frame in frames})
            found = dict(zip(wanted, self.source.read(index, wanted), strict=True))
            self._read = (index, first), found
        return self._read[1]

    def _cut(self, frames: list[Frame], random_key: RandomKey) -> Tensor:
        """Cut a random box out of all frames and mirror them all, or none."""
        height, width, _ = frames[0].shape
        keys = [random_key]
        if self.two_crops:
            frames = frames[-1:] * len(frames)
            keys = [random_key._replace(key=fold(random_key.key, i)) for i in range(len(frames))]
        crops = [
            random_crop(width, height, key, scale=self.scale, ratio=self.ratio) for key in keys
        ]
        mirrored = random_key.uniform(1, Purpose.FLIP)[0] < 0.5
        return cut_out(frames, crops, self.size, mirrored=mirrored)


class HeldOutPairs(HeldOutSamples):
    """A sample of every clip, always the same; and the past of another clip, where there is one.

    That is one of another file, unless all are of one. Of rendered clips also `warp`, the last past
    frame moved by exact flow.

    Args:
        source: The clips.
        choose: Draws the frames.
        size: Side of the frames in pixels, cut from their middle.
        indices: Which of the clips; None takes all.
    """

    def __init__(
        self,
        source: ClipSource,
        choose: Choose,
        *,
        size: int,
        indices: list[int] | None = None,
    ) -> None:
        super().__init__(source, _nothing, indices=indices)  # type: ignore[arg-type]
        self.source, self.choose, self.size = source, choose, size

    def view(self, index: int) -> View:
        """Return the sample of a clip."""
        name, times = self.source.name(index), self.source.times(index)
        key = key_of(name)
        other = self._other(index)

        def view() -> dict[str, Any]:
            frames = self.choose(times, RandomKey(key, 0, _FIXED_STEP))
            images = self._cut(self.source.read(index, frames))
            found = {
                "past": images[:-1],
                "future": images[-1],
                "gap": gaps(times, frames),
            }
            if other is not None:
                found["wrong_past"] = self._past(other)
            if isinstance(self.source, SceneSource):
                found["warp"] = self._cut([self.source.warp(index, *frames[-2:])])[0]
            return found | {"key": key, "video": key_of(self.source.file(index)), "name": name}

        return usable(view, name)

    def _other(self, index: int) -> int | None:
        """Return the clip half of all further on, or the next one that is of another file."""
        n, file = len(self.source), self.source.file(index)
        others = ((index + n // 2 + i) % n for i in range(n))
        foreign = (i for i in others if self.source.file(i) != file)
        return next(foreign, (index + n // 2) % n if n > 1 else None)

    def _past(self, index: int) -> Tensor:
        key = RandomKey(key_of(self.source.name(index)), 0, _FIXED_STEP)
        frames = self.choose(self.source.times(index), key)
        return self._cut(self.source.read(index, frames[:-1]))

    def _cut(self, frames: list[Frame]) -> Tensor:
        height, width, _ = frames[0].shape
        return cut_out(frames, [centre_crop(width, height)], self.size)


def _nothing(*sample: Any) -> Any:
    """Stand for what makes a view of a sample: those of clips are made as they are read."""
    raise NotImplementedError
